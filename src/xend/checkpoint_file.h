/*
 * The file that a save writes: under its name there is the whole checkpoint or
 * none. It has no name until it is complete (O_TMPFILE), or a temporary one where
 * the file system cannot do that; the store knows temporary names, so that none
 * outlives a killed xend for longer than to the next one's start.
 *
 *	_cleanup_checkpoint_file_ struct checkpoint_file file = {.fd = -1};
 *	r = checkpoint_file_create(&file, store, path, force, &error);
 *	… write file.fd …
 *	r = checkpoint_file_publish(&file, &error);
 */
#pragma once

#include "base/error.h"

#include <stdbool.h>

struct store;

struct checkpoint_file {
	struct store *store;
	int fd, directory;
	bool force;
	char path[4096], temporary[4128]; /* temporary: "" while the file has no name */
};

#define _cleanup_checkpoint_file_ __attribute__((cleanup(checkpoint_file_discard)))

/* An existing file is refused without force. */
int checkpoint_file_create(
	struct checkpoint_file *file, struct store *store, const char *path, bool force, struct error *error);

/* Gives the synced file its name, durably. */
int checkpoint_file_publish(struct checkpoint_file *file, struct error *error);

/* Closes it; what was not published is gone. */
void checkpoint_file_discard(struct checkpoint_file *file);
