#include "carry/rate.h"
#include "carry/clock.h"

#define BURST_NS (50 * NS_PER_MS)

static int64_t bytes_in(const struct rate_limit *limit, int64_t ns)
{
	return (int64_t)((double)limit->bytes_per_second * (double)ns / (double)NS_PER_S);
}

void rate_begin(struct rate_limit *limit, uint64_t megabits_per_second, int64_t now_ns)
{
	*limit = (struct rate_limit){.bytes_per_second = megabits_per_second * 125000, .filled_at = now_ns};
}

int64_t rate_take(struct rate_limit *limit, uint64_t bytes, int64_t now_ns)
{
	int64_t most = bytes_in(limit, BURST_NS), gained = bytes_in(limit, now_ns - limit->filled_at);

	if (!limit->bytes_per_second)
		return 0;
	if (gained > 0) {
		limit->level = limit->level + gained < most ? limit->level + gained : most;
		limit->filled_at = now_ns;
	}
	limit->level -= (int64_t)bytes;
	if (limit->level >= 0)
		return 0;
	return (int64_t)((double)-limit->level * (double)NS_PER_S / (double)limit->bytes_per_second);
}
