/*
 * How much memory the host has for guests.
 *
 * A guest's memory is promised when it is created but taken from the host only
 * as the guest touches it. So what is free is what the host has available, less
 * what was promised to guests and not yet taken; and the host itself keeps
 * dom0-min-mem.
 */
#pragma once

#include "base/error.h"

#include <stdint.h>

/* Beside its memory, what running a guest takes (chapter 13: the guest's memory plus 8 MB). */
#define GUEST_OVERHEAD_MIB 8

struct host_memory {
	uint64_t total_kib, available_kib; /* /proc/meminfo: MemTotal, MemAvailable */
};

int host_memory_read(struct host_memory *memory, struct error *error);

/*
 * MiB that new guests may have. promised_mib: what all guests were given,
 * overhead included; taken_kib: how much of it they have touched.
 */
uint64_t memory_free_mib(
	const struct host_memory *memory, uint64_t promised_mib, uint64_t taken_kib, uint64_t dom0_min_mib);

/* The RAM of a guest: a sealed memfd of that size, none of it taken yet. Owned by the caller. */
int memory_create(uint64_t mib, struct error *error);

/* KiB of a guest's RAM that have been taken from the host. */
uint64_t memory_taken_kib(int ram);
