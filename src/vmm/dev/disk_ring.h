/*
 * The rings (io_uring) through which disks are read and written. They are made before ferry-guest gives up
 * its system calls: what is made later could open files and sockets, past the filter. Each takes only what a
 * disk needs.
 *
 * System calls while making: io_uring_setup, io_uring_register, eventfd2, mmap; later io_uring_enter and
 * munmap.
 */
#pragma once

#include "base/error.h"

#include <liburing.h>
#include <stdbool.h>

#define DISK_RINGS_MAX 16u
#define DISK_RING_SIZE 512u

struct disk_ring {
	struct io_uring ring;
	int completed; /* eventfd: signals an edge for completions */
};

/* Those that no disk has yet. All zero: none. */
struct disk_rings {
	struct disk_ring free[DISK_RINGS_MAX];
	unsigned count;
};

/* Makes `count` rings, to be used by the calling thread alone. On failure nothing is left. */
int disk_rings_make(struct disk_rings *rings, unsigned count, struct error *error);
void disk_rings_free(struct disk_rings *rings);

/* Gives one away: the caller closes it. -ENOBUFS: none is left. */
int disk_ring_take(struct disk_rings *rings, struct disk_ring *ring, struct error *error);
void disk_ring_close(struct disk_ring *ring);
