/*
 * The memory part of a reception: PAGES, ROUND, STATE and END, from the wire (and its
 * data connections) into the guest's memory, verified. Separate from the hand-over around it so that it can
 * be driven by itself (fuzzing).
 */
#pragma once

#include "base/buffer.h"
#include "base/error.h"
#include "carry/page_receiver.h"
#include "carry/streams_in.h"

struct reception {
	struct wire *wire;             /* borrowed */
	struct page_receiver receiver; /* of the control connection; its digests are owned */
	struct streams_in *streams;    /* borrowed; NULL: there are no data connections */
	struct buffer state;           /* device-state records, once they came */
	unsigned rounds;
	/* Called once, when the first round is in place; may be NULL. */
	int (*meet_guest)(struct reception *reception, struct error *error);
	int64_t began; /* monotonic ns */
};

/* RAM must be all zero; its memfd is borrowed. */
int reception_begin(
	struct reception *reception, struct wire *wire, int ram_fd, uint64_t pages, struct error *error);
/* Receives up to END. 0: RAM is what the source's was, and the state is here and whole. */
int reception_run(struct reception *reception, struct job *job, struct error *error);
void reception_end(struct reception *reception);
