/*
 * Memory onto one connection: gathers pages to PAGES records (docs/relocation-protocol.md), compressed where
 * that helps, at the rate that is allowed, and keeps their digests.
 *
 * One thread at a time uses it. Several of them, for different pages, share the digests' array and the rate.
 */
#pragma once

#include "base/error.h"
#include "carry/compress.h"
#include "carry/guest.h"
#include "carry/page_digests.h"
#include "carry/peer.h"
#include "carry/rate.h"

#include <stdbool.h>
#include <stdint.h>

/* What all of one relocation's have in common. */
struct page_sending {
	const struct guest *guest;
	struct rate_limit rate;
	enum compression compression;
};

struct page_sender {
	struct wire *wire;            /* borrowed */
	struct page_sending *sending; /* borrowed */
	struct page_digests digests;  /* `of_page` is borrowed */
	/* The PAGES record that is being gathered: its runs, and the contents of those that have any. */
	struct peer_run runs[PEER_RUNS_MAX];
	struct iovec contents[PEER_RUNS_MAX];
	unsigned run_count, content_count;
	uint64_t page_count, contents_size;
	struct compressor compressor;
	uint8_t *compressed; /* owned: the compressed contents among them, one after the other; NULL: none are
			      */
	size_t compressed_size;
};

int page_sender_begin(struct page_sender *sender, struct wire *wire, struct page_sending *sending,
	uint64_t *digests, struct error *error);
void page_sender_end(struct page_sender *sender);

/* At most COPY_CHUNK_PAGES with contents, which may be read until the next page_sender_flush; and pages that
 * are zero now. */
int page_sender_pages(struct page_sender *sender, uint64_t first, uint64_t count, struct error *error);
int page_sender_zeros(struct page_sender *sender, uint64_t first, uint64_t count, struct error *error);
/* Sends what was gathered. */
int page_sender_flush(struct page_sender *sender, struct error *error);
/* The end of a round was waited for so long: the line, and the peer, were what took the time. */
void page_sender_waited(struct page_sender *sender, int64_t waited_ns);
