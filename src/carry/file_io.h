/*
 * Reading and writing a checkpoint's RAM image: several requests in flight through
 * io_uring, past the page cache where the file system can (O_DIRECT), straight from
 * and into the guest's memory. Where the kernel offers no io_uring each request is
 * carried out at once.
 *
 * Memory, size and offset of a request are multiples of 4096. Requests in flight complete
 * in any order.
 */
#pragma once

#include "base/error.h"

#include <liburing.h>
#include <stdbool.h>
#include <stdint.h>

#define FILE_IO_DEPTH 32u

struct file_request {
	uint8_t *data;
	size_t size, done; /* bytes */
	uint64_t offset, tag;
};

struct file_io {
	int fd;                                /* borrowed */
	bool writing, started, direct, queued; /* queued: through io_uring */
	struct io_uring ring;
	struct file_request requests[FILE_IO_DEPTH];
	unsigned free[FILE_IO_DEPTH], free_count;
	/* Told of each request that is complete; may be NULL. A negative result ends the transfer. */
	int (*completed)(void *context, uint64_t tag, struct error *error);
	void *context;
};

/* Sets up the ring, limited to what `writing` says; call it before the sandbox. */
int file_io_begin(struct file_io *io, int fd, bool writing, struct error *error);
/*
 * Queues one request, waiting for room where FILE_IO_DEPTH are in flight. The first one turns O_DIRECT
 * on where it can be.
 */
int file_io_submit(
	struct file_io *io, uint8_t *data, size_t size, uint64_t offset, uint64_t tag, struct error *error);
/* For those who wait for more than this file: takes the result of one request if there is one. */
int file_io_take(struct file_io *io, struct error *error);
/* Readable when file_io_take has something to take; -1 where each request is carried out at once. */
int file_io_poll_fd(const struct file_io *io);
/* Waits until every request is complete. */
int file_io_drain(struct file_io *io, struct error *error);
/* Waits for what is in flight, drops the ring, and turns O_DIRECT off again. */
void file_io_end(struct file_io *io);
