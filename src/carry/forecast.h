/*
 * How long a migration would take, and for how long the guest would stand still:
 * the rounds as they would go (rounds.h), with a line and a guest that were measured
 * for a moment.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

/* Pages that were found written after two looks, at these times since the first. */
struct writing {
	int64_t first_ns, second_ns;
	uint64_t first_pages, second_pages; /* distinct pages, both since the beginning */
};

struct forecast {
	int64_t total_ns, downtime_ns;
	unsigned rounds, slowed; /* percent: how much the guest would have to be slowed */
	bool fits;               /* in the downtime that was asked for */
	bool stays;              /* it would be given up, and the guest stay */
};

/* `pages`: those that the guest has touched. */
struct forecast forecast_live(
	uint64_t pages, double bytes_per_ns, const struct writing *writing, int64_t max_downtime_ms);
struct forecast forecast_warm(uint64_t pages, double bytes_per_ns);
/*
 * What becomes of such a forecast where the guest is to be there in this time (0: whenever), and where it may
 * not stand still for longer than was asked for (`may_not_stall`). `writing`: NULL where it does not run.
 */
void forecast_limit(struct forecast *forecast, uint64_t pages, double bytes_per_ns,
	const struct writing *writing, int64_t timeout_ns, bool may_not_stall);
