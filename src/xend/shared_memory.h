/*
 * Memory that clones of one checkpoint share on this host: one memfd which their machines map copy-on-write,
 * so that a page is there once until a clone writes to it. It is found by the checkpoint's identity, and
 * lives as long as clones do. After a restart of xend its clones run on with it, and new ones begin another.
 *
 * All functions are called with the lock held.
 */
#pragma once

#include "xend/domain.h"

struct shared_memory {
	struct shared_memory *next;
	char identity[64]; /* of the checkpoint, as the carrier says it */
	uint64_t mib;
	int ram; /* memfd */
	unsigned references;
};

/* Finds it or makes it; with a reference for the caller. NULL on an error. */
struct shared_memory *shared_memory_for(
	struct xend *xend, const char *identity, uint64_t mib, struct error *error);
struct shared_memory *shared_memory_ref(struct shared_memory *shared);
void shared_memory_unref(struct xend *xend, struct shared_memory *shared);

/* Another open file of the memfd `ram`, the caller's: to read it (what a guest gets), or to fill it (for a
 * carrier, whose lock is its own). */
int shared_memory_open(int ram, bool fill, struct error *error);

/*
 * What a clone may count on beside the shared memory: much less than its size, for it would not be worth
 * sharing otherwise. Those who write more get it as long as the host has it.
 */
uint64_t shared_memory_reserve_mib(const struct guest_config *config);

/* What a clone has now that is its own. */
uint64_t shared_memory_own_kib(const struct domain *domain);

/* Ends a clone's sharing: before others can read its memory, it gets its own. Pauses it for that moment.
 * Lets go of the lock. */
int shared_memory_leave(struct domain *domain, struct error *error);
