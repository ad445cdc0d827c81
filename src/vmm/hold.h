/*
 * A guest that waits for its host: a device (platform.hold) finds that something the guest
 * asked for cannot be done now, such as a write to storage that is full. The machine pauses by itself, so
 * that no clock of the guest runs on meanwhile, and runs again for a moment now and then to see whether it
 * can. What is asked of the machine meanwhile is answered as of any that is paused: it is paused then, until
 * it is resumed.
 */
#pragma once

#include "base/error.h"
#include "vmm/loop.h"

#include <stdbool.h>
#include <stdint.h>

struct machine;

struct hold {
	bool waiting;       /* the machine is to run again by itself */
	char why[160];      /* "" : it does not wait, and has not for a while */
	unsigned tries;     /* in vain, one after the other */
	struct watch timer; /* .handler NULL: not made yet */
};

/* Has the machine wait. With the machine lock held, like the others. */
void hold_begin(struct machine *machine, const char *why);
/* The machine is paused, or runs, because somebody asked for that. */
void hold_end(struct machine *machine);
/* It has become quiet, or runs: a moment later it is looked at again. */
void hold_watch(struct machine *machine);
void hold_free(struct machine *machine);
