#include "vmm/dev/blk_device.h"
#include "base/cleanup.h"
#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdlib.h>
#include <string.h>
#include <sys/timerfd.h>

#define COMPLAINTS_MAX 10u
#define BATCH 64u
#define AGAIN_NS 10000000

static void *const the_flush = (void *)1; /* user data of the host's own flush */

bool blk_exhausted(const struct virtio_blk *blk)
{
	return !blk->free_requests && blk->used_requests == BLK_QUEUE_SIZE;
}

void blk_give_back(struct virtio_blk *blk, struct request *request)
{
	free(request->bounce);
	request->bounce = NULL;
	request->next_free = blk->free_requests;
	blk->free_requests = request;
}

void blk_answer(struct virtio_blk *blk, struct request *request, uint8_t status)
{
	struct virtqueue *queue = blk_queue(blk);
	unsigned pieces = request->chain.readable + request->chain.writable;
	uint32_t written = request_into_guest(request) ? (uint32_t)request->done : 0;

	/* All of it: a transfer that failed may have written anything. */
	for (unsigned i = request->chain.readable; request_into_guest(request) && i < pieces; i++)
		memory_wrote(queue->memory, request->gpa[i], request->length[i]);
	*request->status = status;
	memory_wrote(queue->memory, request->status_gpa, 1);
	virtqueue_push(queue, request->chain.head, written + 1);
	blk_give_back(blk, request);
}

/* Into the ring */

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

void blk_prepare(struct virtio_blk *blk, struct request *request)
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

/* What the kernel holds of ours: its end comes as a completion, after which the rest is submitted. */
static bool under_way(const struct virtio_blk *blk)
{
	return blk->in_flight + (blk->flushing != FLUSH_NONE) > io_uring_sq_ready(&blk->ring.ring);
}

void blk_submit(struct virtio_blk *blk)
{
	const struct itimerspec soon = {.it_value = {.tv_nsec = AGAIN_NS}};
	int r;

	if (!io_uring_sq_ready(&blk->ring.ring))
		return;
	do
		r = io_uring_submit(&blk->ring.ring);
	while (r == -EINTR);
	if (r >= 0)
		return;
	if (r != -EAGAIN && r != -EBUSY)
		log_error("Disk in slot %u: the host's kernel takes no requests: %s.",
			blk->virtio.pci.device.instance, strerror(-r));
	/* The host is short of memory: again when something of ours is over, or else a moment later. */
	if (!under_way(blk))
		timerfd_settime(blk->again.fd, 0, &soon, NULL);
}

static void submit_again(void *context, uint32_t events)
{
	struct virtio_blk *blk = context;
	uint64_t times;

	(void)events;
	if (read(blk->again.fd, &times, sizeof(times)) > 0)
		blk_submit(blk);
}

/* The host's own flush */

static void begin_flush(struct virtio_blk *blk)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&blk->ring.ring); /* it has DISK_RING_SIZE places */

	io_uring_prep_fsync(sqe, blk->image.fd, IORING_FSYNC_DATASYNC);
	io_uring_sqe_set_data(sqe, the_flush);
	blk->flushing = FLUSH_RUNNING;
}

static struct request *take_first(struct request **list)
{
	struct request *request = *list;

	if (request)
		*list = request->next_free;
	return request;
}

/*
 * The kernel tells of lost writes once (fsync(2)), and of two flushes beside each other either: all of the
 * guest's that were answered beside this one hear of it, or else the next one does. That outlives a flush
 * that is begun again.
 */
static void flush_done(struct virtio_blk *blk, int result)
{
	bool undone = result == -EINTR || result == -EAGAIN;
	/* What cannot be flushed (EINVAL) holds nothing back. */
	bool failed = result < 0 && result != -EINVAL && !undone;
	bool again = undone || blk->flushing == FLUSH_RUNNING_STALE;

	blk->flushing = FLUSH_NONE;
	if (failed) {
		blk->flush_error = -result;
		blk->lost_writes = true;
	}
	if (!undone && blk->beside) {
		uint8_t status = blk->lost_writes ? VIRTIO_BLK_S_IOERR : VIRTIO_BLK_S_OK;

		blk->lost_writes = false;
		for (struct request *request; (request = take_first(&blk->beside));)
			blk_answer(blk, request, status);
	}
	if (again)
		begin_flush(blk);
}

int blk_flush(struct device *device, bool begin, struct error *error)
{
	struct virtio_blk *blk = CONTAINER_OF(virtio_of(device), struct virtio_blk, virtio);

	if (blk->read_only)
		return 0;
	if (begin && blk->flushing == FLUSH_NONE) {
		blk->flush_error = 0;
		begin_flush(blk);
		blk_submit(blk);
	} else if (begin) {
		/* What is under way may have begun before what has to be stable was written. */
		blk->flushing = FLUSH_RUNNING_STALE;
	}
	if (blk->flushing != FLUSH_NONE)
		return -EINPROGRESS;
	if (blk->flush_error)
		return error_set(error, blk->flush_error,
			"Disk %s cannot be flushed: %s. What the guest has written may not be on it.",
			blk->serial, strerror(blk->flush_error));
	return 0;
}

/* Storage that is full */

static bool finds_no_room(const struct virtio_blk *blk, const struct request *request, int result)
{
	/* A flush that says so tells of writes that are lost already. */
	return (result == -ENOSPC || result == -EDQUOT) && !blk->full_is_error &&
	       !request_into_guest(request) && request->type != VIRTIO_BLK_T_FLUSH;
}

/* The request waits, and the guest with it. */
static void hold(struct virtio_blk *blk, struct request *request, int code)
{
	struct platform *platform = blk->virtio.pci.platform;
	char why[160];

	if (!blk->held)
		blk->held_end = &blk->held;
	request->next_free = NULL;
	*blk->held_end = request;
	blk->held_end = &request->next_free;
	snprintf(why, sizeof(why), "the storage of its disk %s is full (%s)", blk->serial, strerror(code));
	if (platform->hold)
		platform->hold(platform->machine, why);
}

void blk_drop_held(struct virtio_blk *blk)
{
	for (struct request *request; (request = take_first(&blk->held));)
		blk_give_back(blk, request);
}

void blk_quiet(struct device *device)
{
	struct virtio_blk *blk = CONTAINER_OF(virtio_of(device), struct virtio_blk, virtio);
	uint16_t heads[BLK_QUEUE_SIZE];
	unsigned count = 0;

	for (struct request *request; (request = take_first(&blk->held));) {
		heads[count++] = request->chain.head;
		blk_give_back(blk, request);
	}
	virtqueue_return(blk_queue(blk), heads, count);
}

/* Out of the ring */

static void complain(struct virtio_blk *blk, const struct request *request, int code)
{
	if (blk->virtio.complaints++ < COMPLAINTS_MAX)
		log_warning("Disk in slot %u: request of type %u at byte %llu of the image failed: %s.",
			blk->virtio.pci.device.instance, request->type,
			(unsigned long long)(request->position + request->done), strerror(code));
}

/*
 * What a file system or device cannot do by fallocate: a device may discard all the same, else nothing
 * happens, for a discard is a hint; zeroes are then written.
 */
static int fall_back(struct virtio_blk *blk, struct request *request)
{
	if (request->type == VIRTIO_BLK_T_DISCARD)
		return blk->image.is_device && discarder_take(blk, request) == 0 ? -1 : VIRTIO_BLK_S_OK;
	if (request->allocate & FALLOC_FL_PUNCH_HOLE)
		request->allocate = FALLOC_FL_KEEP_SIZE | FALLOC_FL_ZERO_RANGE;
	else if (request_add_bounce(request))
		request->allocate = 0;
	else
		return VIRTIO_BLK_S_IOERR;
	blk_prepare(blk, request);
	return -1;
}

/* What became of the request: the status to answer, or -1 where it goes on. */
static int outcome(struct virtio_blk *blk, struct request *request, int result)
{
	bool transfer = request->type != VIRTIO_BLK_T_FLUSH && !request->allocate;

	if (result == -EINTR || result == -EAGAIN) {
		blk_prepare(blk, request);
		return -1;
	}
	if (result == -EOPNOTSUPP && request->allocate)
		return fall_back(blk, request);
	/* O_DIRECT that wants more alignment than it says. */
	if (result == -EINVAL && transfer && !request->bounce && blk->image.memory_alignment > 1 &&
		request_add_bounce(request)) {
		blk_prepare(blk, request);
		return -1;
	}
	if (finds_no_room(blk, request, result)) {
		hold(blk, request, -result);
		return -1;
	}
	if (result < 0 || (transfer && result == 0)) {
		complain(blk, request, result < 0 ? -result : ENODATA);
		return VIRTIO_BLK_S_IOERR;
	}
	/* The host's flush beside it may be told what this one was not. */
	if (request->type == VIRTIO_BLK_T_FLUSH && blk->flushing != FLUSH_NONE) {
		request->next_free = blk->beside;
		blk->beside = request;
		return -1;
	}
	if (request->type == VIRTIO_BLK_T_FLUSH && blk->lost_writes) {
		blk->lost_writes = false;
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
	blk_prepare(blk, request);
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

		if ((void *)request == the_flush) {
			flush_done(blk, cqes[i]->res);
			continue;
		}
		blk->in_flight--;
		status = outcome(blk, request, cqes[i]->res);
		if (status >= 0)
			blk_answer(blk, request, (uint8_t)status);
	}
	io_uring_cq_advance(&blk->ring.ring, count);
	return count;
}

void blk_reap_ready(struct virtio_blk *blk)
{
	while (blk->in_flight && reap_some(blk))
		;
	blk_submit(blk);
}

/* Ends what is complete; true where that was anything. */
static bool reap(struct virtio_blk *blk)
{
	unsigned total = 0, count = 1;

	while ((blk->in_flight || blk->flushing != FLUSH_NONE) && count) {
		count = reap_some(blk);
		total += count;
	}
	blk_submit(blk); /* what goes on */
	return total > 0;
}

static void ring_ready(void *context, uint32_t events)
{
	struct virtio_blk *blk = context;
	struct virtqueue *queue = blk_queue(blk);
	bool full = blk_exhausted(blk);

	(void)events;
	if (!reap(blk))
		return;
	virtqueue_flush(queue);
	if (!blk_is_busy(blk))
		virtio_settled(&blk->virtio);
	if (full)
		virtqueue_again(queue);
}

/* The ring */

static int add_timer(struct virtio_blk *blk, struct loop *loop, struct error *error)
{
	_cleanup_close_ int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	int r;

	if (fd < 0)
		return error_set(error, errno, "Unable to make a timer for a disk: %s.", strerror(errno));
	blk->again = (struct watch){.fd = fd, .handler = submit_again, .context = blk};
	r = loop_add(loop, &blk->again, EPOLLIN, error);
	if (r == 0)
		take_fd(&fd);
	return r;
}

int blk_open_ring(struct virtio_blk *blk, struct platform *platform, struct error *error)
{
	struct loop *loop = platform->loop;
	int r = disk_ring_take(platform->disk_rings, &blk->ring, error);

	if (r < 0)
		return r;
	blk->completed = (struct watch){.fd = blk->ring.completed, .handler = ring_ready, .context = blk};
	r = loop_add(loop, &blk->completed, EPOLLIN | EPOLLET, error); /* an edge each: no need to read */
	if (r == 0) {
		r = add_timer(blk, loop, error);
		if (r < 0)
			loop_remove(loop, &blk->completed);
	}
	if (r < 0)
		disk_ring_close(&blk->ring);
	return r;
}

void blk_close_ring(struct virtio_blk *blk, struct loop *loop)
{
	/* The guest's memory and ours must be out of the kernel's hands before they go. */
	while (blk->in_flight || blk->flushing != FLUSH_NONE) {
		struct io_uring_cqe *cqe;
		int r = io_uring_submit_and_wait(&blk->ring.ring, 1);

		if (r < 0 && r != -EINTR && r != -EAGAIN && r != -EBUSY)
			break;
		if (io_uring_peek_cqe(&blk->ring.ring, &cqe) < 0)
			continue;
		if (io_uring_cqe_get_data(cqe) == the_flush) {
			blk->flushing = FLUSH_NONE;
		} else {
			blk_give_back(blk, io_uring_cqe_get_data(cqe));
			blk->in_flight--;
		}
		io_uring_cqe_seen(&blk->ring.ring, cqe);
	}
	for (struct request *request; (request = take_first(&blk->beside));)
		blk_give_back(blk, request);
	loop_remove(loop, &blk->completed);
	loop_remove(loop, &blk->again);
	close(blk->again.fd);
	disk_ring_close(&blk->ring);
}
