/*
 * What is on a disk, told in so few bytes that they go into a checkpoint, and so that a later look says
 *whether it is still the same.
 *
 *	{"whole": "8f1d6db…", "sample": "03ac52…", "passes": 12}
 *
 * `whole` is a digest of everything on it, where that is not too much to be read. `sample` is one of what
 *lies where partition tables, file systems and their journals begin and end, and of a grid of blocks over the
 *whole disk: 2^passes of them, the more the faster the disk is. Either may be missing. A change of a stretch
 *as long as the grid is wide does not escape the sample; nothing escapes the whole. docs/checkpoint-format.md
 *has both byte by byte.
 *
 * These functions read from the disk, which takes seconds, or longer where it does not answer.
 */
#pragma once

#include "base/error.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

/* `size` bytes behind a descriptor, perhaps O_DIRECT, of which `used` have anything on them. With `hurry`:
 * for a guest that is to run on, some tenths of a second and not seconds. NULL with a sentence where it
 * cannot be read. */
json_t *disk_content(int fd, uint64_t size, uint64_t used, bool hurry, struct error *error);

enum content_verdict {
	CONTENT_SAME,  /* all of it was looked at */
	CONTENT_ALIKE, /* what was looked at is the same */
	CONTENT_CHANGED,
	CONTENT_UNKNOWN, /* `content`, which may come from anybody, tells nothing */
};

/* Compares what is there now. Negative: it cannot be read. */
int disk_content_compare(int fd, uint64_t size, uint64_t used, const json_t *content,
	enum content_verdict *verdict, struct error *error);
