/*
 * Guest memory: one shared memfd, mapped once, seen by the guest as RAM below
 * 3 GiB and, if there is more, above 4 GiB.
 *
 * Every access of a device goes through here: addresses from the guest are
 * checked in this one place, and what a device writes is marked for the dirty
 * log (KVM only sees the vCPUs' writes).
 */
#pragma once

#include "base/error.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define GUEST_PAGE_SIZE 4096u
#define MEMORY_BELOW_4G 0xc0000000ull /* RAM ends here; the PCI hole follows */
#define MEMORY_ABOVE_4G 0x100000000ull

struct memory_region {
	uint64_t gpa, size, offset; /* offset in the memfd */
};

struct memory {
	int fd;        /* owned */
	uint8_t *base; /* the mapping of the whole memfd */
	uint64_t size;
	struct memory_region regions[2];
	unsigned region_count;
	bool shared;            /* with other clones, copy-on-write */
	uint64_t *device_dirty; /* a bit per page of the memfd while tracking, else NULL */
};

/*
 * Maps fd (taken over in case of success) as guest RAM of size bytes; `shared`: copy-on-write, for others
 * have it too.
 */
int memory_map(struct memory *memory, int fd, uint64_t size, bool shared, struct error *error);
void memory_unmap(struct memory *memory);

/* Keeps a mapping of a guest's memory out of core files. memory_map has done so. */
void memory_keep_private(void *base, uint64_t size);

/* Host address of guest-physical [gpa, gpa + size), or NULL where that is not all RAM of one region. */
void *memory_at(const struct memory *memory, uint64_t gpa, uint64_t size);

/* Marks [gpa, gpa + size) as written by a device. Call it after the write. */
void memory_wrote(struct memory *memory, uint64_t gpa, uint64_t size);

/* Copy out of and into guest memory: -EFAULT where the range is not RAM. memory_write marks. */
int memory_read(const struct memory *memory, uint64_t gpa, void *to, uint64_t size);
int memory_write(struct memory *memory, uint64_t gpa, const void *from, uint64_t size);
