/*
 * All that speaks against a guest's coming here, in one list, before a byte of it
 * is copied: name, uuid, memory, disks, bridges, the processor.
 *
 * The source adds to its OFFER's domain what the destination needs for that
 * (docs/relocation-protocol.md, OFFER): `portraits` of its disks and the `features`
 * of the processor that the guest sees.
 */
#pragma once

#include "xend/domain.h"

/* Adds to `offer` (a domain_pack) what the destination compares; `accept`: what the user takes as it is, or
 * NULL. Lets go of the lock. */
void objections_prepare(struct domain *domain, const json_t *accept, json_t *offer);

/* Of that, what a checkpoint tells too: all but the disks. Lets go of the lock. */
void objections_portray_machine(struct domain *domain, json_t *offer);

#define ACCEPT_KERNEL "kernel"
#define ACCEPT_CLOCK "clock" /* the frequency of the time-stamp counter */
#define ACCEPT_DISKS "disks" /* of a checkpoint: that they were written since */

/*
 * Differences that a user may take as they are (--accept): an array of their names, where a difference that
 * it names is no objection. 0, or a sentence that says which there are.
 */
int objections_check_accepted(const json_t *accept, bool restores, struct error *error);
bool objections_accepted(const json_t *accept, const char *what);

/*
 * A new array of sentences, empty where nothing speaks against it; nothing is
 * reserved. `offer` is what the source has said of the domain. Lets go of the lock.
 */
json_t *objections_to(struct xend *xend, struct guest_config *config, const json_t *offer);

/* The same for a checkpoint, which is about to be restored: only what the machine itself needs here. -EPERM
 * with all the sentences. Lets go of the lock. */
int objections_to_restore(struct xend *xend, const struct guest_config *config, const json_t *offer,
	const json_t *accept, struct error *error);
