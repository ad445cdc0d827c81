/*
 * How long a migration would take, and for how long the guest would stand still: the rounds as they would go
 * (rounds.h, copy.c), with a line, a peer and a guest that were measured for a moment.
 */
#pragma once

#include "carry/compress.h"

#include <stdbool.h>
#include <stdint.h>

#define FORECAST_LOOKS 9u

/* Pages that were found written when it was looked, at these times since the first look. */
struct writing {
	int64_t at_ns[FORECAST_LOOKS];
	uint64_t pages[FORECAST_LOOKS]; /* distinct ones, all since the beginning */
};

/* A line with both its ends, as probes of it went (query.c). */
struct line_sample {
	double bytes_per_ns;
	double busy_ns; /* of each byte: for what this host did not wait for the line */
	int64_t round_trip_ns;
};

/* What compression makes of the guest's memory. */
struct memory_sample {
	double compressed; /* bytes for each of memory */
	double source_ns;  /* that the source works for each, without sending */
	double placing_ns; /* and the destination, without receiving */
};

/* What is asked for. */
struct forecast_options {
	enum compression compression;
	double limit; /* bytes per ns on the line; 0: none */
	int64_t max_downtime_ms, timeout_ns;
	bool may_not_stall;
};

/* What the copying costs. */
struct forecast_costs {
	double bytes_per_ns;         /* of memory, which may be fewer on the line */
	double written_bytes_per_ns; /* the same of what the guest writes meanwhile; 0: as all else */
	int64_t setup_ns;            /* before the first page */
	int64_t first_ns; /* that the first round takes at least: the peer makes the guest meanwhile */
	int64_t begin_ns; /* beside the first round's pages */
	int64_t burst_ns; /* so much of what is sent at first goes without waiting for the limit */
	int64_t round_ns; /* beside each round's pages */
	int64_t stop_ns;  /* for which the guest stands still beside the last round's pages */
};

struct forecast {
	int64_t total_ns, downtime_ns;
	unsigned rounds, slowed; /* percent: how much the guest would have to be slowed */
	bool fits;               /* in the downtime that was asked for */
	bool stays;              /* it would be given up, and the guest stay */
};

/* Sets bytes_per_ns, and what it takes at first to find that speed. */
void forecast_speed(struct forecast_costs *costs, const struct line_sample *line,
	const struct memory_sample *memory, const struct forecast_options *options);

/* `pages`: those that have contents. */
struct forecast forecast_live(uint64_t pages, const struct forecast_costs *costs,
	const struct writing *writing, const struct forecast_options *options);
struct forecast forecast_warm(
	uint64_t pages, const struct forecast_costs *costs, const struct forecast_options *options);
