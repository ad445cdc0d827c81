/*
 * A raw disk image: a regular file or a block device behind a descriptor, and
 * what its O_DIRECT asks of buffers and positions.
 */
#pragma once

#include "base/error.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

struct image {
	int fd;                    /* -1: a drive without a medium, of size 0 */
	uint64_t size;             /* bytes, whole sectors of 512 */
	uint32_t block_size;       /* the smallest unit that can be read and written: 512 or more */
	bool is_device;            /* a block device */
	bool cached;               /* it goes through the host's page cache */
	unsigned memory_alignment; /* of buffers and their lengths; 1 without O_DIRECT */
};

/*
 * Looks at the image (the descriptor stays the caller's). Takes O_DIRECT off a regular file whose blocks are
 * larger than a disk's sectors, since partition tables and boot sectors of its guest count in sectors of 512
 * bytes.
 */
int image_examine(struct image *image, int fd, bool read_only, struct error *error);

/*
 * Before the guest runs here: what this host's cache has of an image that goes through it may be older than
 * what another host has written meanwhile, where both have the storage. What is in use by others at that
 * moment, and what the storage's own programs keep (FUSE), stays.
 */
void image_forget(const struct image *image);

/* Whether the image takes these buffers as they are. */
bool image_takes(const struct image *image, const struct iovec *iov, unsigned count);
