/*
 * The source's data connections: memory goes over several at once, each with a thread of its own, while the
 * control connection keeps the records of the hand-over (docs/relocation-protocol.md, "Data connections").
 *
 * A page always travels over the same one, so that what comes again never meets its older self; a round
 * ends on each of them. With none of them (count 0) memory goes over the control connection.
 */
#pragma once

#include "carry/crew.h"
#include "carry/page_sender.h"

#include <stdbool.h>
#include <stdint.h>

#define STREAM_QUEUE 256u /* runs that wait for one connection */

struct streams_out;

struct queued_run {
	uint64_t first;
	uint32_t count;
	bool zero;
};

struct stream_out {
	struct streams_out *all;
	unsigned number; /* from 1 */
	struct wire wire;
	struct page_sender sender;
	/* With the crew's lock: */
	struct queued_run queue[STREAM_QUEUE];
	unsigned queue_begin, queue_length;
	uint64_t queued_pages;
	unsigned round; /* to end once the queue is empty, 0: none */
	bool last;      /* that is the last one */
	bool joined;
};

struct streams_out {
	struct crew crew;
	unsigned opened, count; /* sockets; those that memory goes over */
	struct wire *control;   /* borrowed */
	const uint8_t *ticket;
	uint8_t token[PEER_TOKEN_SIZE];
	unsigned unattended; /* pages since the control connection was last looked at */
	struct stream_out each[PEER_STREAMS_MAX];
};

/* As many as the job wants, where it leaves that open as many as the processors are worth: 0 or at least 2.
 */
unsigned streams_wanted(const struct job *job);

/*
 * After ACCEPT: asks xend for `count` connections, joins them to the relocation and tells the peer. Where
 * that does not succeed the relocation goes on without them. `ticket`, `sending` and `digests` are borrowed.
 */
int streams_out_open(struct streams_out *streams, unsigned count, struct wire *control, const uint8_t *ticket,
	struct page_sending *sending, uint64_t *digests, struct error *error);
/* None of what follows is for a count of 0. `deadline`: monotonic ns by which sending must be over, 0: none.
 */
void streams_out_deadline(struct streams_out *streams, int64_t deadline);
int streams_out_run(
	struct streams_out *streams, uint64_t first, uint64_t count, bool zero, struct error *error);
/* Ends the round on each of them; does not wait. */
int streams_out_round(struct streams_out *streams, unsigned number, bool last, struct error *error);
/* Waits until everything of the last round was sent, and adds the digests to *sum. */
int streams_out_finish(struct streams_out *streams, uint64_t *sum, struct error *error);
uint64_t streams_out_bytes(const struct streams_out *streams);
/* Ends the threads, and closes. */
void streams_out_end(struct streams_out *streams);
