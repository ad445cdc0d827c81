/*
 * What all virtio devices share (virtio 1.2, 2.1 to 2.6): status, features,
 * configuration, queues and their notifications, reset, pause and restore. The
 * transport is PCI (dev/virtio_pci.c), without the legacy interface.
 *
 * A device embeds `struct virtio_device` as its first member, calls virtio_init and adds itself with
 * platform_add. It moves no data unless virtio_running() says so.
 */
#pragma once

#include "vmm/dev/virtqueue.h"
#include "vmm/pci.h"

#include <linux/virtio_config.h>
#include <pthread.h>

#define VIRTIO_QUEUES_MAX 4u
#define VIRTIO_CONFIG_MAX 64u

/* Where the parts are in BAR 0 (virtio 1.2, 4.1.4); the notification address of queue n is + n × 4. */
#define VIRTIO_BAR_COMMON 0x0000u
#define VIRTIO_BAR_ISR 0x1000u
#define VIRTIO_BAR_CONFIG 0x2000u
#define VIRTIO_BAR_NOTIFY 0x3000u
#define VIRTIO_BAR_NOTIFY_STEP 4u

struct virtio_class {
	const struct device_class *device;
	const char *name;    /* for the log: "virtio-blk" */
	uint16_t type;       /* virtio device ID (section 5) */
	uint32_t class_code; /* PCI */
	unsigned queue_count;
	uint16_t queue_size; /* the most it offers, for each queue: a power of two */
	/* The driver says that queue `queue` has something new, or the device runs (again). On the main
	 * thread. */
	void (*notified)(struct virtio_device *device, unsigned queue);
	void (*ready)(struct virtio_device
			*device); /* may be NULL: the driver is set up (DRIVER_OK), or restored so */
	/* May be NULL: forget what the driver asked for. Comes when the device is not busy. */
	void (*reset)(struct virtio_device *device);
};

struct virtio_device {
	struct pci_device pci;
	const struct virtio_class *class;
	uint64_t offered; /* features */

	/* The saved state. */
	uint64_t accepted;
	uint32_t offered_select, accepted_select;
	uint16_t config_vector, queue_select;
	uint8_t status, generation, isr;
	uint32_t queue_count; /* as the state has it */
	struct virtqueue queues[VIRTIO_QUEUES_MAX];

	uint8_t config[VIRTIO_CONFIG_MAX]; /* device configuration, little-endian as all hosts of ours are */
	unsigned config_size;
	unsigned pci_access;    /* place of the capability for access through configuration space (4.1.4.9) */
	unsigned complaints;    /* logged about the driver */
	bool resetting;         /* the driver wrote 0 to the status; done as soon as the device is not busy */
	bool restored;          /* state was loaded and the device has not run since */
	pthread_cond_t settled; /* the device may have become not busy */
};

/* To be nested in the state table of every virtio device (it contains pci_state's); virtio_after_load belongs
 * to it. */
extern const struct field_table virtio_state;

/*
 * Sets up the embedded device: PCI identity, queues, features (those that every device has are added). On
 * failure everything is undone; in case of success virtio_end undoes it, to be called from the class's free.
 */
int virtio_init(struct virtio_device *device, const struct virtio_class *class, struct platform *platform,
	unsigned slot, uint64_t features, const void *config, size_t config_size, struct error *error);
void virtio_end(struct virtio_device *device);

static inline struct virtio_device *virtio_of(struct device *device)
{
	return (struct virtio_device *)(void *)device; /* the first member of the first member */
}

/* Whether the device may take chains: driver ready, bus master, not paused, not broken, not being reset. */
bool virtio_running(const struct virtio_device *device);
static inline bool virtio_has(const struct virtio_device *device, unsigned feature)
{
	return device->accepted >> feature & 1;
}

/* Ready-made members of device_class. resume has every queue looked at. */
void virtio_resume(struct device *device);
int virtio_after_load(struct device *device, struct error *error);

/* The device has no more work under way: ends a reset or a pause that waits for that. */
void virtio_settled(struct virtio_device *device);

/* The device's configuration has changed: tells the driver. */
void virtio_config_changed(struct virtio_device *device);
/* Interrupts the driver for the queue. */
void virtio_interrupt(struct virtio_device *device, const struct virtqueue *queue);
/* The driver broke the rules ("virtio-blk in slot 4: queue 0 <why>"): stops the device until the driver
 * resets it. */
void virtio_broken(struct virtio_device *device, const struct virtqueue *queue, const char *why);

/* For the transport: the driver writes the status (0 resets), has written the PCI command register (lets go
 * of the machine lock), enables the selected queue. */
void virtio_set_status(struct virtio_device *device, uint8_t status);
void virtio_command_written(struct virtio_device *device);
void virtio_enable_queue(struct virtio_device *device, struct virtqueue *queue);

/* The transport's operations and capabilities (virtio_pci.c). */
extern const struct pci_class virtio_pci_class;
void virtio_pci_capabilities(struct virtio_device *device);
