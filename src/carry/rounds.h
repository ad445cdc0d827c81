/*
 * When to stop copying a running guest in rounds: when the rest fits the downtime
 * budget at the measured bandwidth and another round would not make it much less, or
 * when rounds stop shrinking (the chapter's M10).
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define ROUNDS_MAX 30u
#define DOWNTIME_DEFAULT_MS 50

struct rounds {
	int64_t budget_ns;
	double bytes_per_ns;    /* measured so far, 0: nothing yet */
	uint64_t last_pages;    /* rest after the round before */
	uint64_t least_pages;   /* smallest rest so far */
	unsigned done, stalled; /* rounds; those in a row that did not shrink */
};

enum rounds_verdict { ROUNDS_GO_ON, ROUNDS_FITS, ROUNDS_STALLED };

void rounds_begin(struct rounds *rounds, int64_t budget_ms);
/* One round moved this many bytes out of the host in this time. */
void rounds_measure(struct rounds *rounds, uint64_t bytes, int64_t ns);
/* After a round: `pages` are dirty. Go on, or stop the guest now? */
enum rounds_verdict rounds_next(struct rounds *rounds, uint64_t pages);
