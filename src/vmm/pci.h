/*
 * The PCI bus: configuration mechanism #1 (ports 0xcf8/0xcfc; PCI Local Bus
 * Specification 3.0, 3.2.2.3.2), a host bridge in slot 0, and for each device
 * one 32-bit memory BAR and MSI-X (same, 6.8.2).
 *
 * A PCI device embeds `struct pci_device`, fills its `device` and `class` and
 * calls pci_add, then pci_capability for capabilities of its own. The address
 * of BAR 0 follows from the slot, so a restored machine has it where it was;
 * the guest may move it. MSI-X table and pending bits live in the BAR, at
 * PCI_BAR_MSIX_TABLE and PCI_BAR_MSIX_PENDING; the rest of it is the device's.
 */
#pragma once

#include "vmm/bus.h"
#include "vmm/device.h"
#include "vmm/interrupts.h"

#define PCI_SLOTS 32
#define PCI_BAR_SIZE 0x8000u
#define PCI_BAR_BASE 0xe0000000ull /* slot n's BAR 0: base + n × PCI_BAR_SIZE × 2 */
#define PCI_BAR_NOWHERE UINT64_MAX /* address of a BAR that the guest has switched off */
#define PCI_BAR_MSIX_TABLE 0x6000u
#define PCI_BAR_MSIX_PENDING 0x7000u
#define PCI_MSIX_VECTORS_MAX 36u
#define PCI_CONFIG_SIZE 256u

struct pci_bus;
struct pci_device;

struct pci_identity {
	uint16_t vendor, device, subsystem_vendor, subsystem;
	uint8_t revision;
	uint32_t class_code; /* 24 bits: base class, subclass, interface */
};

struct pci_class {
	/* Accesses to BAR 0 below PCI_BAR_MSIX_TABLE. */
	void (*bar_read)(struct pci_device *device, uint64_t offset, void *data, unsigned size);
	void (*bar_write)(struct pci_device *device, uint64_t offset, const void *data, unsigned size);
	/* May be NULL: BAR 0 was at `from` and is now at `to` (each may be PCI_BAR_NOWHERE). */
	void (*bar_moved)(struct pci_device *device, uint64_t from, uint64_t to);
	/* May be NULL: before configuration bytes are read, and after they have been written. */
	void (*config_read)(struct pci_device *device, unsigned offset, unsigned size);
	void (*config_written)(struct pci_device *device, unsigned offset, unsigned size);
	/* May be NULL: the guest has written the command register, on one of its processors' threads. */
	void (*command_written)(struct pci_device *device);
};

/* One entry of the MSI-X table as the guest sees it (PCI 3.0, 6.8.2.6 to 6.8.2.9). */
struct msix_entry {
	uint32_t address_low, address_high, data, control;
};

struct pci_device {
	struct device device; /* instance is the slot */
	const struct pci_class *class;
	struct platform *platform;
	uint8_t config[PCI_CONFIG_SIZE];   /* as the guest reads it */
	uint8_t writable[PCI_CONFIG_SIZE]; /* bits that the guest may write */
	uint8_t fixed[PCI_CONFIG_SIZE];    /* the rest, to check restored state against */
	unsigned capabilities_end;         /* free space for the next capability */
	unsigned last_capability;
	unsigned msix_capability;
	struct bus_range bar;
	uint64_t bar_address; /* where bar answers, or PCI_BAR_NOWHERE */
	uint32_t vector_count;
	uint32_t saved_vector_count; /* as the state has it */
	struct msix_entry msix[PCI_MSIX_VECTORS_MAX];
	uint64_t msix_pending; /* a bit per vector */
	struct message_vector messages[PCI_MSIX_VECTORS_MAX];
};

/* To be nested in the state table of every PCI device; pci_after_load belongs to it. */
extern const struct field_table pci_state;

/*
 * Makes the bus and its host bridge, answers at the platform's ports, sets
 * platform->pci. The platform's device list owns it. NULL with a sentence on failure.
 */
struct pci_bus *pci_bus_new(struct platform *platform, struct error *error);

/*
 * Puts the device into a slot (1 to 31) of platform->pci and gives it an identity, BAR 0 and
 * `vectors` MSI-X vectors. -EBUSY where the slot is taken. Undone by pci_remove.
 */
int pci_add(struct pci_device *device, struct platform *platform, unsigned slot,
	const struct pci_identity *identity, unsigned vectors, struct error *error);
void pci_remove(struct pci_device *device);

/*
 * Appends a capability (PCI 3.0, 6.7): `body` is what follows id and next pointer; `writable` (NULL: nothing)
 * has the bits of it that the guest may write. Returns its offset in configuration space.
 */
unsigned pci_capability(
	struct pci_device *device, uint8_t id, const void *body, const void *writable, unsigned size);

/*
 * Whether the guest lets the device write its memory (PCI 3.0, 6.2.2, Bus Master): data and interrupt
 * messages. It takes that away before another kernel takes the memory over (kexec).
 */
bool pci_may_master(const struct pci_device *device);

/* Sends the vector's message, or marks it pending while it is masked or the device is no master. Vectors that
 * do not exist: nothing. */
void pci_trigger(struct pci_device *device, unsigned vector);
bool pci_msix_enabled(const struct pci_device *device);

/* Call it in the after_load of the device: checks the restored state, maps BAR 0, routes the vectors. */
int pci_after_load(struct pci_device *device, struct error *error);
