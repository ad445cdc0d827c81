#include "carry/file_io.h"
#include "base/cleanup.h"
#include "base/ring.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

static bool set_direct(int fd, bool on)
{
	int flags = fcntl(fd, F_GETFL);

	return flags >= 0 && fcntl(fd, F_SETFL, on ? flags | O_DIRECT : flags & ~O_DIRECT) == 0;
}

/* A ring that can do nothing but read, or nothing but write: what is in it escapes seccomp. */
static bool begin_ring(struct file_io *io)
{
	const uint8_t only[] = {io->writing ? IORING_OP_WRITE : IORING_OP_READ};

	if (io_uring_queue_init(FILE_IO_DEPTH, &io->ring, IORING_SETUP_R_DISABLED) < 0)
		return false;
	if (ring_limit(io->ring.ring_fd, only, ARRAY_SIZE(only)) == 0)
		return true;
	io_uring_queue_exit(&io->ring);
	return false;
}

int file_io_begin(struct file_io *io, int fd, bool writing, struct error *error)
{
	if (fcntl(fd, F_GETFL) < 0)
		return error_set(error, errno, "The checkpoint's file cannot be used: %s.", strerror(errno));
	/* The open file is xend's too: an earlier carrier, killed, may have left it as it needed it. */
	set_direct(fd, false);
	io->fd = fd;
	io->writing = writing;
	io->direct = io->started = false;
	io->queued = begin_ring(io);
	for (io->free_count = 0; io->free_count < FILE_IO_DEPTH; io->free_count++)
		io->free[io->free_count] = io->free_count;
	return 0;
}

static int failure(const struct file_io *io, int code, struct error *error)
{
	if (code == 0)
		return error_set(
			error, EBADMSG, "The checkpoint is truncated: its file ends within its memory.");
	return error_set(error, code, "Unable to %s the checkpoint: %s.", io->writing ? "write" : "read",
		strerror(code < 0 ? -code : code));
}

/* What a request's result means: 1 complete, 0 go on with the rest, negative failed. */
static int judge(struct file_io *io, struct file_request *request, ssize_t result, struct error *error)
{
	if (result == -EINTR || result == -EAGAIN)
		return 0;
	if (result == -EINVAL && io->direct) {
		/* Some file systems take O_DIRECT at open and refuse it at use. */
		io->direct = false;
		return set_direct(io->fd, false) ? 0 : failure(io, EINVAL, error);
	}
	if (result <= 0)
		return failure(io, (int)-result, error);
	request->done += (size_t)result;
	if (request->done < request->size)
		return 0;
	return io->completed ? io->completed(io->context, request->tag, error) < 0 ? -error->code : 1 : 1;
}

static void enqueue(struct file_io *io, unsigned slot)
{
	struct file_request *request = &io->requests[slot];
	struct io_uring_sqe *sqe = io_uring_get_sqe(&io->ring);
	unsigned left = (unsigned)(request->size - request->done);

	if (io->writing)
		io_uring_prep_write(
			sqe, io->fd, request->data + request->done, left, request->offset + request->done);
	else
		io_uring_prep_read(
			sqe, io->fd, request->data + request->done, left, request->offset + request->done);
	io_uring_sqe_set_data64(sqe, slot);
	io_uring_submit(&io->ring);
}

/* Waits for one request to make progress. */
static int reap(struct file_io *io, struct error *error)
{
	struct io_uring_cqe *cqe;
	struct file_request *request;
	unsigned slot;
	int result, r;

	do
		r = io_uring_wait_cqe(&io->ring, &cqe);
	while (r == -EINTR);
	if (r < 0)
		return failure(io, r, error);
	slot = (unsigned)io_uring_cqe_get_data64(cqe);
	result = cqe->res;
	io_uring_cqe_seen(&io->ring, cqe);
	request = &io->requests[slot];
	r = judge(io, request, result, error);
	if (r == 0) {
		enqueue(io, slot);
		return 0;
	}
	io->free[io->free_count++] = slot;
	return r < 0 ? r : 0;
}

static int transfer_now(struct file_io *io, struct file_request *request, struct error *error)
{
	int r;

	do {
		uint8_t *data = request->data + request->done;
		size_t left = request->size - request->done;
		off_t at = (off_t)(request->offset + request->done);
		ssize_t n = io->writing ? pwrite(io->fd, data, left, at) : pread(io->fd, data, left, at);

		r = judge(io, request, n < 0 ? -errno : n, error);
	} while (r == 0);
	return r < 0 ? r : 0;
}

int file_io_submit(
	struct file_io *io, uint8_t *data, size_t size, uint64_t offset, uint64_t tag, struct error *error)
{
	struct file_request request = {.data = data, .size = size, .offset = offset, .tag = tag};
	unsigned slot;

	if (!io->started)
		io->direct = set_direct(io->fd, true);
	io->started = true;
	if (!io->queued)
		return transfer_now(io, &request, error);
	while (io->free_count == 0) {
		int r = reap(io, error);

		if (r < 0)
			return r;
	}
	slot = io->free[--io->free_count];
	io->requests[slot] = request;
	enqueue(io, slot);
	return 0;
}

int file_io_take(struct file_io *io, struct error *error)
{
	struct io_uring_cqe *cqe;

	return io->queued && io_uring_peek_cqe(&io->ring, &cqe) == 0 ? reap(io, error) : 0;
}

int file_io_poll_fd(const struct file_io *io)
{
	return io->queued ? io->ring.ring_fd : -1;
}

int file_io_drain(struct file_io *io, struct error *error)
{
	while (io->queued && io->free_count < FILE_IO_DEPTH) {
		int r = reap(io, error);

		if (r < 0)
			return r;
	}
	return 0;
}

void file_io_end(struct file_io *io)
{
	struct error ignored;
	unsigned before;

	/* The kernel still writes into, or reads from, the guest's memory: wait, whatever comes of it. */
	io->completed = NULL;
	do {
		before = io->free_count;
		if (io->queued && io->free_count < FILE_IO_DEPTH && reap(io, &ignored) == 0)
			before = FILE_IO_DEPTH + 1;
	} while (before != io->free_count);
	if (io->queued)
		io_uring_queue_exit(&io->ring);
	io->queued = false;
	if (io->started)
		set_direct(io->fd, false);
	io->started = false;
}
