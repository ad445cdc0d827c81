/*
 * When to stop copying a running guest in rounds: when the rest fits the downtime
 * budget at the measured bandwidth and another round would not make it much less. When
 * rounds stop shrinking the guest is slowed, step by step; when that does not help
 * either, or has cost the guest more than standing still would, or there is just enough
 * time left for the rest, rounds are at their limit (the chapter's M10).
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define ROUNDS_MAX 30u
#define DOWNTIME_DEFAULT_MS 50
#define SLOWED_MOST 99u /* percent; docs/internal/guest-control.md, `throttle` */

struct rounds {
	int64_t budget_ns;
	int64_t deadline;       /* monotonic ns by which the guest is to have arrived, 0: none */
	bool may_slow;          /* the guest can be slowed */
	double bytes_per_ns;    /* measured so far, 0: nothing yet */
	uint64_t moved_pages;   /* by the last round */
	uint64_t last_pages;    /* rest after the round before */
	uint64_t least_pages;   /* smallest rest so far */
	unsigned done, stalled; /* rounds; those in a row that did not shrink */
	unsigned slowed;        /* percent by which the guest is to be slowed */
	int64_t last_ns;        /* monotonic: when the last round ended, 0: none has */
	int64_t lost_ns;        /* what being slowed has cost the guest */
	int64_t worth_ns;       /* what it may cost */
};

enum rounds_verdict {
	ROUNDS_GO_ON,
	ROUNDS_SLOW, /* go on, with the guest slowed as `slowed` says now */
	ROUNDS_FITS,
	ROUNDS_STALLED, /* more rounds gain nothing */
	ROUNDS_LATE     /* only what stands still now arrives by the deadline */
};

void rounds_begin(struct rounds *rounds, int64_t budget_ms);
/* One round moved this many bytes out of the host in this time. */
void rounds_measure(struct rounds *rounds, uint64_t bytes, int64_t ns);
/* For how long the guest would stand still if it stopped now with this rest. */
int64_t rounds_downtime_ns(const struct rounds *rounds, uint64_t pages);
/* Whether a guest with this rest must stop now to arrive by the deadline. */
bool rounds_late(const struct rounds *rounds, uint64_t pages, int64_t now_ns);
/* Whether a guest with this rest would arrive clearly after the deadline although it stopped now. */
bool rounds_too_late(const struct rounds *rounds, uint64_t pages, int64_t began_ns, int64_t now_ns);
/* After a round: `pages` are dirty. Go on, or stop the guest now? */
enum rounds_verdict rounds_next(struct rounds *rounds, uint64_t pages, int64_t now_ns);
