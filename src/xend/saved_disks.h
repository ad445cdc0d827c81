/*
 * A guest's disks and its checkpoint: what the checkpoint says of each (state/saved_disk.h) while the guest
 * stands still, and whether that is so when it is restored. Done as an errand (errand.h): where the storage
 * does not answer, the job does not wait for ever.
 */
#pragma once

#include "config/guest_config.h"
#include "xend/xend.h"

#include <jansson.h>

/* An array, one for each disk of the configuration, null where it cannot be read (the log says why); NULL
 * where nothing can be told at all. `hurry`: the guest is to run on afterwards. `cancel`: an eventfd, or -1.
 * Lets go of the lock. */
json_t *saved_disks_portray(struct xend *xend, const struct guest_config *config, bool hurry, int cancel);

/*
 * Compares the disks of the configuration with such an array, which comes from a file: -EPERM with a sentence
 * for each disk that the guest must not find like that, unless they are accepted, which the log then says.
 * Disks that nothing was said of, and those that the guest only reads, are no reason. Lets go of the lock.
 */
int saved_disks_compare(struct xend *xend, const struct guest_config *config, const json_t *portraits,
	bool accepted, int cancel, struct error *error);
