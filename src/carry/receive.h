/*
 * The memory part of a reception: PAGES, ROUND, STATE and END, from the wire into the
 * guest's memory, verified. Separate from the hand-over around it so that it can be
 * driven by itself (fuzzing).
 */
#pragma once

#include "base/buffer.h"
#include "base/error.h"
#include "carry/page_digests.h"
#include "carry/peer.h"

struct reception {
	struct wire *wire; /* borrowed, as the RAM's memfd */
	int ram_fd;
	uint64_t pages;
	struct page_digests digests;
	struct buffer state; /* device-state records, once they came */
	bool compressed;     /* the source may send compressed pages */
	uint8_t *contents;   /* owned: room for what one record brings */
	uint8_t *unpacked;   /* owned: room for a compressed run's pages; NULL until one comes */
	uint64_t received_pages;
	unsigned rounds;
	int64_t began; /* monotonic ns */
};

/* RAM must be all zero. */
int reception_begin(
	struct reception *reception, struct wire *wire, int ram_fd, uint64_t pages, struct error *error);
/* Receives up to END. 0: RAM is what the source's was, and the state is here and whole. */
int reception_run(struct reception *reception, struct job *job, struct error *error);
void reception_end(struct reception *reception);
