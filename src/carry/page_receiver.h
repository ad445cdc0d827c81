/*
 * Memory from one connection: PAGES records, checked, into the guest's memory, with their digests.
 *
 * One thread at a time uses it. Several of them share the digests' array; each takes the pages of its own
 * stripes only.
 */
#pragma once

#include "base/error.h"
#include "carry/page_digests.h"
#include "carry/peer.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct page_receiver {
	struct wire *wire; /* borrowed, as the RAM's memfd */
	int ram_fd;
	uint64_t pages;
	bool compressed;          /* the source may send compressed pages */
	unsigned stripe, stripes; /* takes every so many-th stripe from this one on; 0, 0: all pages */
	struct page_digests digests;
	uint8_t *contents;             /* owned: room for what one record brings; NULL until one comes */
	uint8_t *unpacked;             /* owned: room for a compressed run's pages; NULL until one comes */
	atomic_uint_fast64_t received; /* pages with contents */
};

/* After the head of a PAGES record: the rest of it. */
int page_receiver_take(struct page_receiver *receiver, const struct record *record, struct error *error);
void page_receiver_end(struct page_receiver *receiver);
