/*
 * virtio block device (virtio 1.2, 5.2) on a raw image: a regular file or a
 * block device. Requests go through io_uring straight between image and guest memory;
 * only where O_DIRECT cannot take the guest's buffers they pass through one of ours.
 *
 * System calls: io_uring_enter, munmap of the ring, fstat, statx, ioctl(BLKGETSIZE64, BLKSSZGET),
 * fcntl(F_GETFL, F_SETFL), fadvise64, timerfd_create, timerfd_settime, read, close.
 */
#pragma once

#include "vmm/device.h"

struct virtio_blk_options {
	bool read_only;
	bool no_discard;    /* the driver is offered neither discard nor write zeroes */
	bool full_is_error; /* storage that is full fails the guest's write, and does not hold the guest */
	const char *serial; /* at most 20 bytes of it show in the guest */
};

/*
 * Makes the device in a PCI slot and adds it to the platform. image_fd (-1: a drive that is empty, which has
 * to be read-only) is taken over in case of success; its size now is the disk's for good, in whole sectors of
 * 512 bytes. It takes one of platform->disk_rings.
 */
struct device *virtio_blk_new(struct platform *platform, unsigned slot, int image_fd,
	const struct virtio_blk_options *options, struct error *error);
