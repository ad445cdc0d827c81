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
#include "xend/roster.h"
#include "xend/silence.h"
#include "xend/store.h"
#include "xend/supervise.h"

#include <errno.h>
#include <string.h>

/* How long a guest's storage may take to say what it is. */
#define LOOK_MS 3000
/* How long xend's start waits for guests to answer, all together. Who answers later is found again later. */
#define MEET_MS 3000
/* The same for those that are just ending, which the kernel may not let do so (storage that does not answer).
 */
#define DYING_MS 3000
/* Whoever could not be met, though it answers, is asked again after this: descriptors may be scarce. */
#define AGAIN_MS 1000

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
static void end(void *argument)
{
	_cleanup_domain_ struct domain *domain = argument;
	struct error error;

	lifecycle_finish(domain);
	/* The ticket that it has left by was still its own when handover_resume looked. */
	if (store_drop_departed(domain->xend->store, &error) < 0)
		log_error("%s", error.text);
}

/* In a worker, since its process may be held by storage that does not answer. */
static void end_unless_live(struct domain *domain)
{
	struct error error;

	if (domain->phase == DOMAIN_LIVE || domain->again)
		return;
	domain->phase = DOMAIN_ENDING;
	if (xend_worker(domain->xend, end, domain_ref(domain), &error) < 0) {
		log_error("Domain '%s' is ended at the next start of xend: %s", domain->config.name,
			error.text);
		domain_unref(domain);
	}
}

static int find(struct domain *domain, long long until, struct error *error)
{
	int r = guest_find(domain, error);

	if (r < 0 && r != -ESRCH)
		return r;
	if (domain->phase != DOMAIN_LIVE)
		return 0;
	if (r >= 0) {
		if (process_wait_while_dying(domain->process, domain->pid, until - monotonic_ms(), NULL) ==
			-ETIMEDOUT)
			return 0;
		error_set(error, ESRCH, "Its process has just ended.");
	}
	log_error("Domain '%s' (ID %u) is lost: %s", domain->config.name, domain->id, error->text);
	domain->dead = true;
	domain->ended_before = !guest_has_place(domain);
	return 0;
}

/* An error: of one of them it is not known, and nothing may be done about any. */
static int find_all(struct xend *xend, struct error *error)
{
	long long until = monotonic_ms() + DYING_MS;
	int r = 0;

	for (struct domain *domain = xend->domains; r >= 0 && domain; domain = domain->next)
		r = find(domain, until, error);
	return r;
}

/* A guest that stands still though nobody had paused it: a save or a migration was cut off before its end.
 * One that runs though somebody has paused it: that was cut off, or an unpause that it did not answer to in
 * time. */
static void run_as_recorded(struct domain *domain)
{
	struct error error;

	if (domain->busy || domain->dead)
		return;
	if (domain->state == GUEST_PAUSED && !domain->paused) {
		log_info("Domain '%s' stood still in a job that was cut off; it goes on.",
			domain->config.name);
		if (guest_carry_on(domain, &error) < 0)
			log_error("Domain '%s' could not go on: %s", domain->config.name, error.text);
	} else if (domain->state == GUEST_RUNNING && domain->paused) {
		log_info("Domain '%s' runs, though it is recorded that it is paused; it is paused.",
			domain->config.name);
		if (guest_pause(domain, &error) < 0)
			log_error("Domain '%s' could not be paused: %s", domain->config.name, error.text);
	}
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

/* Which disks its are, for admission of others, where an older xend has not recorded it; of one whose storage
 * does not answer, the name will do. */
static void look_at_disks(struct domain *domain)
{
	struct error error;

	for (size_t i = 0; i < domain->config.disk_count; i++)
		if (!domain->config.disks[i].place.known) {
			if (disks_look(domain->xend, &domain->config, LOOK_MS, -1, &error) < 0)
				log_warning("%s", error.text);
			return;
		}
}

/* Listens to it again. Whether it answers. */
static bool listen_to(struct domain *domain)
{
	struct error error;
	int r;

	guest_unwatch(domain);
	domain->being_met = true;
	r = guest_adopt(domain, &error);
	domain->being_met = false;
	if (r < 0) {
		if (domain->phase == DOMAIN_LIVE && !domain->dead)
			log_warning("Domain '%s' (ID %u) is not found again so far: %s", domain->config.name,
				domain->id, error.text);
		guest_unwatch(domain);
		domain->ask_again_ms = monotonic_ms() + AGAIN_MS;
		silence_begin(domain, 0);
		return false;
	}
	domain->found = domain->state == GUEST_SHUTDOWN;
	log_info("Domain '%s' (ID %u) is found again.", domain->config.name, domain->id);
	look_at_disks(domain);
	if (domain->phase == DOMAIN_LIVE && !domain->busy)
		guest_relock_disks(domain);
	return true;
}

void adopt_guest(void *argument)
{
	_cleanup_domain_ struct domain *domain = argument;
	bool met = domain->events >= 0;

	if (domain->phase != DOMAIN_LIVE || domain->being_met)
		return;
	if (!domain->dead && !met && !listen_to(domain))
		return;
	if (domain->phase == DOMAIN_LIVE && !met)
		filling_adopt(domain);
	run_as_recorded(domain);
	supervise(domain);
}

/* All at once, each by a worker of its own. Who does not answer soon is left to it. */
static void meet(struct domain *domain)
{
	struct error error;

	if (xend_worker(domain->xend, adopt_guest, domain_ref(domain), &error) >= 0)
		return;
	/* There are too many: by this thread. */
	adopt_guest(domain);
}

/* Whether it is known by now what has become of each. */
static bool all_met(const struct xend *xend)
{
	for (const struct domain *domain = xend->domains; domain; domain = domain->next)
		if (domain->phase == DOMAIN_LIVE && !domain->dead && domain->events < 0 && !domain->silent_ms)
			return false;
	return true;
}

static void await_all(struct xend *xend)
{
	long long until = monotonic_ms() + MEET_MS, left;

	while (!all_met(xend) && (left = until - monotonic_ms()) > 0)
		xend_wait(xend, (int)left);
}

int adopt_all(struct xend *xend, struct error *error)
{
	int r = roster_take_up(xend, error);

	if (r >= 0)
		r = find_all(xend, error);
	if (r >= 0)
		r = refuse_unowned(xend, error);
	if (r < 0)
		return r;
	carrier_end_strays(xend);
	for_each(xend, end_unless_live, DOMAIN_STARTING, DOMAIN_ENDING);
	checkpoint_file_recover(xend);
	return handover_resume(xend, error);
}

void adopt_guests(struct xend *xend)
{
	for_each(xend, meet, DOMAIN_LIVE, DOMAIN_LIVE);
	for_each(xend, supervise, DOMAIN_STARTING, DOMAIN_STARTING); /* who is to be started again */
	await_all(xend);
}
