#include "base/bitmap.h"
#include "base/cleanup.h"
#include "base/status.h"
#include "carry/clock.h"
#include "carry/copy.h"
#include "carry/file_io.h"
#include "carry/jobs.h"
#include "carry/pack.h"
#include "carry/page_digests.h"
#include "carry/pages.h"
#include "carry/proof.h"
#include "state/checkpoint.h"
#include "state/description.h"
#include "state/digest.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/statvfs.h>

#define NO_EXTENT UINT64_MAX
/* What a file takes beside its pages: header, footer, device state; the extent table is counted for itself.
 */
#define BESIDE_PAGES (1ull << 20)
#define BESIDE_EXTENT 96u
/*
 * Storage that buffers, whatever O_DIRECT says, is asked for what it has got after so many bytes, more where
 * that is quickly done and less where it takes long: one request for all of it at the end might take longer
 * than storage is waited for without a word (storage-timeout).
 */
#define SYNC_LEAST (UINT64_C(16) << 20)
#define SYNC_FIRST (UINT64_C(64) << 20)
#define SYNC_MOST (UINT64_C(1) << 30)
#define SYNC_QUICK_NS (1 * NS_PER_S)
#define SYNC_LONG_NS (4 * NS_PER_S)
/* For so long a guest that was saved while it ran stands still for the proof that the file has its memory. */
#define PROOF_NS (50 * NS_PER_MS)

/* A checkpoint file as the sink of the copy engine. */
struct save_sink {
	struct sink sink;
	struct guest *guest;
	struct file_io io;
	struct checkpoint checkpoint;
	struct pack pack; /* where extents are compressed */
	bool compress;
	bool later_round;
	/* First round: the digest of the extent whose pages are coming. Later rounds make a digest stale. */
	struct digest_stream stream;
	uint64_t open_extent;
	uint64_t *stale;               /* bit per extent */
	uint64_t unsynced, sync_after; /* bytes */
	/* Where the guest runs: of each page as it was given. */
	struct page_digests digests;
	struct proof proof;
};

#define _cleanup_save_sink_ __attribute__((cleanup(save_sink_free)))

static void save_sink_free(struct save_sink *save)
{
	file_io_end(&save->io);
	pack_end(&save->pack);
	checkpoint_close(&save->checkpoint);
	free(save->stale);
	proof_end(&save->proof);
	page_digests_free(&save->digests);
}

static int sync_now_and_then(struct save_sink *save, uint64_t bytes, struct error *error)
{
	int64_t began, took;
	int r;

	save->unsynced += bytes;
	if (save->unsynced < save->sync_after)
		return 0;
	r = save->compress ? pack_drain(&save->pack, error) : file_io_drain(&save->io, error);
	began = monotonic_ns();
	if (r == 0 && fsync(save->io.fd) < 0)
		return error_set(error, errno, "Unable to write the checkpoint: %s.", strerror(errno));
	took = monotonic_ns() - began;
	if (took < SYNC_QUICK_NS && save->sync_after < SYNC_MOST)
		save->sync_after *= 2;
	else if (took > SYNC_LONG_NS && save->sync_after > SYNC_LEAST)
		save->sync_after /= 2;
	save->unsynced = 0;
	return r;
}

/* No more pages come for the extent that was open. */
static int close_extent(struct save_sink *save, struct error *error)
{
	uint64_t extent = save->open_extent;

	save->open_extent = NO_EXTENT;
	if (extent == NO_EXTENT)
		return 0;
	if (save->compress)
		return pack_extent(&save->pack, extent, error);
	if (!save->later_round)
		save->checkpoint.extents[extent].digest = digest_end(&save->stream);
	return 0;
}

/* A round's pages come in ascending order: those of one extent follow each other. */
static int open_extent(struct save_sink *save, uint64_t extent, struct error *error)
{
	int r;

	if (save->open_extent == extent)
		return 0;
	r = close_extent(save, error);
	save->open_extent = extent;
	digest_begin(&save->stream);
	return r;
}

/* Pages of one extent were given: note which, and keep or void its digest. */
static int note_pages(
	struct save_sink *save, uint64_t extent, uint64_t first, uint64_t count, struct error *error)
{
	int r = open_extent(save, extent, error);

	for (uint64_t page = first; page < first + count; page++)
		bitmap_set(save->checkpoint.extents[extent].stored, page % CHECKPOINT_EXTENT_PAGES);
	if (save->later_round)
		bitmap_set(save->stale, extent);
	else if (!save->compress)
		digest_add(&save->stream, save->guest->ram + first * PAGE_SIZE, count * PAGE_SIZE);
	return r;
}

static int save_pages(struct sink *sink, uint64_t first, uint64_t count, struct error *error)
{
	struct save_sink *save = CONTAINER_OF(sink, struct save_sink, sink);
	uint64_t end = first + count;
	int r = 0;

	if (save->digests.of_page)
		page_digests_set(&save->digests, first, count, save->guest->ram + first * PAGE_SIZE);
	for (uint64_t at = first; r == 0 && at < end;) {
		uint64_t extent = at / CHECKPOINT_EXTENT_PAGES, next = (extent + 1) * CHECKPOINT_EXTENT_PAGES;

		next = next < end ? next : end;
		r = note_pages(save, extent, at, next - at, error);
		at = next;
	}
	if (r == 0 && !save->compress)
		r = file_io_submit(&save->io, save->guest->ram + first * PAGE_SIZE, count * PAGE_SIZE,
			CHECKPOINT_RAM_AT + first * PAGE_SIZE, 0, error);
	return r == 0 ? sync_now_and_then(save, count * PAGE_SIZE, error) : r;
}

static int save_zeros(struct sink *sink, uint64_t first, uint64_t count, struct error *error)
{
	struct save_sink *save = CONTAINER_OF(sink, struct save_sink, sink);

	int r = 0;

	for (uint64_t page = first; r == 0 && page < first + count; page++) {
		r = open_extent(save, page / CHECKPOINT_EXTENT_PAGES, error);
		bitmap_clear(save->checkpoint.extents[page / CHECKPOINT_EXTENT_PAGES].stored,
			page % CHECKPOINT_EXTENT_PAGES);
		bitmap_set(save->stale, page / CHECKPOINT_EXTENT_PAGES);
		if (save->digests.of_page)
			page_digests_clear(&save->digests, page);
	}
	if (r < 0 || save->compress)
		return r;
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

	int r = close_extent(save, error);

	(void)number;
	save->later_round = true;
	if (r == 0)
		r = save->compress ? pack_drain(&save->pack, error) : file_io_drain(&save->io, error);
	/* What is on disk while the guest runs is not waited for while it stands still. */
	if (r == 0 && !sink->last && fsync(save->io.fd) < 0)
		return error_set(error, errno, "Unable to write the checkpoint: %s.", strerror(errno));
	return r;
}

static int save_sink_begin(struct save_sink *save, struct guest *guest, struct error *error)
{
	uint64_t size = guest->size, extents = checkpoint_extent_count(size);

	save->sink = (struct sink){.pages = save_pages, .zeros = save_zeros, .round = save_round};
	save->guest = guest;
	save->open_extent = NO_EXTENT;
	save->sync_after = SYNC_FIRST;
	save->checkpoint.fd = save->io.fd;
	save->checkpoint.ram_size = size;
	save->pack.ram = guest->ram;
	save->pack.checkpoint = &save->checkpoint;
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

static int proof_prepare(struct save_sink *save, struct error *error)
{
	if (!page_digests_begin(&save->digests, save->guest->pages))
		return error_set(error, ENOMEM, "Out of memory for the digests of the guest's pages.");
	return proof_begin(&save->proof, save->guest, save->digests.of_page, error);
}

/*
 * The guest stands still, and what was written while it ran must be what it has, whatever the dirty log said.
 * Of more memory than can be read again in this time it is a part, which begins anywhere.
 */
static int prove(struct save_sink *save, struct error *error)
{
	int64_t end = monotonic_ns() + PROOF_NS;
	int r = 0;

	save->proof.at = (uint64_t)realtime_ns() / 1000 % save->guest->pages;
	proof_lap(&save->proof);
	while (r == 0 && save->proof.left && monotonic_ns() < end)
		r = proof_step(&save->proof, true, error);
	return r;
}

/* The guest stands still: digests of extents that were written more than once, then all but RAM. */
static int save_sink_finish(struct save_sink *save, struct error *error)
{
	struct checkpoint *checkpoint = &save->checkpoint;

	for (uint64_t i = 0; i < checkpoint->extent_count && !save->compress; i++)
		if (bitmap_test(save->stale, i))
			checkpoint->extents[i].digest = checkpoint_extent_digest(
				checkpoint->extents[i].stored, save->guest->ram + i * CHECKPOINT_EXTENT_SIZE);
	file_io_end(&save->io);
	pack_end(&save->pack);
	return checkpoint_finish(checkpoint, error);
}

/* Of these pages, those with contents. */
static uint64_t count_nonzero(const struct guest *guest, const uint64_t *present)
{
	uint64_t nonzero = 0, first, count;

	for (uint64_t at = 0; (count = bitmap_run(present, guest->pages, at, &first)) > 0; at = first + count)
		for (uint64_t page = first; page < first + count; page++)
			nonzero += !page_is_zero(guest->ram + page * PAGE_SIZE);
	return nonzero;
}

/*
 * Whether the file system has room for what is there to be saved. Pages that the guest has are counted first,
 * which takes no time, and only where they are too many, those that are not zero. What compression leaves of
 * them shows only afterwards: a compressed save is begun in any case.
 */
static int check_space(const struct save_sink *save, struct error *error)
{
	const struct guest *guest = save->guest;
	_cleanup_free_ uint64_t *present = calloc(bitmap_words(guest->pages), sizeof(*present));
	uint64_t fixed = BESIDE_PAGES + save->checkpoint.extent_count * BESIDE_EXTENT, has, pages;
	struct statvfs status;
	int r;

	if (!present)
		return error_set(error, ENOMEM, "Out of memory for the carrier's page maps.");
	if (save->compress || fstatvfs(save->io.fd, &status) < 0 || status.f_blocks == 0)
		return 0;
	has = status.f_bavail * status.f_frsize;
	r = pages_present(guest->ram_fd, guest->pages, present, error);
	if (r < 0 || bitmap_count(present, guest->pages) * PAGE_SIZE + fixed <= has)
		return r;
	pages = count_nonzero(guest, present);
	if (pages * PAGE_SIZE + fixed <= has)
		return 0;
	return error_set(error, ENOSPC,
		"There is not enough space for the checkpoint: it needs %llu MiB, but the file system has "
		"%llu MiB left. "
		"Make room, choose another place, or try --compress.",
		(unsigned long long)((pages * PAGE_SIZE + fixed) >> 20), (unsigned long long)(has >> 20));
}

/* What xend has found on the guest's disks since it was paused. */
static int describe_disks(struct job *job, json_t *description, struct error *error)
{
	_cleanup_message_ struct message answer = {0};
	int r = job_event(job, "describe", NULL, error);

	if (r == 0)
		r = job_answer(job, &answer, error);
	if (r < 0)
		return r;
	if (strcmp(job_verb(&answer), "disks") != 0)
		return error_set(error, EPROTO, "xend did not say what is on the guest's disks.");
	return description_add_disks(description, json_object_get(answer.body, "disks"), error);
}

static int save_guest(struct job *job, struct guest *guest, struct save_sink *save, struct error *error)
{
	struct copy copy = {.job = job,
		.guest = guest,
		.sink = &save->sink,
		.live = job_flag(job, "live"),
		.tells_pause = job_flag(job, "describe_disks")};
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
		r = check_space(save, error);
	if (r == 0 && copy.live)
		r = proof_prepare(save, error);
	if (r == 0)
		r = copy_guest(&copy, error);
	if (r == 0 && copy.live)
		r = prove(save, error);
	if (r == 0)
		r = guest_save_state(guest, &save->checkpoint.state, error);
	if (r == 0 && copy.tells_pause)
		r = describe_disks(job, save->checkpoint.description, error);
	save->checkpoint.taken_realtime_ns = copy.paused_realtime_ns;
	if (r == 0)
		r = save_sink_finish(save, error);
	if (r == 0)
		r = job_cancelled(job, error);
	if (r < 0)
		return r;
	now = monotonic_ns();
	if (status_of(save->io.fd, &status) < 0)
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
	save.compress = job_flag(job, "compress");
	r = file_io_begin(&save.io, file, true, error);
	if (r == 0 && save.compress)
		r = pack_begin(&save.pack, file, error);
	if (r == 0 && confine)
		r = confine(error);
	if (r == 0)
		r = guest_open(&guest, take_fd(&channel), GUEST_CARRY, error);
	return r == 0 ? save_guest(job, &guest, &save, error) : r;
}
