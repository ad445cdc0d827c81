/*
 * The inside of the virtio block device (blk.h): what its two halves share. blk.c
 * speaks with the guest's driver: configuration, requests, state. blk_io.c speaks with the host's kernel:
 * what is under way in the ring, what became of it, what has to be tried again.
 */
#pragma once

#include "vmm/dev/blk_discard.h"
#include "vmm/dev/blk_image.h"
#include "vmm/dev/blk_request.h"
#include "vmm/dev/disk_ring.h"
#include "vmm/dev/virtio.h"

#include <linux/virtio_blk.h>

#define BLK_QUEUE_SIZE VIRTQUEUE_SIZE_MAX
_Static_assert(
	BLK_QUEUE_SIZE < DISK_RING_SIZE, "a ring takes what a queue can hold, and the host's own flush");

/* Of what the guest wrote to the image: is it stable? */
enum blk_flush { FLUSH_NONE, FLUSH_RUNNING, FLUSH_RUNNING_STALE /* another has to follow */ };

struct virtio_blk {
	struct virtio_device virtio;
	struct image image;
	bool read_only;
	bool full_is_error; /* a write for which the host has no room fails, and is not held */
	char serial[VIRTIO_BLK_ID_BYTES + 1];
	struct disk_ring ring;
	struct watch completed;
	struct discarder discarder;
	struct watch again;      /* a timer: the kernel had no memory for what is in the submission queue */
	unsigned in_flight;      /* requests */
	enum blk_flush flushing; /* the host's wish, not the guest's */
	int flush_error;         /* errno of the last one; 0: none */
	bool lost_writes;        /* as that told, and the guest does not know */
	struct request *free_requests;
	struct request *held, **held_end; /* those that found the image's storage full */
	struct request *beside; /* flushes of the guest that are over, and wait for what the host's is told */
	unsigned used_requests;

	/* The saved state beside virtio's: as the guest knows the disk; 0: from before there was this. */
	uint64_t capacity; /* sectors of 512 */
	uint32_t block_size;
	bool resized; /* the driver has to be told */
	bool has_run; /* the guest has, here */

	struct request requests[BLK_QUEUE_SIZE]; /* resident are only as many as were ever in flight at once
						  */
};

static inline struct virtqueue *blk_queue(struct virtio_blk *blk)
{
	return &blk->virtio.queues[0];
}

/* Requests are neither answered nor held. */
static inline bool blk_is_busy(const struct virtio_blk *blk)
{
	return blk->in_flight > 0 || blk->beside;
}

/* Takes a ring; its end waits for all that is under way. */
int blk_open_ring(struct virtio_blk *blk, struct platform *platform, struct error *error);
void blk_close_ring(struct virtio_blk *blk, struct loop *loop);

/* Puts what is next for the request into the ring, which has a place for every request there can be. */
void blk_prepare(struct virtio_blk *blk, struct request *request);
/* Has the kernel take what was put there. */
void blk_submit(struct virtio_blk *blk);
/* Ends what the host had in its cache and is over already. */
void blk_reap_ready(struct virtio_blk *blk);

/* Ends the request towards the driver, who sees it after virtqueue_flush. */
void blk_answer(struct virtio_blk *blk, struct request *request, uint8_t status);
void blk_give_back(struct virtio_blk *blk, struct request *request);
/* A driver that offers chains a second time before they are answered can have every request in flight. */
bool blk_exhausted(const struct virtio_blk *blk);

/* Members of device_class: see there. */
int blk_flush(struct device *device, bool begin, struct error *error);
void blk_quiet(struct device *device);
/* Forgets requests that are held: the driver has reset the device. */
void blk_drop_held(struct virtio_blk *blk);
