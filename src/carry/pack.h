/*
 * Compressing extents for a checkpoint: threads take extents of the guest's RAM, copy
 * their stored pages, compress them (zstd, level 1) and write the frame where the
 * extent would be. What does not become smaller is written as it is.
 *
 *	pack_begin(&pack, file, &error);	// before the sandbox
 *	pack.ram = …; pack.checkpoint = …;
 *	pack_extent(&pack, index, &error);	// from one thread, in any order
 *	pack_drain(&pack, &error);		// all of them are written, and described in
 *checkpoint->extents
 */
#pragma once

#include "base/error.h"
#include "state/checkpoint.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#define PACK_THREADS 2u
#define PACK_QUEUE 16u

struct pack {
	const uint8_t *ram;            /* borrowed: the guest's, which may run meanwhile */
	struct checkpoint *checkpoint; /* borrowed: `stored` of an extent that was given must stay as it is */

	int fd; /* borrowed */
	pthread_t threads[PACK_THREADS];
	unsigned thread_count, ready;
	pthread_mutex_t lock; /* of all below */
	pthread_cond_t changed;
	uint64_t queue[PACK_QUEUE];
	unsigned queued, busy;
	bool ending;
	struct error failure; /* the first one; nothing is written after it */
};

/* Starts the threads and waits until they need no call that a sandbox would refuse. */
int pack_begin(struct pack *pack, int fd, struct error *error);

/* Queues an extent whose `stored` pages are known, waiting for room. It may come again after a drain. */
int pack_extent(struct pack *pack, uint64_t index, struct error *error);
int pack_drain(struct pack *pack, struct error *error);

/* Ends the threads; what is still queued is dropped. For a pack that was not begun too (all zero). */
void pack_end(struct pack *pack);
