#include "vmm/pci.h"
#include "base/cleanup.h"
#include "base/log.h"

#include <errno.h>
#include <linux/pci_regs.h>
#include <stdlib.h>
#include <string.h>

#define ADDRESS_PORT 0xcf8u
#define DATA_PORT 0xcfcu
#define ADDRESS_ENABLE 0x80000000u
#define ADDRESS_WRITABLE 0x80fffffcu
#define MSIX_ENTRY_SIZE 16u

/* A bridge that Linux knows no quirk for: QEMU's generic one (pci-ids: 1b36:0008). */
static const struct pci_identity bridge_identity = {.vendor = 0x1b36,
	.device = 0x0008,
	.subsystem_vendor = 0x1af4,
	.subsystem = 0x1100,
	.class_code = 0x060000};

struct pci_bus {
	struct device device;
	struct platform *platform;
	struct bus_range address_port, data_port;
	uint32_t address; /* CONFIG_ADDRESS */
	uint8_t bridge[PCI_CONFIG_SIZE];
	struct pci_device *slots[PCI_SLOTS];
};

static const struct field bus_fields[] = {
	FIELD(struct pci_bus, address, FIELD_U32),
};
static const struct field_table bus_state = FIELD_TABLE("pci-bus", 1, bus_fields);

static const struct field entry_fields[] = {
	FIELD(struct msix_entry, address_low, FIELD_U32),
	FIELD(struct msix_entry, address_high, FIELD_U32),
	FIELD(struct msix_entry, data, FIELD_U32),
	FIELD(struct msix_entry, control, FIELD_U32),
};
static const struct field_table entry_state = FIELD_TABLE("msix-entry", 1, entry_fields);

static const struct field pci_fields[] = {
	FIELD(struct pci_device, config, FIELD_BYTES),
	FIELD_VARYING(struct pci_device, msix, saved_vector_count, PCI_MSIX_VECTORS_MAX, &entry_state),
	FIELD(struct pci_device, msix_pending, FIELD_U64),
};
const struct field_table pci_state = FIELD_TABLE("pci", 1, pci_fields);

static uint16_t get16(const uint8_t *config, unsigned at)
{
	return (uint16_t)(config[at] | config[at + 1] << 8);
}

static uint32_t get32(const uint8_t *config, unsigned at)
{
	return get16(config, at) | (uint32_t)get16(config, at + 2) << 16;
}

static void put(uint8_t *config, unsigned at, uint32_t value, unsigned size)
{
	for (unsigned i = 0; i < size; i++)
		config[at + i] = (uint8_t)(value >> 8 * i);
}

/* MSI-X */

bool pci_may_master(const struct pci_device *device)
{
	return get16(device->config, PCI_COMMAND) & PCI_COMMAND_MASTER;
}

bool pci_msix_enabled(const struct pci_device *device)
{
	return device->vector_count &&
	       get16(device->config, device->msix_capability + PCI_MSIX_FLAGS) & PCI_MSIX_FLAGS_ENABLE;
}

static bool deliverable(const struct pci_device *device, unsigned vector)
{
	return pci_msix_enabled(device) && pci_may_master(device) &&
	       !(get16(device->config, device->msix_capability + PCI_MSIX_FLAGS) & PCI_MSIX_FLAGS_MASKALL) &&
	       !(device->msix[vector].control & PCI_MSIX_ENTRY_CTRL_MASKBIT);
}

/* Routes the vector as its table entry says, and sends what was pending once it is unmasked. */
static int update_vector(struct pci_device *device, unsigned vector, struct error *error)
{
	struct message_vector *message = &device->messages[vector];
	const struct msix_entry *entry = &device->msix[vector];
	uint64_t address = entry->address_low | (uint64_t)entry->address_high << 32;
	bool enabled = deliverable(device, vector);
	int r;

	/* A masked vector's message is of no interest until it is unmasked: no call to KVM for each of its
	 * words. */
	if (enabled != message->enabled ||
		(enabled && (address != message->address || entry->data != message->data))) {
		r = message_vector_set(
			device->platform->interrupts, message, address, entry->data, enabled, error);
		if (r < 0)
			return r;
	}
	if (enabled && device->msix_pending >> vector & 1) {
		device->msix_pending &= ~(1ull << vector);
		message_vector_trigger(message);
	}
	return 0;
}

/* Where the guest asked for it: KVM refusing a route leaves that vector silent, and is told in the log. */
static void update_vector_for_guest(struct pci_device *device, unsigned vector)
{
	struct error error = {0};

	if (update_vector(device, vector, &error) < 0)
		log_warning("PCI device in slot %u, interrupt vector %u: %s", device->device.instance, vector,
			error.text);
}

void pci_trigger(struct pci_device *device, unsigned vector)
{
	if (vector >= device->vector_count || !pci_msix_enabled(device))
		return;
	if (deliverable(device, vector))
		message_vector_trigger(&device->messages[vector]);
	else
		device->msix_pending |= 1ull << vector;
}

static void table_read(const struct pci_device *device, uint64_t offset, void *data, unsigned size)
{
	uint64_t entry = offset / MSIX_ENTRY_SIZE;

	if (entry < device->vector_count && offset % MSIX_ENTRY_SIZE + size <= MSIX_ENTRY_SIZE)
		memcpy(data, (const uint8_t *)&device->msix[entry] + offset % MSIX_ENTRY_SIZE, size);
	else
		memset(data, 0, size);
}

static void table_write(struct pci_device *device, uint64_t offset, const void *data, unsigned size)
{
	uint64_t entry = offset / MSIX_ENTRY_SIZE;

	/* Other accesses than of whole words are undefined (PCI 3.0, 6.8.2): ignored. */
	if (entry >= device->vector_count || offset % 4 || size < 4 ||
		offset % MSIX_ENTRY_SIZE + size > MSIX_ENTRY_SIZE)
		return;
	memcpy((uint8_t *)&device->msix[entry] + offset % MSIX_ENTRY_SIZE, data, size);
	device->msix[entry].control &= PCI_MSIX_ENTRY_CTRL_MASKBIT;
	update_vector_for_guest(device, (unsigned)entry);
}

static void pending_read(const struct pci_device *device, uint64_t offset, void *data, unsigned size)
{
	memset(data, 0, size);
	if (offset + size <= sizeof(device->msix_pending))
		memcpy(data, (const uint8_t *)&device->msix_pending + offset, size);
}

/* BAR 0 */

static void bar_read(void *context, uint64_t offset, void *data, unsigned size)
{
	struct pci_device *device = context;

	if (offset >= PCI_BAR_MSIX_PENDING)
		pending_read(device, offset - PCI_BAR_MSIX_PENDING, data, size);
	else if (offset >= PCI_BAR_MSIX_TABLE)
		table_read(device, offset - PCI_BAR_MSIX_TABLE, data, size);
	else
		device->class->bar_read(device, offset, data, size);
}

static void bar_write(void *context, uint64_t offset, const void *data, unsigned size)
{
	struct pci_device *device = context;

	if (size != 1 && size != 2 && size != 4 && size != 8)
		return; /* KVM cuts an access where a page ends: of eight bytes five may be left */
	if (offset >= PCI_BAR_MSIX_PENDING)
		return; /* read-only (PCI 3.0, 6.8.2.10) */
	if (offset >= PCI_BAR_MSIX_TABLE)
		table_write(device, offset - PCI_BAR_MSIX_TABLE, data, size);
	else
		device->class->bar_write(device, offset, data, size);
}

static void move_bar(struct pci_device *device, uint64_t to)
{
	uint64_t from = device->bar_address;

	if (from == to)
		return;
	if (from != PCI_BAR_NOWHERE)
		bus_remove(device->platform->mmio, &device->bar);
	device->bar.base = to;
	/* Where the guest puts it over another device's it answers nowhere, as its decoder would be a mess.
	 */
	if (to != PCI_BAR_NOWHERE && bus_add(device->platform->mmio, &device->bar) < 0)
		to = PCI_BAR_NOWHERE;
	device->bar_address = to;
	if (device->class->bar_moved)
		device->class->bar_moved(device, from, to);
}

static void place_bar(struct pci_device *device)
{
	bool decoding = get16(device->config, PCI_COMMAND) & PCI_COMMAND_MEMORY;

	move_bar(device, decoding ? get32(device->config, PCI_BASE_ADDRESS_0) & PCI_BASE_ADDRESS_MEM_MASK
				  : PCI_BAR_NOWHERE);
}

/* Configuration space */

static bool touches(unsigned offset, unsigned size, unsigned at, unsigned width)
{
	return offset < at + width && at < offset + size;
}

static void config_write(struct pci_device *device, unsigned offset, const uint8_t *data, unsigned size)
{
	for (unsigned i = 0; i < size; i++) {
		uint8_t mask = device->writable[offset + i];

		device->config[offset + i] =
			(uint8_t)((device->config[offset + i] & ~mask) | (data[i] & mask));
	}
	if (touches(offset, size, PCI_COMMAND, 2) || touches(offset, size, PCI_BASE_ADDRESS_0, 4))
		place_bar(device);
	if (device->vector_count &&
		(touches(offset, size, PCI_COMMAND, 2) ||
			touches(offset, size, device->msix_capability + PCI_MSIX_FLAGS, 2)))
		for (unsigned i = 0; i < device->vector_count; i++)
			update_vector_for_guest(device, i);
	if (device->class->command_written && touches(offset, size, PCI_COMMAND, 2))
		device->class->command_written(device);
	if (device->class->config_written)
		device->class->config_written(device, offset, size);
}

/* The device and register that CONFIG_ADDRESS points at: NULL where nobody is there. Slot 0 is the bridge. */
static bool addressed(const struct pci_bus *bus, unsigned *slot, unsigned *reg)
{
	*slot = bus->address >> 11 & 0x1f;
	*reg = bus->address & 0xfc;
	return bus->address & ADDRESS_ENABLE && (bus->address & 0x00ff0700) == 0 &&
	       (*slot == 0 || bus->slots[*slot]);
}

static void data_port_read(void *context, uint64_t offset, void *data, unsigned size)
{
	struct pci_bus *bus = context;
	unsigned slot, at;

	memset(data, 0xff, size);
	if (!addressed(bus, &slot, &at))
		return;
	at += (unsigned)offset;
	if (slot == 0) {
		memcpy(data, bus->bridge + at, size);
		return;
	}
	if (bus->slots[slot]->class->config_read)
		bus->slots[slot]->class->config_read(bus->slots[slot], at, size);
	memcpy(data, bus->slots[slot]->config + at, size);
}

static void data_port_write(void *context, uint64_t offset, const void *data, unsigned size)
{
	struct pci_bus *bus = context;
	unsigned slot, at;

	if (addressed(bus, &slot, &at) && slot != 0)
		config_write(bus->slots[slot], at + (unsigned)offset, data, size);
}

static void address_port_read(void *context, uint64_t offset, void *data, unsigned size)
{
	const struct pci_bus *bus = context;

	memset(data, 0xff, size);
	if (offset == 0 && size == 4)
		memcpy(data, &bus->address, size);
}

static void address_port_write(void *context, uint64_t offset, const void *data, unsigned size)
{
	struct pci_bus *bus = context;

	if (offset != 0 || size != 4)
		return;
	memcpy(&bus->address, data, size);
	bus->address &= ADDRESS_WRITABLE;
}

static void put_identity(uint8_t *config, const struct pci_identity *identity)
{
	put(config, PCI_VENDOR_ID, identity->vendor, 2);
	put(config, PCI_DEVICE_ID, identity->device, 2);
	put(config, PCI_REVISION_ID, identity->revision, 1);
	put(config, PCI_CLASS_PROG, identity->class_code, 3);
	put(config, PCI_SUBSYSTEM_VENDOR_ID, identity->subsystem_vendor, 2);
	put(config, PCI_SUBSYSTEM_ID, identity->subsystem, 2);
}

/* The bus */

static int bus_after_load(struct device *device, struct error *error)
{
	struct pci_bus *bus = CONTAINER_OF(device, struct pci_bus, device);

	(void)error;
	bus->address &= ADDRESS_WRITABLE;
	return 0;
}

static void bus_free(struct device *device)
{
	struct pci_bus *bus = CONTAINER_OF(device, struct pci_bus, device);

	bus_remove(bus->platform->ports, &bus->address_port);
	bus_remove(bus->platform->ports, &bus->data_port);
	free(bus);
}

static const struct device_class bus_class = {
	.state = &bus_state, .after_load = bus_after_load, .free = bus_free};

struct pci_bus *pci_bus_new(struct platform *platform, struct error *error)
{
	_cleanup_free_ struct pci_bus *bus = calloc(1, sizeof(*bus));

	if (!bus) {
		error_set(error, ENOMEM, "Out of memory while making the PCI bus.");
		return NULL;
	}
	bus->device.class = &bus_class;
	bus->platform = platform;
	put_identity(bus->bridge, &bridge_identity);
	bus->address_port = (struct bus_range){.name = "PCI address",
		.base = ADDRESS_PORT,
		.size = 4,
		.read = address_port_read,
		.write = address_port_write,
		.context = bus};
	bus->data_port = (struct bus_range){.name = "PCI data",
		.base = DATA_PORT,
		.size = 4,
		.read = data_port_read,
		.write = data_port_write,
		.context = bus};
	if (bus_add(platform->ports, &bus->address_port) < 0) {
		error_set(error, EEXIST, "I/O port 0x%x of the PCI bus is taken already.", ADDRESS_PORT);
		return NULL;
	}
	if (bus_add(platform->ports, &bus->data_port) < 0) {
		bus_remove(platform->ports, &bus->address_port);
		error_set(error, EEXIST, "I/O port 0x%x of the PCI bus is taken already.", DATA_PORT);
		return NULL;
	}
	platform->pci = bus;
	platform_add(platform, &bus->device);
	return take_pointer(bus);
}

/* Devices */

unsigned pci_capability(
	struct pci_device *device, uint8_t id, const void *body, const void *writable, unsigned size)
{
	unsigned at = device->capabilities_end;

	put(device->config, device->last_capability ? device->last_capability + 1 : PCI_CAPABILITY_LIST, at,
		1);
	put(device->config, PCI_STATUS, get16(device->config, PCI_STATUS) | PCI_STATUS_CAP_LIST, 2);
	device->config[at] = id;
	memcpy(device->config + at + 2, body, size);
	if (writable)
		memcpy(device->writable + at + 2, writable, size);
	device->last_capability = at;
	device->capabilities_end = at + ALIGN_UP(2 + size, 4);
	memcpy(device->fixed, device->config, sizeof(device->fixed));
	return at;
}

static int add_msix(struct pci_device *device, unsigned vectors, struct error *error)
{
	struct {
		uint16_t control;
		uint32_t table, pending;
	} __attribute__((packed)) body = {(uint16_t)(vectors - 1), PCI_BAR_MSIX_TABLE, PCI_BAR_MSIX_PENDING},
				  writable = {PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL, 0, 0};

	device->msix_capability = pci_capability(device, PCI_CAP_ID_MSIX, &body, &writable, sizeof(body));
	for (unsigned i = 0; i < vectors; i++) {
		int r = message_vector_open(device->platform->interrupts, &device->messages[i], error);

		if (r < 0)
			return r;
		device->msix[i].control = PCI_MSIX_ENTRY_CTRL_MASKBIT;
		device->vector_count = device->saved_vector_count = i + 1;
	}
	return 0;
}

int pci_add(struct pci_device *device, struct platform *platform, unsigned slot,
	const struct pci_identity *identity, unsigned vectors, struct error *error)
{
	struct pci_bus *bus = platform->pci;
	int r;

	if (slot == 0 || slot >= PCI_SLOTS || vectors == 0 || vectors > PCI_MSIX_VECTORS_MAX)
		return error_set(error, EINVAL,
			"PCI slot %u with %u interrupts cannot be: slots go from 1 to %u.", slot, vectors,
			PCI_SLOTS - 1);
	if (bus->slots[slot])
		return error_set(error, EBUSY, "PCI slot %u is taken already.", slot);
	device->device.instance = slot;
	device->platform = platform;
	device->bar = (struct bus_range){.name = "PCI BAR",
		.size = PCI_BAR_SIZE,
		.read = bar_read,
		.write = bar_write,
		.context = device};
	device->bar_address = PCI_BAR_NOWHERE;
	device->capabilities_end = 0x40; /* the header's end */
	put_identity(device->config, identity);
	put(device->config, PCI_BASE_ADDRESS_0, (uint32_t)(PCI_BAR_BASE + slot * 2ull * PCI_BAR_SIZE), 4);
	put(device->writable, PCI_BASE_ADDRESS_0, ~(PCI_BAR_SIZE - 1), 4);
	put(device->writable, PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER | PCI_COMMAND_INTX_DISABLE,
		2);
	put(device->writable, PCI_CACHE_LINE_SIZE, 0xff, 1);
	put(device->writable, PCI_LATENCY_TIMER, 0xff, 1);
	put(device->writable, PCI_INTERRUPT_LINE, 0xff, 1);
	for (unsigned i = 0; i < PCI_MSIX_VECTORS_MAX; i++)
		device->messages[i].eventfd = -1;
	r = add_msix(device, vectors, error);
	if (r < 0) {
		pci_remove(device);
		return r;
	}
	bus->slots[slot] = device;
	return 0;
}

void pci_remove(struct pci_device *device)
{
	struct pci_bus *bus = device->platform->pci;

	move_bar(device, PCI_BAR_NOWHERE);
	for (unsigned i = 0; i < device->vector_count; i++)
		message_vector_close(device->platform->interrupts, &device->messages[i]);
	device->vector_count = 0;
	if (bus->slots[device->device.instance] == device)
		bus->slots[device->device.instance] = NULL;
}

int pci_after_load(struct pci_device *device, struct error *error)
{
	if (device->saved_vector_count != device->vector_count)
		return error_set(error, EINVAL,
			"The state of the PCI device in slot %u has %u interrupt vectors, this Ferry's has "
			"%u.",
			device->device.instance, device->saved_vector_count, device->vector_count);
	for (unsigned i = 0; i < PCI_CONFIG_SIZE; i++)
		device->config[i] = (uint8_t)((device->config[i] & device->writable[i]) |
					      (device->fixed[i] & ~device->writable[i]));
	device->msix_pending &= (1ull << device->vector_count) - 1;
	place_bar(device);
	for (unsigned i = 0; i < device->vector_count; i++) {
		int r;

		device->msix[i].control &= PCI_MSIX_ENTRY_CTRL_MASKBIT;
		r = update_vector(device, i, error);
		if (r < 0)
			return r;
	}
	return 0;
}
