#include "xend/handover.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "xend/carrier.h"
#include "xend/guest.h"
#include "xend/guest_record.h"
#include "xend/lifecycle.h"
#include "xend/moves.h"
#include "xend/store.h"
#include "xend/trust.h"

#include <errno.h>
#include <netdb.h>
#include <stdarg.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>

#define ASK_FIRST_MS 500
#define ASK_LATEST_MS 15000
#define ASK_AGAIN_MS 12000

int handover_commit(
	struct domain *domain, const char *ticket, const struct handover_peer *peer, struct error *error)
{
	struct stored_ticket stored = {ticket, domain->config.uuid, TICKET_COMMITTED, peer->host, peer->port,
		peer->address, peer->fingerprint, peer->records};
	struct store *store = domain->xend->store;
	int r = store_begin(store, false, error);

	/* Of one guest one ticket is open: an answer about an earlier one must not count for this. */
	if (r >= 0)
		r = store_drop_departures(store, domain->config.uuid, error);
	if (r >= 0)
		r = store_put_ticket(store, &stored, error);
	/* The record beside the guest has its tickets, and is as old as the row. */
	if (r >= 0)
		r = domain_store(domain, error);
	if (r >= 0)
		r = store_commit(store, error);
	if (r < 0) {
		store_rollback(store);
		return r;
	}
	guest_record_write(domain);
	domain->handed_over = true;
	domain->cancel = -1;
	return 0;
}

void handover_gone(struct domain *domain, const char *ticket)
{
	struct store *store = domain->xend->store;
	struct stored_ticket stored = {ticket, domain->config.uuid, TICKET_GONE, "", 0, "", "", ""};
	struct error error;

	/* A record that fails here leaves COMMITTED: the next xend asks again and hears the same. */
	if (store_put_ticket(store, &stored, &error) < 0)
		log_error("%s", error.text);
	lifecycle_leave(domain);
	if (store_drop_ticket(store, ticket, &error) < 0)
		log_error("%s", error.text);
}

void handover_back(struct domain *domain, const char *ticket)
{
	struct store *store = domain->xend->store;
	struct error error;
	int r = store_begin(store, false, &error);

	if (r >= 0)
		r = store_drop_ticket(store, ticket, &error);
	if (r >= 0)
		r = domain_store(domain, &error);
	if (r >= 0)
		r = store_commit(store, &error);
	if (r < 0) { /* the next xend asks again and hears the same */
		store_rollback(store);
		log_error("%s", error.text);
	} else {
		guest_record_write(domain);
	}
	domain->handed_over = false;
	if (guest_carry_on(domain, &error) < 0)
		log_error("Domain '%s' could not go on: %s", domain->config.name, error.text);
	domain_end_job(domain);
}

/* One question, to whoever answers at this address or name. -EPROTO for an answer that settles nothing. */
static int ask_at(struct xend *xend, const char *ticket, const struct handover_peer *peer, const char *where,
	bool *owned, struct error *error)
{
	_cleanup_carrier_ struct carrier carrier = {0};
	_cleanup_message_ struct message answer = {0};
	const char *state;
	int r = carrier_start(&carrier, xend, -1, NULL, error);

	if (r >= 0)
		r = trust_say(&carrier,
			json_pack("{s:s, s:s, s:i, s:s, s:s, s:s}", "do", "ask", "host", where, "port",
				(int)peer->port, "ticket", ticket, "fingerprint", peer->fingerprint,
				"records", peer->records),
			NULL, 0, error);
	if (r >= 0)
		r = carrier_expect(&carrier, "answer", &answer, error);
	if (r < 0)
		return r;
	state = json_string_value(json_object_get(answer.body, "state"));
	if (state && strcmp(state, "unknown") == 0)
		return error_set(error, EPROTO,
			"%s knows nothing of this hand-over: it has lost its records (xend.db) since, or is "
			"another host. xm list tells there whether it has the guest.",
			where);
	if (!state || (strcmp(state, "owned") != 0 && strcmp(state, "refused") != 0))
		return error_set(error, EPROTO, "%s gave no answer that settles the hand-over.", where);
	*owned = strcmp(state, "owned") == 0;
	return 0;
}

#define ADDRESSES_MAX 8u

/* The addresses that a name has now. Lets go of the lock. */
static unsigned resolve(struct xend *xend, const char *host, char addresses[ADDRESSES_MAX][ADDRESS_SIZE])
{
	const struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_ADDRCONFIG};
	struct addrinfo *found = NULL;
	unsigned count = 0;

	xend_unlock(xend);
	if (getaddrinfo(host, NULL, &hints, &found) == 0) {
		for (const struct addrinfo *one = found; one && count < ADDRESSES_MAX; one = one->ai_next)
			address_text(one->ai_addr, one->ai_addrlen, addresses[count++]);
		freeaddrinfo(found);
	}
	xend_lock(xend);
	return count;
}

/*
 * Asks where the host was when it received the guest, and, if it does not answer there, wherever its name
 * leads to now. Why the one that answers last gives no answer is added to what is known of the others.
 */
static int ask(struct xend *xend, const char *ticket, const struct handover_peer *peer, bool *owned,
	struct error *error)
{
	char addresses[ADDRESSES_MAX][ADDRESS_SIZE];
	unsigned count;
	int r;

	if (!*peer->address)
		return ask_at(xend, ticket, peer, peer->host, owned, error);
	r = ask_at(xend, ticket, peer, peer->address, owned, error);
	count = r < 0 ? resolve(xend, peer->host, addresses) : 0;
	for (unsigned i = 0; r < 0 && i < count && !xend->stopping; i++) {
		struct error other;

		if (strcmp(addresses[i], peer->address) == 0)
			continue;
		r = ask_at(xend, ticket, peer, addresses[i], owned, &other);
		if (r < 0)
			error_prefix(error, "%s ", other.text);
	}
	return r;
}

/* Waits for the next time to ask, unless somebody wants it now or has decided. Lets go of the lock. */
static void pause_asking(struct xend *xend, const struct doubt *doubt, int pause_ms)
{
	long long until = monotonic_ms() + pause_ms, left;

	while (!xend->stopping && !doubt->ask_now && doubt->decision == DOUBT_ASK &&
		(left = until - monotonic_ms()) > 0)
		xend_wait(xend, (int)left);
}

/* 0: it is settled, *owned says how. -EAGAIN: xend is stopping. */
static int find_out(struct domain *domain, const char *ticket, struct doubt *doubt, bool *owned)
{
	struct xend *xend = domain->xend;
	const char *host = doubt->peer->host;
	int pause_ms = ASK_FIRST_MS;
	struct error error;

	while (ask(xend, ticket, doubt->peer, owned, &error) < 0) {
		log_warning("Whether domain '%s' now runs on %s is open until that host answers: %s",
			domain->config.name, host, error.text);
		snprintf(doubt->answer, sizeof(doubt->answer), "%.*s", (int)sizeof(doubt->answer) - 1,
			error.text);
		doubt->asked_at = time(NULL);
		doubt->asked++;
		doubt->ask_now = false;
		xend_changed(xend);
		if (doubt->decision != DOUBT_ASK) {
			*owned = doubt->decision == DOUBT_FORGET;
			log_warning("Domain '%s': it was decided by hand, without an answer from %s, that "
				    "the guest %s.",
				domain->config.name, host, *owned ? "is gone" : "goes on here");
			return 0;
		}
		pause_asking(xend, doubt, pause_ms);
		if (xend->stopping)
			return -EAGAIN;
		pause_ms = pause_ms * 2 > ASK_LATEST_MS ? ASK_LATEST_MS : pause_ms * 2;
	}
	log_info("Domain '%s': %s has answered, the guest %s.", domain->config.name, host,
		*owned ? "runs there" : "goes on here");
	doubt->decision = DOUBT_ASK;
	return 0;
}

enum handover_end handover_settle(struct domain *domain, const char *ticket, const struct handover_peer *peer)
{
	struct doubt doubt = {.peer = peer, .since = time(NULL)};
	bool owned = false;
	int r;

	domain->doubt = &doubt;
	xend_changed(domain->xend);
	r = find_out(domain, ticket, &doubt, &owned);
	domain->doubt = NULL;
	xend_changed(domain->xend);
	if (r < 0)
		return HANDOVER_OPEN;
	if (owned) {
		moves_departed(domain, peer->host);
		handover_gone(domain, ticket);
	} else {
		handover_back(domain, ticket);
	}
	return owned ? HANDOVER_GONE : HANDOVER_BACK;
}

static void clock_text(int64_t at, char text[16])
{
	time_t seconds = (time_t)at;
	struct tm local;

	localtime_r(&seconds, &local);
	strftime(text, 16, "%H:%M:%S", &local);
}

void handover_doubt_sentence(const struct domain *domain, char *text, size_t size)
{
	char since[16];

	clock_text(domain->doubt->since, since);
	snprintf(text, size,
		"Domain '%s' stands still: since %s it is open whether it runs on %s, which does not answer "
		"(xm migrate --resolve %s tells more).",
		domain->config.name, since, domain->doubt->peer->host, domain->config.name);
}

/* Between COMMIT and the destination's answer, or the doubt about it. Lets go of the lock. */
static void wait_for_outcome(struct domain *domain)
{
	while (domain->handed_over && !domain->doubt && domain->phase == DOMAIN_LIVE &&
		!domain->xend->stopping)
		xend_wait(domain->xend, -1);
}

/* Has the destination asked once more and waits for what comes of it. Lets go of the lock. */
static void ask_once_more(struct domain *domain)
{
	long long until = monotonic_ms() + ASK_AGAIN_MS, left;
	unsigned before;

	wait_for_outcome(domain);
	if (!domain->doubt)
		return;
	before = domain->doubt->asked;
	domain->doubt->ask_now = true;
	xend_changed(domain->xend);
	while (domain->doubt && domain->doubt->asked == before && !domain->xend->stopping &&
		(left = until - monotonic_ms()) > 0)
		xend_wait(domain->xend, (int)left);
}

static void say(json_t *lines, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void say(json_t *lines, const char *format, ...)
{
	char text[1024];
	va_list values;

	va_start(values, format);
	vsnprintf(text, sizeof(text), format, values);
	va_end(values);
	json_array_append_new(lines, json_string(text));
}

static void explain_doubt(const struct domain *domain, json_t *lines)
{
	const struct doubt *doubt = domain->doubt;
	const struct handover_peer *peer = doubt->peer;
	const char *name = domain->config.name;
	char since[16], asked[16];

	clock_text(doubt->since, since);
	clock_text(doubt->asked_at, asked);
	say(lines,
		"Here: everything of domain '%s' was sent to %s and the decision to hand it over is "
		"recorded; "
		"whether %s heard of it is not known since %s. The guest stands still.",
		name, peer->host, peer->host, since);
	if (doubt->asked)
		say(lines, "There: asked %u times, the last time at %s: %s", doubt->asked, asked,
			doubt->answer);
	else
		say(lines, "There: no answer yet.");
	if (*peer->fingerprint)
		say(lines,
			"Only the word of the host that received the guest counts: it was at %s, and has the "
			"key %s.",
			peer->address, peer->fingerprint);
	say(lines, "As soon as %s answers, this settles itself: it is asked every few seconds.", peer->host);
	say(lines,
		"Only if %s will never answer: 'xm migrate --resolve --keep %s' lets the guest go on here, "
		"and "
		"'xm migrate --resolve --forget %s' ends it here. If the guest runs on %s all the same, "
		"--keep makes "
		"two of it, and their common disk is lost.",
		peer->host, name, name, peer->host);
}

json_t *handover_explain(struct domain *domain)
{
	json_t *lines = json_array();
	bool was_open = domain->handed_over;

	ask_once_more(domain);
	if (domain->doubt)
		explain_doubt(domain, lines);
	else if (domain->phase == DOMAIN_GONE || domain->phase == DOMAIN_ENDING)
		say(lines, "Domain '%s' is gone from here%s.", domain->config.name,
			was_open ? ": the other host has answered that it runs there" : "");
	else if (was_open)
		say(lines, "Domain '%s' goes on here: the other host has answered that it will never run it.",
			domain->config.name);
	else if (domain->phase == DOMAIN_STARTING && domain->arrived)
		say(lines,
			"Domain '%s' is still on its way to this host. Until the host that it comes from "
			"decides, it "
			"is that host's.",
			domain->config.name);
	else
		say(lines, "Domain '%s' is this host's: no hand-over of it is open.", domain->config.name);
	return lines;
}

int handover_force(struct domain *domain, bool keep, struct error *error)
{
	const char *name = domain->config.name;

	wait_for_outcome(domain);
	if (!domain->doubt)
		return error_set(error, EINVAL,
			"No hand-over of domain '%s' is in doubt: there is nothing to decide.", name);
	domain->doubt->decision = keep ? DOUBT_KEEP : DOUBT_FORGET;
	xend_changed(domain->xend);
	while (domain->handed_over && domain->phase == DOMAIN_LIVE && !domain->xend->stopping)
		xend_wait(domain->xend, -1);
	if (domain->phase == DOMAIN_ENDING && lifecycle_await_end(domain, error) < 0)
		return -error->code;
	if (domain->handed_over && domain->phase == DOMAIN_LIVE)
		return error_set(error, ECANCELED,
			"xend is being stopped: nothing is decided about domain '%s'.", name);
	if ((domain->phase == DOMAIN_GONE) == !keep)
		return 0;
	return error_set(error, EALREADY, "The other host has answered meanwhile: domain '%s' %s.", name,
		keep ? "runs there and is gone from here" : "will never run there and goes on here");
}

struct open_ticket {
	struct domain *domain; /* referenced */
	char ticket[37];
	struct handover_peer peer;
	enum ticket_state state;
	struct open_ticket *next;
};

static void settle(void *argument)
{
	struct open_ticket *open = argument;

	enum handover_end end = HANDOVER_GONE;

	if (open->state == TICKET_GONE)
		handover_gone(open->domain, open->ticket);
	else
		end = handover_settle(open->domain, open->ticket, &open->peer);
	if (end != HANDOVER_OPEN)
		moves_settled(open->domain, end == HANDOVER_GONE);
	if (end == HANDOVER_GONE)
		lifecycle_finish(open->domain);
	domain_unref(open->domain);
	free(open);
}

struct collection {
	struct xend *xend;
	struct open_ticket *first;
};

static int collect(void *context, const struct stored_ticket *ticket)
{
	struct collection *collection = context;
	struct domain *domain = domain_by_uuid(collection->xend, ticket->uuid);
	struct open_ticket *open;

	if (!domain || (ticket->state != TICKET_COMMITTED && ticket->state != TICKET_GONE))
		return 0;
	if (domain->phase != DOMAIN_LIVE && !domain->again) /* its end is under way already */
		return 0;
	open = malloc(sizeof(*open));
	if (!open)
		return -ENOMEM;
	*open = (struct open_ticket){.domain = domain_ref(domain),
		.peer.port = ticket->port,
		.state = ticket->state,
		.next = collection->first};
	snprintf(open->ticket, sizeof(open->ticket), "%s", ticket->ticket);
	snprintf(open->peer.host, sizeof(open->peer.host), "%s", ticket->host);
	snprintf(open->peer.address, sizeof(open->peer.address), "%s", ticket->address);
	snprintf(open->peer.fingerprint, sizeof(open->peer.fingerprint), "%s", ticket->fingerprint);
	snprintf(open->peer.records, sizeof(open->peer.records), "%s", ticket->records);
	collection->first = open;
	return 0;
}

static void drop(struct collection *collection)
{
	while (collection->first) {
		struct open_ticket *open = collection->first;

		collection->first = open->next;
		domain_unref(open->domain);
		free(open);
	}
}

int handover_resume(struct xend *xend, struct error *failure)
{
	struct collection collection = {.xend = xend};
	struct error error;
	int r;

	if (moves_load(xend, &error) < 0)
		log_error("%s", error.text);
	if (store_drop_departed(xend->store, &error) < 0)
		log_error("%s", error.text);
	error_set(failure, ENOMEM, "Out of memory.");
	r = store_each_ticket(xend->store, collect, &collection, failure);
	if (r < 0) { /* who is in doubt is not known: nobody may be let run */
		drop(&collection);
		return r;
	}
	while (collection.first) {
		struct open_ticket *open = collection.first;

		collection.first = open->next;
		open->domain->handed_over = true;
		open->domain->busy = "being handed over";
		if (xend_worker(xend, settle, open, &error) < 0) {
			/* Still busy: nobody runs it, and the next start of xend asks again. */
			log_error("%s", error.text);
			domain_unref(open->domain);
			free(open);
		}
	}
	moves_taken_up(xend);
	return 0;
}

static int put(
	struct xend *xend, const char *ticket, const char *uuid, enum ticket_state state, struct error *error)
{
	struct stored_ticket stored = {ticket, uuid, state, "", 0, "", "", ""};

	return store_put_ticket(xend->store, &stored, error);
}

static int change(struct xend *xend, const char *ticket, const char *uuid, enum ticket_state from,
	enum ticket_state to, struct error *error)
{
	enum ticket_state now;
	int r = store_ticket_state(xend->store, ticket, &now, error);

	if (r < 0)
		return r;
	if (now != from)
		return error_set(error, EALREADY,
			"This hand-over has been given up already; start the migration again.");
	return put(xend, ticket, uuid, to, error);
}

int handover_receiving(struct xend *xend, const char *ticket, const char *uuid, struct error *error)
{
	return change(xend, ticket, uuid, TICKET_NONE, TICKET_RECEIVING, error);
}

int handover_received(struct xend *xend, const char *ticket, const char *uuid, struct error *error)
{
	return change(xend, ticket, uuid, TICKET_RECEIVING, TICKET_RECEIVED, error);
}

int handover_own(struct domain *domain, const char *ticket, struct error *error)
{
	struct xend *xend = domain->xend;
	int r = store_begin(xend->store, true, error);

	if (r < 0)
		return r;
	r = change(xend, ticket, domain->config.uuid, TICKET_RECEIVED, TICKET_OWNED, error);
	domain->phase = DOMAIN_LIVE;
	if (r >= 0)
		r = domain_store(domain, error);
	if (r >= 0)
		r = store_commit(xend->store, error);
	if (r < 0) {
		store_rollback(xend->store);
		domain->phase = DOMAIN_STARTING;
		return r;
	}
	guest_record_write(domain);
	return r;
}

void handover_refuse(struct xend *xend, const char *ticket, const char *uuid)
{
	enum ticket_state state;
	struct error error;
	int r = store_ticket_state(xend->store, ticket, &state, &error);

	if (r >= 0 && (state == TICKET_RECEIVING || state == TICKET_RECEIVED))
		r = put(xend, ticket, uuid, TICKET_REFUSED, &error);
	if (r < 0)
		log_error("%s", error.text);
}

struct question {
	const char *ticket;
	char uuid[37];
};

static int find_guest(void *context, const struct stored_ticket *ticket)
{
	struct question *question = context;

	if (strcmp(ticket->ticket, question->ticket) == 0)
		snprintf(question->uuid, sizeof(question->uuid), "%s", ticket->uuid);
	return 0;
}

/* The job that is receiving the guest of this ticket, if any, ends. */
static int stop_receiving(
	struct xend *xend, const char *ticket, const char *uuid, struct domain *domain, struct error *error)
{
	int r = put(xend, ticket, uuid, TICKET_REFUSED, error);

	if (r >= 0 && domain && domain->phase == DOMAIN_STARTING && domain->cancel >= 0)
		eventfd_write(domain->cancel, 1);
	return r;
}

const char *handover_answer(struct xend *xend, const char *ticket, struct error *error)
{
	struct question question = {.ticket = ticket};
	enum ticket_state state;
	struct domain *domain;

	if (store_ticket_state(xend->store, ticket, &state, error) < 0 ||
		store_each_ticket(xend->store, find_guest, &question, error) < 0)
		return NULL;
	if (state == TICKET_OWNED)
		return "owned";
	if (state != TICKET_RECEIVING && state != TICKET_RECEIVED && state != TICKET_REFUSED)
		return "unknown";
	domain = domain_by_uuid(xend, question.uuid);
	if (domain && domain->phase == DOMAIN_LIVE) {
		log_warning("Domain '%s' runs here, though its hand-over was never completed as far as the "
			    "database says: an older database may have been put back. The host that asks "
			    "is not told that it may have the guest.",
			domain->config.name);
		return "unknown";
	}
	if (state != TICKET_REFUSED && stop_receiving(xend, ticket, question.uuid, domain, error) < 0)
		return NULL;
	return "refused";
}
