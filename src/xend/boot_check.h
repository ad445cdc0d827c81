/*
 * Whether a guest could boot: its kernel is one, and it, the ramdisk and the command line fit its memory.
 * Looked at by a ferry-guest that has given up every privilege, as the guest's own would, and that runs
 * nothing: the files are hostile input.
 */
#pragma once

#include "config/guest_config.h"
#include "xend/xend.h"

/* 0, or a sentence. The files can be read (boot_files_check). Lets go of the lock; `config` is the caller's
 * alone. */
int boot_check(struct xend *xend, const struct guest_config *config, struct error *error);
