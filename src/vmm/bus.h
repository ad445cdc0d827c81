/*
 * Buses: which device answers at an I/O port or a memory address.
 *
 * A range is embedded in its device. Handlers get the offset in the range and the access in `size`
 * bytes (1, 2, 4 or 8), little-endian, already checked to lie inside the range. Reads that nobody answers
 * give all ones.
 *
 * A range may lie inside a larger one (the reset register 0xcf9 in PCI's 0xcf8 to 0xcff): the smallest range
 * that holds the whole access answers.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct bus_range {
	const char *name;
	uint64_t base, size;
	void (*read)(void *context, uint64_t offset, void *data, unsigned size);
	void (*write)(void *context, uint64_t offset, const void *data, unsigned size);
	void *context;
	struct bus_range *next; /* the bus's */
};

struct bus {
	struct bus_range *ranges;
};

/* -EEXIST where it overlaps a range that is there, other than one inside the other; -EINVAL for an impossible
 * range. */
int bus_add(struct bus *bus, struct bus_range *range);
void bus_remove(struct bus *bus, struct bus_range *range);

/* false where nobody answers (a read then gave all ones). */
bool bus_read(struct bus *bus, uint64_t address, void *data, unsigned size);
bool bus_write(struct bus *bus, uint64_t address, const void *data, unsigned size);
