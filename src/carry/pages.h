/*
 * Which pages have something in them: holes of the RAM memfd are found without
 * reading, zero pages with vector code.
 */
#pragma once

#include "base/error.h"

#include <stdbool.h>
#include <stdint.h>

/* Sets in `present` the bit of every page that the memfd has allocated (untouched ones it has not). */
int pages_present(int ram_fd, uint64_t pages, uint64_t *present, struct error *error);

/* Whether the page of 4096 bytes, aligned to 32, holds nothing but zeros. */
bool page_is_zero(const uint8_t *page);

/* How many of `count` pages from `first` on are alike: all zero, or all not. Says which in *zero. */
uint64_t pages_alike(const uint8_t *first, uint64_t count, bool *zero);
