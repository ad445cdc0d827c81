/* The carrier's small parts: zero pages, present pages, rate limit, rounds, RAM digest, records. */
#include "base/bitmap.h"
#include "base/cleanup.h"
#include "carry/clock.h"
#include "carry/page_digests.h"
#include "carry/pages.h"
#include "carry/peer.h"
#include "carry/rate.h"
#include "carry/compress.h"
#include "carry/rounds.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <cmocka.h>

#define PAGE 4096u

static void one_byte_makes_a_page_not_zero(void **state)
{
	uint8_t *page = aligned_alloc(PAGE, PAGE);

	(void)state;
	memset(page, 0, PAGE);
	assert_true(page_is_zero(page));
	for (unsigned at = 0; at < PAGE; at++) {
		page[at] = 0x80;
		assert_false(page_is_zero(page));
		page[at] = 0;
	}
	free(page);
}

static void holes_are_not_present(void **state)
{
	_cleanup_close_ int fd = memfd_create("ram", 0);
	uint64_t present[4];

	(void)state;
	assert_int_equal(ftruncate(fd, 200 * PAGE), 0);
	assert_int_equal(pages_present(fd, 200, present, NULL), 0);
	assert_int_equal(bitmap_count(present, 200), 0);
	assert_int_equal(pwrite(fd, "x", 1, 7 * PAGE), 1);
	assert_int_equal(pwrite(fd, "x", 1, 8 * PAGE + 5), 1);
	assert_int_equal(pwrite(fd, "x", 1, 199 * PAGE), 1);
	assert_int_equal(pages_present(fd, 200, present, NULL), 0);
	assert_int_equal(bitmap_count(present, 200), 3);
	assert_true(bitmap_test(present, 7) && bitmap_test(present, 8) && bitmap_test(present, 199));
}

static void a_rate_is_kept_over_time(void **state)
{
	struct rate_limit limit;
	int64_t now = 1000, sent = 0, waits = 0;

	(void)state;
	rate_begin(&limit, 80, now); /* 10 MB/s */
	while (now < 1000 + NS_PER_S) {
		int64_t wait = rate_take(&limit, 1 << 20, now);

		sent += 1 << 20;
		waits += wait > 0;
		now += wait;
	}
	assert_true(sent >= 9500000 && sent <= 12000000);
	assert_true(waits > 5);
	rate_begin(&limit, 0, now);
	assert_int_equal(rate_take(&limit, 1 << 30, now), 0);
}

static void a_pause_does_not_save_up_more_than_a_burst(void **state)
{
	struct rate_limit limit;

	(void)state;
	rate_begin(&limit, 80, 0);
	assert_true(rate_take(&limit, 10000000, 3600 * NS_PER_S) > 900 * NS_PER_MS);
}

static void rounds_end_when_the_rest_fits(void **state)
{
	struct rounds rounds;

	(void)state;
	rounds_begin(&rounds, 50);
	rounds_measure(&rounds, 1 << 30, NS_PER_S); /* 1 GiB/s: 40 ms carry 10485 pages */
	assert_int_equal(rounds_next(&rounds, 40000, 0), ROUNDS_GO_ON);
	assert_int_equal(rounds_next(&rounds, 20000, 0), ROUNDS_GO_ON);
	assert_int_equal(rounds_next(&rounds, 10000, 0), ROUNDS_FITS);
	/* It fits, but rounds still halve it: a round more, until nothing is to be gained. */
	assert_int_equal(rounds_next(&rounds, 4000, 0), ROUNDS_GO_ON);
	assert_int_equal(rounds_next(&rounds, 1000, 0), ROUNDS_GO_ON);
	assert_int_equal(rounds_next(&rounds, 200, 0), ROUNDS_FITS);
	assert_int_equal(rounds_next(&rounds, 0, 0), ROUNDS_FITS);
}

/* Rounds that take less than the budget go on for as long as they gain something; nobody is slowed for that.
 */
static void quick_rounds_end_when_they_gain_nothing(void **state)
{
	struct rounds rounds;
	enum rounds_verdict verdict;
	uint64_t pages = 10000;
	int64_t now = NS_PER_S;

	(void)state;
	rounds_begin(&rounds, 50);
	rounds.may_slow = true;
	rounds_measure(&rounds, 1 << 30, NS_PER_S);
	while ((verdict = rounds_next(&rounds, pages, now)) == ROUNDS_GO_ON) {
		now += (int64_t)pages * PAGE;
		pages = pages * 8 / 10 + 400;
	}
	/* It comes to 2000 pages, or 8 ms, in the end; the last round was worth less than an eighth. */
	assert_int_equal(verdict, ROUNDS_FITS);
	assert_in_range(pages, 2001, 6000);
	assert_int_equal(rounds.slowed, 0);
	/* Whoever keeps a rest that fits is let go, however often it grew in between. */
	rounds_begin(&rounds, 50);
	rounds.may_slow = true;
	rounds_measure(&rounds, 1 << 30, NS_PER_S);
	for (unsigned i = 0; i < 2 * ROUNDS_MAX; i++) {
		verdict = rounds_next(&rounds, i % 2 ? 4000 : 9000, now += 20 * NS_PER_MS);
		assert_true(verdict == ROUNDS_GO_ON || verdict == ROUNDS_FITS);
	}
}

static void rounds_that_do_not_shrink_end(void **state)
{
	struct rounds rounds;
	unsigned went_on = 0;

	(void)state;
	rounds_begin(&rounds, 50);
	rounds_measure(&rounds, 125000000, NS_PER_S);
	while (rounds_next(&rounds, 50000, 0) == ROUNDS_GO_ON)
		went_on++;
	assert_true(went_on > 0 && went_on < 5);
	/* Even rounds that shrink come to an end. */
	rounds_begin(&rounds, 1);
	for (went_on = 0; rounds_next(&rounds, (1u << 31) >> went_on, 0) == ROUNDS_GO_ON;)
		went_on++;
	assert_true(went_on < ROUNDS_MAX);
}

static void a_guest_that_writes_too_fast_is_slowed(void **state)
{
	struct rounds rounds;
	uint64_t pages = 50000;
	unsigned steps = 0, before = 0;
	enum rounds_verdict verdict;

	(void)state;
	rounds_begin(&rounds, 50);
	rounds.may_slow = true;
	do {
		/* What it writes anew follows from how much of the time it runs, once that is little. */
		pages = rounds.slowed < 90 ? 50000 : 50000 * (100 - rounds.slowed) / 100;
		rounds_measure(&rounds, 50000 * PAGE, NS_PER_S);
		verdict = rounds_next(&rounds, pages, 0);
		if (verdict == ROUNDS_SLOW) {
			assert_true(rounds.slowed > before && rounds.slowed <= SLOWED_MOST);
			before = rounds.slowed;
			steps++;
		}
	} while (verdict == ROUNDS_GO_ON || verdict == ROUNDS_SLOW);
	assert_int_equal(verdict, ROUNDS_FITS);
	assert_true(steps >= 3 && rounds.done < 15);
	/* Where nothing helps it is slowed to the end, then that is said. */
	rounds_begin(&rounds, 50);
	rounds.may_slow = true;
	rounds_measure(&rounds, 50000 * PAGE, NS_PER_S);
	while ((verdict = rounds_next(&rounds, 50000, 0)) == ROUNDS_GO_ON || verdict == ROUNDS_SLOW)
		continue;
	assert_int_equal(verdict, ROUNDS_STALLED);
	assert_int_equal(rounds.slowed, SLOWED_MOST);
}

/* A guest that writes the same pages whatever happens is not slowed for longer than that is worth. */
static void slowing_that_gains_nothing_ends(void **state)
{
	struct rounds rounds;
	enum rounds_verdict verdict;
	int64_t now = NS_PER_S;

	(void)state;
	rounds_begin(&rounds, 50);
	rounds.may_slow = true;
	rounds_measure(&rounds, 50000 * PAGE, NS_PER_S);
	/* 6000 pages would stop it for 130 ms; but a round takes half a second. */
	while ((verdict = rounds_next(&rounds, 6000, now)) == ROUNDS_GO_ON || verdict == ROUNDS_SLOW)
		now += NS_PER_S / 2;
	assert_int_equal(verdict, ROUNDS_STALLED);
	assert_true(rounds.slowed > 0 && rounds.slowed < SLOWED_MOST);
	assert_true(rounds.lost_ns >= 8 * 80 * NS_PER_MS && rounds.lost_ns < 1100 * NS_PER_MS);
}

static void rounds_end_in_time(void **state)
{
	struct rounds rounds;

	(void)state;
	rounds_begin(&rounds, 50);
	assert_false(rounds_late(&rounds, 1u << 31, INT64_MAX)); /* no deadline */
	rounds.deadline = 10 * NS_PER_S;
	rounds_measure(&rounds, 50000 * PAGE, NS_PER_S);
	assert_false(rounds_late(&rounds, 100000, 7 * NS_PER_S));
	assert_true(rounds_late(&rounds, 100000, 8 * NS_PER_S));
	assert_int_equal(rounds_next(&rounds, 100000, 7 * NS_PER_S), ROUNDS_GO_ON);
	assert_int_equal(rounds_next(&rounds, 100000, 8 * NS_PER_S), ROUNDS_LATE);
	assert_int_equal(rounds_next(&rounds, 0, 10 * NS_PER_S), ROUNDS_FITS);
}

/* A second over a line that takes `line` MB a second, by a sender that compresses `cpu` MB a second to
 * `part`. */
static void send_for_a_second(struct compressor *compressor, int64_t *now, double line, double cpu,
	double part, double peer, unsigned *compressed)
{
	const double batch = 1 << 20;

	*compressed = 0;
	for (int64_t end = *now + NS_PER_S; *now < end;) {
		double wire = compressor->on ? batch * part : batch;
		int64_t busy = (int64_t)(batch * 1000 / (compressor->on ? cpu : 4000));
		int64_t line_ns = (int64_t)(wire * 1000 / line);
		int64_t peer_ns = compressor->on ? (int64_t)(batch * 1000 / peer) : 0;
		int64_t took = line_ns > busy ? line_ns : busy;

		took = took > peer_ns ? took : peer_ns;
		*now += took;
		*compressed += compressor->on;
		compressor_measure(compressor, (uint64_t)batch, (uint64_t)wire, took - busy, *now);
	}
}

static void compression_is_for_slow_lines(void **state)
{
	static const struct {
		double line, cpu, part, peer; /* MB a second; `part`: what a byte is compressed to */
		bool compresses;
	} cases[] = {
		{100, 500, 0.4, 900, true}, {12, 500, 0.9, 900, true},
		{100, 500, 1, 900, false},   /* what cannot be compressed */
		{600, 500, 0.4, 900, false}, /* a line that is faster than LZ4 */
		{400, 500, 0.4, 900, true}, {2500, 500, 0.4, 900, false}, {5000, 500, 0.4, 900, false},
		{400, 500, 0.7, 300, false}, /* a peer whose processor is slower than the line */
	};
	struct compressor compressor;
	unsigned compressed;

	(void)state;
	for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		int64_t now = 1;

		assert_true(compressor_begin(&compressor, COMPRESSION_AUTO, now));
		for (unsigned second = 0; second < 10; second++)
			send_for_a_second(&compressor, &now, cases[i].line, cases[i].cpu, cases[i].part,
				cases[i].peer, &compressed);
		if (cases[i].compresses ? compressed == 0 : compressed > 100)
			fail_msg("case %u: %u batches compressed in the last second", i, compressed);
		compressor_end(&compressor);
	}
	/* A line that becomes fast is used as it is. */
	{
		int64_t now = 1;

		assert_true(compressor_begin(&compressor, COMPRESSION_AUTO, now));
		send_for_a_second(&compressor, &now, 100, 500, 0.4, 900, &compressed);
		assert_true(compressed > 100);
		for (unsigned second = 0; second < 8; second++)
			send_for_a_second(&compressor, &now, 3000, 500, 0.4, 900, &compressed);
		assert_true(compressed < 200);
		compressor_end(&compressor);
	}
}

static void compressed_pages_come_back(void **state)
{
	static uint8_t pages[COMPRESS_PAGES * PAGE], block[COMPRESS_PAGES * PAGE],
		back[(COMPRESS_PAGES + 1) * PAGE];
	struct compressor compressor;
	uint64_t noise = 88172645463325252;
	size_t size;

	(void)state;
	assert_true(compressor_begin(&compressor, COMPRESSION_YES, 0));
	assert_true(compressor.on);
	for (size_t i = 0; i < sizeof(pages); i++)
		pages[i] = (uint8_t)(i / 7);
	size = compressor_pages(&compressor, pages, COMPRESS_PAGES, block);
	assert_true(size > 0 && size < sizeof(pages) / 2);
	assert_true(decompress_pages(block, size, back, COMPRESS_PAGES));
	assert_memory_equal(pages, back, sizeof(pages));
	/* Nothing but the whole is taken. */
	assert_false(decompress_pages(block, size - 1, back, COMPRESS_PAGES));
	assert_false(decompress_pages(block, size, back, COMPRESS_PAGES - 1));
	assert_false(decompress_pages(block, size, back, COMPRESS_PAGES + 1));
	for (size_t i = 0; i < sizeof(pages); i++) {
		noise ^= noise << 13, noise ^= noise >> 7, noise ^= noise << 17;
		pages[i] = (uint8_t)noise;
	}
	assert_int_equal(compressor_pages(&compressor, pages, COMPRESS_PAGES, block), 0);
	compressor_end(&compressor);
}

static void the_ram_digest_is_of_what_is_there_last(void **state)
{
	struct page_digests one, other;
	uint8_t pages[3 * PAGE];

	(void)state;
	for (unsigned i = 0; i < sizeof(pages); i++)
		pages[i] = (uint8_t)(i * 7 + i / PAGE);
	assert_true(page_digests_begin(&one, 10) && page_digests_begin(&other, 10));
	page_digests_set(&one, 4, 3, pages);
	/* Another order, a page that was something else first, one that came and went. */
	page_digests_set(&other, 6, 1, pages);
	page_digests_set(&other, 6, 1, pages + 2 * PAGE);
	page_digests_set(&other, 9, 1, pages);
	page_digests_set(&other, 4, 2, pages);
	assert_int_not_equal(one.sum, other.sum);
	assert_true(page_digests_clear(&other, 9));
	assert_false(page_digests_clear(&other, 9));
	assert_int_equal(one.sum, other.sum);
	/* The same contents elsewhere are not the same memory. */
	page_digests_set(&other, 4, 1, pages + PAGE);
	page_digests_set(&other, 5, 1, pages);
	assert_int_not_equal(one.sum, other.sum);
	page_digests_free(&one);
	page_digests_free(&other);
}

static void every_bit_of_a_record_head_counts(void **state)
{
	const struct record pages = {.type = RECORD_PAGES, .argument = 3, .length = 48 + 4096};
	uint8_t head[RECORD_HEAD_SIZE];
	struct record read;

	(void)state;
	record_encode(&pages, head);
	assert_int_equal(record_decode(&read, head, NULL), 0);
	assert_true(
		read.type == pages.type && read.argument == pages.argument && read.length == pages.length);
	for (unsigned bit = 0; bit < sizeof(head) * 8; bit++) {
		head[bit / 8] ^= (uint8_t)(1 << bit % 8);
		assert_true(record_decode(&read, head, NULL) < 0);
		head[bit / 8] ^= (uint8_t)(1 << bit % 8);
	}
}

static void records_out_of_bounds_are_refused(void **state)
{
	static const struct record wrong[] = {
		{0, 0, 0},
		{RECORD_TYPES, 0, 0},
		{RECORD_OFFER, 4096, (56 << 10) + OFFER_DIGEST_SIZE + 1},
		{RECORD_OFFER, 0, 10},
		{RECORD_PAGES, 0, 16},
		{RECORD_PAGES, 257, 16},
		{RECORD_PAGES, 1, 5 << 20},
		{RECORD_STATE, 0, (64 << 20) + 1},
		{RECORD_COMMIT, 0, 1},
		{RECORD_ANSWER, 4, 0},
	};
	uint8_t head[RECORD_HEAD_SIZE];
	struct record read;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
		record_encode(&wrong[i], head);
		assert_int_equal(record_decode(&read, head, NULL), -EPROTO);
	}
}

/* The later one counts, unless it is vaguer and says nothing else. */
static void a_clock_is_known_as_well_as_it_was_measured(void **state)
{
	static const struct {
		struct clock_offset earlier, later;
		int64_t counts;
	} cases[] = {
		{{1000, 50}, {1010, 40}, 1010},
		{{1000, 50}, {1900, 1000}, 1000},
		{{1000, 50}, {2001, 1000}, 2001},
		{{1000, 50}, {-1, 1000}, -1},
		{{INT64_MAX, 5}, {-10, INT64_MAX}, -10},
		{{INT64_MIN, 5}, {10, INT64_MAX}, 10},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct clock_offset offset = cases[i].earlier;

		clock_offset_renew(&offset, &cases[i].later);
		assert_int_equal(offset.ns, cases[i].counts);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(one_byte_makes_a_page_not_zero),
		cmocka_unit_test(holes_are_not_present),
		cmocka_unit_test(a_rate_is_kept_over_time),
		cmocka_unit_test(a_pause_does_not_save_up_more_than_a_burst),
		cmocka_unit_test(rounds_end_when_the_rest_fits),
		cmocka_unit_test(quick_rounds_end_when_they_gain_nothing),
		cmocka_unit_test(rounds_that_do_not_shrink_end),
		cmocka_unit_test(a_guest_that_writes_too_fast_is_slowed),
		cmocka_unit_test(slowing_that_gains_nothing_ends),
		cmocka_unit_test(rounds_end_in_time),
		cmocka_unit_test(compression_is_for_slow_lines),
		cmocka_unit_test(compressed_pages_come_back),
		cmocka_unit_test(the_ram_digest_is_of_what_is_there_last),
		cmocka_unit_test(every_bit_of_a_record_head_counts),
		cmocka_unit_test(records_out_of_bounds_are_refused),
		cmocka_unit_test(a_clock_is_known_as_well_as_it_was_measured),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
