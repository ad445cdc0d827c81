/*
 * The guest's disks on the host: opened, and locked for as long as the guest
 * lives, because the lock belongs to the open file that ferry-guest holds.
 *
 * A block device that is written is opened with O_EXCL: the kernel then keeps
 * everybody else, mount included, from doing the same. A file gets an open file
 * description lock, for writing or for reading (fcntl(2), F_OFD_SETLK).
 */
#pragma once

#include "config/guest_config.h"

#include <jansson.h>
#include <stdbool.h>

struct xend;

enum disk_lock {
	DISK_LOCK_NOW,
	DISK_LOCK_LATER, /* incoming: on shared storage the peer holds the lock until it has given the guest
			    away */
	DISK_LOCK_HELD,  /* only looked at, by the guest that has it, or its next start */
};

/* Opens the disk, O_DIRECT where the file system can. Returns a descriptor owned by the caller; -ENOMEDIUM:
 * it is a drive without a medium. */
int disk_open(const struct guest_disk *disk, const char *domain, enum disk_lock lock, struct error *error);

/* Locks what was opened with DISK_LOCK_LATER. -EBUSY while somebody else has the lock; -ENOLCK: there are no
 * locks where it is.
 */
int disk_lock(int fd, const struct guest_disk *disk);

/* Gives the lock of an open file away, whoever else has the same open file. */
void disk_unlock(int fd);

/*
 * Finds out what the disks of a configuration are on this host (their `place`), which waits for storage: at
 * most patience_ms (0: as long as storage-timeout says), or until `cancel` (an eventfd; -1: nothing cancels).
 * A disk that is not there has no place; -ETIMEDOUT names disks that do not answer. Lets go of the lock.
 */
int disks_look(struct xend *xend, struct guest_config *config, unsigned patience_ms, int cancel,
	struct error *error);

/* What is known of their places, to be kept with the configuration: an array; and back, as far as it fits. */
json_t *disks_places(const struct guest_config *config);
void disks_set_places(struct guest_config *config, const json_t *places);

/* Whether two are the same file or the same block device, as far as is known. */
bool disk_same(const struct guest_disk *one, const struct guest_disk *other);

/* An error where disk `index` is one of those before it as well, and the two cannot both be opened. */
int disks_check_twin(const struct guest_config *config, size_t index, struct error *error);
