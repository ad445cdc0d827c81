#include "carry/rounds.h"
#include "carry/clock.h"
#include "carry/guest.h"

#include <math.h>

/* What pausing, the device state and the peer's answers take, whatever the memory. */
#define FIXED_NS (10 * NS_PER_MS)
/* A rest that takes less is not worth another round. */
#define NEGLIGIBLE_NS (1 * NS_PER_MS)
/* Below this a measurement says more of latency than of bandwidth. */
#define MEASURABLE_BYTES (4u << 20)
#define STALLED_ROUNDS 3
/* Before the guest is slowed; it is slowed more with every further one. */
#define STALLED_BEFORE_SLOWED 2
/*
 * Being slowed is easier to bear than standing still, but may not cost the guest more than this many times
 * what it would stand still beyond its budget: users of a guest slowed for half a minute suffer more than
 * from a pause of a quarter of a second.
 */
#define SLOWING_WORTH 8
/* A guest that was slowed and writes still as much of what a round moves is not held back by its processor.
 */
#define AS_MUCH 0.8
/* Before anything was measured: 1 Gbit/s. */
#define ASSUMED_BYTES_PER_NS 0.125
/* An estimate that is beyond the time that there is by so much is believed. */
#define CLEARLY 1.2
/* What the kernel may hold of what was sent when the guest stops to meet its deadline. */
#define ON_ITS_WAY_BYTES (4u << 20)

void rounds_begin(struct rounds *rounds, int64_t budget_ms)
{
	*rounds = (struct rounds){.budget_ns = (budget_ms > 0 ? budget_ms : DOWNTIME_DEFAULT_MS) * NS_PER_MS,
		.last_pages = UINT64_MAX,
		.least_pages = UINT64_MAX};
}

void rounds_measure(struct rounds *rounds, uint64_t bytes, int64_t ns)
{
	double measured = ns > 0 ? (double)bytes / (double)ns : 0;

	rounds->moved_pages = bytes / PAGE_SIZE;
	if (measured <= 0 || (rounds->bytes_per_ns > 0 && bytes < MEASURABLE_BYTES))
		return;
	/* The newest counts half: what the line does now matters most. */
	rounds->bytes_per_ns = rounds->bytes_per_ns > 0 ? (rounds->bytes_per_ns + measured) / 2 : measured;
}

static double time_ns(const struct rounds *rounds, uint64_t bytes)
{
	return (double)bytes / (rounds->bytes_per_ns > 0 ? rounds->bytes_per_ns : ASSUMED_BYTES_PER_NS);
}

int64_t rounds_downtime_ns(const struct rounds *rounds, uint64_t pages)
{
	return (int64_t)time_ns(rounds, pages * PAGE_SIZE) + FIXED_NS;
}

bool rounds_late(const struct rounds *rounds, uint64_t pages, int64_t now_ns)
{
	/* A tenth more, for a line that is not always as fast. */
	double needed = 1.1 * time_ns(rounds, pages * PAGE_SIZE + ON_ITS_WAY_BYTES) + (double)(2 * FIXED_NS);

	return rounds->deadline && (double)now_ns + needed >= (double)rounds->deadline;
}

bool rounds_too_late(const struct rounds *rounds, uint64_t pages, int64_t began_ns, int64_t now_ns)
{
	return rounds->deadline && rounds->bytes_per_ns > 0 &&
	       (double)(now_ns - began_ns) + time_ns(rounds, pages * PAGE_SIZE) >
		       CLEARLY * (double)(rounds->deadline - began_ns);
}

/*
 * What the guest writes while a round lasts is to be half of what the round moves. One that writes
 * the same pages over and over may do with less, so the next round tells. One that waits between its writes
 * catches up with them in the time that is left to it, until that is too little: so where the last step
 * changed nothing the next one is greater.
 */
static void slow(struct rounds *rounds, uint64_t pages)
{
	double part = pages ? 0.5 * (double)rounds->moved_pages / (double)pages : 1;
	unsigned runs = 100 - rounds->slowed;

	if (!rounds->slowed)
		rounds->worth_ns = SLOWING_WORTH * (rounds_downtime_ns(rounds, pages) - rounds->budget_ns);
	if (rounds->slowed && (double)pages > AS_MUCH * (double)rounds->moved_pages)
		part /= 2;
	part = part < 0.25 ? 0.25 : part > 0.8 ? 0.8 : part;
	runs = (unsigned)(runs * part);
	rounds->slowed = runs > 100 - SLOWED_MOST ? 100 - runs : SLOWED_MOST;
	rounds->stalled = STALLED_BEFORE_SLOWED - 1;
}

/*
 * One more round makes the downtime shorter while the guest runs: by half of what this one did, or, where it
 * costs less than the budget with all that it takes beside its pages, by more than being slowed meanwhile
 * costs the guest at most.
 */
static bool pays_again(const struct rounds *rounds, uint64_t pages, int64_t now_ns)
{
	double rest_ns = time_ns(rounds, pages * PAGE_SIZE);
	double beside_ns =
		(double)(now_ns - rounds->last_ns) - time_ns(rounds, rounds->moved_pages * PAGE_SIZE);
	bool quick = rounds->last_ns && rest_ns + fmax(beside_ns, 0) <= (double)rounds->budget_ns;

	return pages < rounds->last_pages - rounds->last_pages / (quick ? SLOWING_WORTH : 2) &&
	       rest_ns > NEGLIGIBLE_NS;
}

enum rounds_verdict rounds_next(struct rounds *rounds, uint64_t pages, int64_t now_ns)
{
	int64_t rest_ns = (int64_t)time_ns(rounds, pages * PAGE_SIZE);
	bool fits = rest_ns + FIXED_NS <= rounds->budget_ns || pages == 0;
	bool pays = pays_again(rounds, pages, now_ns);
	/* A round that leaves less than two thirds of the least rest so far is worth its time. */
	bool shrinks = pages < rounds->least_pages - rounds->least_pages / 3;
	bool dear, slower, many;

	if (rounds->last_ns)
		rounds->lost_ns += (now_ns - rounds->last_ns) * rounds->slowed / 100;
	rounds->last_ns = now_ns;
	dear = rounds->slowed && rounds->lost_ns >= rounds->worth_ns;
	slower = rounds->may_slow && rounds->slowed < SLOWED_MOST && !dear;
	rounds->done++;
	rounds->stalled = shrinks ? 0 : rounds->stalled + 1;
	rounds->last_pages = pages;
	if (pages < rounds->least_pages)
		rounds->least_pages = pages;
	many = rounds->done >= ROUNDS_MAX;
	if (fits)
		return pays && !many && !rounds_late(rounds, pages, now_ns) ? ROUNDS_GO_ON : ROUNDS_FITS;
	if (rounds_late(rounds, pages, now_ns))
		return ROUNDS_LATE;
	if (slower && (many || rounds->stalled >= STALLED_BEFORE_SLOWED)) {
		slow(rounds, pages);
		return ROUNDS_SLOW;
	}
	return many || rounds->stalled >= STALLED_ROUNDS || (dear && !shrinks) ? ROUNDS_STALLED
									       : ROUNDS_GO_ON;
}
