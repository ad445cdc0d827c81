/*
 * One request of a guest to its disk, as the driver's chain has it: what is asked for, where its data lies,
 * where the answer goes (virtio specification 1.2, section 5.2.6). What becomes of it is blk.c's.
 */
#pragma once

#include "vmm/dev/virtio.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

/*
 * One request of the guest, from popped to answered. Its data pieces are
 * iov[first] to iov[first + count - 1]; of `size` bytes `done` are over. What the
 * image did only in part is submitted again for the rest.
 */
struct request {
	struct request *next_free;
	struct virtio_chain chain;
	uint32_t type;
	unsigned first, count;
	uint64_t position, size, done; /* bytes: in the image, of the transfer, of it over */
	uint8_t *bounce;               /* owned; the data passes through it where not NULL */
	int allocate;                  /* fallocate(2) mode of what is under way; 0: a transfer */
	uint8_t *status;               /* in guest memory */
	uint64_t status_gpa;
	struct iovec iov[VIRTQUEUE_SIZE_MAX];
	uint64_t gpa[VIRTQUEUE_SIZE_MAX];
	uint32_t length[VIRTQUEUE_SIZE_MAX]; /* of the pieces as popped */
};

/* Takes the chain apart: header, data, the status byte at the very end. False: it has no room for these. */
bool request_dissect(struct request *request, uint64_t *sector);

/* Whether what it transfers goes into the guest's memory. */
bool request_into_guest(const struct request *request);

/* Steps over `bytes` of the data pieces. */
void request_skip(struct request *request, uint64_t bytes);

/* Gives it a bounce buffer, zeroed, so that it serves for writing zeroes as it is. False: out of memory. */
bool request_add_bounce(struct request *request);

/* The bytes that pass through the bounce buffer next. */
unsigned request_bounce_part(const struct request *request);
