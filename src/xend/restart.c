#include "xend/restart.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "xend/endings.h"
#include "xend/guest.h"
#include "xend/guest_record.h"
#include "xend/lifecycle.h"
#include "xend/store.h"
#include "xend/uuid.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#define FIRST_PAUSE_MS 1000
#define LONGEST_PAUSE_MS 30000

/* What the predecessor was called, until the store has its other name. */
struct former {
	char *name, *uuid; /* owned; NULL: it is called so still */
};

static void former_free(struct former *former)
{
	free(former->name);
	free(former->uuid);
}

/* The predecessor becomes another guest, so that its successor can have its name and uuid. */
static int rename_kept(struct domain *domain, struct former *former, struct error *error)
{
	_cleanup_free_ char *name = NULL, *uuid = malloc(37);
	int r;

	if (!uuid || asprintf(&name, "%.100s-%u", domain->config.name, domain->id) < 0)
		return error_set(error, ENOMEM, "Out of memory.");
	r = uuid_draw(uuid, error);
	if (r < 0)
		return r;
	*former = (struct former){domain->config.name, domain->config.uuid};
	domain->config.name = take_pointer(name);
	domain->config.uuid = take_pointer(uuid);
	domain->again = false;
	domain->preserved = true;
	return 0;
}

static void rename_back(struct domain *domain, struct former *former)
{
	if (!former->name)
		return;
	free(domain->config.name);
	free(domain->config.uuid);
	domain->config.name = take_pointer(former->name);
	domain->config.uuid = take_pointer(former->uuid);
	domain->again = true;
	domain->preserved = false;
}

/* Its files follow its uuid. Where they cannot, there is nothing to be looked at. Lets go of the lock. */
static void settle_kept(struct domain *domain, const char *old_uuid)
{
	const char *run = domain->xend->paths.run;
	char from[128], to[128];

	snprintf(from, sizeof(from), "%s/guests/%.36s", run, old_uuid);
	snprintf(to, sizeof(to), "%s/guests/%.36s", run, domain->config.uuid);
	if (rename(from, to) < 0) {
		log_error("Unable to rename %s to %s: %s. Domain '%s' is not kept.", from, to,
			strerror(errno), domain->config.name);
		lifecycle_finish(domain);
		return;
	}
	domain->busy = NULL;
	guest_record_write(domain);
	log_info("What has ended is kept as domain '%s' (ID %u).", domain->config.name, domain->id);
	xend_changed(domain->xend);
}

/* In the store as in the list the successor takes the domain's place, in one step. */
static int succeed(struct domain *domain, bool keep, struct domain **result, struct error *error)
{
	_cleanup_guest_config_ struct guest_config config = {0};
	_cleanup_json_ json_t *copy = guest_config_to_json(&domain->config);
	_cleanup_free_ char *uuid = strdup(domain->config.uuid);
	_cleanup_(former_free) struct former former = {0};
	struct xend *xend = domain->xend;
	struct domain *successor = NULL;
	unsigned id;
	int r = uuid ? guest_config_from_json(&config, copy, error)
		     : error_set(error, ENOMEM, "Out of memory.");

	if (r >= 0)
		r = store_begin(xend->store, false, error);
	if (r >= 0)
		r = store_next_id(xend->store, &id, error);
	if (r >= 0) {
		successor = domain_adopt(xend, &config, id);
		r = successor ? 0 : error_set(error, ENOMEM, "Out of memory.");
	}
	if (r >= 0) {
		successor->busy = "being started again";
		successor->again = true;
		successor->early_reboots = domain->early_reboots;
		successor->found = domain->found;
		domain_note_start(successor);
		/* Of the same uuid: it replaces the domain's. */
		r = domain_record(successor, error);
	}
	if (r >= 0 && keep) {
		r = rename_kept(domain, &former, error);
		r = r < 0 ? r : domain_record(domain, error);
	}
	if (r >= 0)
		r = store_commit(xend->store, error);
	if (r < 0) {
		store_rollback(xend->store);
		rename_back(domain, &former);
		if (successor)
			domain_unlist(successor);
		return r;
	}
	*result = domain_ref(successor);
	if (keep)
		settle_kept(domain, uuid);
	else
		domain_unlist(domain);
	return 0;
}

/* Somebody destroys it, or it is left to the next xend. */
static bool is_called_off(const struct domain *domain)
{
	return domain->no_successor || domain->xend->stopping;
}

/* Until it is time for the next attempt, or there will be none. */
static void pause_before_next(struct domain *domain, long long pause_ms)
{
	long long until, left;
	uint8_t lot = 0;

	/* Two hosts that each found the other about to start it ask again at different times. */
	getrandom(&lot, sizeof(lot), GRND_NONBLOCK);
	until = monotonic_ms() + pause_ms + pause_ms * lot / 256;
	domain->pausing = true;
	while (!is_called_off(domain) && (left = until - monotonic_ms()) > 0)
		xend_wait(domain->xend, (int)left);
	domain->pausing = false;
}

static void tell_trouble(struct domain *domain, const struct error *error, long long pause_ms)
{
	char before[sizeof(domain->detail)];

	snprintf(before, sizeof(before), "%s", domain->detail);
	snprintf(domain->detail, sizeof(domain->detail), "%.490s", error->text);
	domain->in_trouble = true;
	if (strcmp(before, domain->detail) != 0)
		log_warning("Domain '%s' could not be started again: %s It is tried again in %lld s, and for "
			    "%d min in all.",
			domain->config.name, error->text, pause_ms / 1000, RESTART_PATIENCE_S / 60);
	xend_changed(domain->xend);
}

/* Of what is tried for a while. */
struct attempts {
	long long deadline, pause_ms;
};

static struct attempts begin_attempts(void)
{
	return (struct attempts){monotonic_ms() + RESTART_PATIENCE_S * 1000LL, FIRST_PAUSE_MS};
}

/* Whether there is to be another attempt, now that it is time for it. Else *r tells why not: -ECANCELED where
 * it is not wanted, or not by this xend. */
static bool try_again(struct attempts *attempts, struct domain *domain, int *r, const struct error *error)
{
	if (!is_called_off(domain) && (*r == -EALREADY || monotonic_ms() >= attempts->deadline))
		return false;
	if (!is_called_off(domain)) {
		tell_trouble(domain, error, attempts->pause_ms);
		pause_before_next(domain, attempts->pause_ms);
		attempts->pause_ms *= 2;
		if (attempts->pause_ms > LONGEST_PAUSE_MS)
			attempts->pause_ms = LONGEST_PAUSE_MS;
	}
	if (is_called_off(domain))
		*r = -ECANCELED;
	return *r != -ECANCELED;
}

/*
 * What a next xend finds from here on is a guest that is to be started. As long as that cannot be recorded
 * (the disk is full), it has to find what is left of the one that has ended.
 */
static int record_restart(struct domain *domain, struct error *error)
{
	struct attempts attempts = begin_attempts();
	int r;

	do
		r = domain_record(domain, error);
	while (r < 0 && try_again(&attempts, domain, &r, error));
	return r;
}

/* Until the successor runs; what is returned is not: 0, or -ECANCELED; -EALREADY: another host runs the
 * guest.
 */
static int start_successor(struct domain **domain, bool keep, struct error *error)
{
	struct attempts attempts = begin_attempts();
	bool succeeded = false;
	int r;

	do {
		if (is_called_off(*domain))
			return -ECANCELED;
		r = 0;
		if (!succeeded) {
			struct domain *successor = NULL;

			r = succeed(*domain, keep, &successor, error);
			if (r >= 0) {
				domain_unref(*domain);
				*domain = successor;
				succeeded = true;
			}
		}
		if (r >= 0)
			r = lifecycle_start_again(*domain, error);
	} while (r < 0 && try_again(&attempts, *domain, &r, error));
	return r;
}

void restart_guest(struct domain *ended, bool keep, unsigned early_reboots)
{
	struct domain *domain = domain_ref(ended);
	struct error error;
	int r;

	domain->again = true;
	domain->early_reboots = early_reboots;
	r = record_restart(domain, &error);
	if (r >= 0 && !keep) {
		log_info("Domain '%s' (ID %u) is gone.", domain->config.name, domain->id);
		guest_end(domain);
	}
	if (r >= 0)
		r = start_successor(&domain, keep, &error);
	if (r == -ECANCELED && !domain->no_successor) {
		log_info("Domain '%s' is left for the next xend to be started again.", domain->config.name);
	} else if (r < 0) {
		if (r == -EALREADY)
			log_error("Domain '%s' is not started again: %s", domain->config.name, error.text);
		else if (r != -ECANCELED)
			log_error("Domain '%s' is not started again: %s It was tried for %d min.",
				domain->config.name, error.text, RESTART_PATIENCE_S / 60);
		ending_by_order(domain, r == -ECANCELED ? "destroyed" : "lost", NULL,
			r == -ECANCELED ? NULL : error.text);
		lifecycle_finish(domain);
	}
	domain_unref(domain);
}

const char *restart_trouble(const struct domain *domain)
{
	return domain->in_trouble ? domain->detail : NULL;
}
