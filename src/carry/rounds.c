#include "carry/rounds.h"
#include "carry/clock.h"
#include "carry/guest.h"

/* What pausing, the device state and the peer's answers take, whatever the memory. */
#define FIXED_NS (10 * NS_PER_MS)
/* A rest that takes less is not worth another round. */
#define NEGLIGIBLE_NS (1 * NS_PER_MS)
/* Below this a measurement says more of latency than of bandwidth. */
#define MEASURABLE_BYTES (4u << 20)
#define STALLED_ROUNDS 3
/* Before anything was measured: 1 Gbit/s. */
#define ASSUMED_BYTES_PER_NS 0.125

void rounds_begin(struct rounds *rounds, int64_t budget_ms)
{
	*rounds = (struct rounds){.budget_ns = (budget_ms > 0 ? budget_ms : DOWNTIME_DEFAULT_MS) * NS_PER_MS,
		.last_pages = UINT64_MAX,
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

enum rounds_verdict rounds_next(struct rounds *rounds, uint64_t pages)
{
	double rate = rounds->bytes_per_ns > 0 ? rounds->bytes_per_ns : ASSUMED_BYTES_PER_NS;
	double rest_ns = (double)(pages * PAGE_SIZE) / rate;
	bool fits = rest_ns + FIXED_NS <= (double)rounds->budget_ns || pages == 0;
	/* One more round costs less than the budget, while the guest runs, and makes its downtime shorter. */
	bool halves = pages < rounds->last_pages / 2 && rest_ns > NEGLIGIBLE_NS;
	/* A round that leaves less than two thirds of the least rest so far is worth its time. */
	bool shrinks = pages < rounds->least_pages - rounds->least_pages / 3;

	rounds->done++;
	rounds->stalled = shrinks ? 0 : rounds->stalled + 1;
	rounds->last_pages = pages;
	if (pages < rounds->least_pages)
		rounds->least_pages = pages;
	if (fits && !halves)
		return ROUNDS_FITS;
	return rounds->stalled >= STALLED_ROUNDS || rounds->done >= ROUNDS_MAX ? ROUNDS_STALLED
									       : ROUNDS_GO_ON;
}
