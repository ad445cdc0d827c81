#include "carry/copy.h"
#include "base/bitmap.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "carry/clock.h"
#include "carry/pages.h"
#include "carry/rounds.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#define POPULATE_PAGES 16u /* shorter runs fault in by themselves */
#define LOOK_EVERY_NS (200 * NS_PER_MS)
#define FLUSH_LOOK_NS 100000
#define FLUSH_LOOK_MOST_NS (20 * NS_PER_MS)
#define FLUSH_EARLY_NS NS_PER_S     /* so long a flush is waited for while the guest runs */
#define FLUSH_NEGLIGIBLE_NS 5000000 /* hardly anything is written meanwhile */

/* What one copy_guest works with. */
struct work {
	struct copy *copy;
	uint64_t *todo;     /* pages of this round */
	uint64_t *next;     /* pages that are known to come in the next one */
	uint64_t *given;    /* pages of which the sink has contents */
	uint64_t left;      /* pages of this round not yet looked at */
	uint64_t total;     /* pages of all rounds so far */
	unsigned unchecked; /* pages since xend was last listened to */
	struct rounds rounds;
	int64_t began;
	int64_t round_began, next_look; /* monotonic ns */
	uint64_t round_sent;            /* copy->sent_pages when the round began */
	bool unflushed;                 /* the guest's process cannot flush its disks */
	bool late; /* the round has ended early: only what stands still now arrives by the deadline */
};

/* The rounds, with what this one tells so far of the bandwidth. */
static struct rounds rounds_now(const struct work *work)
{
	struct rounds rounds = work->rounds;

	rounds_measure(&rounds, (work->copy->sent_pages - work->round_sent) * PAGE_SIZE,
		monotonic_ns() - work->round_began);
	return rounds;
}

static void tell_progress(struct work *work, bool over)
{
	struct copy *copy = work->copy;
	struct rounds rounds = rounds_now(work);
	int64_t ns = monotonic_ns() - work->began;
	uint64_t bytes = copy->sent_pages * PAGE_SIZE;
	bool known = copy->live && copy->rounds > 0 && !copy->sink->last && rounds.last_pages != UINT64_MAX;
	uint64_t dirty = known ? rounds.last_pages : 0;

	job_progress(copy->job,
		&(struct progress){.round = copy->rounds + (over ? 0 : 1),
			.sent_bytes = bytes,
			.total_bytes = bytes + work->left * PAGE_SIZE,
			.remaining_pages = work->left,
			.bytes_per_second = ns > 0 ? (uint64_t)((double)bytes * NS_PER_S / (double)ns) : 0,
			.dirty_pages = dirty,
			.slowed = copy->slowed,
			.downtime_ns = known ? rounds_downtime_ns(&rounds, dirty) : 0,
			.left_ns = rounds_downtime_ns(&rounds, work->left + dirty)},
		over);
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
	if (work->copy->sink->attend)
		return work->copy->sink->attend(work->copy->sink, error);
	return job_cancelled(work->copy->job, error);
}

int copy_overdue(const struct copy *copy, struct error *error)
{
	return error_set(error, ETIMEDOUT,
		"The guest's memory does not arrive in the time that --timeout gives, and --on-stall cancel "
		"was "
		"asked for: given up in round %u, the guest runs on. Give more time, or use --on-stall stop.",
		copy->rounds + 1);
}

/* At this bandwidth the guest would be late even if it stopped now: then it need not stand still for that. */
static int cannot_arrive(
	const struct copy *copy, const struct rounds *rounds, uint64_t pages, struct error *error)
{
	double bytes = (double)(pages * PAGE_SIZE);

	return error_set(error, ETIMEDOUT,
		"The guest's memory cannot be there in the %.0f s that --timeout gives: the %.1f MB that are "
		"left "
		"take %.1f s at %.1f Mbit/s, which is what the line, or --resource, lets through. Given up "
		"in "
		"round %u, the guest runs on. Give more time.",
		(double)(copy->deadline - copy->began) / 1e9, bytes / 1e6, bytes / rounds->bytes_per_ns / 1e9,
		rounds->bytes_per_ns * 8e3, copy->rounds + 1);
}

/* Of word `i` of this round's pages those that it has not come to: it stands before page `at`. */
static uint64_t ahead(const struct work *work, uint64_t at, uint64_t i)
{
	return (i + 1) * 64 <= at ? 0 : work->todo[i] & (i * 64 < at ? ~0ull << at % 64 : ~0ull);
}

/*
 * The log in the middle of a round. It is clear from here on, so every page in it comes in the next round,
 * wherever it lies, but those that this round has still to read.
 */
static int take_log(struct work *work, uint64_t at, struct error *error)
{
	struct guest *guest = work->copy->guest;
	uint64_t ignored;
	int r = guest_dirty(guest, &ignored, error);

	for (uint64_t i = 0; r == 0 && i < bitmap_words(guest->pages); i++)
		work->next[i] |= guest->dirty[i] & ~ahead(work, at, i);
	return r;
}

/* What is left of this round comes in the next one. */
static void end_early(struct work *work, uint64_t at)
{
	for (uint64_t i = at / 64; i < bitmap_words(work->copy->guest->pages); i++)
		work->next[i] |= ahead(work, at, i);
	work->late = true;
}

/*
 * With a deadline: is there time to let the guest run on? The log, which costs the guest something, is only
 * taken when there would not be if it had written everything again.
 */
static int look_at_clock(struct work *work, uint64_t at, struct error *error)
{
	struct copy *copy = work->copy;
	struct rounds rounds;
	int64_t now;
	int r;

	if (!copy->deadline)
		return 0;
	now = monotonic_ns();
	if (copy->may_not_stall && now >= copy->deadline)
		return copy_overdue(copy, error);
	/* The first moments of a line say too little of it to stop a guest for, or to let it stay. */
	if ((copy->live && copy->sink->last) || now < work->next_look ||
		now - copy->began < (copy->deadline - copy->began) / 10)
		return 0;
	work->next_look = now + LOOK_EVERY_NS;
	rounds = rounds_now(work);
	if (!copy->live)
		return rounds_too_late(&rounds, work->left, copy->began, now)
			       ? cannot_arrive(copy, &rounds, work->left, error)
			       : 0;
	if (!rounds_late(&rounds, work->left + copy->sent_pages - work->round_sent, now))
		return 0;
	r = take_log(work, at, error);
	if (r == 0 && rounds_late(&rounds, work->left + bitmap_count(work->next, copy->guest->pages), now))
		end_early(work, at);
	return r;
}

static int copy_round(struct work *work, struct error *error)
{
	struct copy *copy = work->copy;
	struct sink *sink = copy->sink;
	uint64_t first, count;
	int r = 0;

	work->round_sent = copy->sent_pages;
	work->round_began = monotonic_ns();
	work->left = bitmap_count(work->todo, copy->guest->pages);
	for (uint64_t at = 0; r == 0 && !work->late &&
			      (count = bitmap_run(work->todo, copy->guest->pages, at, &first)) > 0;) {
		if (count > COPY_CHUNK_PAGES - first % COPY_CHUNK_PAGES)
			count = COPY_CHUNK_PAGES - first % COPY_CHUNK_PAGES;
		r = copy_chunk(work, first, count, error);
		if (r == 0)
			r = listen_to_xend(work, count, error);
		at = first + count;
		if (r == 0)
			r = look_at_clock(work, at, error);
	}
	if (r == 0)
		r = sink->round(sink, copy->rounds + 1, error);
	if (r < 0)
		return r;
	copy->rounds++;
	copy->last_pages = copy->sent_pages - work->round_sent;
	rounds_measure(&work->rounds, copy->last_pages * PAGE_SIZE, monotonic_ns() - work->round_began);
	return 0;
}

/* Looks again and again, however long the storage takes, or until then (monotonic ns; 0: no end). */
static int await_flush(struct work *work, int64_t until, struct error *error)
{
	struct timespec pause = {.tv_nsec = FLUSH_LOOK_NS};
	bool done = false;
	int r = 0;

	while (r == 0 && !done && (!until || monotonic_ns() < until)) {
		r = guest_flush(work->copy->guest, false, &done, error);
		if (r < 0 || done)
			break;
		nanosleep(&pause, NULL);
		pause.tv_nsec = pause.tv_nsec < FLUSH_LOOK_MOST_NS ? 2 * pause.tv_nsec : pause.tv_nsec;
		work->unchecked = COPY_CHUNK_PAGES;
		r = listen_to_xend(work, 0, error);
	}
	return r;
}

/* What the guest wrote to its disks is to be stable before it is elsewhere, or in a file. */
static int begin_flush(struct work *work, struct error *error)
{
	bool done;
	int r = work->unflushed ? 0 : guest_flush(work->copy->guest, true, &done, error);

	if (r != -EINVAL)
		return r;
	log_warning("The guest's disks are not flushed: its process is of an earlier Ferry.");
	work->unflushed = true;
	return 0;
}

/* While the guest runs, so that little is left to be flushed when it stands still. A failure shows then. */
static int flush_early(struct work *work, struct error *error)
{
	int64_t until = monotonic_ns() + FLUSH_EARLY_NS, deadline = work->copy->deadline;
	int r = begin_flush(work, error);

	if (deadline && until > deadline - FLUSH_EARLY_NS) /* it goes on by itself */
		return r;
	if (r == 0 && !work->unflushed)
		r = await_flush(work, until, error);
	return r;
}

static int pause_guest(struct work *work, struct error *error)
{
	struct copy *copy = work->copy;
	int r;

	copy->paused_at = monotonic_ns();
	copy->paused_realtime_ns = realtime_ns();
	r = guest_pause(copy->guest, error);
	copy->stopped_at = monotonic_ns();
	if (r == 0)
		r = begin_flush(work, error);
	return r == 0 && copy->tells_pause ? job_event(copy->job, "paused", NULL, error) : r;
}

/* The log at a round's end completes what the next round is to copy. Returns how much in *pages. */
static int begin_next(struct work *work, uint64_t *pages, struct error *error)
{
	struct guest *guest = work->copy->guest;
	size_t words = bitmap_words(guest->pages);
	int r = guest_dirty(guest, pages, error);

	for (size_t i = 0; r == 0 && i < words; i++) {
		work->todo[i] = work->next[i] | guest->dirty[i];
		work->next[i] = 0;
	}
	*pages = r == 0 ? bitmap_count(work->todo, guest->pages) : 0;
	return r;
}

/* A guest that cannot be slowed (its process is of an earlier Ferry) is not slowed. */
static void slow_guest(struct work *work)
{
	struct copy *copy = work->copy;
	struct error error = {0};

	if (guest_throttle(copy->guest, work->rounds.slowed, &error) == 0) {
		copy->slowed = work->rounds.slowed;
		return;
	}
	log_warning("%s", error.text);
	work->rounds.may_slow = false;
}

/* At the limit of what rounds can do: whether the guest may be stopped all the same. */
static int at_limit(const struct work *work, enum rounds_verdict verdict, uint64_t pages, struct error *error)
{
	const struct copy *copy = work->copy;

	if (verdict == ROUNDS_FITS)
		return 0;
	if (verdict == ROUNDS_LATE && copy->may_not_stall)
		return copy_overdue(copy, error);
	if (rounds_too_late(&work->rounds, pages, copy->began, monotonic_ns()))
		return cannot_arrive(copy, &work->rounds, pages, error);
	if (!copy->may_not_stall)
		return 0;
	return error_set(error, ETIMEDOUT,
		"The guest writes its memory faster than it can be copied, even slowed by %u %%, and "
		"--on-stall "
		"cancel was asked for: given up after %u rounds with %llu pages left, which would have "
		"stopped it "
		"for %lld ms; the guest runs on. Allow more with --max-downtime, or use --on-stall stop.",
		copy->slowed, copy->rounds, (unsigned long long)pages,
		(long long)(rounds_downtime_ns(&work->rounds, pages) / NS_PER_MS));
}

/* Rounds while the guest runs; leaves it paused, with what is still to be copied in work->todo. */
static int copy_live(struct work *work, struct error *error)
{
	struct copy *copy = work->copy;
	enum rounds_verdict verdict = ROUNDS_GO_ON;
	bool flushed = false;
	int64_t flushing_since;
	uint64_t pages;
	int r;

	while (verdict == ROUNDS_GO_ON || verdict == ROUNDS_SLOW) {
		r = copy_round(work, error);
		if (r == 0)
			r = begin_next(work, &pages, error);
		if (r < 0)
			return r;
		verdict = rounds_next(&work->rounds, pages, monotonic_ns());
		if (work->late && verdict != ROUNDS_FITS)
			verdict = ROUNDS_LATE;
		if (verdict == ROUNDS_SLOW)
			slow_guest(work);
		if (verdict != ROUNDS_FITS || flushed)
			continue;
		/* What was written while it took its time comes in a round of its own. */
		flushed = true;
		flushing_since = monotonic_ns();
		r = flush_early(work, error);
		if (r < 0)
			return r;
		if (monotonic_ns() - flushing_since > FLUSH_NEGLIGIBLE_NS)
			verdict = ROUNDS_GO_ON;
	}
	r = at_limit(work, verdict, pages, error);
	if (r == 0)
		r = pause_guest(work, error);
	if (r < 0)
		return r;
	memcpy(work->next, work->todo, bitmap_bytes(copy->guest->pages));
	r = begin_next(work, &pages, error);
	work->late = false;
	return r;
}

int copy_guest(struct copy *copy, struct error *error)
{
	struct guest *guest = copy->guest;
	_cleanup_free_ uint64_t *todo = calloc(bitmap_words(guest->pages), sizeof(*todo));
	_cleanup_free_ uint64_t *given = calloc(bitmap_words(guest->pages), sizeof(*given));
	_cleanup_free_ uint64_t *next = calloc(bitmap_words(guest->pages), sizeof(*next));
	struct work work = {
		.copy = copy, .todo = todo, .next = next, .given = given, .began = monotonic_ns()};
	int r;

	if (!todo || !next || !given)
		return error_set(error, ENOMEM, "Out of memory for the carrier's page maps.");
	rounds_begin(&work.rounds, copy->max_downtime_ms);
	work.rounds.may_slow = copy->may_slow;
	work.rounds.deadline = copy->deadline;
	work.next_look = work.began + LOOK_EVERY_NS;
	/* Tracking starts before the first look: whatever is touched later shows in the log. */
	if (copy->live)
		r = guest->dirty ? 0 : guest_track(guest, true, error);
	else
		r = flush_early(&work, error);
	if (r == 0 && !copy->live)
		r = pause_guest(&work, error);
	if (r == 0)
		r = pages_present(guest->ram_fd, guest->pages, todo, error);
	if (r == 0 && copy->live)
		r = copy_live(&work, error);
	copy->sink->last = true;
	if (r == 0)
		r = copy_round(&work, error);
	if (r == 0 && !work.unflushed)
		r = await_flush(&work, 0, error);
	if (r == 0)
		tell_progress(&work, true);
	return r;
}
