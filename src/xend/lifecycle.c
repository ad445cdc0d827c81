#include "xend/lifecycle.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "xend/boot_check.h"
#include "xend/boot_files.h"
#include "xend/disks.h"
#include "xend/endings.h"
#include "xend/guest.h"
#include "xend/guest_disks.h"
#include "xend/host_network.h"
#include "xend/machine.h"
#include "xend/moves.h"
#include "xend/network.h"
#include "xend/peers.h"
#include "xend/store.h"
#include "xend/supervise.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/pidfd.h>

/* A KVM that cannot run the guest says so right after the start, and a guest that cannot boot crashes soon:
 * xm create waits that long for it, less long for a guest that has nothing to do by then. */
#define FIRST_STEPS_MS 1000
#define LEAST_STEPS_MS 150
#define LOOK_MS 50
#define IDLE_NS 10000000
#define DESTROY_MS 120000 /* for a job that is to give the domain free first */

static int check_disks(const struct guest_config *config, enum disk_lock lock, struct error *error)
{
	/* All at once, as the guest has them: one that is named twice is in use the second time. */
	int fds[GUEST_DISKS_MAX], r = 0;
	size_t opened = 0;

	for (size_t i = 0; r >= 0 && i < config->disk_count && i < GUEST_DISKS_MAX; i++) {
		r = disk_open(&config->disks[i], config->name, lock, error);
		if (r >= 0)
			fds[opened++] = r;
		else if (r == -ENOMEDIUM && config->disks[i].cdrom)
			r = 0;
	}
	while (opened)
		close(fds[--opened]);
	return r < 0 ? r : 0;
}

static int check_vifs(struct xend *xend, const struct guest_config *config, struct error *error)
{
	int r = 0;

	for (unsigned i = 0; r >= 0 && i < config->vif_count; i++) {
		struct vif_place place = {.scripts = xend->paths.scripts,
			.vif_script = xend->config.vif_script,
			.network_script = xend->config.network_script,
			.trouble = host_network_trouble(xend),
			.domain = config->name,
			.number = i};

		r = vif_check(&config->vifs[i], &place, error);
	}
	return r;
}

int lifecycle_check(struct xend *xend, struct guest_config *config, struct error *error)
{
	int r = machine_check(config, error);

	domain_await_leavers(xend);
	if (r >= 0)
		r = disks_look(xend, config, 0, -1, error);
	if (r >= 0)
		r = domain_admit(xend, config, false, error);
	if (r >= 0)
		r = check_vifs(xend, config, error);
	if (r >= 0)
		r = boot_files_check(xend, config, error);
	if (r >= 0)
		r = boot_check(xend, config, error);
	if (r < 0)
		return r;
	xend_unlock(xend);
	r = check_disks(config, DISK_LOCK_NOW, error);
	xend_lock(xend);
	return r;
}

int lifecycle_check_restart(struct domain *domain, struct error *error)
{
	_cleanup_guest_config_ struct guest_config config = {0};
	_cleanup_json_ json_t *copy = guest_config_to_json(&domain->config);
	enum guest_action action = domain->config.on_reboot;
	struct xend *xend = domain->xend;
	int r;

	if (action == ACTION_DESTROY || action == ACTION_COREDUMP_DESTROY || action == ACTION_PRESERVE)
		return 0;
	r = guest_config_from_json(&config, copy, error);
	if (r >= 0)
		r = check_vifs(xend, &config, error);
	if (r >= 0)
		r = boot_files_check(xend, &config, error);
	if (r >= 0)
		r = boot_check(xend, &config, error);
	if (r < 0)
		return r;
	xend_unlock(xend);
	r = check_disks(&config, DISK_LOCK_HELD, error);
	xend_lock(xend);
	return r;
}

/* How long somebody waits for an end, which takes as long as the kernel holds the process. */
static long long end_patience_ms(const struct xend *xend)
{
	return xend->config.storage_timeout ? (long long)xend->config.storage_timeout * 1000 : LLONG_MAX;
}

/* Until nothing is left of the domain, or it has taken too long. Lets go of the lock. */
static int await_end_since(struct domain *domain, long long since, struct error *error)
{
	long long patience = end_patience_ms(domain->xend), left = patience;

	while (domain->phase != DOMAIN_GONE && (left = since + (patience - monotonic_ms())) > 0)
		xend_wait(domain->xend, left < INT_MAX ? (int)left : INT_MAX);
	if (domain->phase == DOMAIN_GONE)
		return 0;
	if (!guest_has_process(domain))
		return error_set(error, EBUSY,
			"Domain '%s' is ended, but what belonged to it has yet to be taken away: as a rule "
			"its "
			"vif-script has not ended, or a carrier waits for storage. Until that is done, its "
			"name, memory "
			"and disks are taken, and xm list shows it.",
			domain->config.name);
	return error_set(error, EBUSY,
		"Domain '%s' is ended, but its process %d has yet to end: the kernel does not let go of it, "
		"as a "
		"rule because of storage that does not answer. Until it does, its name, memory and disks are "
		"taken, and xm list shows it.",
		domain->config.name, (int)domain->pid);
}

int lifecycle_await_end(struct domain *domain, struct error *error)
{
	return await_end_since(domain, monotonic_ms(), error);
}

static void end_for_good(void *argument)
{
	_cleanup_domain_ struct domain *domain = argument;
	long long begin = monotonic_ms(), took_ms;

	guest_end(domain);
	took_ms = monotonic_ms() - begin;
	if (took_ms >= end_patience_ms(domain->xend))
		log_info("Domain '%s' (ID %u): its process has ended after %lld s; nothing is left of it.",
			domain->config.name, domain->id, took_ms / 1000);
	domain->busy = NULL;
	domain_forget(domain);
}

/* Of a domain that never became LIVE, or shall be no more: everything goes, whatever holds its process. */
static void discard(struct domain *listed)
{
	/* The caller may have none but that of the list of domains, which it leaves meanwhile. */
	_cleanup_domain_ struct domain *domain = domain_ref(listed);
	long long begin = monotonic_ms();
	struct error error;

	domain->phase = DOMAIN_ENDING;
	domain->cancel = -1;
	if (!domain->busy)
		domain->busy = "being ended";
	if (xend_worker(domain->xend, end_for_good, domain_ref(domain), NULL) < 0)
		end_for_good(domain); /* the reference is its */
	else if (await_end_since(domain, begin, &error) < 0)
		log_warning("%s", error.text);
}

static int go_live(struct domain *domain, bool paused, struct error *error)
{
	domain->paused = paused;
	domain->phase = DOMAIN_LIVE;
	return domain_record(domain, error);
}

static bool has_ended(const struct domain *domain)
{
	return domain->state == GUEST_SHUTDOWN || domain->dead;
}

static void wait_unless_ended(struct domain *domain, long long deadline)
{
	long long left;

	while (!has_ended(domain) && (left = deadline - monotonic_ms()) > 0)
		xend_wait(domain->xend, (int)left);
	/* What the guest has said of it may not have been heard yet. */
	if (!has_ended(domain))
		guest_refresh_one(domain, NULL);
}

/* One that does not answer in time has been told all the same (silence.h). */
static int unless_silent(int r, const struct error *error)
{
	if (r != -ETIMEDOUT)
		return r;
	log_warning("%s", error->text);
	return 0;
}

/* It runs, or will: to end it for its silence might be the end of one that has written to its disks. */
static int let_run(struct domain *domain, bool announce, struct error *error)
{
	return unless_silent(guest_resume(domain, announce, error), error);
}

/* Lets the guest run and watches its first steps. */
static int first_run(struct domain *domain, struct error *error)
{
	long long begin = monotonic_ms();
	bool was_idle = false, is_idle = false;
	int r = let_run(domain, false, error);
	uint64_t used_ns;

	if (r < 0 || domain->silent_ms)
		return r;
	wait_unless_ended(domain, begin + LEAST_STEPS_MS);
	while (!has_ended(domain) && !(was_idle && is_idle) && monotonic_ms() < begin + FIRST_STEPS_MS) {
		was_idle = domain->halted;
		used_ns = domain->cpu_time_ns;
		wait_unless_ended(domain, monotonic_ms() + LOOK_MS);
		is_idle = domain->halted && domain->cpu_time_ns - used_ns < IDLE_NS;
	}
	if (r >= 0 && domain->state == GUEST_SHUTDOWN && domain->reason == REASON_ERROR)
		return error_set(error, EIO, "Domain '%s' cannot run on this host: %s", domain->config.name,
			*domain->detail ? domain->detail : "its process gave no reason.");
	return r;
}

/* It is ended like one that crashes later on. */
static int tell_early_end(struct domain *domain, struct error *error)
{
	const char *name = domain->config.name;

	if (domain->state == GUEST_SHUTDOWN && domain->reason == REASON_CRASH)
		return error_set(error, EIO,
			"Domain '%s' has started, and crashed at once: %s xm log %s shows the last of its "
			"console.",
			name, *domain->detail ? domain->detail : "it gave no reason.", name);
	if (domain->dead && domain->state != GUEST_SHUTDOWN)
		return error_set(error, EIO,
			"Domain '%s' has started, and its process ended at once; xm log %s tells more.", name,
			name);
	return 0;
}

int lifecycle_create(struct xend *xend, struct guest_config *config, bool paused, struct domain **result,
	struct error *error)
{
	_cleanup_domain_ struct domain *domain = NULL;
	int r = machine_check(config, error);

	domain_await_leavers(xend);
	if (r >= 0)
		r = check_vifs(xend, config, error);
	if (r >= 0)
		r = disks_look(xend, config, 0, -1, error);
	if (r >= 0)
		r = domain_new(xend, config, NULL, &domain, error);
	if (r < 0)
		return r;
	domain->busy = "being started";
	r = peers_ask(domain, error);
	if (r >= 0)
		r = guest_start(domain, GUEST_BOOT, NULL, error);
	if (r >= 0)
		r = go_live(domain, paused, error);
	if (r >= 0 && !paused)
		r = first_run(domain, error);
	if (r < 0) {
		discard(domain);
		return r;
	}
	moves_returned(domain);
	log_info("Domain '%s' has started with ID %u.", domain->config.name, domain->id);
	r = tell_early_end(domain, error);
	domain_end_job(domain);
	if (r < 0)
		return r;
	*result = take_pointer(domain);
	return 0;
}

int lifecycle_start_again(struct domain *domain, struct error *error)
{
	struct guest_config *config = &domain->config;
	int r = machine_check(config, error);

	domain_await_leavers(domain->xend);
	if (r >= 0)
		r = check_vifs(domain->xend, config, error);
	if (r >= 0)
		r = disks_look(domain->xend, config, 0, -1, error);
	if (r >= 0)
		r = domain_admit_again(domain, error);
	/* While no xend was here, nobody was told that this host has it. Who asks from now on is. */
	if (r >= 0 && domain->found)
		r = peers_ask(domain, error);
	domain_note_start(domain);
	if (r >= 0)
		r = guest_start(domain, GUEST_BOOT, NULL, error);
	if (r < 0) {
		guest_end(domain);
		return r;
	}
	domain->again = false;
	domain->found = false;
	r = go_live(domain, false, error);
	if (r >= 0)
		r = let_run(domain, false, error);
	if (r < 0) {
		guest_end(domain);
		domain->phase = DOMAIN_STARTING;
		domain->again = true;
		domain_record(domain, NULL);
		return r;
	}
	domain->in_trouble = false;
	*domain->detail = 0;
	log_info("Domain '%s' has started with ID %u.", config->name, domain->id);
	domain_end_job(domain);
	return 0;
}

int lifecycle_expect(struct xend *xend, struct guest_config *config, bool paused,
	enum guest_beginning beginning, struct shared_memory *shared, struct guest_memory_user *memory_user,
	int cancel, struct domain **result, struct error *error)
{
	_cleanup_domain_ struct domain *domain = NULL;
	int r;

	domain_await_leavers(xend);
	r = check_vifs(xend, config, error);
	if (r >= 0)
		r = disks_look(xend, config, 0, cancel, error);
	if (r >= 0)
		r = domain_new(xend, config, shared, &domain, error);
	if (r < 0)
		return r;
	domain->busy = beginning == GUEST_RECEIVE ? "being received" : "being restored";
	domain->cancel = cancel;
	domain->paused = paused;
	domain->arrived = true;
	/* A source that sends a guest has it, of course. */
	if (beginning != GUEST_RECEIVE)
		r = peers_ask(domain, error);
	if (r >= 0)
		r = guest_start(domain, beginning, memory_user, error);
	if (r < 0) {
		discard(domain);
		return r;
	}
	*result = take_pointer(domain);
	return 0;
}

int lifecycle_arrived(struct domain *domain, struct error *error)
{
	int r = domain->phase == DOMAIN_LIVE ? 0 : go_live(domain, domain->paused, error);

	if (r >= 0)
		r = domain->paused ? unless_silent(guest_refresh_one(domain, error), error)
				   : let_run(domain, true, error);
	if (r >= 0) {
		moves_returned(domain);
		domain_end_job(domain);
	}
	return r;
}

int lifecycle_record_end(struct domain *domain, struct error *error)
{
	enum domain_phase before = domain->phase;
	int r;

	domain->phase = DOMAIN_ENDING;
	r = domain_record(domain, error);
	if (r < 0)
		domain->phase = before;
	return r;
}

/* Recorded first: a next xend then finishes it, rather than let it run again. */
static void begin_end(struct domain *domain)
{
	struct error error;

	if (domain->phase != DOMAIN_ENDING && lifecycle_record_end(domain, &error) < 0)
		log_error("%s", error.text);
	domain->phase = DOMAIN_ENDING;
	log_info("Domain '%s' (ID %u) is gone.", domain->config.name, domain->id);
}

void lifecycle_leave(struct domain *domain)
{
	begin_end(domain);
	xend_unlock(domain->xend);
	guest_unlock_disks(domain);
	xend_lock(domain->xend);
	if (domain->process >= 0)
		pidfd_send_signal(domain->process, SIGKILL, NULL, 0);
	domain->left_ms = monotonic_ms();
}

void lifecycle_finish(struct domain *domain)
{
	if (!domain->left_ms)
		begin_end(domain);
	discard(domain);
}

int lifecycle_destroy(struct domain *domain, struct error *error)
{
	struct xend *xend = domain->xend;
	long long begin = monotonic_ms(), left;

	while (domain->busy && domain->phase != DOMAIN_GONE) {
		if (domain->phase == DOMAIN_ENDING)
			return await_end_since(domain, begin, error);
		domain->no_successor = !domain->handed_over;
		if (domain->handed_over)
			return error_set(error, EBUSY,
				"Domain '%s' has been handed over to another host that has not yet confirmed "
				"it; this is settled as "
				"soon as that host answers (xm migrate --resolve %s tells more).",
				domain->config.name, domain->config.name);
		/* One that is being started again: neither it nor its successor. */
		xend_changed(xend);
		if (domain->cancel >= 0)
			eventfd_write(domain->cancel, 1);
		else if (domain->phase == DOMAIN_STARTING && domain->process >= 0)
			pidfd_send_signal(domain->process, SIGKILL, NULL, 0);
		left = begin + DESTROY_MS - monotonic_ms();
		if (left <= 0) {
			/* Of what did not happen nothing is left: it may reboot some day. */
			domain->no_successor = domain->again;
			return error_set(error, EBUSY,
				"Domain '%s' is not destroyed yet: it is still %s, which has not ended "
				"within %d s.%s",
				domain->config.name, domain->busy, DESTROY_MS / 1000,
				domain->again ? " It will not be started again." : "");
		}
		xend_wait(xend, (int)left);
	}
	if (domain->phase == DOMAIN_GONE)
		return 0;
	if (domain->phase != DOMAIN_LIVE)
		return error_set(error, EBUSY, "Domain '%s' is being ended already.", domain->config.name);
	/* A next xend would have it go on, or start it again. */
	domain->no_successor = false;
	if (lifecycle_record_end(domain, error) < 0)
		return error_prefix(error, "Domain '%s' is not destroyed: ", domain->config.name);
	log_info("Domain '%s' (ID %u) is being destroyed.", domain->config.name, domain->id);
	domain->busy = "being destroyed";
	ending_by_order(domain, "destroyed", NULL, NULL);
	lifecycle_finish(domain);
	return await_end_since(domain, begin, error);
}
