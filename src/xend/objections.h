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

/* Adds to `offer` (a domain_pack) what the destination compares. Lets go of the lock. */
void objections_prepare(struct domain *domain, json_t *offer);

/*
 * A new array of sentences, empty where nothing speaks against it; nothing is
 * reserved. `offer` is what the source has said of the domain. Lets go of the lock.
 */
json_t *objections_to(struct xend *xend, struct guest_config *config, const json_t *offer);
