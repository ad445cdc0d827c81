/*
 * The proof that the peer gets the guest's memory as it is, and not only as it was sent: pages are read
 * again, and their digests compared with those of what was sent, which the peer compares with what it got.
 * It knows nothing of dirty logs and rounds, so that a page which those have missed shows here.
 *
 * While the guest runs a page that differs is only suspected: it may be about to come again. Once the guest
 * stands still nothing may differ any more.
 */
#pragma once

#include "base/error.h"
#include "carry/guest.h"

#include <stdbool.h>
#include <stdint.h>

struct proof {
	const struct guest *guest;
	const uint64_t *sent; /* borrowed: page_digests.h; 0: the page is zero at the peer */
	uint64_t *suspects;   /* owned */
	uint64_t at, left;    /* the next page; how many of the lap are left */
	uint64_t data;        /* no page from `at` to this one is there; at most `at`: not known */
	uint64_t passed;      /* pages in all */
	int64_t spent_ns;     /* with that */
};

int proof_begin(struct proof *proof, const struct guest *guest, const uint64_t *sent, struct error *error);
void proof_end(struct proof *proof);
/* Begins a lap: once around all pages, from where the last one came to. Takes no time. */
void proof_lap(struct proof *proof);
/* Looks at some pages of the lap. The guest runs: what differs is suspected. It does not (`still`):
 * -EBADMSG. */
int proof_step(struct proof *proof, bool still, struct error *error);
/* The guest stands still, and all was sent: looks at those that were suspected. */
int proof_clear(struct proof *proof, struct error *error);
/* These pages are sent again. */
void proof_sent_again(struct proof *proof, uint64_t first, uint64_t count);
/* What the rest of the lap takes. */
int64_t proof_left_ns(const struct proof *proof);
