/*
 * The file that a save writes: under its name there is the whole checkpoint or
 * none. It has no name until it is complete (O_TMPFILE), or a temporary one where
 * the file system cannot do that; the store knows temporary names, so that none
 * outlives a killed xend for longer than to the next one's start.
 *
 *	_cleanup_checkpoint_file_ struct checkpoint_file *file = NULL;
 *	r = checkpoint_file_create(&file, xend, path, force, cancel, &error);
 *	… write checkpoint_file_fd(file) …
 *	r = checkpoint_file_publish(&file, &error);
 *
 * All of this is done as errands (errand.h) and lets go of the lock: where the file's
 * storage does not answer, *file is left to them and NULL.
 */
#pragma once

#include "xend/xend.h"

struct checkpoint_file;

#define _cleanup_checkpoint_file_ __attribute__((cleanup(checkpoint_file_discard)))

/* An existing file is refused without force. `cancel`: an eventfd, or -1. */
int checkpoint_file_create(struct checkpoint_file **file, struct xend *xend, const char *path, bool force,
	int cancel, struct error *error);

int checkpoint_file_fd(const struct checkpoint_file *file);

/*
 * Gives the synced file its name, durably. Where that takes too long it fails: a file that gets its name
 * later is removed again, unless it replaced another.
 */
int checkpoint_file_publish(struct checkpoint_file **file, struct error *error);

/* Closes it; what was not published is gone. *file is NULL afterwards. */
void checkpoint_file_discard(struct checkpoint_file **file);

/* At xend's start: removes what an earlier xend has left under temporary names, as far as storage answers. */
void checkpoint_file_clear_leftovers(struct xend *xend);
