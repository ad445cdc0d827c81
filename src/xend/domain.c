#include "xend/domain.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "xend/disks.h"
#include "xend/endings.h"
#include "xend/guest_disks.h"
#include "xend/guest_record.h"
#include "xend/handover.h"
#include "xend/machine.h"
#include "xend/memory.h"
#include "xend/moves.h"
#include "xend/process.h"
#include "xend/restart.h"
#include "xend/shared_memory.h"
#include "xend/silence.h"
#include "xend/store.h"
#include "xend/supervise.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <time.h>

/* So long nobody is shown who has left. */
#define LEAVING_MS 60000

struct domain *domain_ref(struct domain *domain)
{
	domain->references++;
	return domain;
}

void domain_unref(struct domain *domain)
{
	if (--domain->references)
		return;
	guest_config_free(&domain->config);
	json_decref(domain->warnings);
	free(domain);
}

struct domain *domain_by_uuid(struct xend *xend, const char *uuid)
{
	for (struct domain *domain = xend->domains; domain; domain = domain->next)
		if (strcmp(domain->config.uuid, uuid) == 0)
			return domain;
	return NULL;
}

struct domain *domain_by_name(struct xend *xend, const char *name)
{
	for (struct domain *domain = xend->domains; domain; domain = domain->next)
		if (strcmp(domain->config.name, name) == 0)
			return domain;
	return NULL;
}

int domain_find(struct xend *xend, const char *name_or_id, struct domain **result, struct error *error)
{
	struct domain *domain = domain_by_name(xend, name_or_id);
	char *end;
	unsigned long id = strtoul(name_or_id, &end, 10);

	if (!domain && *name_or_id && !*end)
		for (domain = xend->domains; domain && domain->id != id; domain = domain->next)
			;
	if (!domain || domain_has_left(domain)) {
		int r = error_set(error, ENOENT, "Domain '%s' does not exist.", name_or_id);

		size_t size = strlen(error->text);

		moves_add_destination(
			xend, name_or_id, endings_at(xend, name_or_id), error->text, sizeof(error->text));
		if (strlen(error->text) == size)
			endings_add(xend, name_or_id, error->text, sizeof(error->text));
		return r;
	}
	*result = domain_ref(domain);
	return 0;
}

bool domain_has_left(const struct domain *domain)
{
	return domain->left_ms && monotonic_ms() < domain->left_ms + LEAVING_MS;
}

void domain_await_leavers(struct xend *xend)
{
	long long begin = monotonic_ms(), now = begin, deadline = begin + LEAVING_MS;
	struct domain *domain = xend->domains;

	while (domain && now < deadline) {
		if (!domain_has_left(domain) || domain->left_ms > begin) {
			domain = domain->next;
			continue;
		}
		xend_wait(xend, (int)(deadline - now));
		now = monotonic_ms();
		domain = xend->domains;
	}
}

struct domain *domain_adopt(struct xend *xend, struct guest_config *config, unsigned id)
{
	struct domain *domain = calloc(1, sizeof(*domain)), **at = &xend->domains;

	if (!domain)
		return NULL;
	*domain = (struct domain){.xend = xend,
		.references = 1,
		.id = id,
		.cancel = -1,
		.process = -1,
		.ram = -1,
		.events = -1,
		.question = -1,
		.filling_cancel = -1};
	domain->config = *config;
	*config = (struct guest_config){0};
	while (*at && (*at)->id < id)
		at = &(*at)->next;
	domain->next = *at;
	*at = domain;
	return domain;
}

void domain_to_stored(const struct domain *domain, struct stored_domain *stored)
{
	static const enum stored_phase phases[] = {
		[DOMAIN_STARTING] = STORED_STARTING,
		[DOMAIN_LIVE] = STORED_LIVE,
		[DOMAIN_ENDING] = STORED_ENDING,
		[DOMAIN_GONE] = STORED_ENDING,
	};
	enum stored_phase phase = phases[domain->phase];

	if (phase == STORED_LIVE && domain->preserved)
		phase = STORED_PRESERVED;
	if (phase != STORED_ENDING && domain->again)
		phase = STORED_RESTARTING;
	*stored = (struct stored_domain){
		.uuid = domain->config.uuid,
		.name = domain->config.name,
		.id = domain->id,
		.paused = domain->paused,
		.restart_wanted_ns = domain->restart_wanted_ns,
		.started_at = domain->started_at,
		.phase = phase,
		.booted_ns = domain->booted_ns,
		.early_reboots = domain->early_reboots,
		.recorded_ns = domain->recorded_ns,
	};
}

int domain_store(struct domain *domain, struct error *error)
{
	_cleanup_json_ json_t *config = guest_config_to_json(&domain->config);
	_cleanup_json_ json_t *places = disks_places(&domain->config);
	struct stored_domain stored;
	int r;

	domain_to_stored(domain, &stored);
	stored.recorded_ns = boottime_ns();
	stored.config = config;
	stored.places = places;
	if (!config)
		return error_set(error, ENOMEM, "Out of memory.");
	r = store_put_domain(domain->xend->store, &stored, error);
	if (r >= 0)
		domain->recorded_ns = stored.recorded_ns;
	return r;
}

int domain_record(struct domain *domain, struct error *error)
{
	int r = domain_store(domain, error);

	/* What is not yet committed may never have been. */
	if (r >= 0 && !store_is_busy(domain->xend->store))
		guest_record_write(domain);
	return r;
}

/* Its ID and its record become known together. */
static int enlist(struct xend *xend, struct guest_config *config, struct domain **result, struct error *error)
{
	unsigned id;
	int r = store_begin(xend->store, false, error);

	if (r >= 0)
		r = store_drop_departures(xend->store, config->uuid, error);
	if (r >= 0)
		r = store_drop_namesake(xend->store, config->name, config->uuid, error);
	if (r >= 0)
		r = store_next_id(xend->store, &id, error);
	if (r < 0)
		return r;
	*result = domain_adopt(xend, config, id);
	if (!*result)
		return error_set(error, ENOMEM, "Out of memory.");
	domain_note_start(*result);
	r = domain_store(*result, error);
	return r < 0 ? r : store_commit(xend->store, error);
}

int domain_new(struct xend *xend, struct guest_config *config, struct shared_memory *shared,
	struct domain **result, struct error *error)
{
	struct domain *domain = NULL;
	int r = domain_admit(xend, config, shared, error);

	if (r < 0)
		return r;
	r = enlist(xend, config, &domain, error);
	if (r < 0) {
		store_rollback(xend->store);
		if (domain)
			domain_forget(domain);
		return r;
	}
	domain->shared_memory = shared ? shared_memory_ref(shared) : NULL;
	*result = domain_ref(domain);
	return 0;
}

void domain_forget(struct domain *domain)
{
	struct error error;

	if (domain->phase == DOMAIN_GONE)
		return;
	if (store_drop_domain(domain->xend->store, domain->config.uuid, &error) < 0)
		log_error("%s", error.text);
	domain_unlist(domain);
}

void domain_note_start(struct domain *domain)
{
	domain->started_at = time(NULL);
	domain->booted_ns = boottime_ns();
}

void domain_want_restart(struct domain *domain, bool wanted)
{
	domain->restart_wanted_ns = wanted ? boottime_ns() : 0;
}

bool domain_restart_is_wanted(const struct domain *domain)
{
	return domain->restart_wanted_ns &&
	       boottime_ns() - domain->restart_wanted_ns < RESTART_WANTED_S * INT64_C(1000000000);
}

void domain_unlist(struct domain *domain)
{
	struct domain **at = &domain->xend->domains;

	domain->phase = DOMAIN_GONE;
	while (*at != domain)
		at = &(*at)->next;
	*at = domain->next;
	xend_changed(domain->xend);
	domain_unref(domain);
}

int domain_rename(struct domain *domain, const char *name, struct error *error)
{
	struct domain *other = domain_by_name(domain->xend, name);
	char *copy, *old = domain->config.name;
	int r = guest_name_check(name, error);

	if (r < 0)
		return r;
	if (other && other != domain)
		return error_set(error, EEXIST, "Domain '%s' exists already with ID %u; choose another name.",
			name, other->id);
	copy = strdup(name);
	if (!copy)
		return error_set(error, ENOMEM, "Out of memory.");
	domain->config.name = copy;
	r = store_drop_namesake(domain->xend->store, name, domain->config.uuid, error);
	if (r >= 0)
		r = domain_record(domain, error);
	if (r < 0) {
		domain->config.name = old;
		free(copy);
		return r;
	}
	free(old);
	moves_returned(domain);
	return 0;
}

int domain_check_lives(const struct domain *domain, struct error *error)
{
	const char *doing = domain->phase == DOMAIN_STARTING ? "being started"
			    : domain->phase != DOMAIN_LIVE   ? "being ended"
			    : domain->again                  ? domain->busy
							     : NULL;

	if (doing)
		return error_set(error, EBUSY, "Domain '%s' is %s; wait until that is done.",
			domain->config.name, doing);
	if (domain->preserved || domain->dead || domain->state == GUEST_SHUTDOWN)
		return error_set(error, EBUSY, "Domain '%s' has ended; it can only be renamed or destroyed.",
			domain->config.name);
	return 0;
}

void domain_explain_end(const struct domain *domain, const char *what, struct error *error)
{
	if (domain->state == GUEST_SHUTDOWN || domain->dead ||
		(domain->process >= 0 && process_wait_if_dying(domain->process, domain->pid, 0, NULL) >= 0))
		error_set(error, EIO, "Domain '%s' was not %s: it has ended by itself meanwhile.",
			domain->config.name, what);
}

/* A save or a migration. */
static bool is_on_its_way(const struct domain *domain)
{
	return domain->busy && domain->cancel >= 0 && domain->phase == DOMAIN_LIVE;
}

int domain_check_free(const struct domain *domain, struct error *error)
{
	const char *name = domain->config.name;

	if (is_on_its_way(domain))
		return error_set(error, EBUSY,
			"Domain '%s' is %s; wait until that is done, or end it (xm migrate --cancel %s).",
			name, domain->busy, name);
	if (domain->busy)
		return error_set(
			error, EBUSY, "Domain '%s' is %s; wait until that is done.", name, domain->busy);
	return 0;
}

int domain_begin_job(struct domain *domain, const char *what, int cancel, struct error *error)
{
	int r = domain_check_free(domain, error);

	if (r >= 0)
		r = domain_check_lives(domain, error);
	if (r >= 0)
		r = silence_check(domain, error);
	if (r < 0)
		return r;
	log_info("Domain '%s' (ID %u) is %s.", domain->config.name, domain->id, what);
	domain->busy = what;
	domain->cancel = cancel;
	return 0;
}

void domain_end_job(struct domain *domain)
{
	domain->busy = NULL;
	domain->cancel = -1;
	xend_changed(domain->xend);
	supervise(domain); /* it may have ended meanwhile */
}

static void state_letters(const struct domain *domain, char letters[7])
{
	bool ended = domain->state == GUEST_SHUTDOWN || domain->dead;
	bool crashed = domain->dead || domain->reason == REASON_CRASH || domain->reason == REASON_ERROR;

	memcpy(letters, "------", 7);
	if (domain->state == GUEST_RUNNING && !ended)
		letters[domain->halted ? 1 : 0] = domain->halted ? 'b' : 'r';
	if (domain->state == GUEST_PAUSED || domain->state == GUEST_INCOMING)
		letters[2] = 'p';
	if (ended)
		letters[crashed ? 4 : 3] = crashed ? 'c' : 's';
	if (domain->phase == DOMAIN_ENDING)
		letters[5] = 'd';
}

json_t *domain_describe(const struct domain *domain)
{
	const char *trouble = restart_trouble(domain);
	char letters[7], doubt[512];
	struct error silence;
	json_t *described;

	state_letters(domain, letters);
	described = json_pack("{s:s, s:I, s:s, s:I, s:I, s:s, s:f, s:I, s:o}", "name", domain->config.name,
		"id", (json_int_t)domain->id, "uuid", domain->config.uuid, "memory_mib",
		(json_int_t)domain->config.memory, "vcpus", (json_int_t)domain->config.vcpus, "state",
		letters, "cpu_time_s", (double)domain->cpu_time_ns / 1e9, "started_at",
		(json_int_t)domain->started_at, "config", guest_config_to_json(&domain->config));
	if (domain->doubt) {
		handover_doubt_sentence(domain, doubt, sizeof(doubt));
		json_object_set_new(described, "doubt", json_string(doubt));
	} else if (silence_check(domain, &silence) < 0) {
		json_object_set_new(described, "doubt", json_string(silence.text));
	}
	if (trouble)
		json_object_set_new(described, "trouble",
			json_sprintf("Domain '%s' could not be started again yet: %s", domain->config.name,
				trouble));
	/* Whether it is this host's, another one says. */
	if (domain->handed_over || (domain->phase == DOMAIN_STARTING && domain->state == GUEST_INCOMING))
		json_object_set_new(described, "away", json_true());
	if (domain->busy)
		json_object_set_new(described, "busy", json_string(domain->busy));
	guest_describe_disks(domain, described);
	return described;
}

/* Time the host's CPUs have worked, guests not counted: the first line of /proc/stat (proc(5)), in seconds.
 */
static double host_cpu_time(void)
{
	_cleanup_fclose_ FILE *file = fopen("/proc/stat", "re");
	unsigned long long user, nice, system, idle, wait, irq, softirq, steal, guest = 0;

	if (!file || fscanf(file, "cpu %llu %llu %llu %llu %llu %llu %llu %llu %llu", &user, &nice, &system,
			     &idle, &wait, &irq, &softirq, &steal, &guest) < 8)
		return 0;
	user = user > guest ? user - guest : 0;
	return (double)(user + nice + system + irq + softirq) / (double)sysconf(_SC_CLK_TCK);
}

json_t *domain_describe_host(struct xend *xend)
{
	struct host_memory host = {0};
	struct timespec up = {0};
	uint64_t guests = 0;

	host_memory_read(&host, NULL);
	clock_gettime(CLOCK_BOOTTIME, &up);
	for (struct domain *domain = xend->domains; domain; domain = domain->next)
		guests += domain->config.memory;
	return json_pack("{s:s, s:i, s:s, s:I, s:I, s:s, s:f, s:I, s:{}}", "name", "Domain-0", "id", 0,
		"uuid", "00000000-0000-0000-0000-000000000000", "memory_mib",
		(json_int_t)(host.total_kib / 1024 > guests ? host.total_kib / 1024 - guests : 0), "vcpus",
		(json_int_t)sysconf(_SC_NPROCESSORS_ONLN), "state", "r-----", "cpu_time_s", host_cpu_time(),
		"started_at", (json_int_t)(time(NULL) - up.tv_sec), "config");
}

json_t *domain_pack(const struct domain *domain)
{
	return json_pack("{s:s, s:s, s:I, s:I, s:b, s:b, s:o}", "name", domain->config.name, "uuid",
		domain->config.uuid, "memory_mib", (json_int_t)domain->config.memory, "vcpus",
		(json_int_t)domain->config.vcpus, "paused", domain->paused, "restart_wanted",
		domain_restart_is_wanted(domain), "config", guest_config_to_json(&domain->config));
}

bool domain_packed_restart(const json_t *json)
{
	return json_is_true(json_object_get(json, "restart_wanted"));
}

int domain_unpack(const json_t *json, struct guest_config *config, bool *paused, struct error *error)
{
	const json_t *inside = json_object_get(json, "config"), *name = json_object_get(json, "name"),
		     *uuid = json_object_get(json, "uuid"), *memory = json_object_get(json, "memory_mib");
	int r;

	if (!json_is_object(inside))
		return error_set(error, EINVAL, "The guest's description holds no configuration.");
	r = guest_config_from_json(config, inside, error);
	if (r >= 0 && (!config->name || !config->uuid))
		r = error_set(error, EINVAL, "The guest's configuration lacks its name or its uuid.");
	for (size_t i = 0; r >= 0 && i < config->vif_count; i++)
		if (!config->vifs[i].has_mac)
			r = error_set(error, EINVAL,
				"The guest's configuration lacks the MAC of network device %zu.", i);
	if (r >= 0)
		r = guest_config_complete(config, error);
	if (r < 0)
		return r;
	if (!json_is_string(name) || strcmp(json_string_value(name), config->name) != 0 ||
		!json_is_string(uuid) || strcmp(json_string_value(uuid), config->uuid) != 0 ||
		!json_is_integer(memory) || (uint64_t)json_integer_value(memory) != config->memory)
		return error_set(error, EINVAL,
			"The guest's description contradicts itself: name, uuid or memory differ from its "
			"configuration.");
	*paused = json_is_true(json_object_get(json, "paused"));
	return 0;
}
