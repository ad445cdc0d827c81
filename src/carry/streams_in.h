/*
 * The destination's data connections (docs/relocation-protocol.md, "Data connections"): each has a thread of
 * its own, which reads pages into the guest's memory. With none of them (count 0) memory comes over the
 * control connection.
 */
#pragma once

#include "carry/crew.h"
#include "carry/page_receiver.h"

#include <stdbool.h>
#include <stdint.h>

struct streams_in;

struct stream_in {
	struct streams_in *all;
	unsigned number; /* from 1 */
	struct wire wire;
	struct page_receiver receiver;
	/* With the crew's lock: */
	unsigned rounds; /* that have ended */
	bool joined, over;
};

struct streams_in {
	struct crew crew;
	unsigned most;        /* threads that there are */
	unsigned count;       /* data connections that memory comes over, once that is agreed */
	int joins;            /* owned: where xend hands the peer's further connections over; -1: none come */
	struct wire *control; /* borrowed */
	uint8_t token[PEER_TOKEN_SIZE];
	struct stream_in each[PEER_STREAMS_MAX];
};

/*
 * After ACCEPT has offered `count` data connections: takes them as they come, until the source says whether
 * memory goes over them. `pattern` is a receiver as each of them is to have, without wire and stripes.
 */
int streams_in_open(struct streams_in *streams, unsigned count, struct wire *control,
	const struct page_receiver *pattern, struct error *error);
/* None of what follows is for a count of 0. Waits until all pages of rounds up to this one are in their
 * place. */
int streams_in_round(struct streams_in *streams, unsigned number, struct error *error);
/* Waits until each has ended as it should, and adds the digests to *sum. */
int streams_in_finish(struct streams_in *streams, uint64_t *sum, struct error *error);
uint64_t streams_in_received(const struct streams_in *streams);
/* Ends the threads, and closes. */
void streams_in_end(struct streams_in *streams);
