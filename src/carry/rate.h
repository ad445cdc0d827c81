/*
 * A rate limit (xm migrate -r): a bucket that fills at the rate and holds 50 ms of
 * it. Sending takes from it, even below nothing; who finds it so waits.
 */
#pragma once

#include <pthread.h>
#include <stdint.h>

#define RATE_BURST_NS 50000000ll

struct rate_limit {
	uint64_t bytes_per_second; /* 0: no limit */
	int64_t level;             /* bytes; negative: in debt */
	int64_t filled_at;         /* monotonic ns */
	pthread_mutex_t lock;      /* of level and filled_at: several threads may send */
};

void rate_begin(struct rate_limit *limit, uint64_t megabits_per_second, int64_t now_ns);
/* Takes `bytes`, and says how many ns to wait before sending more (0: none). */
int64_t rate_take(struct rate_limit *limit, uint64_t bytes, int64_t now_ns);
