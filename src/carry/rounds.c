#include "carry/rounds.h"
#include "carry/clock.h"
#include "carry/guest.h"

/* What pausing, the device state and the peer's answers take, whatever the memory. */
#define FIXED_NS (10 * NS_PER_MS)
/* Below this a measurement says more of latency than of bandwidth. */
#define MEASURABLE_BYTES (4u << 20)
#define STALLED_ROUNDS 3
/* Before anything was measured: 1 Gbit/s. */
#define ASSUMED_BYTES_PER_NS 0.125

void rounds_begin(struct rounds *rounds, int64_t budget_ms)
{
	*rounds = (struct rounds){.budget_ns = (budget_ms > 0 ? budget_ms : DOWNTIME_DEFAULT_MS) * NS_PER_MS,
		.least_pages = UINT64_MAX};
}

void rounds_measure(struct rounds *rounds, uint64_t bytes, int64_t ns)
{
	double measured = ns > 0 ? (double)bytes / (double)ns : 0;

	if (measured <= 0 || (rounds->bytes_per_ns > 0 && bytes < MEASURABLE_BYTES))
		return;
	/* The newest counts half: what the line does now matters most. */
	rounds->bytes_per_ns = rounds->bytes_per_ns > 0 ? (rounds->bytes_per_ns + measured) / 2 : measured;
}

enum rounds_verdict rounds_next(struct rounds *rounds, uint64_t pages, uint64_t backlog)
{
	double rate = rounds->bytes_per_ns > 0 ? rounds->bytes_per_ns : ASSUMED_BYTES_PER_NS;
	double needed_ns = (double)(pages * PAGE_SIZE + backlog) / rate + FIXED_NS;
	bool fits = needed_ns <= (double)rounds->budget_ns || pages == 0;
	/* A round that leaves less than two thirds of the least rest so far is worth its time. */
	bool shrinks = pages < rounds->least_pages - rounds->least_pages / 3;

	rounds->done++;
	rounds->stalled = shrinks ? 0 : rounds->stalled + 1;
	if (pages < rounds->least_pages)
		rounds->least_pages = pages;
	if (fits)
		return ROUNDS_FITS;
	return rounds->stalled >= STALLED_ROUNDS || rounds->done >= ROUNDS_MAX ? ROUNDS_STALLED
									       : ROUNDS_GO_ON;
}
