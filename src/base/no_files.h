/*
 * A process that needs no file, socket or foreign process by name any more says so to the kernel (Landlock;
 * Linux, Documentation/userspace-api/landlock.rst). A second wall behind a filter of system calls: it holds
 * for whatever the kernel does in the process's name, io_uring too.
 */
#pragma once

#include "base/error.h"

/*
 * From now on the calling thread, and those that it makes, can open, execute, make or rename no file, connect
 * to or bind no TCP port, and (Linux 6.12) reach no abstract socket and signal no process but their own. What
 * is open stays usable. Nothing that it could execute gives new privileges either (PR_SET_NO_NEW_PRIVS). A
 * kernel without Landlock is no error.
 */
int no_files(struct error *error);
