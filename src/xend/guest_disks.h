/*
 * The disks of a guest that an earlier xend has received: that xend may have
 * died when the guest was ours already and its disks' locks were still to be
 * taken. The open files are ferry-guest's, so they are found in its table.
 */
#pragma once

#include "xend/domain.h"

/* Locks the disks of a guest found again, unless they are locked, in a worker. */
void guest_relock_disks(struct domain *domain);
