/*
 * The RAM digest of the relocation protocol (docs/relocation-protocol.md, "RAM
 * digest"): one digest per page, and their sum, kept as pages come and come again.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct page_digests {
	uint64_t *of_page; /* owned; 0: the page is zero */
	uint64_t sum;
};

#define _cleanup_page_digests_ __attribute__((cleanup(page_digests_free)))

/* False where there is no memory for them (8 bytes a page, used as pages come). */
bool page_digests_begin(struct page_digests *digests, uint64_t pages);
void page_digests_free(struct page_digests *digests);

/* Of this page with these contents. */
uint64_t page_digest(uint64_t page, const uint8_t *contents);
/* `count` pages from `first` on have these contents now. */
void page_digests_set(struct page_digests *digests, uint64_t first, uint64_t count, const uint8_t *contents);
/* This page is zero now. True where it had contents before. */
bool page_digests_clear(struct page_digests *digests, uint64_t page);
