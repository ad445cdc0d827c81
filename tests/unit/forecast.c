/* What xm migrate --dryrun expects of a guest and a line, both as they were measured. */
#include "base/cleanup.h"
#include "carry/clock.h"
#include "carry/forecast.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#define GIGABYTE_A_SECOND 1.0 /* bytes a nanosecond */
#define PAGES 262144ull       /* 1 GiB */

static struct writing writing(uint64_t first, uint64_t second)
{
	return (struct writing){100 * NS_PER_MS, 500 * NS_PER_MS, first, second};
}

static void an_idle_guest_takes_as_long_as_its_memory(void **state)
{
	struct writing none = writing(0, 0);
	struct forecast forecast = forecast_live(PAGES, GIGABYTE_A_SECOND, &none, 50);

	(void)state;
	assert_true(forecast.fits && forecast.slowed == 0 && forecast.rounds == 2);
	assert_in_range(forecast.total_ns / NS_PER_MS, 1050, 1150);
	assert_in_range(forecast.downtime_ns / NS_PER_MS, 1, 20);
	forecast = forecast_warm(PAGES, GIGABYTE_A_SECOND);
	assert_in_range(forecast.total_ns / NS_PER_MS, 1050, 1150);
	assert_true(forecast.downtime_ns == forecast.total_ns);
}

static void a_small_working_set_is_copied_again_and_fits(void **state)
{
	struct writing set = writing(2000, 2000); /* 8 MB, over and over */
	struct forecast forecast = forecast_live(PAGES, GIGABYTE_A_SECOND, &set, 50);

	(void)state;
	assert_true(forecast.fits && forecast.rounds < 8);
	assert_in_range(forecast.downtime_ns / NS_PER_MS, 5, 50);
}

static void who_writes_faster_than_the_line_is_slowed(void **state)
{
	struct writing fast = writing(50000, 250000); /* 2 GB a second */
	struct forecast forecast = forecast_live(PAGES, GIGABYTE_A_SECOND, &fast, 50);

	(void)state;
	assert_true(forecast.slowed > 0);
	assert_true(forecast.rounds > 2 && forecast.rounds < 100);
}

static void a_time_limit_is_kept_or_the_guest_stays(void **state)
{
	struct writing slow = writing(2000, 10000); /* 80 MB a second of a line of 1 GB a second */
	struct forecast forecast = forecast_live(PAGES, GIGABYTE_A_SECOND, &slow, 1);
	struct forecast limited = forecast;

	(void)state;
	forecast_limit(&limited, PAGES, GIGABYTE_A_SECOND, &slow, 60 * NS_PER_S, false);
	assert_memory_equal(&limited, &forecast, sizeof(forecast));
	/* A GiB in half a second: not on this line. */
	forecast_limit(&limited, PAGES, GIGABYTE_A_SECOND, &slow, NS_PER_S / 2, false);
	assert_true(limited.stays);
	/* There is just the time, where it stops early enough. */
	limited = forecast;
	forecast_limit(&limited, PAGES, GIGABYTE_A_SECOND, &slow, 1100 * NS_PER_MS, false);
	assert_true(!limited.stays && !limited.fits);
	assert_int_equal(limited.total_ns, 1100 * NS_PER_MS);
	assert_in_range(limited.downtime_ns / NS_PER_MS, 100, 1000);
	limited = forecast;
	forecast_limit(&limited, PAGES, GIGABYTE_A_SECOND, &slow, 1100 * NS_PER_MS, true);
	assert_true(limited.stays);
}

static void nothing_touched_is_nothing_to_do(void **state)
{
	struct writing none = writing(0, 0);

	(void)state;
	assert_true(forecast_live(0, GIGABYTE_A_SECOND, &none, 50).total_ns < 100 * NS_PER_MS);
	assert_true(forecast_warm(0, GIGABYTE_A_SECOND).total_ns < 100 * NS_PER_MS);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(an_idle_guest_takes_as_long_as_its_memory),
		cmocka_unit_test(a_small_working_set_is_copied_again_and_fits),
		cmocka_unit_test(who_writes_faster_than_the_line_is_slowed),
		cmocka_unit_test(a_time_limit_is_kept_or_the_guest_stays),
		cmocka_unit_test(nothing_touched_is_nothing_to_do),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
