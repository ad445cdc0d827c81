/*
 * xend's side of one job of ferry-carrier (docs/internal/carrier-jobs.md).
 *
 *	_cleanup_carrier_ struct carrier carrier = {0};
 *	r = carrier_start(&carrier, xend, cancel, reply, &error);
 *	r = carrier_say(&carrier, json_pack(…), fds, count, &error);
 *	r = carrier_hear(&carrier, &event, &error);	// waits, without the lock
 *
 * When the block is left the carrier has ended: nobody but xend then touches the
 * guest. Every carrier is a user of its own.
 */
#pragma once

#include "base/channel.h"
#include "xend/process.h"
#include "xend/reply.h"
#include "xend/xend.h"

#define CARRIER_UID_BASE 0x78000000u

struct carrier {
	struct xend *xend; /* NULL: not started */
	int channel, process;
	struct process_log *log; /* what it says */
	int cancel;              /* eventfd that ends the job, -1: nothing does */
	unsigned patience_s;     /* of a job whose storage may not answer: how long it may say nothing, 0: for
				    ever */
	struct reply *progress;  /* who is told of progress, NULL: nobody; borrowed */
	void (*told)(void *context, json_t *progress); /* instead of `progress`; NULL: that */
	void *context;
	bool outlives; /* carrier_end lets it go on, and xend's stop does too (filling.h) */
	char record[128];
};

#define _cleanup_carrier_ __attribute__((cleanup(carrier_end)))

/* Lets go of the lock. */
int carrier_start(
	struct carrier *carrier, struct xend *xend, int cancel, struct reply *progress, struct error *error);

/* Sends the job or an answer; `body` is consumed. */
int carrier_say(struct carrier *carrier, json_t *body, const int *fds, unsigned count, struct error *error);

/*
 * Waits for the next event that is not progress. `failed` becomes the error;
 * -ECANCELED when `cancel` was signalled, -EPIPE when the carrier died. Lets go of the lock.
 */
int carrier_hear(struct carrier *carrier, struct message *event, struct error *error);
bool carrier_heard(const struct message *event, const char *name);

/* The same where only one event is due. */
int carrier_expect(struct carrier *carrier, const char *name, struct message *event, struct error *error);

/*
 * Closes the channel and waits for the process's end: or until it will never run again, since a call to
 * storage that does not answer keeps it in the kernel. Harmless when not started. Lets go of the lock.
 */
void carrier_end(struct carrier *carrier);

/* At xend's start: ends the carriers of an earlier xend, before their guests are looked at. */
void carrier_end_strays(struct xend *xend);
