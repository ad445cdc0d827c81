#include "xend/adopt.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "xend/carrier.h"
#include "xend/checkpoint_file.h"
#include "xend/disks.h"
#include "xend/filling.h"
#include "xend/guest.h"
#include "xend/guest_disks.h"
#include "xend/guest_watch.h"
#include "xend/handover.h"
#include "xend/lifecycle.h"
#include "xend/store.h"
#include "xend/supervise.h"

#include <errno.h>
#include <string.h>

/* How long a guest's storage may take to say what it is. */
#define LOOK_MS 3000
/* A guest whose process has not answered for so long will not. */
#define ADOPT_ATTEMPTS 3

/* Puts a stored domain into the list, as it was recorded. */
static int take_up(void *context, const struct stored_domain *stored)
{
	_cleanup_guest_config_ struct guest_config config = {0};
	static const enum domain_phase phases[] = {[STORED_STARTING] = DOMAIN_STARTING,
		[STORED_LIVE] = DOMAIN_LIVE,
		[STORED_ENDING] = DOMAIN_ENDING,
		[STORED_RESTARTING] = DOMAIN_STARTING,
		[STORED_PRESERVED] = DOMAIN_LIVE};
	struct xend *xend = context;
	struct domain *domain;
	struct error error;

	if (guest_config_from_json(&config, stored->config, &error) < 0 || !config.name || !config.uuid) {
		/* Its run directory then belongs to no domain, and guest_end_strays ends it. */
		log_error("Domain '%s' cannot be taken up again: %s", stored->name, error.text);
		return 0;
	}
	domain = domain_adopt(xend, &config, stored->id);
	if (!domain)
		return -ENOMEM;
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
	return 0;
}

struct tickets {
	struct xend *xend;
	char (*open)[2][37]; /* ticket, uuid */
	size_t count;
};

static int collect_unowned(void *context, const struct stored_ticket *ticket)
{
	struct tickets *tickets = context;
	void *more;

	if (ticket->state != TICKET_RECEIVING && ticket->state != TICKET_RECEIVED)
		return 0;
	more = realloc(tickets->open, (tickets->count + 1) * sizeof(*tickets->open));
	if (!more)
		return -ENOMEM;
	tickets->open = more;
	snprintf(tickets->open[tickets->count][0], 37, "%s", ticket->ticket);
	snprintf(tickets->open[tickets->count++][1], 37, "%s", ticket->uuid);
	return 0;
}

/* Receptions that an earlier xend has not finished are refused for ever. */
static int refuse_unowned(struct xend *xend, struct error *error)
{
	struct tickets tickets = {.xend = xend};
	int r = store_each_ticket(xend->store, collect_unowned, &tickets, error);

	for (size_t i = 0; r >= 0 && i < tickets.count; i++)
		handover_refuse(xend, tickets.open[i][0], tickets.open[i][1]);
	free(tickets.open);
	return r;
}

/* Never became live, or was to be no more: a trace of it is taken away. */
static void end(struct domain *domain)
{
	guest_find(domain, NULL);
	lifecycle_finish(domain);
}

static void take_up_guest(struct domain *domain)
{
	/* A guest that waits for memory which nobody brings may not answer at all. */
	unsigned attempts = filling_abandoned(domain) ? 1 : ADOPT_ATTEMPTS;
	struct error error;
	int r = -EIO;

	for (unsigned i = 0; r < 0 && r != -ESRCH && i < attempts; i++) {
		guest_unwatch(domain);
		r = guest_adopt(domain, &error);
	}
	if (r >= 0) {
		log_info("Domain '%s' (ID %u) is found again.", domain->config.name, domain->id);
		return;
	}
	log_error("Domain '%s' (ID %u) is lost: %s", domain->config.name, domain->id, error.text);
	domain->dead = true;
	domain->ended_before = !guest_has_place(domain);
}

/* A guest that stands still though nobody had paused it: a save or a migration was cut off before its end. */
static void let_run(struct domain *domain)
{
	struct error error;

	if (domain->busy || domain->dead || domain->state != GUEST_PAUSED || domain->paused)
		return;
	log_info("Domain '%s' stood still in a job that was cut off; it goes on.", domain->config.name);
	if (guest_carry_on(domain, &error) < 0)
		log_error("Domain '%s' could not go on: %s", domain->config.name, error.text);
}

/* Calls visit for each domain; any of them may disappear meanwhile. */
static void for_each(
	struct xend *xend, void (*visit)(struct domain *domain), enum domain_phase from, enum domain_phase to)
{
	for (unsigned last = 0;;) {
		struct domain *domain = xend->domains;

		while (domain && (domain->id <= last || domain->phase < from || domain->phase > to))
			domain = domain->next;
		if (!domain)
			return;
		last = domain->id;
		domain_ref(domain);
		visit(domain);
		domain_unref(domain);
	}
}

static void lock_disks(struct domain *domain)
{
	if (!domain->busy && !domain->dead)
		guest_relock_disks(domain);
}

/* Which disks its are, for admission of others; of one whose storage does not answer, the name will do. */
static void look_at_disks(struct domain *domain)
{
	struct error error;

	if (disks_look(domain->xend, &domain->config, LOOK_MS, -1, &error) < 0)
		log_warning("%s", error.text);
}

static void end_unless_live(struct domain *domain)
{
	if (domain->phase != DOMAIN_LIVE && !domain->again)
		end(domain);
}

int adopt_all(struct xend *xend, struct error *error)
{
	int r = store_each_domain(xend->store, take_up, xend, error);

	if (r >= 0)
		r = refuse_unowned(xend, error);
	if (r < 0)
		return r;
	carrier_end_strays(xend);
	guest_end_strays(xend);
	for_each(xend, end_unless_live, DOMAIN_STARTING, DOMAIN_ENDING);
	for_each(xend, take_up_guest, DOMAIN_LIVE, DOMAIN_LIVE);
	checkpoint_file_recover(xend);
	for_each(xend, look_at_disks, DOMAIN_LIVE, DOMAIN_LIVE);
	for_each(xend, filling_adopt, DOMAIN_LIVE, DOMAIN_LIVE);
	handover_resume(xend);
	for_each(xend, let_run, DOMAIN_LIVE, DOMAIN_LIVE);
	for_each(xend, lock_disks, DOMAIN_LIVE, DOMAIN_LIVE);
	for_each(xend, supervise, DOMAIN_STARTING, DOMAIN_LIVE);
	return 0;
}
