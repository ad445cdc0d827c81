/*
 * The bench guest: dirties memory at a set rate, beats every millisecond, and
 * proves with a running checksum that not one page went wrong on the way.
 *
 * Command line (numbers): touch=MIB memory touched at the start; dirty=MIB of it that is
 * rewritten in a loop; rate=PAGES a second (0: as fast as it goes, absent: none);
 * entropy=0 fills whole pages with one word, 1 with noise. scatter=PAGES a second besides, at random places
 * of the memory=MIB that there are but the touched ones: one word each, or the page becomes zero.
 *
 * Output on port 0x3f8, a byte a millisecond: 0x80 | (beat & 0x3f), with 0x40 set for
 * as long as every page read back as it had been written; 'R' once when touching is done, 'E' when
 * a page was wrong. Time is the TSC: tsc_khz= on the command line.
 */
#include "guest.h"

#define PAGE 4096ull
#define HOLE 0xc0000000ull
#define HOLE_END 0x100000000ull
#define FIRST (16ull << 20) /* memory below is the guest's own */
#define LOW (4ull << 20)    /* what is below this it needs */

/* `at`: bytes of memory before it. */
static uint64_t *memory_at(uint64_t at)
{
	return (uint64_t *)(at < HOLE ? at : at + HOLE_END - HOLE);
}

static uint64_t *page_at(uint64_t index)
{
	return memory_at(FIRST + index * PAGE);
}

static uint64_t mix(uint64_t x)
{
	x ^= x >> 33;
	x *= 0xff51afd7ed558ccdull;
	return x ^ x >> 29;
}

/* Page `index` in its `generation`: every word follows from both, so a page of another place or time shows.
 */
static void write_page(uint64_t index, uint64_t generation, bool noise)
{
	uint64_t *page = page_at(index), seed = mix(index * 1000003 + generation + 1);

	for (uint64_t i = 0; i < PAGE / 8; i++)
		page[i] = noise ? seed * (i | 1) : seed;
}

static bool page_is(uint64_t index, uint64_t generation, bool noise)
{
	const uint64_t *page = page_at(index);
	uint64_t seed = mix(index * 1000003 + generation + 1), wrong = 0;

	for (uint64_t i = 0; i < PAGE / 8; i++)
		wrong |= page[i] ^ (noise ? seed * (i | 1) : seed);
	return !wrong;
}

/* Writes somewhere in memory, low or high, where nothing is read back. */
static void scatter(uint64_t *random, uint64_t memory, uint64_t touched)
{
	uint64_t at, *page;

	*random = mix(*random + 0x9e3779b97f4a7c15ull);
	at = LOW + *random % ((memory - LOW) / PAGE) * PAGE;
	if (at >= FIRST && at < FIRST + touched)
		return;
	page = memory_at(at);
	if (*random >> 60)
		page[*random >> 32 & (PAGE / 8 - 1)] = *random;
	else
		for (uint64_t i = 0; i < PAGE / 8; i++)
			page[i] = 0;
}

struct clock {
	uint64_t per_ms, next;
	uint8_t beat;
	bool whole;
};

static void beat(struct clock *clock)
{
	uint64_t now = tsc();

	if ((int64_t)(now - clock->next) < 0)
		return;
	clock->next = now + clock->per_ms;
	put((uint8_t)(0x80 | (clock->whole ? 0x40 : 0) | (clock->beat++ & 0x3f)));
}

void main(const struct start_info *info)
{
	const char *line = (const char *)info->command_line;
	uint64_t pages = option(line, "touch=", 16) << 8, hot = option(line, "dirty=", 0) << 8;
	uint64_t rate = option(line, "rate=", ~0ull), generation = 0, written = 0, checked = 0;
	bool noise = option(line, "entropy=", 1);
	struct clock clock = {.per_ms = option(line, "tsc_khz=", 2000000), .whole = true};
	uint64_t per_page = rate && ~rate ? clock.per_ms * 1000 / rate : 0, due;
	uint64_t memory = option(line, "memory=", 64) << 20, scattered = option(line, "scatter=", 0);
	uint64_t per_scatter = scattered ? clock.per_ms * 1000 / scattered : 0, scatter_due, random = tsc();

	for (uint64_t i = 0; i < pages; i++)
		write_page(i, 0, noise);
	put('R');
	due = scatter_due = clock.next = tsc();
	if (hot > pages)
		hot = pages;
	for (;;) {
		beat(&clock);
		if (scattered && (int64_t)(tsc() - scatter_due) >= 0) {
			scatter(&random, memory, pages * PAGE);
			scatter_due += per_scatter;
		}
		if (hot && ~rate && (int64_t)(tsc() - due) >= 0) {
			/* Read back what the last turn wrote, then write the next generation. */
			if (!page_is(written, generation, noise))
				clock.whole = false;
			write_page(written, generation + 1, noise);
			due += per_page;
			if (++written == hot)
				written = 0, generation++;
		} else if (pages > hot) {
			/* Idle: look over the pages that nobody writes, a few at a time. */
			uint64_t index = hot + checked++ % (pages - hot);

			if (checked % 64 == 0 && !page_is(index, 0, noise))
				clock.whole = false;
			__asm__ volatile("pause");
		}
	}
}
