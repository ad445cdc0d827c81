#include "xend/supervise.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "xend/guest.h"
#include "xend/lifecycle.h"

#include <string.h>
#include <time.h>

static enum guest_reason reason_of(const struct domain *domain)
{
	if (domain->state == GUEST_SHUTDOWN)
		return domain->reason;
	return domain->dead ? REASON_CRASH : REASON_NONE;
}

static enum guest_action action_for(const struct domain *domain, enum guest_reason reason)
{
	if (domain->lost)
		return ACTION_DESTROY;
	switch (reason) {
	case REASON_POWEROFF:
		return domain->restart_wanted ? domain->config.on_reboot : domain->config.on_poweroff;
	case REASON_REBOOT:
		return domain->config.on_reboot;
	default:
		return domain->config.on_crash;
	}
}

static void log_end(const struct domain *domain, enum guest_reason reason, enum guest_action action)
{
	static const char *const words[] = {
		[REASON_POWEROFF] = "has powered off",
		[REASON_REBOOT] = "has rebooted",
		[REASON_CRASH] = "has crashed",
		[REASON_ERROR] = "cannot go on",
	};

	if (domain->dead && domain->state != GUEST_SHUTDOWN)
		log_error("Domain '%s' (ID %u): its process has ended unexpectedly: %s.", domain->config.name,
			domain->id, guest_action_name(action));
	else if (reason == REASON_ERROR || reason == REASON_CRASH)
		log_error("Domain '%s' (ID %u) %s: %s %s.", domain->config.name, domain->id, words[reason],
			*domain->detail ? domain->detail : "no more is known.", guest_action_name(action));
	else
		log_info("Domain '%s' (ID %u) %s: %s.", domain->config.name, domain->id, words[reason],
			guest_action_name(action));
}

static bool restarts(enum guest_action action)
{
	return action == ACTION_RESTART || action == ACTION_RENAME_RESTART ||
	       action == ACTION_COREDUMP_RESTART;
}

/* By itself, right after it was booted. */
static bool ended_early(const struct domain *domain)
{
	int64_t ran = time(NULL) - domain->started_at;

	return !domain->restart_wanted && !domain->arrived && ran >= 0 && ran < RESTART_MINIMUM_S;
}

/* The disks that a kept guest goes on holding, its successor could not have. */
static bool can_be_kept_beside(const struct domain *domain)
{
	for (size_t i = 0; i < domain->config.disk_count; i++)
		if (domain->config.disks[i].mode == DISK_WRITE)
			return false;
	return !domain->dead;
}

static void keep(struct domain *domain)
{
	struct error error;

	domain->preserved = true;
	if (domain_record(domain, &error) < 0)
		log_error("%s", error.text);
}

/* A guest that ends right after its start would be started for ever. One that reboots may have been told to,
 * by somebody in it or by what it has just installed: that is a loop only when it goes on. */
static bool in_a_loop(const struct domain *domain, enum guest_reason reason)
{
	return ended_early(domain) && (reason != REASON_REBOOT || domain->early_reboots >= EARLY_REBOOTS_MAX);
}

/* Lets go of the lock. */
static void restart(struct domain *domain, enum guest_action action)
{
	_cleanup_guest_config_ struct guest_config config = {0};
	_cleanup_json_ json_t *copy = guest_config_to_json(&domain->config);
	_cleanup_domain_ struct domain *successor = NULL;
	struct xend *xend = domain->xend;
	unsigned early_reboots = ended_early(domain) ? domain->early_reboots + 1 : 0;
	struct error error;
	int r = guest_config_from_json(&config, copy, &error);

	if (r >= 0 && action == ACTION_RENAME_RESTART && can_be_kept_beside(domain)) {
		r = lifecycle_set_aside(domain, &error);
		if (r >= 0)
			keep(domain);
	} else if (r >= 0) {
		lifecycle_finish(domain);
	}
	if (r >= 0)
		r = lifecycle_create(xend, &config, false, true, &successor, &error);
	if (r >= 0)
		successor->early_reboots = early_reboots;
	else
		log_error("Domain '%s' is not started again: %s", domain->config.name, error.text);
}

static void end_of_guest(void *argument)
{
	_cleanup_domain_ struct domain *domain = argument;
	enum guest_reason reason = reason_of(domain);
	enum guest_action action = action_for(domain, reason);

	log_end(domain, reason, action);
	if (restarts(action) && in_a_loop(domain, reason)) {
		log_error("Domain '%s' ended within %d s of its start and is not started again.",
			domain->config.name, RESTART_MINIMUM_S);
		action = ACTION_DESTROY;
	}
	if (action == ACTION_PRESERVE && !domain->dead) {
		keep(domain);
		domain->busy = NULL;
		xend_changed(domain->xend);
	} else if (restarts(action)) {
		restart(domain, action);
	} else {
		lifecycle_finish(domain);
	}
}

void supervise(struct domain *domain)
{
	struct error error;

	if (domain->phase != DOMAIN_LIVE || domain->busy || domain->xend->stopping ||
		reason_of(domain) == REASON_NONE)
		return;
	if (domain->preserved && !domain->dead)
		return;
	domain->busy = "being ended";
	if (xend_worker(domain->xend, end_of_guest, domain_ref(domain), &error) < 0) {
		log_error("Domain '%s': %s", domain->config.name, error.text);
		domain->busy = NULL;
		domain_unref(domain);
	}
}
