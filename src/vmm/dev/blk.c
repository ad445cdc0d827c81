#include "vmm/dev/blk.h"
#include "vmm/dev/blk_image.h"
#include "vmm/dev/blk_request.h"
#include "vmm/dev/disk_ring.h"
#include "vmm/dev/virtio.h"
#include "base/cleanup.h"
#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_ids.h>
#include <stdlib.h>
#include <string.h>

#define QUEUE_SIZE VIRTQUEUE_SIZE_MAX
_Static_assert(QUEUE_SIZE == DISK_RING_SIZE, "a ring takes what a queue can hold");
#define SECTOR 512u
#define SEGMENTS_MAX (QUEUE_SIZE - 2) /* beside header and status */
/* One request must be over soon, for a pause waits for it. */
#define DISCARD_MAX (256u << 20)
#define ZEROES_MAX (8u << 20)
#define COMPLAINTS_MAX 10u
#define BATCH 64u
#define CONFIG_SIZE (offsetof(struct virtio_blk_config, write_zeroes_may_unmap) + 4)

struct virtio_blk {
	struct virtio_device virtio;
	struct image image;
	bool read_only;
	char serial[VIRTIO_BLK_ID_BYTES];
	struct disk_ring ring;
	struct watch completed;
	unsigned in_flight;
	struct request *free_requests;
	unsigned used_requests;
	struct request requests[QUEUE_SIZE]; /* resident are only as many as were ever in flight at once */
};

static const struct field blk_fields[] = {
	FIELD_NESTED(struct virtio_blk, virtio, 1, &virtio_state),
};
static const struct field_table blk_state = FIELD_TABLE("virtio-blk", 1, blk_fields);

static struct virtqueue *the_queue(struct virtio_blk *blk)
{
	return &blk->virtio.queues[0];
}

static struct request *take_request(struct virtio_blk *blk)
{
	struct request *request = blk->free_requests;

	if (request)
		blk->free_requests = request->next_free;
	else if (blk->used_requests < QUEUE_SIZE)
		request = &blk->requests[blk->used_requests++];
	return request;
}

static void give_back(struct virtio_blk *blk, struct request *request)
{
	free(request->bounce);
	request->bounce = NULL;
	request->next_free = blk->free_requests;
	blk->free_requests = request;
}

/* Ends the request towards the driver, who sees it after virtqueue_flush. */
static void answer(struct virtio_blk *blk, struct request *request, uint8_t status)
{
	struct virtqueue *queue = the_queue(blk);
	unsigned pieces = request->chain.readable + request->chain.writable;
	uint32_t written = request_into_guest(request) ? (uint32_t)request->done : 0;

	/* All of it: a transfer that failed may have written anything. */
	for (unsigned i = request->chain.readable; request_into_guest(request) && i < pieces; i++)
		memory_wrote(queue->memory, request->gpa[i], request->length[i]);
	*request->status = status;
	memory_wrote(queue->memory, request->status_gpa, 1);
	virtqueue_push(queue, request->chain.head, written + 1);
	give_back(blk, request);
}

static void prepare_transfer(struct virtio_blk *blk, struct request *request, struct io_uring_sqe *sqe)
{
	bool write = !request_into_guest(request);
	uint64_t position = request->position + request->done;
	const struct iovec *pieces = request->iov + request->first;

	if (request->bounce) {
		unsigned part = request_bounce_part(request);

		if (write)
			iov_read(pieces, request->count, 0, request->bounce, part);
		io_uring_prep_rw(write ? IORING_OP_WRITE : IORING_OP_READ, sqe, blk->image.fd,
			request->bounce, part, position);
	} else if (request->count == 1) {
		io_uring_prep_rw(write ? IORING_OP_WRITE : IORING_OP_READ, sqe, blk->image.fd,
			pieces->iov_base, (unsigned)pieces->iov_len, position);
	} else {
		io_uring_prep_rw(write ? IORING_OP_WRITEV : IORING_OP_READV, sqe, blk->image.fd, pieces,
			request->count, position);
	}
	/* 5.2.6.2: a driver without flush commands takes a finished write for stable. */
	if (write && !virtio_has(&blk->virtio, VIRTIO_BLK_F_FLUSH))
		sqe->rw_flags = RWF_DSYNC;
}

/* Puts what is next for the request into the ring, which has a place for every request there can be. */
static void prepare(struct virtio_blk *blk, struct request *request)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&blk->ring.ring);

	if (request->type == VIRTIO_BLK_T_FLUSH)
		io_uring_prep_fsync(sqe, blk->image.fd, IORING_FSYNC_DATASYNC);
	else if (request->allocate)
		/* The offsets of io_uring_prep_fallocate are signed with liburing 2.3 only. */
		io_uring_prep_rw(IORING_OP_FALLOCATE, sqe, blk->image.fd,
			(const void *)(uintptr_t)request->size, (unsigned)request->allocate,
			request->position);
	else
		prepare_transfer(blk, request, sqe);
	io_uring_sqe_set_data(sqe, request);
	blk->in_flight++;
}

static void submit(void *context)
{
	struct virtio_blk *blk = context;
	int r;

	if (!io_uring_sq_ready(&blk->ring.ring))
		return;
	do
		r = io_uring_submit(&blk->ring.ring);
	while (r == -EINTR);
	if (r == -EAGAIN || r == -EBUSY)
		loop_defer(blk->virtio.pci.platform->loop, submit, blk);
	else if (r < 0)
		log_error("Disk in slot %u: the host's kernel takes no requests: %s.",
			blk->virtio.pci.device.instance, strerror(-r));
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
	prepare(blk, request);
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
	prepare(blk, request);
	return -1;
}

static int get_id(struct virtio_blk *blk, struct request *request)
{
	request->done =
		iov_write(request->iov + request->first, request->count, 0, blk->serial, sizeof(blk->serial));
	return VIRTIO_BLK_S_OK;
}

static int begin(struct virtio_blk *blk, struct request *request, uint64_t sector)
{
	switch (request->type) {
	case VIRTIO_BLK_T_IN:
	case VIRTIO_BLK_T_OUT:
		return begin_transfer(blk, request, sector);
	case VIRTIO_BLK_T_FLUSH:
		prepare(blk, request);
		return -1;
	case VIRTIO_BLK_T_GET_ID:
		return get_id(blk, request);
	case VIRTIO_BLK_T_DISCARD:
	case VIRTIO_BLK_T_WRITE_ZEROES:
		return begin_range(blk, request);
	default:
		return VIRTIO_BLK_S_UNSUPP;
	}
}

/* A driver that offers chains a second time before they are answered can have every request in flight. */
static bool exhausted(const struct virtio_blk *blk)
{
	return !blk->free_requests && blk->used_requests == QUEUE_SIZE;
}

/* Takes what the driver has, as much as the ring is long. */
static void take_chains(struct virtio_blk *blk)
{
	struct virtqueue *queue = the_queue(blk);

	for (unsigned taken = 0; taken < queue->size && !exhausted(blk); taken++) {
		struct request *request = take_request(blk);
		uint64_t sector;
		int status;

		request->chain.iov = request->iov;
		request->chain.gpa = request->gpa;
		if (!virtqueue_pop(queue, &request->chain)) {
			give_back(blk, request);
			return;
		}
		if (!request_dissect(request, &sector)) {
			give_back(blk, request);
			virtio_broken(&blk->virtio, queue, "has a request without header or status");
			return;
		}
		status = begin(blk, request, sector);
		if (status >= 0)
			answer(blk, request, (uint8_t)status);
	}
}

static unsigned reap_some(struct virtio_blk *blk);

static void notified(struct virtio_device *virtio, unsigned index)
{
	struct virtio_blk *blk = CONTAINER_OF(virtio, struct virtio_blk, virtio);
	struct virtqueue *queue = &virtio->queues[index];

	virtqueue_suppress(queue);
	take_chains(blk);
	submit(blk);
	while (blk->in_flight && reap_some(blk)) /* what the host had in its cache is over already */
		;
	submit(blk);
	virtqueue_flush(queue);
	if (!exhausted(blk) && virtqueue_listen(queue))
		virtqueue_again(queue);
}

/* Completions */

static void complain(struct virtio_blk *blk, const struct request *request, int code)
{
	if (blk->virtio.complaints++ < COMPLAINTS_MAX)
		log_warning("Disk in slot %u: request of type %u at byte %llu of the image failed: %s.",
			blk->virtio.pci.device.instance, request->type,
			(unsigned long long)(request->position + request->done), strerror(code));
}

/*
 * What a file system or device cannot do by fallocate: a discard is a hint and need not happen;
 * zeroes are then written.
 */
static int fall_back(struct virtio_blk *blk, struct request *request)
{
	if (request->type == VIRTIO_BLK_T_DISCARD)
		return VIRTIO_BLK_S_OK;
	if (request->allocate & FALLOC_FL_PUNCH_HOLE)
		request->allocate = FALLOC_FL_KEEP_SIZE | FALLOC_FL_ZERO_RANGE;
	else if (request_add_bounce(request))
		request->allocate = 0;
	else
		return VIRTIO_BLK_S_IOERR;
	prepare(blk, request);
	return -1;
}

/* What became of the request: the status to answer, or -1 where it goes on. */
static int outcome(struct virtio_blk *blk, struct request *request, int result)
{
	bool transfer = request->type != VIRTIO_BLK_T_FLUSH && !request->allocate;

	if (result == -EINTR || result == -EAGAIN) {
		prepare(blk, request);
		return -1;
	}
	if (result == -EOPNOTSUPP && request->allocate)
		return fall_back(blk, request);
	/* O_DIRECT that wants more alignment than it says. */
	if (result == -EINVAL && transfer && !request->bounce && blk->image.memory_alignment > 1 &&
		request_add_bounce(request)) {
		prepare(blk, request);
		return -1;
	}
	if (result < 0 || (transfer && result == 0)) {
		complain(blk, request, result < 0 ? -result : ENODATA);
		return VIRTIO_BLK_S_IOERR;
	}
	if (!transfer)
		return VIRTIO_BLK_S_OK;
	if (request->bounce && request_into_guest(request))
		iov_write(request->iov + request->first, request->count, 0, request->bounce, (size_t)result);
	request_skip(request, (uint64_t)result);
	request->done += (uint64_t)result;
	if (request->done == request->size)
		return VIRTIO_BLK_S_OK;
	prepare(blk, request);
	return -1;
}

/* Ends what lies in the completion queue; how much it was. */
static unsigned reap_some(struct virtio_blk *blk)
{
	struct io_uring_cqe *cqes[BATCH];
	unsigned count = io_uring_peek_batch_cqe(&blk->ring.ring, cqes, BATCH);

	for (unsigned i = 0; i < count; i++) {
		struct request *request = io_uring_cqe_get_data(cqes[i]);
		int status;

		blk->in_flight--;
		status = outcome(blk, request, cqes[i]->res);
		if (status >= 0)
			answer(blk, request, (uint8_t)status);
	}
	io_uring_cq_advance(&blk->ring.ring, count);
	return count;
}

/*
 * Ends what is complete; true where that was anything. The kernel may do only a part of the deferred work
 * at a time and does not signal for the rest: it is asked until it has no more.
 */
static bool reap(struct virtio_blk *blk)
{
	unsigned total = 0, count = 1;

	while (blk->in_flight && count) {
		if (blk->ring.deferred)
			io_uring_get_events(&blk->ring.ring);
		count = reap_some(blk);
		total += count;
	}
	submit(blk); /* what goes on */
	return total > 0;
}

static void ring_ready(void *context, uint32_t events)
{
	struct virtio_blk *blk = context;
	struct virtqueue *queue = the_queue(blk);
	bool full = exhausted(blk);

	(void)events;
	if (!reap(blk))
		return;
	virtqueue_flush(queue);
	if (blk->in_flight == 0)
		virtio_settled(&blk->virtio);
	if (full)
		virtqueue_again(queue);
}

static bool blk_busy(struct device *device)
{
	return CONTAINER_OF(virtio_of(device), struct virtio_blk, virtio)->in_flight > 0;
}

/* Making and ending it */

static int open_ring(struct virtio_blk *blk, struct platform *platform, struct error *error)
{
	int r = disk_ring_take(platform->disk_rings, &blk->ring, error);

	if (r < 0)
		return r;
	blk->completed = (struct watch){.fd = blk->ring.completed, .handler = ring_ready, .context = blk};
	r = loop_add(platform->loop, &blk->completed, EPOLLIN | EPOLLET,
		error); /* an edge each: no need to read */
	if (r < 0)
		disk_ring_close(&blk->ring);
	return r;
}

static void close_ring(struct virtio_blk *blk, struct loop *loop)
{
	loop_remove(loop, &blk->completed);
	disk_ring_close(&blk->ring);
}

static void blk_free(struct device *device)
{
	struct virtio_blk *blk = CONTAINER_OF(virtio_of(device), struct virtio_blk, virtio);

	virtio_end(&blk->virtio);
	/* The guest's memory and ours must be out of the kernel's hands before they go. */
	while (blk->in_flight) {
		struct io_uring_cqe *cqe;
		int r = io_uring_submit_and_wait(&blk->ring.ring, 1);

		if (r < 0 && r != -EINTR && r != -EAGAIN && r != -EBUSY)
			break;
		if (io_uring_peek_cqe(&blk->ring.ring, &cqe) < 0)
			continue;
		give_back(blk, io_uring_cqe_get_data(cqe));
		io_uring_cqe_seen(&blk->ring.ring, cqe);
		blk->in_flight--;
	}
	close_ring(blk, blk->virtio.pci.platform->loop);
	close(blk->image.fd);
	free(blk);
}

static const struct device_class device_class = {.state = &blk_state,
	.after_load = virtio_after_load,
	.busy = blk_busy,
	.resume = virtio_resume,
	.free = blk_free};

static const struct virtio_class blk_class = {
	.device = &device_class,
	.name = "virtio-blk",
	.type = VIRTIO_ID_BLOCK,
	.class_code = 0x018000, /* mass storage controller, other */
	.queue_count = 1,
	.queue_size = QUEUE_SIZE,
	.notified = notified,
};

static struct virtio_blk_config make_config(const struct image *image, bool read_only)
{
	struct virtio_blk_config config = {
		.capacity = image->size / SECTOR,
		.seg_max = SEGMENTS_MAX,
		.blk_size = image->block_size,
	};

	if (read_only)
		return config;
	config.max_discard_sectors = DISCARD_MAX / SECTOR;
	config.max_discard_seg = 1;
	config.discard_sector_alignment = image->block_size / SECTOR;
	config.max_write_zeroes_sectors = ZEROES_MAX / SECTOR;
	config.max_write_zeroes_seg = 1;
	config.write_zeroes_may_unmap = 1;
	return config;
}

struct device *virtio_blk_new(struct platform *platform, unsigned slot, int image_fd, bool read_only,
	const char *serial, struct error *error)
{
	const uint64_t writing = 1ull << VIRTIO_BLK_F_DISCARD | 1ull << VIRTIO_BLK_F_WRITE_ZEROES;
	const uint64_t features =
		1ull << VIRTIO_BLK_F_SEG_MAX | 1ull << VIRTIO_BLK_F_BLK_SIZE | 1ull << VIRTIO_BLK_F_FLUSH;
	_cleanup_free_ struct virtio_blk *blk = calloc(1, sizeof(*blk));
	struct virtio_blk_config config;

	if (!blk) {
		error_set(error, ENOMEM, "Out of memory while making the disk in slot %u.", slot);
		return NULL;
	}
	if (image_examine(&blk->image, image_fd, read_only, error) < 0)
		return NULL;
	blk->read_only = read_only;
	memcpy(blk->serial, serial, strnlen(serial, sizeof(blk->serial)));
	config = make_config(&blk->image, read_only);
	if (open_ring(blk, platform, error) < 0)
		return NULL;
	if (virtio_init(&blk->virtio, &blk_class, platform, slot,
		    features | (read_only ? 1ull << VIRTIO_BLK_F_RO : writing), &config, CONFIG_SIZE,
		    error) < 0) {
		close_ring(blk, platform->loop);
		return NULL;
	}
	platform_add(platform, &blk->virtio.pci.device);
	return &take_pointer(blk)->virtio.pci.device;
}
