/*
 * COM1: a 16550A UART (National Semiconductor PC16550D data sheet) at ports
 * 0x3f8 to 0x3ff, GSI 4. What the guest sends has left at once; what is typed
 * comes through a FIFO of 16 bytes.
 */
#pragma once

#include "vmm/console_hub.h"
#include "vmm/device.h"

struct device *serial_new(struct platform *platform, struct console_hub *hub, struct error *error);
