#include "carry/copy.h"
#include "base/bitmap.h"
#include "base/cleanup.h"
#include "carry/clock.h"
#include "carry/pages.h"
#include "carry/rounds.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#define POPULATE_PAGES 16u /* shorter runs fault in by themselves */

/* What one copy_guest works with. */
struct work {
	struct copy *copy;
	uint64_t *todo;     /* pages of this round */
	uint64_t *given;    /* pages of which the sink has contents */
	uint64_t left;      /* pages of this round not yet looked at */
	uint64_t total;     /* pages of all rounds so far */
	unsigned unchecked; /* pages since xend was last listened to */
	struct rounds rounds;
	int64_t began;
};

static void tell_progress(struct work *work, bool now)
{
	struct copy *copy = work->copy;
	int64_t ns = monotonic_ns() - work->began;
	uint64_t bytes = copy->sent_pages * PAGE_SIZE;

	job_progress(copy->job,
		&(struct progress){.round = copy->rounds + 1,
			.sent_bytes = bytes,
			.total_bytes = bytes + work->left * PAGE_SIZE,
			.remaining_pages = work->left,
			.bytes_per_second = ns > 0 ? (uint64_t)((double)bytes * NS_PER_S / (double)ns) : 0},
		now);
}

static int give(struct work *work, uint64_t first, uint64_t count, bool zero, struct error *error)
{
	struct sink *sink = work->copy->sink;
	uint64_t end = first + count, known;

	if (!zero) {
		for (uint64_t page = first; page < end; page++)
			bitmap_set(work->given, page);
		work->copy->sent_pages += count;
		return sink->pages(sink, first, count, error);
	}
	/* What the sink never had is zero there already. */
	while ((known = bitmap_run(work->given, end, first, &first)) > 0) {
		int r = sink->zeros(sink, first, known, error);

		if (r < 0)
			return r;
		for (uint64_t page = first; page < first + known; page++)
			bitmap_clear(work->given, page);
		first += known;
	}
	return 0;
}

static int copy_chunk(struct work *work, uint64_t first, uint64_t count, struct error *error)
{
	uint8_t *ram = work->copy->guest->ram;
	int r = 0;

	if (work->copy->rounds == 0 && count >= POPULATE_PAGES)
		madvise(ram + first * PAGE_SIZE, count * PAGE_SIZE, MADV_POPULATE_READ);
	while (count && r == 0) {
		bool zero;
		uint64_t alike = pages_alike(ram + first * PAGE_SIZE, count, &zero);

		r = give(work, first, alike, zero, error);
		first += alike;
		count -= alike;
	}
	return r;
}

static int listen_to_xend(struct work *work, uint64_t pages, struct error *error)
{
	work->left -= pages < work->left ? pages : work->left;
	work->unchecked += (unsigned)pages;
	if (work->unchecked < COPY_CHUNK_PAGES)
		return 0;
	work->unchecked = 0;
	tell_progress(work, false);
	return job_cancelled(work->copy->job, error);
}

static int copy_round(struct work *work, struct error *error)
{
	struct copy *copy = work->copy;
	struct sink *sink = copy->sink;
	uint64_t sent = copy->sent_pages, first, count;
	int64_t began = monotonic_ns();
	int r = 0;

	work->left = bitmap_count(work->todo, copy->guest->pages);
	for (uint64_t at = 0;
		r == 0 && (count = bitmap_run(work->todo, copy->guest->pages, at, &first)) > 0;) {
		if (count > COPY_CHUNK_PAGES)
			count = COPY_CHUNK_PAGES;
		r = copy_chunk(work, first, count, error);
		if (r == 0)
			r = listen_to_xend(work, count, error);
		at = first + count;
	}
	if (r == 0)
		r = sink->round(sink, copy->rounds + 1, error);
	if (r < 0)
		return r;
	copy->rounds++;
	copy->last_pages = copy->sent_pages - sent;
	rounds_measure(&work->rounds, copy->last_pages * PAGE_SIZE, monotonic_ns() - began);
	return 0;
}

static int pause_guest(struct copy *copy, struct error *error)
{
	int r;

	copy->paused_at = monotonic_ns();
	copy->paused_realtime_ns = realtime_ns();
	r = guest_pause(copy->guest, error);
	copy->stopped_at = monotonic_ns();
	return r;
}

/* Rounds while the guest runs; leaves it paused, with what is still to be copied in work->todo. */
static int copy_live(struct work *work, struct error *error)
{
	struct copy *copy = work->copy;
	size_t words = bitmap_words(copy->guest->pages);
	uint64_t dirty;
	int r;

	do {
		r = copy_round(work, error);
		if (r == 0)
			r = guest_dirty(copy->guest, &dirty, error);
		if (r < 0)
			return r;
		memcpy(work->todo, copy->guest->dirty, words * sizeof(*work->todo));
	} while (rounds_next(&work->rounds, dirty) == ROUNDS_GO_ON);
	r = pause_guest(copy, error);
	if (r == 0)
		r = guest_dirty(copy->guest, &dirty, error);
	if (r < 0)
		return r;
	for (size_t i = 0; i < words; i++)
		work->todo[i] |= copy->guest->dirty[i];
	copy->sink->hurry = true;
	return 0;
}

int copy_guest(struct copy *copy, struct error *error)
{
	struct guest *guest = copy->guest;
	_cleanup_free_ uint64_t *todo = calloc(bitmap_words(guest->pages), sizeof(*todo));
	_cleanup_free_ uint64_t *given = calloc(bitmap_words(guest->pages), sizeof(*given));
	struct work work = {.copy = copy, .todo = todo, .given = given, .began = monotonic_ns()};
	int r;

	if (!todo || !given)
		return error_set(error, ENOMEM, "Out of memory for the carrier's page maps.");
	rounds_begin(&work.rounds, copy->max_downtime_ms);
	/* Tracking starts before the first look: whatever is touched later shows in the log. */
	r = copy->live ? guest_track(guest, true, error) : pause_guest(copy, error);
	if (r == 0)
		r = pages_present(guest->ram_fd, guest->pages, todo, error);
	if (r == 0 && copy->live)
		r = copy_live(&work, error);
	copy->sink->last = true;
	if (r == 0)
		r = copy_round(&work, error);
	if (r == 0)
		tell_progress(&work, true);
	return r;
}
