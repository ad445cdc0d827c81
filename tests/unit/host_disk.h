/*
 * A disk whose image is a file of this host, and a driver that asks it for things. What a test of the block
 * device's behaviour towards its host begins with.
 */
#pragma once

#include "rig.h"
#include "vmm/dev/blk.h"

#define SLOT 4
#define SECTORS 4096u
#define IMAGE_SIZE (SECTORS * 512u)
#define ALL UINT64_MAX

struct fixture {
	struct rig *rig;
	struct driver driver;
	struct device *disk;
	int image; /* the device's own descriptor */
	char path[64];
	uint64_t headers, statuses, data;
	unsigned holds;
	char why[160];
};

/* Makes the image, a rig and the disk in it. */
void set_up(struct fixture *f, const char *directory, bool full_is_error, bool no_discard);
void tear_down(struct fixture *f);

/* Only the disk, in this rig. */
void open_disk(struct fixture *f, struct rig *rig, const struct virtio_blk_options *options);

/* Request `number` of `size` bytes, which has its own header, status and (64 KiB of) data. */
void ask(struct fixture *f, unsigned number, uint32_t type, uint64_t sector, uint32_t size);
uint8_t *status_of(struct fixture *f, unsigned number);
/* Asks, and waits for the status. */
uint8_t answer(struct fixture *f, unsigned number, uint32_t type, uint64_t sector, uint32_t size);

/* The host's own flush, to its end. */
int flush(struct fixture *f, struct error *error);
