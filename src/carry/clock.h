/* Times of this host, in nanoseconds. */
#pragma once

#include <stdint.h>
#include <time.h>

#define NS_PER_S 1000000000ll
#define NS_PER_MS 1000000ll

static inline int64_t clock_ns(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return now.tv_sec * NS_PER_S + now.tv_nsec;
}

static inline int64_t monotonic_ns(void)
{
	return clock_ns(CLOCK_MONOTONIC);
}

static inline int64_t realtime_ns(void)
{
	return clock_ns(CLOCK_REALTIME);
}
