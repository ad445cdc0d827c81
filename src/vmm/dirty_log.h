/*
 * The dirty log: which of the guest's pages were written, by its processors
 * (KVM knows) and by its devices, as a bitmap in a memfd that the carrier maps
 * (machine->bitmap_fd, sealed in its size).
 *
 * Called on the main thread with the machine lock held; it is open while KVM
 * goes over all memory.
 */
#pragma once

#include "vmm/machine.h"

/* Begins a log, all pages clean, also where one was kept; or ends it. */
int dirty_log_set(struct machine *machine, bool on, struct error *error);

/* Adds to the bitmap what was written since the last time. *pages: how many are set in it now. */
int dirty_log_take(struct machine *machine, uint64_t *pages, struct error *error);

/* Frees what a log takes here; KVM's own goes with its memory. */
void dirty_log_close(struct machine *machine);
