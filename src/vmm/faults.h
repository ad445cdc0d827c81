/*
 * Memory that comes after the guest: while a restore's carrier still brings pages, whoever touches one
 * that is not there yet (a vCPU, a device, KVM, io_uring) waits in the kernel until it has come.
 *
 * A userfaultfd of this process's own memory does that (Linux, Documentation/admin-guide/mm/userfaultfd.rst).
 * The carrier gets a duplicate; ours keeps the promise when the carrier dies: without it, missing pages would
 * silently be zeros.
 */
#pragma once

#include "vmm/memory.h"

/*
 * Makes the userfaultfd through *device, an open /dev/userfaultfd (then closed and cleared; -1: do nothing),
 * and has it catch every page of RAM that is not there. Returns it (the caller's), or -1 where the kernel
 * cannot: then all memory has to come before the guest's state.
 */
int faults_catch(int *device, const struct memory *memory);

/* Every page that shall come has come: the missing ones are zeros from now on. Closes and clears *faults. */
void faults_end(int *faults, const struct memory *memory);
