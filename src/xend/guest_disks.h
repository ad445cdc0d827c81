/*
 * The locks of disks that another host holds when the guest comes here: taken as
 * soon as that host has let go of them, by whichever xend runs then.
 *
 * A lock belongs to the open file that ferry-guest holds (disks.h); xend keeps a
 * duplicate of it until it is locked (domain.h, unlocked).
 */
#pragma once

#include "xend/domain.h"

/* Where a disk of the guest lies there are no locks: said in the log, and with the domain. */
void guest_lacks_lock(struct domain *domain, size_t disk);

/* Adds what is to be said of its disks to the domain as the API shows it. */
void guest_describe_disks(const struct domain *domain, json_t *described);

/* After GUEST_RECEIVE, once the guest is ours: takes the locks, in a worker. */
void guest_lock_disks(struct domain *domain);

/*
 * The same for a guest found again: an earlier xend may have died when the guest was ours
 * already and its disks were still to be locked. The open files are found in ferry-guest's table.
 */
void guest_relock_disks(struct domain *domain);

/* Of a guest that is complete elsewhere: whoever has it there may lock them, before its process here has
 * ended. Without the lock. */
void guest_unlock_disks(const struct domain *domain);

/* Closes what is still to be locked. Lets go of the lock. */
void guest_release_disks(struct domain *domain);
