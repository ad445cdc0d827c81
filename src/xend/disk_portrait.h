/*
 * Whether two hosts mean the same disk.
 *
 * A portrait says what a host can tell of a disk without writing to it: its size,
 * an identity where its kind has one, and digests of some of its blocks:
 *
 *	{"size": 1073741824, "block_size": 512, "kind": "lvm", "identity": "LVM-…", "blocks": [[0,
 *"8f1d6db…"], …]}
 *
 * The other host compares it with its own disk. A guest may write meanwhile, so one
 * block that differs proves nothing: blocks that change while the portrait is taken
 * are left out, and only a majority counts. A copy of a disk therefore looks like the
 * disk itself, unless the two have identities.
 *
 * These functions read from disks and may wait for them: call them without xend's lock.
 */
#pragma once

#include "config/guest_config.h"

#include <jansson.h>

/* NULL where the disk cannot be read now (or out of memory): then nothing can be compared. */
json_t *disk_portrait(const struct guest_disk *disk);

enum disk_identity {
	IDENTITY_UNKNOWN,   /* neither host can say, or they say things that cannot be compared */
	IDENTITY_SAME,      /* one and the same, wherever it is seen */
	IDENTITY_DIFFERENT, /* two disks, whatever is on them */
};

struct disk_likeness {
	enum disk_identity identity;
	uint64_t size, other_size;
	unsigned block_size, other_block_size; /* 0: it did not say */
	unsigned equal, unequal;               /* blocks; such as are zero on both sides do not count */
};

/* Compares a disk of this host with another host's portrait, which may come from anybody; what is on it only
 * with `content`, and where it is not known to be the same. An error: the disk cannot be read, or the
 * portrait is none. */
int disk_compare(const struct guest_disk *disk, const json_t *portrait, bool content,
	struct disk_likeness *likeness, struct error *error);

/* Whether two guests would have one disk here: certain where it has an identity; elsewhere the path, the size
 * and what is on it have to agree, and the more the less else the guests have in common. */
bool disk_likely_same(const struct disk_likeness *likeness, bool same_path, bool same_name);
