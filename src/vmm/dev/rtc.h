/*
 * The real-time clock: a Motorola MC146818 at ports 0x70 and 0x71, with its
 * CMOS memory and alarm (GSI 8). It shows the host's UTC plus what the guest has
 * set it ahead or back. Nothing runs while the guest does not look or wait.
 */
#pragma once

#include "vmm/device.h"

#define RTC_CENTURY 0x32u /* index of the century, as the FADT says */

struct device *rtc_new(struct platform *platform, struct error *error);
