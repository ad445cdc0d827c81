/*
 * What every device of the machine offers, and the list of them.
 *
 * A device embeds `struct device` and describes itself by a class: its state
 * table (saved and restored by one generic routine), and what happens to it when
 * the machine pauses, runs on, is reset or has been restored.
 */
#pragma once

#include "base/error.h"
#include "state/fields.h"

#include <stdbool.h>

struct device;

struct device_class {
	const struct field_table *state;
	bool state_may_lack; /* checkpoints of before there was this device have none */
	void (*before_save)(struct device *device); /* may be NULL: bring members up to date */
	int (*after_load)(
		struct device *device, struct error *error); /* may be NULL: check, re-route, re-arm */
	void (*pause)(struct device *device); /* may be NULL: begin no new work on guest memory */
	bool (*busy)(struct device *device);  /* may be NULL: work begun before is still under way */
	/* may be NULL: nothing is under way any more; what the state does not hold goes back into memory */
	void (*quiet)(struct device *device);
	/*
	 * May be NULL: makes stable on the host what the guest has written. 0 where it is; -EINPROGRESS: not
	 * yet; else why it is not. With `begin` all that was written until now counts. May be asked in every
	 * state.
	 */
	int (*flush)(struct device *device, bool begin, struct error *error);
	void (*resume)(struct device *device);   /* may be NULL: take up work, look for what came meanwhile */
	void (*announce)(struct device *device); /* may be NULL: tell the network where we are */
	void (*free)(struct device *device);
};

struct device {
	const struct device_class *class;
	uint32_t instance;   /* number among devices of the class: PCI slot for PCI devices */
	struct device *next; /* the machine's */
};

/* Why a guest stopped for good. */
enum stop_reason { STOP_POWEROFF, STOP_REBOOT, STOP_CRASH, STOP_ERROR };

struct memory;
struct loop;
struct bus;
struct interrupts;
struct pci_bus;
struct disk_rings;

/*
 * What a device may use of the machine: handed to every device's constructor.
 * A device that becomes not busy while the machine waits for it calls `settled`; one
 * through which the guest turns itself off, resets itself or reports its crash calls
 * `stop` (detail: a sentence or NULL). All with the machine lock held.
 */
struct platform {
	struct memory *memory;
	struct loop *loop;
	struct bus *ports, *mmio;
	struct interrupts *interrupts;
	struct pci_bus *pci;
	struct disk_rings *disk_rings; /* made before there was a machine: disk_ring.h */
	struct device *devices;
	bool paused;
	void (*settled)(void *machine);
	void (*stop)(void *machine, enum stop_reason reason, const char *detail); /* the guest stops here */
	/* The guest cannot go on now, because of the host: it waits, and is let run again to see. May be
	 * NULL. */
	void (*hold)(void *machine, const char *why);
	void *machine;
};

/* Puts it in the platform's list, which owns it from now on. */
void platform_add(struct platform *platform, struct device *device);

/* Frees every device, the last added first. */
void platform_free_devices(struct platform *platform);
