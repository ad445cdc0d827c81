/*
 * virtio entropy device (virtio 1.2, 5.4): the guest's buffers are filled from the
 * host kernel's generator.
 *
 * System calls: getrandom.
 */
#pragma once

#include "vmm/device.h"

/* Makes the device in a PCI slot and adds it to the platform. */
struct device *virtio_rng_new(struct platform *platform, unsigned slot, struct error *error);
