/*
 * The engine that everything goes through that takes memory out of a guest: a source
 * of pages (the guest's RAM and its dirty log), the rounds, and a sink (a checkpoint
 * file: save.c; a peer: send.c).
 *
 * After copy_guest the guest is paused and the sink has every page as it is now.
 */
#pragma once

#include "base/error.h"
#include "carry/guest.h"
#include "carry/job.h"

#include <stdbool.h>
#include <stdint.h>

#define COPY_CHUNK_PAGES 256u /* a run is given to the sink in pieces that are each within one MiB */

struct sink {
	/* Takes pages with contents; may read them until the end of the round. */
	int (*pages)(struct sink *sink, uint64_t first, uint64_t count, struct error *error);
	/* Pages that it was given before are zero now. */
	int (*zeros)(struct sink *sink, uint64_t first, uint64_t count, struct error *error);
	/*
	 * The round is complete. Returns when all its pages are where they go, so that the same may come
	 * again and the round's time says what bandwidth there is; after the last one that may be left for
	 * later.
	 */
	int (*round)(struct sink *sink, unsigned number, struct error *error);
	/* Now and then, also while nothing is given to the sink: who waits for it is to hear of it. NULL:
	 * nobody does. */
	int (*attend)(struct sink *sink, struct error *error);
	bool last; /* this round is the last one */
};

struct copy {
	struct job *job;
	struct guest *guest;
	struct sink *sink;
	bool live;
	bool tells_pause;        /* xend is to hear when the guest stands still */
	int64_t max_downtime_ms; /* 0: the default */
	bool may_slow;           /* a guest that writes faster than the sink takes is slowed */
	int64_t deadline;        /* monotonic ns by which all should be there, 0: none */
	int64_t began;           /* monotonic ns: since when the time up to that counts */
	bool may_not_stall;      /* at the limit give up, rather than stop the guest for longer than wanted */

	/* results */
	unsigned rounds;
	uint64_t sent_pages; /* contents given to the sink, repetitions counted */
	int64_t paused_at;   /* monotonic ns: when the guest was asked to stop */
	int64_t paused_realtime_ns;
	int64_t stopped_at;  /* monotonic ns: when it had stopped */
	uint64_t last_pages; /* of sent_pages: those of the last round */
	unsigned slowed;     /* percent by which the guest was slowed in the end */
};

int copy_guest(struct copy *copy, struct error *error);
/* The sentence for a copy that may not stall and has not met its deadline. */
int copy_overdue(const struct copy *copy, struct error *error);
