#include "base/bitmap.h"

uint64_t bitmap_count(const uint64_t *map, uint64_t bits)
{
	uint64_t count = 0;

	for (size_t i = 0; i < bits / 64; i++)
		count += (uint64_t)__builtin_popcountll(map[i]);
	if (bits % 64)
		count += (uint64_t)__builtin_popcountll(map[bits / 64] & ((1ULL << bits % 64) - 1));
	return count;
}

/* The first bit at or after `from` that equals `value`, or `bits`. */
static uint64_t find(const uint64_t *map, uint64_t bits, uint64_t from, bool value)
{
	while (from < bits) {
		uint64_t word = (value ? map[from / 64] : ~map[from / 64]) >> from % 64;

		if (word) {
			from += (uint64_t)__builtin_ctzll(word);
			return from < bits ? from : bits;
		}
		from = (from / 64 + 1) * 64;
	}
	return bits;
}

uint64_t bitmap_run(const uint64_t *map, uint64_t bits, uint64_t from, uint64_t *start)
{
	*start = find(map, bits, from, true);
	return find(map, bits, *start, false) - *start;
}
