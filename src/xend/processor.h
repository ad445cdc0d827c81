/* What guests see of this host's processor, asked of ferry-guest, which decides that (src/vmm/cpuid.c). */
#pragma once

#include "xend/xend.h"

#include <jansson.h>

/*
 * -EOPNOTSUPP with a sentence that names what a guest that comes has seen and would miss here. `seen` is an
 * array of names from a peer, or NULL, which passes. The first time, and after KVM's modules or ferry-guest
 * have changed, starts a process and waits for it: call without the lock.
 */
int processor_check(struct xend *xend, const json_t *seen, struct error *error);

/* Has a worker ask ahead of the first guest that comes. The caller holds the lock. */
void processor_ask_ahead(struct xend *xend);
