#include "xend/guest_record.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "xend/disks.h"
#include "xend/guest.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#define TICKETS_MAX 64 /* the latest: a guest may have come here often */

static const char *const phases[] = {[STORED_STARTING] = "starting",
	[STORED_LIVE] = "live",
	[STORED_ENDING] = "ending",
	[STORED_RESTARTING] = "restarting",
	[STORED_PRESERVED] = "preserved"};
static const char *const states[] = {
	[TICKET_COMMITTED] = "committed",
	[TICKET_GONE] = "gone",
	[TICKET_RECEIVING] = "receiving",
	[TICKET_RECEIVED] = "received",
	[TICKET_OWNED] = "owned",
	[TICKET_REFUSED] = "refused",
};

static int find(const char *const *words, size_t count, const char *word)
{
	for (size_t i = 0; i < count; i++)
		if (words[i] && strcmp(words[i], word) == 0)
			return (int)i;
	return -1;
}

struct tickets {
	const char *uuid;
	json_t *list;
};

static int add_ticket(void *context, const struct stored_ticket *ticket)
{
	struct tickets *tickets = context;

	if (strcmp(ticket->uuid, tickets->uuid) != 0)
		return 0;
	json_array_append_new(tickets->list,
		json_pack("{s:s, s:s, s:s, s:i, s:s, s:s, s:s}", "ticket", ticket->ticket, "state",
			states[ticket->state], "host", ticket->host, "port", (int)ticket->port, "address",
			ticket->address, "fingerprint", ticket->fingerprint, "records", ticket->records));
	if (json_array_size(tickets->list) > TICKETS_MAX)
		json_array_remove(tickets->list, 0);
	return 0;
}

/* A run directory that outlived its boot is of guests that did not. */
static json_t *this_boot(void)
{
	_cleanup_fclose_ FILE *file = fopen("/proc/sys/kernel/random/boot_id", "re");
	char id[64];

	return json_string(file && fscanf(file, "%63s", id) == 1 ? id : "");
}

static json_t *pack(const struct domain *domain)
{
	_cleanup_json_ json_t *config = guest_config_to_json(&domain->config);
	_cleanup_json_ json_t *places = disks_places(&domain->config);
	_cleanup_json_ json_t *list = json_array();
	struct tickets tickets = {domain->config.uuid, list};
	struct stored_domain stored;

	domain_to_stored(domain, &stored);
	if (store_each_ticket(domain->xend->store, add_ticket, &tickets, NULL) < 0)
		return NULL;
	return json_pack("{s:i, s:o, s:s, s:s, s:I, s:s, s:b, s:I, s:I, s:I, s:i, s:I, s:O, s:O, s:O}",
		"version", 1, "boot", this_boot(), "uuid", stored.uuid, "name", stored.name, "id",
		(json_int_t)stored.id, "phase", phases[stored.phase], "paused", stored.paused,
		"restart_wanted_ns", (json_int_t)stored.restart_wanted_ns, "booted_ns",
		(json_int_t)stored.booted_ns, "early_reboots", (int)stored.early_reboots, "started_at",
		(json_int_t)stored.started_at, "recorded_ns", (json_int_t)stored.recorded_ns, "config",
		config, "places", places, "tickets", list);
}

void guest_record_write(const struct domain *domain)
{
	_cleanup_json_ json_t *record = NULL;
	struct guest_place place;
	char new[sizeof(place.domain) + 4];

	guest_place_of(domain->xend, domain->config.uuid, &place);
	if (access(place.directory, F_OK) < 0)
		return;
	snprintf(new, sizeof(new), "%s.new", place.domain);
	record = pack(domain);
	if (record && json_dump_file(record, new, JSON_COMPACT) == 0 && rename(new, place.domain) == 0)
		return;
	log_warning("What xend knows of domain '%s' could not be written to %s: %s.", domain->config.name,
		place.domain, strerror(errno));
	/* What it said before may be wrong by now. */
	unlink(new);
	unlink(place.domain);
}

json_t *guest_record_read(const struct xend *xend, const char *uuid, struct stored_domain *stored)
{
	_cleanup_json_ json_t *boot = this_boot();
	json_t *record, *config, *places;
	json_int_t id, started_at, recorded_ns, restart_wanted_ns, booted_ns;
	struct guest_place place;
	int version, paused, early_reboots;
	const char *name, *phase;

	guest_place_of(xend, uuid, &place);
	record = json_load_file(place.domain, 0, NULL);
	if (!record)
		return NULL;
	if (json_unpack(record, "{s:i, s:s, s:I, s:s, s:b, s:I, s:I, s:i, s:I, s:I, s:o, s:o}", "version",
		    &version, "name", &name, "id", &id, "phase", &phase, "paused", &paused,
		    "restart_wanted_ns", &restart_wanted_ns, "booted_ns", &booted_ns, "early_reboots",
		    &early_reboots, "started_at", &started_at, "recorded_ns", &recorded_ns, "config", &config,
		    "places", &places) < 0 ||
		version != 1 || !json_equal(json_object_get(record, "boot"), boot) ||
		find(phases, ARRAY_SIZE(phases), phase) < 0 || id <= 0 || id > UINT32_MAX) {
		json_decref(record);
		return NULL;
	}
	/* A guest that was set aside has a directory of another name than when this was written. */
	*stored = (struct stored_domain){.uuid = uuid,
		.name = name,
		.id = (unsigned)id,
		.phase = (enum stored_phase)find(phases, ARRAY_SIZE(phases), phase),
		.paused = paused,
		.restart_wanted_ns = restart_wanted_ns,
		.booted_ns = booted_ns,
		.early_reboots = (unsigned)early_reboots,
		.started_at = started_at,
		.config = config,
		.places = places,
		.recorded_ns = recorded_ns};
	return record;
}

int guest_record_restore_tickets(
	struct xend *xend, const char *uuid, const json_t *record, struct error *error)
{
	const json_t *tickets = json_object_get(record, "tickets"), *ticket;
	int r = store_drop_departures(xend->store, uuid, error);

	for (size_t i = 0; r >= 0 && i < json_array_size(tickets); i++) {
		struct stored_ticket stored = {.uuid = uuid};
		const char *state;
		int port, found;

		ticket = json_array_get(tickets, i);
		if (json_unpack((json_t *)ticket, "{s:s, s:s, s:s, s:i, s:s, s:s, s:s}", "ticket",
			    &stored.ticket, "state", &state, "host", &stored.host, "port", &port, "address",
			    &stored.address, "fingerprint", &stored.fingerprint, "records",
			    &stored.records) < 0 ||
			(found = find(states, ARRAY_SIZE(states), state)) < 0)
			continue;
		stored.state = (enum ticket_state)found;
		stored.port = (unsigned)port;
		r = store_put_ticket(xend->store, &stored, error);
	}
	return r;
}
