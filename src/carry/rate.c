#include "carry/rate.h"
#include "carry/clock.h"

static int64_t bytes_in(const struct rate_limit *limit, int64_t ns)
{
	return (int64_t)((double)limit->bytes_per_second * (double)ns / (double)NS_PER_S);
}

void rate_begin(struct rate_limit *limit, uint64_t megabits_per_second, int64_t now_ns)
{
	*limit = (struct rate_limit){.bytes_per_second = megabits_per_second * 125000,
		.filled_at = now_ns,
		.lock = PTHREAD_MUTEX_INITIALIZER};
}

int64_t rate_take(struct rate_limit *limit, uint64_t bytes, int64_t now_ns)
{
	int64_t most = bytes_in(limit, RATE_BURST_NS), gained, level;

	if (!limit->bytes_per_second)
		return 0;
	pthread_mutex_lock(&limit->lock);
	gained = bytes_in(limit, now_ns - limit->filled_at);
	if (gained > 0) {
		limit->level = limit->level + gained < most ? limit->level + gained : most;
		limit->filled_at = now_ns;
	}
	level = limit->level -= (int64_t)bytes;
	pthread_mutex_unlock(&limit->lock);
	if (level >= 0)
		return 0;
	return (int64_t)((double)-level * (double)NS_PER_S / (double)limit->bytes_per_second);
}
