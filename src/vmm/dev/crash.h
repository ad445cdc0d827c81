/*
 * How the guest's kernel reports its panic: pvpanic (QEMU docs/specs/pvpanic.rst)
 * at port 0x505, announced as QEMU0001 in the DSDT.
 */
#pragma once

#include "vmm/device.h"

struct device *crash_new(struct platform *platform, struct error *error);
