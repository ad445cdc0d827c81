/*
 * Bitmaps of pages: bit N is page N, in 64-bit words, as KVM's dirty log has
 * them (Linux Documentation/virt/kvm/api.rst, KVM_GET_DIRTY_LOG).
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

static inline size_t bitmap_words(uint64_t bits)
{
	return (size_t)((bits + 63) / 64);
}

static inline size_t bitmap_bytes(uint64_t bits)
{
	return bitmap_words(bits) * sizeof(uint64_t);
}

static inline bool bitmap_test(const uint64_t *map, uint64_t bit)
{
	return map[bit / 64] >> bit % 64 & 1;
}

static inline void bitmap_set(uint64_t *map, uint64_t bit)
{
	map[bit / 64] |= 1ULL << bit % 64;
}

static inline void bitmap_clear(uint64_t *map, uint64_t bit)
{
	map[bit / 64] &= ~(1ULL << bit % 64);
}

uint64_t bitmap_count(const uint64_t *map, uint64_t bits);

/* The first run of set bits at or after `from`: its start in *start, its length as the result (0: none,
 * *start = bits). */
uint64_t bitmap_run(const uint64_t *map, uint64_t bits, uint64_t from, uint64_t *start);
