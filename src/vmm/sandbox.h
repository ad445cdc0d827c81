/*
 * What ferry-guest gives up before it reads the first message: its user, the file system, the way to any new
 * privilege, and every system call that it does not need. All threads that come later inherit it. Rings
 * (vmm/dev/disk_ring.h) must be there before.
 */
#pragma once

#include "base/error.h"

#include <sys/types.h>

/* root: an empty directory that becomes the root of all paths; NULL: stay where we are. uid and gid -1: stay
 * who we are. */
int sandbox_enter(const char *root, uid_t uid, gid_t gid, struct error *error);
