/*
 * Clones: a checkpoint restored under another name (`xm restore --name`), beside the guest that it was taken
 * of or other clones of it. What of a configuration has to become another one's.
 */
#pragma once

#include "config/guest_config.h"

struct clone_options {
	const char *name;         /* of the clone */
	const json_t *disk, *vif; /* arrays of texts as in a guest configuration, in the guest's order; NULL:
				     as they were, but for MACs */
};

/*
 * Turns the configuration of a checkpoint into a clone's: the name, a new uuid, disks and network devices as
 * given; network devices that are not given keep all but their MAC and the name of their tap. Refused: a disk
 * that is written and not given anew, and anything that would be another machine.
 */
int clone_config(struct guest_config *config, const struct clone_options *options, struct error *error);
