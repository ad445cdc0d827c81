/*
 * virtio network device (virtio 1.2, 5.1) on a tap: checksum and segmentation
 * offload both ways, mergeable receive buffers, guest announce; frames go straight between
 * tap and guest memory.
 *
 * System calls: readv, writev, write, read, ioctl(TUNSETVNETHDRSZ, TUNSETOFFLOAD, TUNGETIFF),
 * fcntl(F_GETFL, F_SETFL), timerfd_create, timerfd_settime, close.
 */
#pragma once

#include "vmm/device.h"

/*
 * Makes the device in a PCI slot and adds it to the platform. tap_fd (attached, IFF_TAP, IFF_NO_PI,
 * IFF_VNET_HDR) is taken over in case of success.
 */
struct device *virtio_net_new(
	struct platform *platform, unsigned slot, int tap_fd, const uint8_t mac[6], struct error *error);
