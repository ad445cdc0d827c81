/*
 * Migrations away from this host: those under way, what became of the latest ones, and where a
 * guest went that is not here any more. `xm migrate --status` and `--detach` are
 * about them, and so is the sentence for a domain that does not exist here any more. The latest 64 are in the
 * store, where they survive xend and the host.
 *
 * All of this is called with xend's lock held.
 */
#pragma once

#include "xend/domain.h"
#include "xend/jobs.h"

enum move_state { MOVE_RUNNING, MOVE_UNCERTAIN, MOVE_DONE, MOVE_FAILED };

struct move {
	struct xend *xend;
	struct move *next; /* the one that began before */
	int64_t number;    /* in the store */
	char *name, *host; /* owned, as is all below */
	unsigned id;
	enum move_state state;
	bool detached;              /* nobody waits for it */
	int64_t began_at, ended_at; /* seconds since 1970; ended_at 0: it has not */
	json_t *progress;           /* the carrier's latest, NULL: none yet */
	json_t *result;             /* the carrier's `done`, NULL: none */
	char *why;                  /* of UNCERTAIN and FAILED */
	bool returned;              /* the guest has been here again since it went */

	/* While it runs. */
	int cancel; /* eventfd: written to, it ends; the domain's `cancel` until it has come to its end */
	int ends;   /* readable when that was done or its client has left; -1 where nothing can end it */
	struct reply *reply; /* borrowed; NULL: it is an earlier xend's */
	bool detach;         /* leave the client behind once there is progress */
};

/* Takes the domain for its migration (domain_begin_job). NULL with a sentence where that cannot be. */
struct move *move_begin(struct domain *domain, const struct migrate_options *options, struct reply *reply,
	struct error *error);
/* The carrier tells how far it is; `move` as the context of struct carrier's `told`. */
void move_progress(void *move, json_t *progress);
/* It has come to its end, or (UNCERTAIN) is waiting for the peer; `result` may be NULL. */
void move_end(struct move *move, enum move_state state, const json_t *result, const char *why);

/* At xend's start, before and after hand-overs that are open are taken up: what was under way then is what
 * the record of its hand-over says, and without one it has failed. */
int moves_load(struct xend *xend, struct error *error);
void moves_taken_up(struct xend *xend);
/* The open hand-over of a guest that an earlier xend was sending has come to its end. */
void moves_settled(struct domain *domain, bool gone);

/* A guest of this name is here: where an earlier one of it went is not told any more. */
void moves_returned(struct domain *domain);

/* A guest is the other host's from now on: who asks for it here hears where it went. */
void moves_departed(const struct domain *domain, const char *host);
/* Adds to `sentence`, which says that no such domain is here, where it went, if that is known, and it has not
 * been back since: `since` is when it ended here, in seconds since 1970, 0: never. */
void moves_add_destination(
	struct xend *xend, const char *name_or_id, int64_t since, char *sentence, size_t size);

/* For the API (docs/internal/api.md): all, the latest last. */
json_t *moves_describe(const struct xend *xend);
void moves_free(struct xend *xend);
