#include "xend/roster.h"
#include "base/channel.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "xend/carrier.h"
#include "xend/disks.h"
#include "xend/guest.h"
#include "xend/guest_record.h"
#include "xend/store.h"

#include <dirent.h>
#include <errno.h>
#include <string.h>
#include <time.h>

#define STATUS_MS 2000 /* for a guest of which too little is recorded to say what it is */
#define DYING_MS 3000  /* for all those that are just ending */

struct roster {
	struct xend *xend;
	json_t *records; /* by uuid: the guests' own ones, where they count more than the store */
	unsigned highest_id;
	bool differs;          /* from the store */
	long long dying_until; /* monotonic_ms() */
};

static const struct domain *who_has(const struct xend *xend, unsigned id, const char *name)
{
	for (const struct domain *domain = xend->domains; domain; domain = domain->next)
		if (domain->id == id || (name && strcmp(domain->config.name, name) == 0))
			return domain;
	return NULL;
}

/* Two can have the same only where the store was exchanged for another. */
static int settle_name_and_id(
	struct roster *roster, struct guest_config *config, unsigned *id, struct error *error)
{
	char *name;

	if (!*id || who_has(roster->xend, *id, NULL))
		*id = roster->highest_id + 1;
	if (*id > roster->highest_id)
		roster->highest_id = *id;
	if (!who_has(roster->xend, 0, config->name))
		return 0;
	if (asprintf(&name, "%.100s-%u", config->name, *id) < 0)
		return error_set(error, ENOMEM, "Out of memory.");
	log_warning("Two guests are called '%s'; the one with ID %u is now '%s'.", config->name, *id, name);
	free(config->name);
	config->name = name;
	roster->differs = true;
	return 0;
}

/* Puts a guest into the list, as it was recorded. */
static int take_up(struct roster *roster, const struct stored_domain *stored, struct error *error)
{
	_cleanup_guest_config_ struct guest_config config = {0};
	static const enum domain_phase phases[] = {[STORED_STARTING] = DOMAIN_STARTING,
		[STORED_LIVE] = DOMAIN_LIVE,
		[STORED_ENDING] = DOMAIN_ENDING,
		[STORED_RESTARTING] = DOMAIN_STARTING,
		[STORED_PRESERVED] = DOMAIN_LIVE};
	unsigned id = stored->id;
	struct domain *domain;
	int r = guest_config_from_json(&config, stored->config, error);

	if (r >= 0 && (!config.name || !config.uuid))
		r = error_set(error, EINVAL, "Its configuration lacks its name or its uuid.");
	if (r >= 0)
		r = settle_name_and_id(roster, &config, &id, error);
	if (r < 0)
		return r;
	if (strcmp(config.uuid, stored->uuid) != 0)
		memcpy(config.uuid, stored->uuid, 36);
	disks_set_places(&config, stored->places);
	domain = domain_adopt(roster->xend, &config, id);
	if (!domain)
		return error_set(error, ENOMEM, "Out of memory.");
	domain->found = true;
	domain->phase = phases[stored->phase];
	domain->paused = stored->paused;
	domain->preserved = stored->phase == STORED_PRESERVED;
	domain->again = stored->phase == STORED_RESTARTING;
	/* A 1 is an earlier xend's, which knew no time. */
	domain->restart_wanted_ns =
		stored->restart_wanted_ns == 1 ? boottime_ns() : stored->restart_wanted_ns;
	domain->started_at = stored->started_at;
	domain->booted_ns = stored->booted_ns;
	domain->early_reboots = stored->early_reboots;
	domain->recorded_ns = stored->recorded_ns;
	return 0;
}

/* SQLite's own check sees that a file is whole, not what is in it. */
static bool is_sound(const struct stored_domain *row)
{
	return strlen(row->uuid) == 36 && !strchr(row->uuid, '/') &&
	       (unsigned)row->phase <= STORED_PRESERVED && row->id > 0 &&
	       row->id < CARRIER_UID_BASE - GUEST_UID_BASE;
}

static int visit_row(void *context, const struct stored_domain *row)
{
	struct roster *roster = context;
	struct stored_domain stored = *row, own;
	struct guest_place place;
	json_t *record;
	struct error error;

	if (!is_sound(row)) {
		log_error("What xend's database says of domain '%s' (ID %u) is damaged and left out.",
			row->name, row->id);
		roster->differs = true;
		return 0;
	}
	record = guest_record_read(roster->xend, row->uuid, &own);
	guest_place_of(roster->xend, row->uuid, &place);
	if (record && own.recorded_ns > row->recorded_ns) {
		log_warning("Domain '%s' (ID %u): xend's database is older than what is recorded beside the "
			    "guest; that counts.",
			own.name, own.id);
		stored = own;
		json_object_set(roster->records, row->uuid, record);
		roster->differs = true;
	}
	if (row->id > roster->highest_id)
		roster->highest_id = row->id;
	if ((stored.phase == STORED_LIVE || stored.phase == STORED_PRESERVED) &&
		access(place.directory, F_OK) < 0 && errno == ENOENT) {
		/* Who has ended without xend still has its directory. */
		log_error("Domain '%s' (ID %u) is not here any more: %s is gone. It is not started again.",
			row->name, row->id, place.directory);
		roster->differs = true;
	} else if (take_up(roster, &stored, &error) < 0) {
		/* Perhaps its own record is better; if it has one. */
		log_error("Domain '%s' cannot be taken up again: %s", row->name, error.text);
		roster->differs = true;
	}
	json_decref(record);
	return 0;
}

/* Every guest's process runs as a user of its own (guest.h). 0: this one does not. */
static unsigned id_of(pid_t pid)
{
	char path[64], line[128];
	_cleanup_fclose_ FILE *file = NULL;
	unsigned user = 0;

	snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
	file = fopen(path, "re");
	while (file && fgets(line, sizeof(line), file))
		if (sscanf(line, "Uid: %u", &user) == 1)
			break;
	return user > GUEST_UID_BASE ? user - GUEST_UID_BASE : 0;
}

static bool says(const struct message *status, const char *state)
{
	const char *said = json_string_value(json_object_get(status->body, "state"));

	return said && strcmp(said, state) == 0;
}

/* What its process knows of itself is enough to show, pause, save and end it, not to start it again. One that
 * stands still does so until somebody unpauses it: it may have been another host's. */
static int take_up_by_status(struct roster *roster, const char *uuid, unsigned id,
	const struct message *status, struct error *error)
{
	const json_t *machine = json_object_get(status->body, "machine");
	_cleanup_json_ json_t *config = json_pack("{s:O*, s:s, s:O*, s:O*, s:s, s:s, s:s}", "name",
		json_object_get(machine, "name"), "uuid", uuid, "memory",
		json_object_get(machine, "memory_mib"), "vcpus", json_object_get(machine, "vcpus"),
		"on_poweroff", "destroy", "on_reboot", "preserve", "on_crash", "preserve");
	struct stored_domain stored = {.uuid = uuid,
		.id = id,
		.phase = STORED_LIVE,
		.paused = says(status, "paused"),
		.started_at = time(NULL),
		.booted_ns = boottime_ns(),
		.config = config};

	if (!json_object_get(machine, "name") || says(status, "incoming") || says(status, "empty"))
		return error_set(error, EINVAL, "It has yet to become a guest.");
	return take_up(roster, &stored, error);
}

static void remove_rest(const struct roster *roster, const char *uuid, const struct guest_place *place)
{
	pid_t pid;
	_cleanup_close_ int carrier = process_find(place->carrier, &pid);
	long long left = roster->dying_until - monotonic_ms();

	log_warning("What is left of the guest %s, whose process is no more, is removed.", uuid);
	if (carrier >= 0)
		process_kill_within(carrier, left > 0 ? (int)left : 0);
	guest_place_remove(place);
}

static void visit_without_record(struct roster *roster, const char *uuid, const struct guest_place *place)
{
	_cleanup_message_ struct message status = {0};
	pid_t pid = 0;
	_cleanup_close_ int process = process_find(place->process, &pid);
	struct error error;
	unsigned id;
	int r;

	if (process < 0 && process != -ESRCH) {
		log_error("Whether the guest %s lives cannot be found out: %s. It is left alone; a restart "
			  "of xend "
			  "looks again.",
			uuid, strerror(-process));
		return;
	}
	if (process < 0 || process_wait_while_dying(
				   process, pid, roster->dying_until - monotonic_ms(), NULL) != -ETIMEDOUT) {
		remove_rest(roster, uuid, place);
		return;
	}
	id = id_of(pid);
	if (id > roster->highest_id)
		roster->highest_id = id;
	r = guest_ask_status(place, STATUS_MS, &status, &error);
	if (r >= 0)
		r = take_up_by_status(roster, uuid, id, &status, &error);
	roster->differs = true;
	if (r >= 0)
		log_warning("The guest %s (process %d) runs, and nothing is recorded of it but what its "
			    "process knows: it is taken over without its disks and network devices, and "
			    "cannot be started again by xend.",
			uuid, (int)pid);
	else
		log_error("The process %d of a guest %s is not known, and is left alone: %s When it answers, "
			  "a restart of xend takes it over; to end it, kill it.",
			(int)pid, uuid, error.text);
}

/* A guest that no domain in the list stands for. */
static void visit_directory(struct roster *roster, const char *uuid)
{
	_cleanup_message_ struct message status = {0};
	_cleanup_json_ json_t *record = NULL;
	struct stored_domain stored;
	struct guest_place place;
	struct error error;

	guest_place_of(roster->xend, uuid, &place);
	record = guest_record_read(roster->xend, uuid, &stored);
	/* Whoever runs has become ours, whatever could not be written any more. */
	if (record && stored.phase == STORED_STARTING &&
		guest_ask_status(&place, STATUS_MS, &status, NULL) >= 0 && says(&status, "running"))
		stored.phase = STORED_LIVE;
	if (record && take_up(roster, &stored, &error) < 0) {
		log_error("The record of domain '%s' cannot be used: %s", stored.name, error.text);
		json_decref(take_pointer(record));
	}
	if (!record) {
		visit_without_record(roster, uuid, &place);
		return;
	}
	log_warning("Domain '%s' (ID %u) is not in xend's database, and is taken over as what is recorded "
		    "beside the guest says.",
		stored.name, stored.id);
	json_object_set(roster->records, uuid, record);
	roster->differs = true;
}

static void visit_directories(struct roster *roster)
{
	char path[96];
	struct dirent *entry;
	DIR *directory;

	snprintf(path, sizeof(path), "%s/guests", roster->xend->paths.run);
	directory = opendir(path);
	while (directory && (entry = readdir(directory)))
		if (entry->d_name[0] != '.' && strlen(entry->d_name) == 36 &&
			!domain_by_uuid(roster->xend, entry->d_name))
			visit_directory(roster, entry->d_name);
	if (directory)
		closedir(directory);
}

/* The store as the list is. */
static int rewrite(struct roster *roster, struct error *error)
{
	struct store *store = roster->xend->store;
	const char *uuid;
	json_t *record;
	int r = store_begin(store, true, error);

	if (r < 0)
		return r;
	r = store_drop_domains(store, error);
	json_object_foreach(roster->records, uuid, record) if (r >= 0) r =
		guest_record_restore_tickets(roster->xend, uuid, record, error);
	for (struct domain *domain = roster->xend->domains; r >= 0 && domain; domain = domain->next)
		r = domain_store(domain, error);
	if (r >= 0)
		r = store_commit(store, error);
	if (r < 0)
		store_rollback(store);
	return r;
}

int roster_take_up(struct xend *xend, struct error *error)
{
	_cleanup_json_ json_t *records = json_object();
	struct roster roster = {.xend = xend, .records = records, .dying_until = monotonic_ms() + DYING_MS};
	int r = store_each_domain(xend->store, visit_row, &roster, error);

	if (r < 0)
		return r;
	visit_directories(&roster);
	if (roster.differs)
		r = rewrite(&roster, error);
	if (r >= 0)
		r = store_reserve_ids(xend->store, roster.highest_id + 1, error);
	/* An older xend has written none. */
	for (struct domain *domain = xend->domains; r >= 0 && domain; domain = domain->next)
		guest_record_write(domain);
	return r;
}
