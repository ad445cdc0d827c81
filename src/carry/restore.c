#include "base/bitmap.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "carry/clock.h"
#include "carry/file_io.h"
#include "carry/fill.h"
#include "carry/guest.h"
#include "carry/jobs.h"
#include "state/checkpoint.h"
#include "state/description.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

/* A restore under way. Each extent is verified in the guest's memory once all its pages are there. */
struct restore {
	struct job *job;
	int file; /* owned */
	struct checkpoint checkpoint;
	struct guest guest;
	struct file_io io;
	struct fill fill;     /* where memory follows the guest */
	struct shared shared; /* where it is a clone, until `fill` takes it */
	uint16_t *pending;    /* per extent: pages not yet read */
	uint64_t read_pages;
	uint8_t *content; /* of a compressed extent */
};

#define _cleanup_restore_ __attribute__((cleanup(restore_free)))

static void restore_free(struct restore *restore)
{
	file_io_end(&restore->io);
	fill_end(&restore->fill);
	shared_close(&restore->shared);
	guest_close(&restore->guest);
	checkpoint_close(&restore->checkpoint);
	free(restore->pending);
	free(restore->content);
	cleanup_close(&restore->file);
}

/* The tag of a request: its extent and how many pages. */
static uint64_t make_tag(uint64_t extent, uint64_t pages)
{
	return extent << 16 | pages;
}

static int run_read(void *context, uint64_t tag, struct error *error)
{
	struct restore *restore = context;
	uint64_t extent = tag >> 16, pages = tag & 0xffff;

	restore->read_pages += pages;
	restore->pending[extent] = (uint16_t)(restore->pending[extent] - pages);
	if (restore->pending[extent])
		return 0;
	return checkpoint_verify_extent(
		&restore->checkpoint, extent, restore->guest.ram + extent * CHECKPOINT_EXTENT_SIZE, error);
}

/* Compressed: read, unpacked and checked beside the guest's memory, so that pages of zeros stay holes there.
 */
static int unpack_extent(struct restore *restore, uint64_t index, struct error *error)
{
	const uint64_t *stored = restore->checkpoint.extents[index].stored;
	uint64_t base = index * CHECKPOINT_EXTENT_SIZE, first, count;
	int r;

	if (!restore->content)
		restore->content = aligned_alloc(PAGE_SIZE, CHECKPOINT_EXTENT_SIZE);
	if (!restore->content)
		return error_set(error, ENOMEM, "Out of memory while reading the checkpoint.");
	r = checkpoint_read_extent(&restore->checkpoint, index, restore->content, error);
	for (uint64_t at = 0; r == 0 && (count = bitmap_run(stored, CHECKPOINT_EXTENT_PAGES, at, &first)) > 0;
		at = first + count) {
		memcpy(restore->guest.ram + base + first * PAGE_SIZE, restore->content + first * PAGE_SIZE,
			count * PAGE_SIZE);
		restore->read_pages += count;
	}
	return r;
}

static int read_extent(struct restore *restore, uint64_t index, struct error *error)
{
	const struct checkpoint_extent *extent = &restore->checkpoint.extents[index];
	uint64_t base = index * CHECKPOINT_EXTENT_SIZE, first, count;
	int r = 0;

	if (extent->kind == EXTENT_EMPTY)
		return 0;
	if (extent->kind == EXTENT_ZSTD)
		return unpack_extent(restore, index, error);
	restore->pending[index] = (uint16_t)bitmap_count(extent->stored, CHECKPOINT_EXTENT_PAGES);
	if (restore->pending[index] == CHECKPOINT_EXTENT_PAGES)
		madvise(restore->guest.ram + base, CHECKPOINT_EXTENT_SIZE, MADV_HUGEPAGE);
	for (uint64_t at = 0;
		r == 0 && (count = bitmap_run(extent->stored, CHECKPOINT_EXTENT_PAGES, at, &first)) > 0;
		at = first + count)
		r = file_io_submit(&restore->io, restore->guest.ram + base + first * PAGE_SIZE,
			count * PAGE_SIZE, extent->offset + first * PAGE_SIZE, make_tag(index, count), error);
	return r;
}

static int read_memory(struct restore *restore, struct error *error)
{
	struct checkpoint *checkpoint = &restore->checkpoint;
	int64_t began = monotonic_ns();
	int r = 0;

	restore->pending = calloc(checkpoint->extent_count, sizeof(*restore->pending));
	if (!restore->pending)
		return error_set(error, ENOMEM, "Out of memory while reading the checkpoint.");
	for (uint64_t i = 0; r == 0 && i < checkpoint->extent_count; i++) {
		int64_t ns = monotonic_ns() - began;
		uint64_t bytes = restore->read_pages * PAGE_SIZE;

		r = read_extent(restore, i, error);
		if (r == 0)
			r = job_cancelled(restore->job, error);
		job_progress(restore->job,
			&(struct progress){.round = 1,
				.sent_bytes = bytes,
				.total_bytes = checkpoint->stored_pages * PAGE_SIZE,
				.remaining_pages = checkpoint->stored_pages - restore->read_pages,
				.bytes_per_second =
					ns > 0 ? (uint64_t)((double)bytes * NS_PER_S / (double)ns) : 0},
			false);
	}
	return r == 0 ? file_io_drain(&restore->io, error) : r;
}

/* The guest that is to get this memory must have as much of it, in the same places. */
static int match(const struct restore *restore, struct error *error)
{
	const struct checkpoint *checkpoint = &restore->checkpoint;

	if (restore->guest.size != checkpoint->ram_size)
		return error_set(error, EINVAL,
			"The guest was made with %llu MiB of memory, but the checkpoint has %llu.",
			(unsigned long long)(restore->guest.size >> 20),
			(unsigned long long)(checkpoint->ram_size >> 20));
	return description_match_regions(checkpoint->description, restore->guest.regions, error);
}

/* The guest that xend has sent, which is a clone where memory that it shares came with it. */
static int open_guest(
	struct restore *restore, struct message *sent, enum guest_purpose purpose, struct error *error)
{
	int channel = message_take_fd(sent, sent->body, "guest", error);
	_cleanup_close_ int ram = message_take_fd(sent, sent->body, "shared", NULL);
	_cleanup_close_ int device = message_take_fd(sent, sent->body, "faults", NULL);
	int r;

	if (channel < 0)
		return error_set(error, EPROTO, "xend accepted the checkpoint without a guest for it.");
	r = guest_open(&restore->guest, channel, ram >= 0 ? GUEST_FILL : purpose, error);
	if (r == 0 && ram >= 0)
		r = shared_open(
			&restore->shared, take_fd(&ram), take_fd(&device), restore->guest.size, error);
	return r == 0 ? match(restore, error) : r;
}

/* Which checkpoint it is: as good as all its bytes, for the header's digest covers all other digests. */
static json_t *identity_of(const struct checkpoint *checkpoint)
{
	char text[2 * sizeof(checkpoint->id) + 17];

	for (unsigned i = 0; i < sizeof(checkpoint->id); i++)
		snprintf(text + 2 * i, 3, "%02x", checkpoint->id[i]);
	snprintf(text + 2 * sizeof(checkpoint->id), 17, "%016" PRIx64, checkpoint->header_digest);
	return json_string(text);
}

/* Offers what the file holds to xend, which answers with a guest to fill. */
static int offer(struct restore *restore, struct error *error)
{
	struct checkpoint *checkpoint = &restore->checkpoint;
	_cleanup_message_ struct message answer = {0};
	int r = job_event(restore->job, "offer",
		json_pack("{s:O, s:O*, s:o, s:I, s:I}", "domain",
			json_object_get(checkpoint->description, "domain"), "disks",
			json_object_get(checkpoint->description, "disks"), "identity",
			identity_of(checkpoint), "memory_mib", (json_int_t)(checkpoint->ram_size >> 20),
			"taken_realtime_ns", (json_int_t)checkpoint->taken_realtime_ns),
		error);

	if (r == 0)
		r = job_answer(restore->job, &answer, error);
	if (r < 0)
		return r;
	if (strcmp(job_verb(&answer), "accept") != 0)
		return error_set(error, EPROTO, "xend did not accept the checkpoint.");
	return open_guest(restore, &answer, GUEST_WRITE, error);
}

static int begin(struct restore *restore, struct job *job, confine_function *confine, struct error *error)
{
	int r;

	*restore = (struct restore){.job = job};
	restore->guest.channel = restore->guest.ram_fd = restore->fill.faults = -1;
	restore->shared = restore->fill.shared = SHARED_NONE;
	restore->io.fd = restore->checkpoint.fd = -1;
	restore->file = job_take_fd(job, "file", error);
	if (restore->file < 0)
		return restore->file;
	r = file_io_begin(&restore->io, restore->file, false, error);
	if (r == 0 && confine)
		r = confine(error);
	return r == 0 ? checkpoint_open(&restore->checkpoint, restore->file, error) : r;
}

static json_t *took(int64_t began, bool filling)
{
	return json_pack("{s:I, s:b}", "milliseconds", (json_int_t)((monotonic_ns() - began) / NS_PER_MS),
		"filling", filling);
}

/* All memory, then the state. */
static int load(struct restore *restore, int64_t began, struct error *error)
{
	int64_t offered = monotonic_ns(), read;
	int r;

	restore->io.completed = run_read;
	restore->io.context = restore;
	r = read_memory(restore, error);
	read = monotonic_ns();
	if (r == 0)
		r = guest_load_state(&restore->guest, &restore->checkpoint.state, error);
	if (r == 0)
		r = job_event(restore->job, "loaded", took(began, false), error);
	if (r == 0)
		log_info("Restored: %.1f ms until xend had made the guest, %.1f to read and verify %llu MiB, "
			 "%.1f to load the "
			 "device state.",
			(double)(offered - began) / (double)NS_PER_MS,
			(double)(read - offered) / (double)NS_PER_MS,
			(unsigned long long)(restore->read_pages * PAGE_SIZE >> 20),
			(double)(monotonic_ns() - read) / (double)NS_PER_MS);
	return r;
}

/* The rest of the memory, until nothing is missing. */
static int complete(struct restore *restore, int64_t began, struct error *error)
{
	int r = fill_complete(&restore->fill, error);

	if (r == 0 && !restore->fill.xend_gone)
		r = job_event(restore->job, "filled", took(began, false), error);
	return r;
}

/* The state, then all memory. */
static int load_first(struct restore *restore, int64_t began, struct error *error)
{
	_cleanup_close_ int state = -1;
	json_t *request = guest_state_request(&restore->checkpoint.state, &state, error);
	int r = request ? fill_call(&restore->fill, request, &state, error) : -EIO;

	if (r == 0)
		r = job_event(restore->job, "loaded", took(began, true), error);
	return r == 0 ? complete(restore, began, error) : r;
}

/* The guest goes on with the file that it began with, or not at all. */
static int check_identity(const struct restore *restore, struct error *error)
{
	const char *wanted = job_text(restore->job, "identity");
	_cleanup_json_ json_t *identity = identity_of(&restore->checkpoint);

	if (!wanted || strcmp(wanted, json_string_value(identity)) == 0)
		return 0;
	return error_set(error, EXDEV, "The file is another checkpoint now.");
}

int fill_job(struct job *job, confine_function *confine, struct error *error)
{
	_cleanup_restore_ struct restore restore;
	int64_t began = monotonic_ns();
	int r = begin(&restore, job, confine, error);

	if (r == 0)
		r = check_identity(&restore, error);
	if (r == 0)
		r = open_guest(&restore, &job->request, GUEST_FILL, error);
	if (r == 0)
		r = fill_begin(&restore.fill, job, &restore.guest, &restore.checkpoint, &restore.io, error);
	/* It did wait once: the carrier before died when all had come, and only its last word was missing. */
	if (r == -EOPNOTSUPP)
		return job_event(job, "filled", took(began, false), error);
	if (r < 0)
		return r;
	fill_share(&restore.fill, &restore.shared);
	restore.fill.alone = true;
	r = fill_repeat(&restore.fill, error);
	return r == 0 ? complete(&restore, began, error) : r;
}

int restore_job(struct job *job, confine_function *confine, struct error *error)
{
	_cleanup_restore_ struct restore restore;
	int64_t began = monotonic_ns();
	int r = begin(&restore, job, confine, error);

	if (r == 0)
		r = offer(&restore, error);
	if (r < 0)
		return r;
	r = -EOPNOTSUPP;
	if (job_flag(job, "lazy"))
		r = fill_begin(&restore.fill, job, &restore.guest, &restore.checkpoint, &restore.io, error);
	if (r == -EOPNOTSUPP && restore.shared.ram < 0)
		return load(&restore, began, error);
	fill_share(&restore.fill, &restore.shared);
	return r == 0 ? load_first(&restore, began, error) : r;
}
