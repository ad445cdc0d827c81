#include "carry/forecast.h"
#include "carry/clock.h"
#include "carry/copy.h"
#include "carry/guest.h"
#include "carry/rate.h"
#include "carry/rounds.h"

#include <math.h>

/* How often the clock is looked at where there is a time limit: copy.c */
#define LOOK_NS (200 * NS_PER_MS)
#define LAST (FORECAST_LOOKS - 1)

void forecast_speed(struct forecast_costs *costs, const struct line_sample *line,
	const struct memory_sample *memory, const struct forecast_options *options)
{
	double limit = options->limit > 0 ? 1 / options->limit : 0;
	double plain = fmax(1 / line->bytes_per_ns, limit);
	/* The source, the line and the destination work at the same time. */
	double compressed =
		fmax(fmax(memory->compressed * plain, memory->compressed * line->busy_ns + memory->source_ns),
			memory->placing_ns);
	bool pays = compression_may_gain(plain - line->busy_ns, plain, plain / compressed);
	enum compression how = options->compression;
	bool compresses = how == COMPRESSION_YES || (how == COMPRESSION_AUTO && pays);

	costs->bytes_per_ns = 1 / (compresses ? compressed : plain);
	if (compresses && how == COMPRESSION_AUTO)
		costs->begin_ns += COMPRESS_STRETCH_NS;
	else if (limit > 1 / line->bytes_per_ns)
		costs->burst_ns = RATE_BURST_NS + (int64_t)(COPY_CHUNK_PAGES * PAGE_SIZE * limit);
}

/*
 * Pages written in this time. A guest writes to the same pages again, so that each look has fewer new ones
 * than the one before it. Beyond the last look they grow ever less, as they did between the last ones.
 */
static uint64_t written(const struct writing *writing, double ns, uint64_t most)
{
	const int64_t *at = writing->at_ns;
	double pages = 0, since = 0, slope = 0, slopes[FORECAST_LOOKS];

	for (unsigned i = 0; i < FORECAST_LOOKS; i++) {
		double stretch = (double)at[i] - since;

		slope = slopes[i] = ((double)writing->pages[i] - pages) / stretch;
		if (ns <= (double)at[i])
			return (uint64_t)fmin(pages + slope * (ns - since), (double)most);
		pages = (double)writing->pages[i];
		since = (double)at[i];
	}
	ns -= since;
	if (slopes[LAST - 1] > slope && slope > 0) {
		double lasts = (double)(at[LAST] - at[LAST - 2]) / 2 / log(slopes[LAST - 1] / slope);

		/* At the last look it had become less than it was in the middle between the last two. */
		slope *= exp((double)(at[LAST - 1] - at[LAST]) / 2 / lasts);
		ns = lasts * -expm1(-ns / lasts);
	}
	return (uint64_t)fmin(pages + slope * ns, (double)most);
}

struct simulation {
	uint64_t pages;
	const struct forecast_costs *costs;
	const struct writing *writing;
	struct rounds rounds;
	int64_t now; /* since the beginning */
};

static double copying_ns(const struct simulation *simulation, uint64_t pages)
{
	const struct forecast_costs *costs = simulation->costs;
	bool written = simulation->rounds.done > 0 && costs->written_bytes_per_ns > 0;

	return (double)(pages * PAGE_SIZE) / (written ? costs->written_bytes_per_ns : costs->bytes_per_ns);
}

static int64_t first_round_ns(const struct forecast_costs *costs, int64_t ns)
{
	ns += costs->begin_ns;
	return ns < costs->first_ns ? costs->first_ns : ns;
}

/* One round; what is to be copied after it. It ends early (*late) where there is only time for the rest. */
static uint64_t copy_round(struct simulation *simulation, uint64_t rest, bool *late)
{
	struct rounds *rounds = &simulation->rounds;
	double runs = (double)(100 - rounds->slowed) / 100, copying = copying_ns(simulation, rest);
	int64_t ns = (int64_t)copying + simulation->costs->round_ns, began = simulation->now;

	if (rounds->done == 0)
		ns = first_round_ns(simulation->costs, ns);
	for (int64_t at = LOOK_NS; rounds->deadline && at < ns; at += LOOK_NS) {
		double part = fmin((double)(at + simulation->costs->burst_ns) / copying, 1);
		uint64_t sent = (uint64_t)((double)rest * part), left = rest - sent;
		struct rounds then = *rounds;

		rounds_measure(&then, sent * PAGE_SIZE, at);
		left += written(simulation->writing, (double)at * runs, simulation->pages - left);
		if (began + at < rounds->deadline / 10 || !rounds_late(&then, left, began + at))
			continue;
		*rounds = then;
		*late = true;
		simulation->now += at;
		return left;
	}
	rounds_measure(rounds, rest * PAGE_SIZE, ns);
	simulation->now += ns;
	return written(simulation->writing, (double)ns * runs, simulation->pages);
}

struct forecast forecast_live(uint64_t pages, const struct forecast_costs *costs,
	const struct writing *writing, const struct forecast_options *options)
{
	struct simulation simulation = {
		.pages = pages, .costs = costs, .writing = writing, .now = costs->setup_ns};
	struct rounds *rounds = &simulation.rounds;
	enum rounds_verdict verdict;
	struct forecast forecast = {0};
	uint64_t rest = pages;
	bool late = false;

	rounds_begin(rounds, options->max_downtime_ms);
	rounds->may_slow = true;
	rounds->deadline = options->timeout_ns;
	do {
		rest = copy_round(&simulation, rest, &late);
		verdict = rounds_next(rounds, rest, simulation.now);
		if (late && verdict != ROUNDS_FITS)
			verdict = ROUNDS_LATE;
	} while (verdict == ROUNDS_GO_ON || verdict == ROUNDS_SLOW);
	forecast.fits = verdict == ROUNDS_FITS;
	forecast.stays = !forecast.fits &&
			 (options->may_not_stall || rounds_too_late(rounds, rest, 0, simulation.now));
	forecast.downtime_ns = costs->stop_ns + (int64_t)copying_ns(&simulation, rest);
	forecast.total_ns = simulation.now + forecast.downtime_ns;
	forecast.rounds = rounds->done + 1;
	forecast.slowed = rounds->slowed;
	return forecast;
}

struct forecast forecast_warm(
	uint64_t pages, const struct forecast_costs *costs, const struct forecast_options *options)
{
	struct simulation simulation = {.pages = pages, .costs = costs};
	struct rounds *rounds = &simulation.rounds;
	int64_t ns = first_round_ns(costs, (int64_t)copying_ns(&simulation, pages) + costs->round_ns);

	rounds_begin(rounds, 0);
	rounds->bytes_per_ns = costs->bytes_per_ns;
	rounds->deadline = options->timeout_ns;
	return (struct forecast){.total_ns = costs->setup_ns + ns + costs->stop_ns,
		.downtime_ns = ns + costs->stop_ns,
		.rounds = 1,
		.fits = true,
		.stays = rounds_too_late(rounds, pages, 0, costs->setup_ns) ||
			 (options->may_not_stall && options->timeout_ns &&
				 costs->setup_ns + ns > options->timeout_ns)};
}
