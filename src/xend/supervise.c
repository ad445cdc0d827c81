#include "xend/supervise.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "xend/endings.h"
#include "xend/guest.h"
#include "xend/lifecycle.h"
#include "xend/restart.h"

#include <string.h>

#define LOOK_AGAIN_S 1 /* while there is no worker */

static enum guest_reason reason_of(const struct domain *domain)
{
	if (domain->state == GUEST_SHUTDOWN)
		return domain->reason;
	return domain->dead ? REASON_CRASH : REASON_NONE;
}

static enum guest_action action_for(const struct domain *domain, enum guest_reason reason)
{
	if (domain->lost || domain->ended_before ||
		domain->preserved) /* preserved: looked at, and not started again */
		return ACTION_DESTROY;
	switch (reason) {
	case REASON_POWEROFF:
		return domain_restart_is_wanted(domain) ? domain->config.on_reboot
							: domain->config.on_poweroff;
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

	if (domain->ended_before)
		log_info("Domain '%s' (ID %u) had been ended, which could not be recorded.",
			domain->config.name, domain->id);
	else if (domain->dead && domain->state != GUEST_SHUTDOWN)
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
	int64_t ran_ns = boottime_ns() - domain->booted_ns;

	return !domain_restart_is_wanted(domain) && !domain->arrived &&
	       ran_ns < RESTART_MINIMUM_S * INT64_C(1000000000);
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
	/* A reboot is no end of the guest. */
	if (!restarts(action) || reason == REASON_CRASH || reason == REASON_ERROR)
		ending_by_itself(domain, guest_action_name(action));
	if (action == ACTION_PRESERVE && !domain->dead) {
		keep(domain);
		domain->busy = NULL;
		xend_changed(domain->xend);
	} else if (restarts(action)) {
		if (action == ACTION_RENAME_RESTART && !can_be_kept_beside(domain))
			log_warning("Domain '%s' (ID %u) is not kept: %s.", domain->config.name, domain->id,
				domain->dead ? "its process has ended"
					     : "its successor needs the disks that it writes to");
		restart_guest(domain, action == ACTION_RENAME_RESTART && can_be_kept_beside(domain),
			ended_early(domain) ? domain->early_reboots + 1 : 0);
	} else {
		lifecycle_finish(domain);
	}
}

/* An earlier xend had decided to start it again. */
static void resume_restart(void *argument)
{
	_cleanup_domain_ struct domain *domain = argument;

	restart_guest(domain, false, domain->early_reboots);
}

static void look_again(evutil_socket_t fd, short what, void *argument)
{
	struct xend *xend = argument;

	(void)fd;
	(void)what;
	xend_lock(xend);
	for (struct domain *domain = xend->domains; domain; domain = domain->next)
		supervise(domain);
	xend_unlock(xend);
}

static bool needs_supervision(const struct domain *domain)
{
	if (domain->busy || domain->xend->stopping)
		return false;
	if (domain->phase == DOMAIN_STARTING)
		return domain->again;
	return domain->phase == DOMAIN_LIVE && reason_of(domain) != REASON_NONE &&
	       (!domain->preserved || domain->dead);
}

void supervise(struct domain *domain)
{
	const struct timeval soon = {.tv_sec = LOOK_AGAIN_S};
	struct error error;

	if (!needs_supervision(domain))
		return;
	domain->busy = domain->again ? "being started again" : "being ended";
	if (xend_worker(domain->xend, domain->again ? resume_restart : end_of_guest, domain_ref(domain),
		    &error) >= 0)
		return;
	log_warning("Domain '%s': %s Its end is looked after in %d s.", domain->config.name, error.text,
		LOOK_AGAIN_S);
	domain->busy = NULL;
	domain_unref(domain);
	event_base_once(domain->xend->base, -1, EV_TIMEOUT, look_again, domain->xend, &soon);
}
