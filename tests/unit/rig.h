/*
 * A machine without KVM for tests of devices: memory, event loop and buses are
 * ferry-guest's own; interrupts are counted; and the test plays the guest with a small virtio
 * driver that goes through configuration space, BAR and rings like a real one.
 */
#pragma once

#include "vmm/dev/virtio.h"
#include "vmm/dev/disk_ring.h"
#include "vmm/interrupts.h"
#include "vmm/pci.h"

#include <linux/virtio_pci.h>

#define RIG_MEMORY (16u << 20)

struct rig {
	struct memory memory;
	struct loop *loop;
	struct bus ports, mmio;
	struct platform platform;
	struct disk_rings disk_rings;
	struct interrupts *interrupts;
	uint64_t free_memory; /* where rig_allocate goes on */
	unsigned settled;     /* how often a device said so */
};

struct rig *rig_new(void);
void rig_free(struct rig *rig);

/* Zeroed guest memory. */
uint64_t rig_allocate(struct rig *rig, uint64_t size);
void *rig_at(struct rig *rig, uint64_t gpa);
bool rig_is_dirty(struct rig *rig, uint64_t gpa);
/* Turns the dirty log of devices on, all clean. */
void rig_track(struct rig *rig);
/* Handles events until condition(context), or fails the test after seconds. */
void rig_run_until(struct rig *rig, bool (*condition)(void *context), void *context);
/* Handles the events that are there, and those that come within some milliseconds. */
void rig_run(struct rig *rig, unsigned milliseconds);

/* Handles the events that are there. */
void rig_poll(struct rig *rig);

/* Like the core on pause, save-state, load-state, resume. rig_save waits for busy devices. */
void rig_pause(struct rig *rig);
void rig_resume(struct rig *rig);
struct buffer rig_save(struct rig *rig);
int rig_load(struct rig *rig, const struct buffer *state, struct error *error);

uint32_t config_read(struct rig *rig, unsigned slot, unsigned at, unsigned size);
void config_write(struct rig *rig, unsigned slot, unsigned at, uint32_t value, unsigned size);
uint64_t mmio_read(struct rig *rig, uint64_t address, unsigned size);
void mmio_write(struct rig *rig, uint64_t address, uint64_t value, unsigned size);

/* How often the message with this data was delivered. */
unsigned rig_messages(struct rig *rig, uint32_t data);

struct piece {
	uint64_t gpa;
	uint32_t size;
	bool write;
};

struct ring {
	uint16_t size;
	uint64_t table_gpa, available_gpa, used_gpa;
	struct vring_desc *table;
	struct vring_avail *available;
	struct vring_used *used;
	uint16_t next_descriptor, seen;
};

struct driver {
	struct rig *rig;
	unsigned slot, queues;
	uint64_t bar, common, isr, config, notify;
	uint32_t notify_step;
	uint64_t features;
	struct ring rings[VIRTIO_QUEUES_MAX];
};

#define MESSAGE_CONFIG 0x40u           /* data of the interrupt message of configuration changes */
#define MESSAGE_QUEUE(n) (0x41u + (n)) /* and of queue n */

/* Finds the device's registers and sets MSI-X up. */
void driver_probe(struct driver *driver, struct rig *rig, unsigned slot);
/* Resets it, takes those of `features` that it offers, sets queues of `size` entries up, DRIVER_OK. */
void driver_start(struct driver *driver, uint64_t features, uint16_t size);
uint8_t driver_status(struct driver *driver);
uint64_t driver_offered(struct driver *driver);
#define common_offset(member) offsetof(struct virtio_pci_common_cfg, member)

/* Makes a chain available (not yet notified); its head. `indirect`: in a table of its own. */
uint16_t driver_add(
	struct driver *driver, unsigned queue, const struct piece *pieces, unsigned count, bool indirect);
/* Notifies unless the device asked not to; whether it did. */
bool driver_kick(struct driver *driver, unsigned queue);
/* Waits for the next used entry. */
struct vring_used_elem driver_wait(struct driver *driver, unsigned queue);
bool driver_has_used(struct driver *driver, unsigned queue);
/* Waits until the device says that it has to be reset. */
void driver_wait_broken(struct driver *driver);
