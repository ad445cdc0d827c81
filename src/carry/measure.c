#include "base/bitmap.h"
#include "base/cleanup.h"
#include "carry/clock.h"
#include "carry/forecast.h"
#include "carry/guest.h"
#include "carry/jobs.h"
#include "carry/pages.h"

#include <errno.h>
#include <poll.h>
#include <string.h>

#define FIRST_LOOK_MS 100
#define SECOND_LOOK_MS 400 /* after the first */

static int wait_for(const struct job *job, int milliseconds, struct error *error)
{
	struct pollfd channel = {.fd = job->channel, .events = POLLIN};
	int64_t end = monotonic_ns() + milliseconds * NS_PER_MS, left;

	while ((left = (end - monotonic_ns()) / NS_PER_MS) > 0)
		if (poll(&channel, 1, (int)left) > 0)
			return job_cancelled(job, error);
	return 0;
}

/* One more look, `milliseconds` after the one before: what has been written since the log was turned on. */
static int look(const struct job *job, struct guest *guest, int milliseconds, uint64_t *all, uint64_t *count,
	struct error *error)
{
	int r = wait_for(job, milliseconds, error);

	if (r == 0)
		r = guest_dirty(guest, count, error);
	if (r < 0)
		return r;
	for (size_t i = 0; i < bitmap_words(guest->pages); i++)
		all[i] |= guest->dirty[i];
	*count = bitmap_count(all, guest->pages);
	return 0;
}

static int measure_writing(
	const struct job *job, struct guest *guest, struct writing *writing, struct error *error)
{
	_cleanup_free_ uint64_t *all = calloc(bitmap_words(guest->pages), sizeof(*all));
	int64_t began;
	int r;

	if (!all)
		return error_set(error, ENOMEM, "Out of memory for the carrier's page maps.");
	r = guest_track(guest, true, error);
	began = monotonic_ns();
	if (r == 0)
		r = look(job, guest, FIRST_LOOK_MS, all, &writing->first_pages, error);
	writing->first_ns = monotonic_ns() - began;
	if (r == 0)
		r = look(job, guest, SECOND_LOOK_MS, all, &writing->second_pages, error);
	writing->second_ns = monotonic_ns() - began;
	return r;
}

static int touched_pages(const struct guest *guest, uint64_t *count, struct error *error)
{
	_cleanup_free_ uint64_t *present = calloc(bitmap_words(guest->pages), sizeof(*present));
	int r = present ? pages_present(guest->ram_fd, guest->pages, present, error)
			: error_set(error, ENOMEM, "Out of memory for the carrier's page maps.");

	if (r == 0)
		*count = bitmap_count(present, guest->pages);
	return r;
}

/* Rounded up: a guest that writes is not shown as one that does not. */
static json_int_t pages_a_second(const struct writing *writing)
{
	double seconds = (double)writing->second_ns / 1e9;
	json_int_t whole = (json_int_t)((double)writing->second_pages / seconds);

	return whole + ((double)whole * seconds < (double)writing->second_pages);
}

int measure_job(struct job *job, confine_function *confine, struct error *error)
{
	_cleanup_guest_ struct guest guest = {.channel = -1, .ram_fd = -1};
	double bytes_per_ns = (double)job_number(job, "bytes_per_second") / 1e9,
	       rate = (double)job_number(job, "rate_mbit") / 8e3;
	int channel = job_take_fd(job, "guest", error);
	const char *on_stall = job_text(job, "on_stall");
	bool live = job_flag(job, "live");
	struct writing writing = {0};
	struct forecast forecast;
	uint64_t pages = 0;
	int r = channel < 0 ? channel : 0;

	if (r == 0 && bytes_per_ns <= 0)
		r = error_set(error, EINVAL, "The job for the carrier has no bandwidth.");
	if (r == 0 && confine)
		r = confine(error);
	if (r == 0)
		r = guest_open(&guest, channel, GUEST_FILL, error);
	if (r == 0)
		r = touched_pages(&guest, &pages, error);
	if (r == 0 && live)
		r = measure_writing(job, &guest, &writing, error);
	if (r < 0)
		return r;
	if (rate > 0 && rate < bytes_per_ns)
		bytes_per_ns = rate;
	forecast = live ? forecast_live(pages, bytes_per_ns, &writing, job_number(job, "max_downtime_ms"))
			: forecast_warm(pages, bytes_per_ns);
	forecast_limit(&forecast, pages, bytes_per_ns, live ? &writing : NULL,
		job_number(job, "timeout_s") * NS_PER_S, on_stall && strcmp(on_stall, "cancel") == 0);
	return job_event(job, "measured",
		json_pack("{s:I, s:o*, s:I, s:I, s:i, s:i, s:b, s:b}", "memory_bytes",
			(json_int_t)(pages * PAGE_SIZE), "written_pages_per_second",
			live ? json_integer(pages_a_second(&writing)) : NULL, "milliseconds",
			(json_int_t)(forecast.total_ns / NS_PER_MS), "downtime_ms",
			(json_int_t)(forecast.downtime_ns / NS_PER_MS), "rounds", (int)forecast.rounds,
			"slowed", (int)forecast.slowed, "fits", forecast.fits, "stays", forecast.stays),
		error);
}
