#include "xend/moves.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "base/printable.h"
#include "xend/store.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>

/* Migrations that are remembered, beside those under way. */
#define ENDED_MAX 64u

/* Of a migration under way what it has come to when xend dies now is recorded, and at its end what it came
 * to. */
static void record(const struct move *move)
{
	_cleanup_free_ char *result = move->result ? json_dumps(move->result, JSON_COMPACT) : NULL;
	struct stored_move stored = {.number = move->number,
		.name = move->name,
		.id = move->id,
		.host = move->host,
		.state = move->state,
		.began_at = move->began_at,
		.ended_at = move->ended_at,
		.returned = move->returned,
		.result = result ? result : "",
		.why = move->why ? move->why : ""};
	struct error error;

	if (store_put_move(move->xend->store, &stored, &error) < 0)
		log_error("%s", error.text);
}

static void move_free(struct move *move)
{
	free(move->name);
	free(move->host);
	free(move->why);
	json_decref(move->progress);
	json_decref(move->result);
	cleanup_close(&move->cancel);
	cleanup_close(&move->ends);
	free(move);
}

/* One descriptor for all that ends it: whoever writes to `cancel`, and a client that leaves. */
static int watch_ends(struct move *move, struct error *error)
{
	struct epoll_event event = {.events = EPOLLIN};

	move->cancel = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	move->ends = epoll_create1(EPOLL_CLOEXEC);
	if (move->cancel < 0 || move->ends < 0 ||
		epoll_ctl(move->ends, EPOLL_CTL_ADD, move->cancel, &event) < 0 ||
		epoll_ctl(move->ends, EPOLL_CTL_ADD, reply_cancel_fd(move->reply), &event) < 0)
		return error_set(error, errno, "Unable to watch for a migration's end: %s.", strerror(errno));
	return 0;
}

/* Forgets the oldest of those that have ended. */
static void forget_old(struct xend *xend)
{
	struct move **at = &xend->moves;
	int64_t oldest = INT64_MAX;
	unsigned ended = 0;
	struct error error;

	while (*at) {
		struct move *move = *at;

		if (!move->ended_at || ++ended <= ENDED_MAX) {
			oldest = move->number;
			at = &move->next;
			continue;
		}
		*at = move->next;
		move_free(move);
	}
	if (ended > ENDED_MAX && store_drop_moves(xend->store, oldest, &error) < 0)
		log_error("%s", error.text);
}

struct move *move_begin(struct domain *domain, const struct migrate_options *options, struct reply *reply,
	struct error *error)
{
	struct xend *xend = domain->xend;
	struct move *move = calloc(1, sizeof(*move));
	int r;

	if (!move) {
		error_set(error, ENOMEM, "Out of memory.");
		return NULL;
	}
	*move = (struct move){.xend = xend,
		.id = domain->id,
		.name = strdup(domain->config.name),
		.host = strdup(options->host),
		.began_at = time(NULL),
		.reply = reply,
		.detach = options->detach,
		.cancel = -1,
		.ends = -1};
	r = move->name && move->host ? watch_ends(move, error) : error_set(error, ENOMEM, "Out of memory.");
	if (r >= 0)
		r = domain_begin_job(domain, "being migrated", move->cancel, error);
	if (r < 0) {
		move_free(move);
		return NULL;
	}
	move->number = xend->moves ? xend->moves->number + 1 : 1;
	move->next = xend->moves;
	xend->moves = move;
	record(move);
	return move;
}

void move_progress(void *context, json_t *progress)
{
	struct move *move = context;

	json_decref(move->progress);
	move->progress = json_incref(progress);
	reply_line(move->reply, json_incref(progress));
	if (move->detach && !move->detached && move->ends >= 0) {
		epoll_ctl(move->ends, EPOLL_CTL_DEL, reply_cancel_fd(move->reply), NULL);
		move->detached = true;
	}
}

static void end(struct move *move, enum move_state state, const json_t *result, const char *why)
{
	move->state = state;
	free(move->why);
	move->why = why ? printable_copy(why, PRINTABLE_LINES) : NULL;
	json_decref(move->result);
	move->result = result ? json_deep_copy(result) : NULL;
	/* Committed, or back: the domain does not know them any more. */
	cleanup_close(&move->ends);
	cleanup_close(&move->cancel);
	move->ends = move->cancel = -1;
	if (state != MOVE_UNCERTAIN)
		move->ended_at = time(NULL);
	record(move);
}

void move_end(struct move *move, enum move_state state, const json_t *result, const char *why)
{
	end(move, state, result, why);
	if (state != MOVE_UNCERTAIN)
		forget_old(move->xend);
}

void moves_departed(const struct domain *domain, const char *host)
{
	struct error error;

	if (store_put_destination(domain->xend->store, domain->config.name, host, &error) < 0)
		log_error("%s", error.text);
}

void moves_add_destination(
	struct xend *xend, const char *name_or_id, int64_t since, char *sentence, size_t size)
{
	char host[256] = "", when[64] = "", id[16];
	struct tm broken;
	int64_t at = 0;
	struct error error;

	for (const struct move *move = xend->moves; move && !at; move = move->next) {
		snprintf(id, sizeof(id), "%u", move->id);
		if (move->state != MOVE_DONE || move->returned ||
			(strcmp(move->name, name_or_id) && strcmp(id, name_or_id)))
			continue;
		snprintf(host, sizeof(host), "%s", move->host);
		at = move->ended_at;
	}
	if (!at && store_destination(xend->store, name_or_id, host, sizeof(host), &at, &error) < 0)
		log_error("%s", error.text);
	if (!at || at < since || !localtime_r(&at, &broken))
		return;
	strftime(when, sizeof(when), "%Y-%m-%d %H:%M:%S", &broken);
	snprintf(sentence + strlen(sentence), size - strlen(sentence), " It was migrated to %s at %s.", host,
		when);
}

void moves_returned(struct domain *domain)
{
	struct error error;

	for (struct move *move = domain->xend->moves; move; move = move->next)
		if (strcmp(move->name, domain->config.name) == 0)
			move->returned = true;
	if (store_drop_destination(domain->xend->store, domain->config.name, &error) < 0)
		log_error("%s", error.text);
}

/* ---- an earlier xend's ---- */

static int take_up(void *context, const struct stored_move *stored)
{
	struct xend *xend = context;
	struct move *move = calloc(1, sizeof(*move));

	if (!move)
		return -ENOMEM;
	*move = (struct move){.xend = xend,
		.next = xend->moves,
		.number = stored->number,
		.name = strdup(stored->name),
		.host = strdup(stored->host),
		.id = stored->id,
		.state = stored->state <= MOVE_FAILED ? stored->state : MOVE_FAILED,
		.began_at = stored->began_at,
		.ended_at = stored->ended_at,
		.returned = stored->returned,
		.result = json_loads(stored->result, 0, NULL),
		.why = *stored->why ? strdup(stored->why) : NULL,
		.cancel = -1,
		.ends = -1};
	if (!move->name || !move->host) {
		move_free(move);
		return -ENOMEM;
	}
	xend->moves = move;
	return 0;
}

int moves_load(struct xend *xend, struct error *error)
{
	return store_each_move(xend->store, take_up, xend, error);
}

/* Of the same boot, or another guest has its ID. */
static struct domain *guest_of(struct xend *xend, const struct move *move)
{
	struct domain *domain = xend->domains;

	while (domain && (domain->id != move->id || strcmp(domain->config.name, move->name) != 0))
		domain = domain->next;
	return domain;
}

void moves_taken_up(struct xend *xend)
{
	for (struct move *move = xend->moves; move; move = move->next) {
		const struct domain *domain = guest_of(xend, move);

		if (move->ended_at)
			continue;
		if (domain && domain->handed_over)
			end(move, MOVE_UNCERTAIN, NULL,
				"xend was ended while control passed; the other host is asked.");
		else
			end(move, MOVE_FAILED, NULL,
				domain ? "xend was ended before it was done; the domain runs on here."
				       : "xend, or the host, was ended before it was done.");
	}
	forget_old(xend);
}

void moves_settled(struct domain *domain, bool gone)
{
	for (struct move *move = domain->xend->moves; move; move = move->next)
		if (!move->ended_at && guest_of(domain->xend, move) == domain)
			end(move, gone ? MOVE_DONE : MOVE_FAILED, NULL,
				gone ? NULL : "The other host will never run it; the domain runs on here.");
	forget_old(domain->xend);
}

/* ---- the API ---- */

static json_t *describe(const struct move *move)
{
	static const char *const states[] = {[MOVE_RUNNING] = "running",
		[MOVE_UNCERTAIN] = "uncertain",
		[MOVE_DONE] = "done",
		[MOVE_FAILED] = "failed"};

	return json_pack("{s:s, s:i, s:s, s:s, s:b, s:I, s:I, s:O?, s:O?, s:s?}", "name", move->name, "id",
		(int)move->id, "host", move->host, "state", states[move->state], "detached", move->detached,
		"began_at", (json_int_t)move->began_at, "ended_at", (json_int_t)move->ended_at, "progress",
		move->progress, "result", move->result, "error", move->why);
}

json_t *moves_describe(const struct xend *xend)
{
	json_t *list = json_array();

	for (const struct move *move = xend->moves; move; move = move->next)
		json_array_insert_new(list, 0, describe(move));
	return list;
}

void moves_free(struct xend *xend)
{
	while (xend->moves) {
		struct move *first = xend->moves;

		xend->moves = first->next;
		move_free(first);
	}
}
