/*
 * Split virtqueues (virtio 1.2, 2.7) with indirect descriptors and event index.
 *
 * This is the one place where rings are read that a guest, possibly hostile,
 * writes: every index, length and address is checked here, each descriptor is read once, and what
 * breaks the rules makes the device stop and need a reset (2.1.1), never the process.
 *
 *	while (virtqueue_pop(queue, &chain, CHAIN_MAX)) {
 *		... readv/writev with chain.iov ...
 *		virtqueue_push(queue, chain.head, written);
 *	}
 *	virtqueue_flush(queue);	// publishes what was pushed; one interrupt if the guest wants one
 */
#pragma once

#include "state/fields.h"
#include "vmm/loop.h"
#include "vmm/memory.h"

#include <linux/virtio_ring.h>
#include <stdbool.h>
#include <sys/uio.h>

#define VIRTQUEUE_SIZE_MAX 256u /* so also the most descriptors of a chain (2.7.5) */
#define VIRTIO_NO_VECTOR 0xffffu

struct virtio_device;

/*
 * A chain of descriptors: first `readable` pieces that the device reads, then `writable` ones that it writes.
 * Buffers of length 0 are left out. iov is the user's, with room for VIRTQUEUE_SIZE_MAX pieces; it may be
 * changed. gpa (may be NULL) gets the guest-physical address of each.
 */
struct virtio_chain {
	uint16_t head;
	unsigned readable, writable;
	uint64_t readable_bytes, writable_bytes;
	struct iovec *iov;
	uint64_t *gpa;
};

struct virtqueue {
	/* As the driver set it up, and where the device stands: the saved state. */
	uint16_t size;
	uint16_t vector; /* MSI-X, or VIRTIO_NO_VECTOR */
	bool enabled;
	uint64_t descriptors, driver, device; /* addresses of the three parts */
	uint16_t next_available;              /* the next entry of the available ring to take */
	uint16_t next_used;                   /* the next entry of the used ring to fill */
	uint16_t flushed;                     /* next_used as last published to the driver */

	/* The rest follows from it. */
	uint16_t size_max;
	bool suppressed; /* the driver is asked for no notifications */
	struct virtio_device *owner;
	struct memory *memory;
	const struct vring_desc *table; /* NULL while the queue cannot be used */
	const struct vring_avail *available;
	struct vring_used *used;
	bool event_index;
	struct watch notified; /* eventfd: the driver's notifications */
};

extern const struct field_table virtqueue_state;

/* Finds the enabled queue's three parts in memory; -EINVAL where they are misaligned or not all RAM. */
int virtqueue_map(struct virtqueue *queue, bool event_index);
/* The queue as after a reset of its device. */
void virtqueue_reset(struct virtqueue *queue);

static inline bool virtqueue_ready(const struct virtqueue *queue)
{
	return queue->table != NULL;
}

/* Takes the next chain: false where there is none, or where the ring is broken, which stops the device. */
bool virtqueue_pop(struct virtqueue *queue, struct virtio_chain *chain);
/* Gives the last `count` chains back that were popped and not pushed, as if they had not been popped. */
void virtqueue_unpop(struct virtqueue *queue, unsigned count);
/*
 * The same for chains that were popped at any time and not pushed, the first of `heads` to come first: they
 * are put back into the available ring, whose places up to next_available are the device's to use again. Only
 * while no vCPU runs.
 */
void virtqueue_return(struct virtqueue *queue, const uint16_t *heads, unsigned count);
/* Whether there is a chain to pop. */
bool virtqueue_waiting(const struct virtqueue *queue);

/* Gives a chain back to the driver, `written` bytes of it written; the driver sees it after virtqueue_flush.
 */
void virtqueue_push(struct virtqueue *queue, uint16_t head, uint32_t written);
/* Shows the driver what was pushed, and interrupts it where it wants that. */
void virtqueue_flush(struct virtqueue *queue);
/* Shows and interrupts whatever the driver said: for after a restore, when an interrupt may have been under
 * way. */
void virtqueue_interrupt(struct virtqueue *queue);

/* Asks the driver for no notifications while the ring is being worked on anyway. */
void virtqueue_suppress(struct virtqueue *queue);
/* Asks for them again. True where chains came meanwhile: the caller then looks again. */
bool virtqueue_listen(struct virtqueue *queue);
/* Has the owner's `notified` called again soon, from the event loop. */
void virtqueue_again(struct virtqueue *queue);

/*
 * Marks the first `bytes` of the chain's writable part as written by a device (memory.h). iov must still be
 * as popped, and gpa given.
 */
void virtio_chain_wrote(struct memory *memory, const struct virtio_chain *chain, uint64_t bytes);
/* Copies up to `size` bytes out of, or into, `count` pieces from their byte `offset`; returns how many there
 * were. */
size_t iov_read(const struct iovec *iov, unsigned count, size_t offset, void *to, size_t size);
size_t iov_write(const struct iovec *iov, unsigned count, size_t offset, const void *from, size_t size);
