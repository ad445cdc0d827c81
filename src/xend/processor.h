/* What guests see of this host's processor, asked of ferry-guest, which decides that (src/vmm/cpuid.c). */
#pragma once

#include "xend/xend.h"

#include <jansson.h>

/*
 * Adds to `objections` a sentence that names what a guest that comes has seen and would miss here, and one
 * where its time-stamp counter would run at another frequency, unless `any_frequency`. `seen` is what a peer
 * or a checkpoint tells of it: `features`, `needs`, `tsc_khz`; what it does not tell, passes. The first time,
 * and after KVM's modules or ferry-guest have changed, starts a process and waits for it: call without the
 * lock.
 */
void processor_check(struct xend *xend, const json_t *seen, bool any_frequency, json_t *objections);

/* Has a worker ask ahead of the first guest that comes. The caller holds the lock. */
void processor_ask_ahead(struct xend *xend);
