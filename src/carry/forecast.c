#include "carry/forecast.h"
#include "carry/clock.h"
#include "carry/guest.h"
#include "carry/rounds.h"

/*
 * Pages written in this time. A guest writes to the same pages again: the second look has fewer new ones than
 * the first, and how many come later goes on from there.
 */
static uint64_t written(const struct writing *writing, double ns, uint64_t pages)
{
	double first = (double)writing->first_pages, second = (double)writing->second_pages;
	double slope = (second - first) / (double)(writing->second_ns - writing->first_ns);
	double all = ns < (double)writing->first_ns ? first * ns / (double)writing->first_ns
						    : first + slope * (ns - (double)writing->first_ns);

	return all > (double)pages ? pages : (uint64_t)all;
}

struct forecast forecast_live(
	uint64_t pages, double bytes_per_ns, const struct writing *writing, int64_t max_downtime_ms)
{
	struct forecast forecast = {0};
	enum rounds_verdict verdict;
	uint64_t rest = pages;
	struct rounds rounds;

	rounds_begin(&rounds, max_downtime_ms);
	rounds.may_slow = true;
	do {
		double ns = (double)(rest * PAGE_SIZE) / bytes_per_ns;
		double runs = (double)(100 - rounds.slowed) / 100;

		rounds_measure(&rounds, rest * PAGE_SIZE, (int64_t)ns);
		forecast.total_ns += (int64_t)ns;
		rest = written(writing, ns * runs, pages);
		verdict = rounds_next(&rounds, rest, forecast.total_ns);
	} while (verdict == ROUNDS_GO_ON || verdict == ROUNDS_SLOW);
	forecast.downtime_ns = rounds_downtime_ns(&rounds, rest);
	forecast.total_ns += forecast.downtime_ns;
	forecast.rounds = rounds.done + 1;
	forecast.slowed = rounds.slowed;
	forecast.fits = verdict == ROUNDS_FITS;
	return forecast;
}

struct forecast forecast_warm(uint64_t pages, double bytes_per_ns)
{
	struct rounds rounds;
	int64_t ns;

	rounds_begin(&rounds, 0);
	rounds.bytes_per_ns = bytes_per_ns;
	ns = rounds_downtime_ns(&rounds, pages);
	return (struct forecast){.total_ns = ns, .downtime_ns = ns, .rounds = 1, .fits = true};
}

/* When the guest has to stop so that all is there by the deadline: the moment after which no more can be
 * written than there is time for. */
static int64_t last_moment(
	uint64_t pages, double bytes_per_ns, const struct writing *writing, int64_t timeout_ns)
{
	double room = bytes_per_ns * (double)timeout_ns / PAGE_SIZE - (double)pages;
	int64_t step = timeout_ns / 100, at = 0;

	while (writing && at + step <= timeout_ns &&
		(double)written(writing, (double)(at + step), pages) <= room)
		at += step;
	return at;
}

void forecast_limit(struct forecast *forecast, uint64_t pages, double bytes_per_ns,
	const struct writing *writing, int64_t timeout_ns, bool may_not_stall)
{
	struct rounds rounds;

	if (timeout_ns && forecast->total_ns > timeout_ns) {
		rounds_begin(&rounds, 0);
		rounds.bytes_per_ns = bytes_per_ns;
		rounds.deadline = timeout_ns;
		forecast->fits = false;
		forecast->stays = may_not_stall || rounds_too_late(&rounds, pages, 0, 0);
		if (!forecast->stays && writing) {
			forecast->downtime_ns =
				timeout_ns - last_moment(pages, bytes_per_ns, writing, timeout_ns);
			forecast->total_ns = timeout_ns;
		}
	}
	forecast->stays |= writing && may_not_stall && !forecast->fits;
}
