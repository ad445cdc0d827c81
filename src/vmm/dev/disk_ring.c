#include "vmm/dev/disk_ring.h"
#include "base/cleanup.h"
#include "base/ring.h"

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

static const uint8_t operations[] = {
	IORING_OP_READ,
	IORING_OP_WRITE,
	IORING_OP_READV,
	IORING_OP_WRITEV,
	IORING_OP_FSYNC,
	IORING_OP_FALLOCATE,
};

/*
 * Without IORING_SETUP_DEFER_TASKRUN: on an idle machine Linux 6.18 now and then signals the eventfd for no
 * work that it has deferred, and the guest's request was never answered (tests/unit/blk_host.c, one run in
 * two).
 */
static int make(struct disk_ring *made)
{
	_cleanup_close_ int completed = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	int r = completed < 0 ? -errno
			      : io_uring_queue_init(DISK_RING_SIZE, &made->ring, IORING_SETUP_R_DISABLED);

	if (r < 0)
		return r;
	r = io_uring_register_eventfd(&made->ring, completed);
	if (r == 0)
		r = ring_limit(made->ring.ring_fd, operations, ARRAY_SIZE(operations));
	if (r < 0) {
		io_uring_queue_exit(&made->ring);
		return r;
	}
	made->completed = take_fd(&completed);
	return 0;
}

int disk_rings_make(struct disk_rings *rings, unsigned count, struct error *error)
{
	*rings = (struct disk_rings){0};
	if (count > DISK_RINGS_MAX)
		return error_set(
			error, EINVAL, "A guest has at most %u disks, not %u.", DISK_RINGS_MAX, count);
	while (rings->count < count) {
		int r = make(&rings->free[rings->count]);

		if (r < 0) {
			disk_rings_free(rings);
			return error_set(
				error, -r, "Unable to set up io_uring for a disk: %s.", strerror(-r));
		}
		rings->count++;
	}
	return 0;
}

void disk_rings_free(struct disk_rings *rings)
{
	while (rings->count)
		disk_ring_close(&rings->free[--rings->count]);
}

int disk_ring_take(struct disk_rings *rings, struct disk_ring *ring, struct error *error)
{
	if (rings->count == 0)
		return error_set(
			error, ENOBUFS, "The guest has more disks than its process was started for.");
	*ring = rings->free[--rings->count];
	return 0;
}

void disk_ring_close(struct disk_ring *ring)
{
	io_uring_queue_exit(&ring->ring);
	close(ring->completed);
}
