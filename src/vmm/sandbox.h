/*
 * What ferry-guest gives up before it reads the first message: its user, the way
 * to any new privilege, and every system call that it does not need. All threads that come later inherit it.
 */
#pragma once

#include "base/error.h"

#include <sys/types.h>

/* uid and gid -1: stay who we are. */
int sandbox_enter(uid_t uid, gid_t gid, struct error *error);
