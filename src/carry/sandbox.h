/*
 * What the carrier may do once it reads things from outside: move bytes between
 * descriptors it has and memory, and nothing else.
 */
#pragma once

#include "base/error.h"

#include <sys/types.h>

/* Becomes this user and group, without supplementary groups, for good. */
int sandbox_drop_user(uid_t user, gid_t group, struct error *error);
/* Enters the system call filter: a call outside it ends the process. */
int sandbox_enter(struct error *error);
