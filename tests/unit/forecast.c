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
		cmocka_unit_test(nothing_touched_is_nothing_to_do),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
