/*
 * Discards of block devices that know no other way than BLKDISCARD: thin volumes, many SSDs. The
 * call returns when the device is done, so a thread of the disk's own waits for it, which there is only where
 * it is needed.
 *
 * System calls: ioctl(BLKDISCARD), those of a thread, eventfd2, read, write.
 */
#pragma once

#include "base/error.h"
#include "vmm/loop.h"

#include <pthread.h>
#include <stdbool.h>

struct request;
struct virtio_blk;

struct discarder {
	bool started, stop;
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t more;
	struct request *todo, *done; /* linked by next_free; the lock is theirs */
	struct watch finished;       /* eventfd */
};

/* Hands it over; it is answered from the loop. Negative: there can be no thread. */
int discarder_take(struct virtio_blk *blk, struct request *request);
/* What it has still to do is left. */
void discarder_end(struct virtio_blk *blk);
