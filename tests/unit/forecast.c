/* What xm migrate --dryrun expects of a guest and a line, both as they were measured. */
#include "base/cleanup.h"
#include "carry/clock.h"
#include "carry/forecast.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#define PAGES 262144ull /* 1 GiB */

static const struct forecast_costs gigabyte_a_second = {.bytes_per_ns = 1,
	.setup_ns = 50 * NS_PER_MS,
	.first_ns = 100 * NS_PER_MS,
	.round_ns = NS_PER_MS,
	.stop_ns = 12 * NS_PER_MS};

/* It was looked until 100 ms, in which it wrote at the same speed, and after 400 and 1200 ms. */
static struct writing writing(uint64_t first, uint64_t second, uint64_t third)
{
	struct writing writing = {0};

	for (unsigned i = 0; i < FORECAST_LOOKS - 2; i++) {
		writing.at_ns[i] = 100 * NS_PER_MS * (i + 1) / (FORECAST_LOOKS - 2);
		writing.pages[i] = first * (i + 1) / (FORECAST_LOOKS - 2);
	}
	writing.at_ns[FORECAST_LOOKS - 2] = 400 * NS_PER_MS;
	writing.pages[FORECAST_LOOKS - 2] = second;
	writing.at_ns[FORECAST_LOOKS - 1] = 1200 * NS_PER_MS;
	writing.pages[FORECAST_LOOKS - 1] = third;
	return writing;
}

static struct forecast live(uint64_t pages, struct writing found, struct forecast_options options)
{
	return forecast_live(pages, &gigabyte_a_second, &found, &options);
}

#define MS(ns) ((ns) / NS_PER_MS)

static void an_idle_guest_takes_as_long_as_its_memory(void **state)
{
	struct forecast_options none = {0};
	struct forecast forecast = live(PAGES, writing(0, 0, 0), none);

	(void)state;
	assert_true(forecast.fits && forecast.slowed == 0 && forecast.rounds == 2);
	assert_in_range(MS(forecast.total_ns), 1130, 1140);
	assert_int_equal(MS(forecast.downtime_ns), 12);
	forecast = forecast_warm(PAGES, &gigabyte_a_second, &none);
	assert_in_range(MS(forecast.total_ns), 1130, 1140);
	assert_int_equal(MS(forecast.total_ns - forecast.downtime_ns), 50);
}

static void a_small_working_set_is_copied_again_and_fits(void **state)
{
	/* 40 MB, over and over: 40 ms at a time. */
	struct forecast forecast =
		live(PAGES, writing(10000, 10000, 10000), (struct forecast_options){.max_downtime_ms = 60});

	(void)state;
	assert_true(forecast.fits && forecast.slowed == 0 && forecast.rounds < 10);
	assert_in_range(MS(forecast.downtime_ns), 12, 60);
}

/* At 20 MB a second: the first round takes 50 s, in which all of it is written again, and no more. */
static void a_working_set_does_not_grow_for_ever(void **state)
{
	struct forecast_costs slow = {.bytes_per_ns = 0.02};
	struct writing random = writing(9516, 32968, 69881); /* of 100000 pages, 1000 each ms */
	struct writing in_a_row = writing(1000, 4000, 8192); /* 8192 over and over */
	struct writing fresh = writing(10, 40, 120);         /* others each time */
	struct forecast_options options = {.timeout_ns = 0};
	struct forecast forecast;

	(void)state;
	/* Two rounds: what is missing in a second is missing in the third as well. */
	forecast = forecast_live(PAGES, &slow, &random, &options);
	assert_in_range(MS(forecast.total_ns), 53687 + 20000, 53687 + 400000);
	forecast = forecast_live(PAGES, &slow, &in_a_row, &options);
	assert_true(MS(forecast.total_ns) < 53687 + 20000);
	forecast = forecast_live(PAGES, &slow, &fresh, &options);
	assert_true(forecast.fits);
	/* 100 a second: 5369 in the first round, 107 in the second. */
	assert_in_range(MS(forecast.total_ns), 53687 + 1000, 53687 + 1200);
}

static void who_writes_faster_than_the_line_is_slowed(void **state)
{
	/* 2 GB a second */
	struct forecast forecast =
		live(PAGES, writing(50000, 200000, 262144), (struct forecast_options){.max_downtime_ms = 50});

	(void)state;
	assert_true(forecast.slowed > 0);
	assert_true(forecast.rounds > 2 && forecast.rounds < 100);
}

/* 4 MiB over and over, as fast as the processor can: 200 pages a ms, of which a second shows but the first
 * few. */
static void who_has_written_all_at_once_is_slowed(void **state)
{
	struct writing writing = {0};
	struct forecast_costs costs = gigabyte_a_second;
	struct forecast forecast;

	(void)state;
	for (unsigned i = 0; i < FORECAST_LOOKS; i++) {
		writing.at_ns[i] = 5 * NS_PER_MS << i;
		writing.pages[i] = 1024;
	}
	costs.bytes_per_ns = 0.08; /* 20 pages a ms */
	forecast = forecast_live(PAGES, &costs, &writing, &(struct forecast_options){.max_downtime_ms = 50});
	assert_true(forecast.fits);
	assert_in_range(forecast.slowed, 90, 99);
}

/* Noise that lies there, and zeros that are written: they go at another speed. */
static void what_is_written_may_be_other_than_what_was_there(void **state)
{
	struct forecast_costs costs = gigabyte_a_second;
	struct writing fast = writing(50000, 200000, 262144);
	struct forecast_options options = {.max_downtime_ms = 50};
	struct forecast forecast;

	(void)state;
	assert_true(forecast_live(PAGES, &costs, &fast, &options).slowed > 0);
	costs.written_bytes_per_ns = 20;
	forecast = forecast_live(PAGES, &costs, &fast, &options);
	assert_true(forecast.fits && forecast.slowed == 0);
	assert_in_range(MS(forecast.total_ns), 1130, 1250);
	/* The other way round as well. */
	costs = (struct forecast_costs){.bytes_per_ns = 20, .written_bytes_per_ns = 1};
	assert_true(forecast_live(PAGES, &costs, &fast, &options).total_ns > 300 * NS_PER_MS);
}

static void a_time_limit_is_kept_or_the_guest_stays(void **state)
{
	struct writing slow = writing(8000, 32000, 96000); /* 328 MB a second of a line of 1 GB a second */
	struct forecast free = live(PAGES, slow, (struct forecast_options){.max_downtime_ms = 1}), limited;

	(void)state;
	assert_true(MS(free.total_ns) > 1500);
	limited = live(
		PAGES, slow, (struct forecast_options){.max_downtime_ms = 1, .timeout_ns = 60 * NS_PER_S});
	assert_true(limited.total_ns == free.total_ns && limited.downtime_ns == free.downtime_ns);
	/* A GiB in half a second: not on this line. */
	limited = live(
		PAGES, slow, (struct forecast_options){.max_downtime_ms = 1, .timeout_ns = NS_PER_S / 2});
	assert_true(limited.stays);
	/* There is just the time, where it stops early enough: what it writes until then comes twice. */
	limited = live(
		PAGES, slow, (struct forecast_options){.max_downtime_ms = 1, .timeout_ns = 1300 * NS_PER_MS});
	assert_true(!limited.stays && !limited.fits);
	assert_in_range(MS(limited.total_ns), 1000, 1400);
	assert_in_range(MS(limited.downtime_ns), 100, 1100);
	limited = live(PAGES, slow,
		(struct forecast_options){
			.max_downtime_ms = 1, .timeout_ns = 1300 * NS_PER_MS, .may_not_stall = true});
	assert_true(limited.stays);
	limited = forecast_warm(
		PAGES, &gigabyte_a_second, &(struct forecast_options){.timeout_ns = NS_PER_S / 2});
	assert_true(limited.stays);
}

static void nothing_touched_is_nothing_to_do(void **state)
{
	struct forecast_options none = {0};

	(void)state;
	assert_int_equal(MS(live(0, writing(0, 0, 0), none).total_ns), 50 + 100 + 12);
	assert_int_equal(MS(forecast_warm(0, &gigabyte_a_second, &none).total_ns), 50 + 100 + 12);
}

static double speed(
	double line, double busy_ns, double compressed, double ns, double limit, enum compression compression)
{
	struct forecast_costs costs = {0};

	forecast_speed(&costs, &(struct line_sample){line, busy_ns, 0},
		&(struct memory_sample){compressed, ns, ns / 2},
		&(struct forecast_options){.limit = limit, .compression = compression});
	return costs.bytes_per_ns;
}

/* Bytes of memory a ns, times 1000. */
static int thousands(double value)
{
	return (int)(value * 1000 + 0.5);
}

static void compression_helps_a_line_that_is_waited_for(void **state)
{
	(void)state;
	/* 100 MB a second, 4 of 10 ns waited for; a quarter is left of memory, in 2 ns a byte. */
	assert_int_equal(thousands(speed(0.1, 6, 0.25, 2, 0, COMPRESSION_NO)), 100);
	assert_int_equal(thousands(speed(0.1, 6, 0.25, 2, 0, COMPRESSION_YES)), 286);
	assert_int_equal(thousands(speed(0.1, 6, 0.25, 2, 0, COMPRESSION_AUTO)), 286);
	/* Who is busy all the time does not think of it; where it does not help it is not done. */
	assert_int_equal(thousands(speed(0.1, 9.9, 0.25, 2, 0, COMPRESSION_AUTO)), 100);
	assert_int_equal(thousands(speed(0.1, 1, 0.95, 2, 0, COMPRESSION_AUTO)), 100);
	/* --resource counts what goes over the line. */
	assert_int_equal(thousands(speed(1, 0.5, 0.25, 2, 0.01, COMPRESSION_AUTO)), 40);
	assert_int_equal(thousands(speed(1, 0.5, 0.25, 2, 0.01, COMPRESSION_NO)), 10);
	assert_int_equal(thousands(speed(0.1, 5, 0.25, 2, 0.5, COMPRESSION_NO)), 100);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(an_idle_guest_takes_as_long_as_its_memory),
		cmocka_unit_test(a_small_working_set_is_copied_again_and_fits),
		cmocka_unit_test(a_working_set_does_not_grow_for_ever),
		cmocka_unit_test(who_writes_faster_than_the_line_is_slowed),
		cmocka_unit_test(who_has_written_all_at_once_is_slowed),
		cmocka_unit_test(what_is_written_may_be_other_than_what_was_there),
		cmocka_unit_test(a_time_limit_is_kept_or_the_guest_stays),
		cmocka_unit_test(nothing_touched_is_nothing_to_do),
		cmocka_unit_test(compression_helps_a_line_that_is_waited_for),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
