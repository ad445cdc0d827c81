/*
 * What a checkpoint says of a guest's disk, so that nobody goes on with a guest whose disk was written
 * since: the memory of its kernel is full of what was on it.
 *
 *	{"device": "xvda", "mode": "w", "size": 1073741824, "block_size": 512,
 *	 "taken_ns": …, "file": {"device": …, "inode": …, "written_ns": …, "changed_ns": …},
 *	 "written": {"boot": "…", "disk": "259:3 12", "sectors": 123456}, "content": {…}}
 *
 * `file` where it is a file, `written` where it is a block device (what this host has written to it, by any
 *way), `content`: disk_content.h. A file that has the same times is the same; otherwise what is on the disk
 *counts, so that copies do, and the same disk that another host sees.
 *
 * These functions read from the disk: where it does not answer, they do not return.
 */
#pragma once

#include "base/error.h"

#include <jansson.h>
#include <stdbool.h>

/* `mode`: as in a guest's configuration, r, w or w!; `hurry`: see disk_content. NULL with a sentence that
 * names the disk. */
json_t *saved_disk_portray(
	const char *path, const char *device, const char *mode, bool hurry, struct error *error);

enum saved_disk_verdict {
	SAVED_DISK_SAME,
	SAVED_DISK_UNKNOWN, /* nothing was said of what is on it (w!: others may write to it at any time) */
	SAVED_DISK_ODD,     /* it was written, but the guest only reads it; with a sentence */
	SAVED_DISK_CHANGED, /* with a sentence, which names disk, difference and what to do */
};

/*
 * Compares the disk at `path`, as which the guest has `device`, with what was said of it, which may come from
 * anybody. Negative: it cannot be looked at.
 */
int saved_disk_compare(const char *path, const char *device, const json_t *portrait,
	enum saved_disk_verdict *verdict, struct error *error);
