#include "vmm/bus.h"

#include <errno.h>
#include <string.h>

static bool contains(const struct bus_range *range, uint64_t address, uint64_t size)
{
	return address >= range->base && size <= range->size && address - range->base <= range->size - size;
}

int bus_add(struct bus *bus, struct bus_range *range)
{
	if (range->size == 0 || range->base + (range->size - 1) < range->base)
		return -EINVAL;
	for (const struct bus_range *r = bus->ranges; r; r = r->next) {
		bool apart =
			range->base > r->base + (r->size - 1) || r->base > range->base + (range->size - 1);
		bool nested = range->size != r->size &&
			      (contains(range, r->base, r->size) || contains(r, range->base, range->size));

		if (!apart && !nested)
			return -EEXIST;
	}
	range->next = bus->ranges;
	bus->ranges = range;
	return 0;
}

void bus_remove(struct bus *bus, struct bus_range *range)
{
	for (struct bus_range **at = &bus->ranges; *at; at = &(*at)->next)
		if (*at == range) {
			*at = range->next;
			range->next = NULL;
			return;
		}
}

static const struct bus_range *find(const struct bus *bus, uint64_t address, unsigned size)
{
	const struct bus_range *best = NULL;

	for (const struct bus_range *r = bus->ranges; r; r = r->next)
		if (contains(r, address, size) && (!best || r->size < best->size))
			best = r;
	return best;
}

bool bus_read(struct bus *bus, uint64_t address, void *data, unsigned size)
{
	const struct bus_range *range = find(bus, address, size);

	memset(data, 0xff, size);
	if (!range || !range->read)
		return false;
	range->read(range->context, address - range->base, data, size);
	return true;
}

bool bus_write(struct bus *bus, uint64_t address, const void *data, unsigned size)
{
	const struct bus_range *range = find(bus, address, size);

	if (!range || !range->write)
		return false;
	range->write(range->context, address - range->base, data, size);
	return true;
}
