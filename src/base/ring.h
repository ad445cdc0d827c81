/*
 * Limits an io_uring to the operations it is for. What is asked of a ring is not seen by a filter of system
 * calls, so a process in a sandbox may hold only rings that can do no more than they must.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

/*
 * `ring_fd`: of a ring made with IORING_SETUP_R_DISABLED. From now on it takes the `count` operations
 * (IORING_OP_…) and no change of what is registered with it, for ever. The calling thread is the one that
 * submits (IORING_SETUP_SINGLE_ISSUER). Returns 0 or a negative errno.
 */
int ring_limit(int ring_fd, const uint8_t *operations, size_t count);
