#include "base/bitmap.h"
#include "base/cleanup.h"
#include "carry/clock.h"
#include "carry/forecast.h"
#include "carry/guest.h"
#include "carry/jobs.h"
#include "carry/page_digests.h"
#include "carry/pages.h"

#include <errno.h>
#include <math.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>

/* Each after the one before: also a guest that has written all that it ever writes within milliseconds, and
 * would in as few if it was slowed, is told from one that takes a second. */
static const int look_ms[FORECAST_LOOKS] = {5, 5, 10, 20, 40, 80, 160, 320, 560};

/* Memory that is looked into: so many pieces from all over it. */
#define PIECES 32u
#define PIECE_PAGES 64u
#define FLUSH_NS NS_PER_S /* so long a flush is waited for, as a migration does while the guest runs */

/* Exchanges of clocks before the offer. */
#define CLOCKS 3
/*
 * What cannot be tried without moving the guest goes by what the peer needs to begin a carrier and to greet,
 * beside what the line takes for that: on small hosts with a KVM of their own, some 25 ms, as in emulated
 * ones, twenty times as slow.
 */
#define GREETING_TRIPS 4          /* of TCP, of TLS, and of Ferry's own greeting */
#define GUEST_START_GREETINGS 3.5 /* making its process and its machine there */
#define STOP_GREETINGS 0.4        /* stopping it, loading its state, recording whose it is, letting it run */
#define STOP_LEAST_NS (10 * NS_PER_MS)

/* Questions and answers within the hosts while the guest stands still, of as many processes that may have to
 * wait for a processor. */
#define CALLS 8
#define TRIED_CALLS 16
#define CALL_EVERY_MS 15
#define CALL_MOST_NS NS_PER_MS /* a host that is as busy now may not be so then */

static int wait_for(const struct job *job, int milliseconds, struct error *error)
{
	struct pollfd channel = {.fd = job->channel, .events = POLLIN};
	int64_t end = monotonic_ns() + milliseconds * NS_PER_MS, left;

	while ((left = (end - monotonic_ns()) / NS_PER_MS) > 0)
		if (poll(&channel, 1, (int)left) > 0)
			return job_cancelled(job, error);
	return 0;
}

/* Looks at what has been written since the log was turned on, which is in `all` then. *round_ns: what a look
 * costs. */
static int measure_writing(const struct job *job, struct guest *guest, uint64_t *all, struct writing *writing,
	int64_t *round_ns, struct error *error)
{
	int64_t began, looked;
	uint64_t count;
	int r;

	r = guest_track(guest, true, error);
	began = monotonic_ns();
	for (unsigned look = 0; r == 0 && look < FORECAST_LOOKS; look++) {
		r = wait_for(job, look_ms[look], error);
		looked = monotonic_ns();
		if (r == 0)
			r = guest_dirty(guest, &count, error);
		*round_ns += (monotonic_ns() - looked) / FORECAST_LOOKS;
		for (size_t i = 0; r == 0 && i < bitmap_words(guest->pages); i++)
			all[i] |= guest->dirty[i];
		writing->at_ns[look] = monotonic_ns() - began;
		writing->pages[look] = bitmap_count(all, guest->pages);
	}
	return r;
}

/* What was found in the pieces of memory that were looked into. */
struct found {
	uint64_t pages, zeros;
	uint64_t compressed; /* bytes, of those that are not zero */
	int64_t look_ns;     /* that finding out what is zero took */
	uint64_t digests;
	int64_t source_ns, placing_ns; /* what each side's carrier does with others, but send and receive */
};

/* A piece without zeros: what is done with it on its way is done here. */
static void try_piece(const uint8_t *pages, uint64_t count, struct compressor *compressor, uint8_t *room,
	struct found *found)
{
	size_t size = count * PAGE_SIZE, compressed;
	int64_t began = monotonic_ns(), sent;
	void *placed;

	for (uint64_t i = 0; i < count; i++)
		found->digests += page_digest(i, pages + i * PAGE_SIZE);
	compressed = compressor_pages(compressor, pages, count, room);
	sent = monotonic_ns();
	found->source_ns += sent - began;
	found->compressed += compressed ? compressed : size;
	placed = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (placed == MAP_FAILED)
		return;
	if (!compressed || !decompress_pages(room, compressed, placed, count))
		memcpy(placed, pages, size);
	for (uint64_t i = 0; i < count; i++)
		found->digests += page_digest(i, (uint8_t *)placed + i * PAGE_SIZE);
	found->placing_ns += monotonic_ns() - sent;
	munmap(placed, size);
}

static void look_into(const struct guest *guest, uint64_t first, uint64_t count,
	struct compressor *compressor, uint8_t *room, struct found *found)
{
	while (count) {
		const uint8_t *pages = guest->ram + first * PAGE_SIZE;
		int64_t began = monotonic_ns();
		bool zero;
		uint64_t alike = pages_alike(pages, count, &zero);

		found->look_ns += monotonic_ns() - began;
		found->pages += alike;
		if (zero)
			found->zeros += alike;
		else
			try_piece(pages, alike, compressor, room, found);
		first += alike;
		count -= alike;
	}
}

/* What is in some of these pages. */
static int measure_pages(
	const struct guest *guest, const uint64_t *these, struct found *found, struct error *error)
{
	_cleanup_free_ uint8_t *room = malloc(PIECE_PAGES * PAGE_SIZE);
	struct compressor compressor = {0};
	uint64_t first, run, before = 0, step = bitmap_count(these, guest->pages) / PIECES;

	if (!room || !compressor_begin(&compressor, COMPRESSION_YES, monotonic_ns())) {
		compressor_end(&compressor);
		return error_set(error, ENOMEM, "Out of memory for compressing pages.");
	}
	step = step > PIECE_PAGES ? step : PIECE_PAGES;
	for (uint64_t at = 0; (run = bitmap_run(these, guest->pages, at, &first)) > 0; at = first + run) {
		/* A piece goes on in the next run: pages that lie alone count as much as those that do not.
		 */
		for (uint64_t done = 0; done < run;) {
			uint64_t into = (before + done) % step, left = run - done;
			uint64_t part = (into < PIECE_PAGES ? PIECE_PAGES : step) - into;

			part = part < left ? part : left;
			if (into < PIECE_PAGES)
				look_into(guest, first + done, part, &compressor, room, found);
			done += part;
		}
		before += run;
	}
	compressor_end(&compressor);
	return 0;
}

/* How long a question to the guest's process takes, with all the processes that are there. */
static int measure_call(const struct job *job, struct guest *guest, int64_t *ns, struct error *error)
{
	int64_t asked, took = 0;
	int r = 0;

	for (unsigned i = 0; r == 0 && i < TRIED_CALLS; i++) {
		r = wait_for(job, CALL_EVERY_MS, error);
		asked = monotonic_ns();
		if (r == 0)
			r = guest_throttle(guest, 0, error);
		took += monotonic_ns() - asked;
	}
	*ns = took / TRIED_CALLS < CALL_MOST_NS ? took / TRIED_CALLS : CALL_MOST_NS;
	return r == -EINVAL ? 0 : r; /* an earlier Ferry's process, which cannot slow its guest */
}

/* How long a flush of the guest's disks takes, when what it wrote until just now has been flushed before; 0
 * where that is not known. */
static int measure_flush(const struct job *job, struct guest *guest, int64_t *ns, struct error *error)
{
	int64_t began, end = monotonic_ns() + FLUSH_NS;
	int r = 0;

	for (unsigned i = 0; r == 0 && i < 2; i++) {
		bool done = false;

		began = monotonic_ns();
		r = guest_flush(guest, true, &done, error);
		while (r == 0 && !done && monotonic_ns() < end) {
			r = wait_for(job, 1, error);
			if (r == 0)
				r = guest_flush(guest, false, &done, error);
		}
		*ns = monotonic_ns() - began;
	}
	if (r == -EINVAL) { /* an earlier Ferry's process, whose disks are not flushed */
		*ns = 0;
		return 0;
	}
	return r;
}

/* Rounded up: a guest that writes is not shown as one that does not. */
static json_int_t pages_a_second(const struct writing *writing)
{
	double seconds = (double)writing->at_ns[FORECAST_LOOKS - 1] / 1e9;
	uint64_t pages = writing->pages[FORECAST_LOOKS - 1];
	json_int_t whole = (json_int_t)((double)pages / seconds);

	return whole + ((double)whole * seconds < (double)pages);
}

/* All that was measured of a guest. */
struct measured {
	uint64_t pages; /* touched */
	struct found found, written;
	struct writing writing;
	int64_t round_ns, flush_ns, call_ns;
};

static int measure(const struct job *job, struct guest *guest, struct measured *measured, struct error *error)
{
	_cleanup_free_ uint64_t *present = calloc(bitmap_words(guest->pages), sizeof(*present));
	_cleanup_free_ uint64_t *written = calloc(bitmap_words(guest->pages), sizeof(*written));
	int r;

	if (!present || !written)
		return error_set(error, ENOMEM, "Out of memory for the carrier's page maps.");
	/* Only what the guest has touched is read: reading would make others be there. */
	r = pages_present(guest->ram_fd, guest->pages, present, error);
	measured->pages = r == 0 ? bitmap_count(present, guest->pages) : 0;
	if (r == 0)
		r = measure_pages(guest, present, &measured->found, error);
	if (r == 0)
		r = measure_flush(job, guest, &measured->flush_ns, error);
	if (r == 0)
		r = measure_call(job, guest, &measured->call_ns, error);
	if (r < 0 || !job_flag(job, "live"))
		return r;
	r = measure_writing(job, guest, written, &measured->writing, &measured->round_ns, error);
	/* It may have given back some of that. */
	if (r == 0)
		r = pages_present(guest->ram_fd, guest->pages, present, error);
	for (size_t i = 0; r == 0 && i < bitmap_words(guest->pages); i++)
		written[i] &= present[i];
	return r == 0 ? measure_pages(guest, written, &measured->written, error) : r;
}

static struct memory_sample sample_of(const struct found *found)
{
	double bytes = (double)(found->pages - found->zeros) * PAGE_SIZE;

	return bytes > 0 ? (struct memory_sample){(double)found->compressed / bytes,
				   (double)(found->source_ns + found->look_ns) / bytes,
				   (double)found->placing_ns / bytes}
			 : (struct memory_sample){1, 0, 0};
}

/* What is written while the guest runs may be quite another thing than what was there: at which speed that is
 * copied, zeros included, which are only looked at. */
static double written_bytes_per_ns(
	const struct found *written, const struct line_sample *line, const struct forecast_options *options)
{
	struct forecast_costs costs = {0};
	struct memory_sample memory = sample_of(written);
	double pages = (double)written->pages, zeros = (double)written->zeros / fmax(pages, 1);

	forecast_speed(&costs, line, &memory, options);
	return pages > 0 ? 1 / ((1 - zeros) / costs.bytes_per_ns +
				       zeros * (double)written->look_ns / pages / PAGE_SIZE)
			 : 0;
}

static double number(const json_t *object, const char *key)
{
	return json_number_value(json_object_get(object, key));
}

/* `said`: what the question to the peer found out about the line. */
static struct forecast foretell(const struct job *job, const struct guest *guest,
	const struct line_sample *line, const json_t *said, const struct measured *measured,
	const struct forecast_options *options)
{
	const struct found *found = &measured->found;
	struct memory_sample memory = sample_of(found);
	double zeros = found->pages ? (double)found->zeros / (double)found->pages : 0;
	double page_ns = found->pages ? (double)found->look_ns / (double)found->pages : 0;
	uint64_t full = measured->pages - (uint64_t)((double)measured->pages * zeros);
	double limit = options->limit > 0 && options->limit < line->bytes_per_ns ? options->limit
										 : line->bytes_per_ns;
	/* Where it is said how many, further connections are made in any case, all at the same time. */
	double further = job_number(job, "connections") > 1;
	double greeting_ns =
		fmax(number(said, "greeting_ns") - GREETING_TRIPS * (double)line->round_trip_ns, 0);
	struct forecast_costs costs = {
		.setup_ns = (int64_t)(number(said, "setup_ns") + further * greeting_ns) +
			    CLOCKS * line->round_trip_ns,
		/* Zero pages are only looked at. */
		.begin_ns = (int64_t)(page_ns * (double)(measured->pages - full)),
		.first_ns = (int64_t)(GUEST_START_GREETINGS * greeting_ns),
		.round_ns = line->round_trip_ns + measured->round_ns,
		/* RECEIVED comes and COMMIT goes; the last round and RUNNING each go half the way. */
		.stop_ns = (int64_t)fmax(STOP_GREETINGS * greeting_ns, STOP_LEAST_NS) +
			   CALLS * measured->call_ns + 2 * line->round_trip_ns + measured->flush_ns +
			   (int64_t)((double)guest->state_size / limit),
	};

	forecast_speed(&costs, line, &memory, options);
	costs.written_bytes_per_ns = written_bytes_per_ns(&measured->written, line, options);
	return job_flag(job, "live") ? forecast_live(full, &costs, &measured->writing, options)
				     : forecast_warm(full, &costs, options);
}

int measure_job(struct job *job, confine_function *confine, struct error *error)
{
	_cleanup_guest_ struct guest guest = {.channel = -1, .ram_fd = -1};
	const json_t *said = json_object_get(job->request.body, "line");
	struct line_sample line = {number(said, "bytes_per_second") / 1e9, number(said, "busy_ns_per_byte"),
		(int64_t)number(said, "round_trip_ns")};
	const char *on_stall = job_text(job, "on_stall");
	struct forecast_options options = {.limit = (double)job_number(job, "rate_mbit") / 8e3,
		.max_downtime_ms = job_number(job, "max_downtime_ms"),
		.timeout_ns = job_number(job, "timeout_s") * NS_PER_S,
		.may_not_stall = on_stall && strcmp(on_stall, "cancel") == 0};
	int channel = job_take_fd(job, "guest", error);
	struct measured measured = {0};
	struct forecast forecast;
	int r = channel < 0 ? channel : 0;

	if (r == 0 && line.bytes_per_ns <= 0)
		r = error_set(error, EINVAL, "The job for the carrier has no line.");
	if (r == 0)
		r = compression_from_text(job_text(job, "compress"), &options.compression, error);
	if (r == 0 && confine)
		r = confine(error);
	if (r == 0)
		r = guest_open(&guest, channel, GUEST_FILL, error);
	if (r == 0)
		r = measure(job, &guest, &measured, error);
	if (r < 0)
		return r;
	forecast = foretell(job, &guest, &line, said, &measured, &options);
	return job_event(job, "measured",
		json_pack("{s:I, s:o*, s:I, s:I, s:i, s:i, s:b, s:b}", "memory_bytes",
			(json_int_t)(measured.pages * PAGE_SIZE), "written_pages_per_second",
			job_flag(job, "live") ? json_integer(pages_a_second(&measured.writing)) : NULL,
			"milliseconds", (json_int_t)(forecast.total_ns / NS_PER_MS), "downtime_ms",
			(json_int_t)(forecast.downtime_ns / NS_PER_MS), "rounds", (int)forecast.rounds,
			"slowed", (int)forecast.slowed, "fits", forecast.fits, "stays", forecast.stays),
		error);
}
