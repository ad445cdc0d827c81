#include "base/bitmap.h"
#include "base/cleanup.h"
#include "carry/clock.h"
#include "carry/copy.h"
#include "carry/file_io.h"
#include "carry/jobs.h"
#include "state/checkpoint.h"
#include "state/description.h"
#include "state/digest.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#define NO_EXTENT UINT64_MAX

/* A checkpoint file as the sink of the copy engine. */
struct save_sink {
	struct sink sink;
	struct guest *guest;
	struct file_io io;
	struct checkpoint checkpoint;
	bool later_round;
	/* First round: the digest of the extent whose pages are coming. Later rounds make a digest stale. */
	struct digest_stream stream;
	uint64_t open_extent;
	uint64_t *stale; /* bit per extent */
};

#define _cleanup_save_sink_ __attribute__((cleanup(save_sink_free)))

static void save_sink_free(struct save_sink *save)
{
	file_io_end(&save->io);
	checkpoint_close(&save->checkpoint);
	free(save->stale);
}

static void close_extent(struct save_sink *save)
{
	if (save->open_extent != NO_EXTENT)
		save->checkpoint.extents[save->open_extent].digest = digest_end(&save->stream);
	save->open_extent = NO_EXTENT;
}

/* Pages of one extent were given: note which, and keep or void its digest. */
static void note_pages(struct save_sink *save, uint64_t extent, uint64_t first, uint64_t count)
{
	uint64_t *stored = save->checkpoint.extents[extent].stored;

	for (uint64_t page = first; page < first + count; page++)
		bitmap_set(stored, page % CHECKPOINT_EXTENT_PAGES);
	if (save->later_round) {
		bitmap_set(save->stale, extent);
		return;
	}
	if (save->open_extent != extent) {
		close_extent(save);
		save->open_extent = extent;
		digest_begin(&save->stream);
	}
	digest_add(&save->stream, save->guest->ram + first * PAGE_SIZE, count * PAGE_SIZE);
}

static int save_pages(struct sink *sink, uint64_t first, uint64_t count, struct error *error)
{
	struct save_sink *save = CONTAINER_OF(sink, struct save_sink, sink);
	uint64_t end = first + count;

	for (uint64_t at = first; at < end;) {
		uint64_t extent = at / CHECKPOINT_EXTENT_PAGES, next = (extent + 1) * CHECKPOINT_EXTENT_PAGES;

		next = next < end ? next : end;
		note_pages(save, extent, at, next - at);
		at = next;
	}
	return file_io_submit(&save->io, save->guest->ram + first * PAGE_SIZE, count * PAGE_SIZE,
		CHECKPOINT_RAM_AT + first * PAGE_SIZE, 0, error);
}

static int save_zeros(struct sink *sink, uint64_t first, uint64_t count, struct error *error)
{
	struct save_sink *save = CONTAINER_OF(sink, struct save_sink, sink);

	for (uint64_t page = first; page < first + count; page++) {
		bitmap_clear(save->checkpoint.extents[page / CHECKPOINT_EXTENT_PAGES].stored,
			page % CHECKPOINT_EXTENT_PAGES);
		bitmap_set(save->stale, page / CHECKPOINT_EXTENT_PAGES);
	}
	/* Only for the file's size: pages that the extent table does not count are never read. */
	if (fallocate(save->io.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
		    (off_t)(CHECKPOINT_RAM_AT + first * PAGE_SIZE), (off_t)(count * PAGE_SIZE)) < 0 &&
		errno != EOPNOTSUPP && errno != ENOSYS && errno != EINTR)
		return error_set(error, errno, "Unable to write the checkpoint: %s.", strerror(errno));
	return 0;
}

static int save_round(struct sink *sink, unsigned number, struct error *error)
{
	struct save_sink *save = CONTAINER_OF(sink, struct save_sink, sink);

	(void)number;
	close_extent(save);
	save->later_round = true;
	return file_io_drain(&save->io, error);
}

static int save_sink_begin(struct save_sink *save, struct guest *guest, struct error *error)
{
	uint64_t size = guest->size, extents = checkpoint_extent_count(size);

	save->sink = (struct sink){.pages = save_pages, .zeros = save_zeros, .round = save_round};
	save->guest = guest;
	save->open_extent = NO_EXTENT;
	save->checkpoint.fd = save->io.fd;
	save->checkpoint.ram_size = size;
	save->checkpoint.extent_count = extents;
	save->checkpoint.extents = calloc(extents, sizeof(*save->checkpoint.extents));
	save->stale = calloc(bitmap_words(extents), sizeof(*save->stale));
	if (!save->checkpoint.extents || !save->stale)
		return error_set(error, ENOMEM, "Out of memory for the checkpoint's extent table.");
	/* The whole image as one hole: writes into it need not wait for each other to extend the file. */
	if (ftruncate(save->io.fd, (off_t)(CHECKPOINT_RAM_AT + size)) < 0)
		return error_set(error, errno, "Unable to write the checkpoint: %s.", strerror(errno));
	return 0;
}

/* The guest stands still: digests of extents that were written more than once, then all but RAM. */
static int save_sink_finish(struct save_sink *save, struct error *error)
{
	struct checkpoint *checkpoint = &save->checkpoint;

	for (uint64_t i = 0; i < checkpoint->extent_count; i++)
		if (bitmap_test(save->stale, i))
			checkpoint->extents[i].digest = checkpoint_extent_digest(
				checkpoint->extents[i].stored, save->guest->ram + i * CHECKPOINT_EXTENT_SIZE);
	file_io_end(&save->io);
	return checkpoint_finish(checkpoint, error);
}

static int save_guest(struct job *job, struct guest *guest, struct save_sink *save, struct error *error)
{
	struct copy copy = {.job = job, .guest = guest, .sink = &save->sink, .live = job_flag(job, "live")};
	int64_t began = monotonic_ns();
	struct stat status;
	int64_t now;
	int r;

	save->checkpoint.description = description_new(
		json_object_get(job->request.body, "domain"), guest->regions, guest->size, error);
	if (!save->checkpoint.description)
		return -error->code;
	r = save_sink_begin(save, guest, error);
	if (r == 0)
		r = copy_guest(&copy, error);
	if (r == 0)
		r = guest_save_state(guest, &save->checkpoint.state, error);
	save->checkpoint.taken_realtime_ns = copy.paused_realtime_ns;
	if (r == 0)
		r = save_sink_finish(save, error);
	if (r == 0)
		r = job_cancelled(job, error);
	if (r < 0)
		return r;
	now = monotonic_ns();
	if (fstat(save->io.fd, &status) < 0)
		return error_set(error, errno, "Unable to look at the checkpoint: %s.", strerror(errno));
	return job_event(job, "saved",
		json_pack("{s:I, s:I, s:I, s:I}", "bytes", (json_int_t)status.st_blocks * 512,
			"logical_bytes", (json_int_t)status.st_size, "milliseconds",
			(json_int_t)((now - began) / NS_PER_MS), "downtime_ms",
			(json_int_t)((now - copy.paused_at) / NS_PER_MS)),
		error);
}

int save_job(struct job *job, confine_function *confine, struct error *error)
{
	_cleanup_close_ int file = job_take_fd(job, "file", error);
	_cleanup_guest_ struct guest guest = {.channel = -1, .ram_fd = -1};
	_cleanup_save_sink_ struct save_sink save = {.io = {.fd = file}};
	int channel, r;

	if (file < 0)
		return file;
	channel = job_take_fd(job, "guest", error);
	if (channel < 0)
		return channel;
	guest.channel = channel;
	r = file_io_begin(&save.io, file, true, error);
	if (r == 0 && confine)
		r = confine(error);
	if (r == 0)
		r = guest_open(&guest, take_fd(&channel), false, error);
	return r == 0 ? save_guest(job, &guest, &save, error) : r;
}
