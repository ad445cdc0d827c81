/*
 * virtio console (virtio 1.2, 5.3) with one port, the guest's hvc0: output goes to
 * the console hub, input comes from there.
 */
#pragma once

#include "vmm/device.h"

struct console_hub;

/* Makes the device in a PCI slot and adds it to the platform. The hub must outlive it. */
struct device *virtio_console_new(
	struct platform *platform, unsigned slot, struct console_hub *hub, struct error *error);
