/*
 * A clone's way out of sharing: its memory, mapped copy-on-write from what clones share, becomes a memfd of
 * its own, which others can read while they save or send the guest.
 */
#pragma once

#include "vmm/memory.h"

/*
 * Copies everything that is not zero to `ram`, an empty memfd of memory's size, and maps that in the other's
 * place, at the same address. `pagemap`: this process's /proc/PID/pagemap. Nobody may write to the memory
 * meanwhile. Takes `ram` over in case of success; on an error nothing has changed but the memfd.
 */
int memory_own(struct memory *memory, int ram, int pagemap, struct error *error);
