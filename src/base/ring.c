#include "base/ring.h"

#include <errno.h>
#include <linux/io_uring.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define OPERATIONS_MAX 16u

/* liburing 2.3 declares these calls but does not export them. */
static int ring_register(int ring_fd, unsigned what, const void *argument, size_t count)
{
	return syscall(SYS_io_uring_register, ring_fd, what, argument, (unsigned)count) < 0 ? -errno : 0;
}

int ring_limit(int ring_fd, const uint8_t *operations, size_t count)
{
	struct io_uring_restriction only[OPERATIONS_MAX];
	int r;

	if (count > OPERATIONS_MAX)
		return -EINVAL;
	memset(only, 0, sizeof(only));
	for (size_t i = 0; i < count; i++) {
		only[i].opcode = IORING_RESTRICTION_SQE_OP;
		only[i].sqe_op = operations[i];
	}
	r = ring_register(ring_fd, IORING_REGISTER_RESTRICTIONS, only, count);
	return r < 0 ? r : ring_register(ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0);
}
