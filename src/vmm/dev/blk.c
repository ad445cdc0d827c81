#include "vmm/dev/blk.h"
#include "vmm/dev/blk_device.h"
#include "base/cleanup.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/virtio_ids.h>
#include <stdlib.h>
#include <string.h>

#define SECTOR 512u
#define SEGMENTS_MAX (BLK_QUEUE_SIZE - 2) /* beside header and status */
/* One request must be over soon, for a pause waits for it. */
#define DISCARD_MAX (256u << 20)
#define ZEROES_MAX (8u << 20)
#define CONFIG_SIZE (offsetof(struct virtio_blk_config, write_zeroes_may_unmap) + 4)

static const struct field blk_fields[] = {
	FIELD_NESTED(struct virtio_blk, virtio, 1, &virtio_state),
	FIELD_OPTIONAL(struct virtio_blk, capacity, FIELD_U64, 2),
	FIELD_OPTIONAL(struct virtio_blk, block_size, FIELD_U32, 2),
};
static const struct field_table blk_state = FIELD_TABLE("virtio-blk", 2, blk_fields);

static struct request *take_request(struct virtio_blk *blk)
{
	struct request *request = blk->free_requests;

	if (request)
		blk->free_requests = request->next_free;
	else if (blk->used_requests < BLK_QUEUE_SIZE)
		request = &blk->requests[blk->used_requests++];
	return request;
}

static bool within_image(const struct virtio_blk *blk, uint64_t sector, uint64_t size)
{
	return sector <= blk->image.size / SECTOR && size <= blk->image.size - sector * SECTOR &&
	       size % blk->image.block_size == 0 && sector * SECTOR % blk->image.block_size == 0;
}

/* Begins a read or write; the status to answer at once, or -1. */
static int begin_transfer(struct virtio_blk *blk, struct request *request, uint64_t sector)
{
	if (!within_image(blk, sector, request->size) ||
		(request->type == VIRTIO_BLK_T_OUT && blk->read_only))
		return VIRTIO_BLK_S_IOERR;
	if (request->size == 0)
		return VIRTIO_BLK_S_OK;
	request->position = sector * SECTOR;
	if (!image_takes(&blk->image, request->iov + request->first, request->count) &&
		!request_add_bounce(request))
		return VIRTIO_BLK_S_IOERR;
	blk_prepare(blk, request);
	return -1;
}

/* Begins discard or write zeroes (5.2.6): one range a request, as the configuration says. */
static int begin_range(struct virtio_blk *blk, struct request *request)
{
	struct virtio_blk_discard_write_zeroes range;
	bool discard = request->type == VIRTIO_BLK_T_DISCARD;
	uint64_t size;

	if (blk->read_only || request->size != sizeof(range) ||
		iov_read(request->iov + request->first, request->count, 0, &range, sizeof(range)) !=
			sizeof(range))
		return VIRTIO_BLK_S_IOERR;
	if (!virtio_has(&blk->virtio, discard ? VIRTIO_BLK_F_DISCARD : VIRTIO_BLK_F_WRITE_ZEROES))
		return VIRTIO_BLK_S_UNSUPP;
	if (range.flags & ~(discard ? 0u : VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP))
		return VIRTIO_BLK_S_UNSUPP;
	size = (uint64_t)range.num_sectors * SECTOR;
	if (!within_image(blk, range.sector, size) || size > (discard ? DISCARD_MAX : ZEROES_MAX))
		return VIRTIO_BLK_S_IOERR;
	if (size == 0)
		return VIRTIO_BLK_S_OK;
	request->position = range.sector * SECTOR;
	request->size = size;
	request->count = 0;
	request->allocate =
		FALLOC_FL_KEEP_SIZE | (discard || range.flags ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE);
	blk_prepare(blk, request);
	return -1;
}

static int get_id(struct virtio_blk *blk, struct request *request)
{
	request->done =
		iov_write(request->iov + request->first, request->count, 0, blk->serial, VIRTIO_BLK_ID_BYTES);
	return VIRTIO_BLK_S_OK;
}

/* The kernel tells of a write that it lost once (fsync(2)): where it told us, the guest has still to hear it.
 */
static int begin_flush(struct virtio_blk *blk, struct request *request)
{
	if (blk->image.fd < 0)
		return VIRTIO_BLK_S_OK;
	if (blk->lost_writes) {
		blk->lost_writes = false;
		return VIRTIO_BLK_S_IOERR;
	}
	blk_prepare(blk, request);
	return -1;
}

static int begin(struct virtio_blk *blk, struct request *request, uint64_t sector)
{
	switch (request->type) {
	case VIRTIO_BLK_T_IN:
	case VIRTIO_BLK_T_OUT:
		return begin_transfer(blk, request, sector);
	case VIRTIO_BLK_T_FLUSH:
		return begin_flush(blk, request);
	case VIRTIO_BLK_T_GET_ID:
		return get_id(blk, request);
	case VIRTIO_BLK_T_DISCARD:
	case VIRTIO_BLK_T_WRITE_ZEROES:
		return begin_range(blk, request);
	default:
		return VIRTIO_BLK_S_UNSUPP;
	}
}

/* Takes what the driver has, as much as the ring is long. */
static void take_chains(struct virtio_blk *blk)
{
	struct virtqueue *queue = blk_queue(blk);

	for (unsigned taken = 0; taken < queue->size && !blk_exhausted(blk); taken++) {
		struct request *request = take_request(blk);
		uint64_t sector;
		int status;

		request->chain.iov = request->iov;
		request->chain.gpa = request->gpa;
		if (!virtqueue_pop(queue, &request->chain)) {
			blk_give_back(blk, request);
			return;
		}
		if (!request_dissect(request, &sector)) {
			blk_give_back(blk, request);
			virtio_broken(&blk->virtio, queue, "has a request without header or status");
			return;
		}
		status = begin(blk, request, sector);
		if (status >= 0)
			blk_answer(blk, request, (uint8_t)status);
	}
}

static void notified(struct virtio_device *virtio, unsigned index)
{
	struct virtio_blk *blk = CONTAINER_OF(virtio, struct virtio_blk, virtio);
	struct virtqueue *queue = &virtio->queues[index];

	virtqueue_suppress(queue);
	take_chains(blk);
	blk_submit(blk);
	blk_reap_ready(blk);
	virtqueue_flush(queue);
	if (!blk_exhausted(blk) && virtqueue_listen(queue))
		virtqueue_again(queue);
}

static bool blk_busy(struct device *device)
{
	return blk_is_busy(CONTAINER_OF(virtio_of(device), struct virtio_blk, virtio));
}

/* Making and ending it */

static void blk_reset(struct virtio_device *virtio)
{
	blk_drop_held(CONTAINER_OF(virtio, struct virtio_blk, virtio));
}

/* The guest's driver looked once how large the disk is and in what blocks it is written. */
static int blk_after_load(struct device *device, struct error *error)
{
	struct virtio_blk *blk = CONTAINER_OF(virtio_of(device), struct virtio_blk, virtio);
	struct virtio_blk_config *config = (void *)blk->virtio.config;
	uint64_t sectors = blk->image.size / SECTOR;
	int r = virtio_after_load(device, error);

	if (r < 0)
		return r;
	if (blk->block_size < blk->image.block_size)
		return error_set(error, EXDEV,
			"Disk %s is written in blocks of %u bytes here, and the guest knows it with blocks "
			"of %u: "
			"put it on storage that has those.",
			blk->serial, blk->image.block_size, blk->block_size);
	/* A drive may have been emptied, which the driver is told. */
	if (blk->capacity > sectors && blk->image.fd >= 0)
		return error_set(error, EXDEV,
			"Disk %s has %llu bytes here, and the guest knows it with %llu: it is not the same "
			"disk.",
			blk->serial, (unsigned long long)(sectors * SECTOR),
			(unsigned long long)(blk->capacity * SECTOR));
	blk->image.block_size = config->blk_size = blk->block_size;
	blk->resized = blk->capacity != sectors;
	blk->capacity = sectors;
	return 0;
}

static void blk_resume(struct device *device)
{
	struct virtio_blk *blk = CONTAINER_OF(virtio_of(device), struct virtio_blk, virtio);

	if (!blk->has_run)
		image_forget(&blk->image);
	blk->has_run = true;
	if (blk->resized)
		virtio_config_changed(&blk->virtio);
	blk->resized = false;
	virtio_resume(device);
}

static void blk_free(struct device *device)
{
	struct virtio_blk *blk = CONTAINER_OF(virtio_of(device), struct virtio_blk, virtio);

	virtio_end(&blk->virtio);
	discarder_end(blk);
	blk_close_ring(blk, blk->virtio.pci.platform->loop);
	if (blk->image.fd >= 0)
		close(blk->image.fd);
	free(blk);
}

static const struct device_class device_class = {.state = &blk_state,
	.after_load = blk_after_load,
	.busy = blk_busy,
	.quiet = blk_quiet,
	.flush = blk_flush,
	.resume = blk_resume,
	.free = blk_free};

static const struct virtio_class blk_class = {
	.device = &device_class,
	.name = "virtio-blk",
	.type = VIRTIO_ID_BLOCK,
	.class_code = 0x018000, /* mass storage controller, other */
	.queue_count = 1,
	.queue_size = BLK_QUEUE_SIZE,
	.notified = notified,
	.reset = blk_reset,
};

static struct virtio_blk_config make_config(const struct image *image, bool may_discard)
{
	struct virtio_blk_config config = {
		.capacity = image->size / SECTOR,
		.seg_max = SEGMENTS_MAX,
		.blk_size = image->block_size,
	};

	if (!may_discard)
		return config;
	config.max_discard_sectors = DISCARD_MAX / SECTOR;
	config.max_discard_seg = 1;
	config.discard_sector_alignment = image->block_size / SECTOR;
	config.max_write_zeroes_sectors = ZEROES_MAX / SECTOR;
	config.max_write_zeroes_seg = 1;
	config.write_zeroes_may_unmap = 1;
	return config;
}

struct device *virtio_blk_new(struct platform *platform, unsigned slot, int image_fd,
	const struct virtio_blk_options *options, struct error *error)
{
	const uint64_t discarding = 1ull << VIRTIO_BLK_F_DISCARD | 1ull << VIRTIO_BLK_F_WRITE_ZEROES;
	bool may_discard = !options->read_only && !options->no_discard;
	uint64_t features = 1ull << VIRTIO_BLK_F_SEG_MAX | 1ull << VIRTIO_BLK_F_BLK_SIZE |
			    1ull << VIRTIO_BLK_F_FLUSH | (may_discard ? discarding : 0) |
			    (options->read_only ? 1ull << VIRTIO_BLK_F_RO : 0);
	_cleanup_free_ struct virtio_blk *blk = calloc(1, sizeof(*blk));
	struct virtio_blk_config config;

	if (!blk) {
		error_set(error, ENOMEM, "Out of memory while making the disk in slot %u.", slot);
		return NULL;
	}
	if (image_examine(&blk->image, image_fd, options->read_only, error) < 0)
		return NULL;
	image_forget(&blk->image); /* most of it: there is less to do when the guest waits for it */
	blk->read_only = options->read_only;
	blk->full_is_error = options->full_is_error;
	blk->capacity = blk->image.size / SECTOR;
	blk->block_size = blk->image.block_size;
	memcpy(blk->serial, options->serial, strnlen(options->serial, VIRTIO_BLK_ID_BYTES));
	config = make_config(&blk->image, may_discard);
	if (blk_open_ring(blk, platform, error) < 0)
		return NULL;
	if (virtio_init(&blk->virtio, &blk_class, platform, slot, features, &config, CONFIG_SIZE, error) <
		0) {
		blk_close_ring(blk, platform->loop);
		return NULL;
	}
	platform_add(platform, &blk->virtio.pci.device);
	return &take_pointer(blk)->virtio.pci.device;
}
