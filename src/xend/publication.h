/*
 * A file that gets its name, perhaps in the place of another: what is recorded of it, so that a later xend
 * can undo it. All of this may wait for storage.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

/* What gets a name, and what had it: enough for a later xend to undo it. */
struct publication {
	char path[4096], aside[4128]; /* aside: what is replaced, until that is certain; "": nothing */
	uint64_t device, inode;       /* of the new file */
	uint64_t header;              /* digest of how it begins; 0: not known */
};

/* 1: there is such a file, 0: there is none (or no name). */
int publication_look(const char *path, struct stat *info);
/* Whether this is the new file, whatever it is called. */
bool publication_is(const struct publication *publication, const struct stat *info);

/* However far it came: what was under the name is there again, or nothing is. */
int publication_undo(const struct publication *publication);
/* The other way: what was replaced may go. */
int publication_clear_aside(const struct publication *publication);

/* Digest of how a file begins, which differs between any two checkpoints; 0: not known. */
uint64_t publication_header(int fd);
/*
 * Whoever removed the file by hand, as was asked for, may have put another in its place, which then may have
 * its number. 1: what has the name is another, 0: it is that one, as far as is known.
 */
int publication_is_another(const struct publication *publication);
