/*
 * How the guest turns itself off or resets itself, and how it is asked to: ACPI
 * fixed hardware (ACPI 6.4, 4.8.3: PM1a event block at port 0x600, control block
 * at 0x604, SCI on GSI 9), the reset register 0xcf9, and the reset command of the
 * keyboard controller at 0x64, of which nothing else exists.
 */
#pragma once

#include "vmm/device.h"

#define POWER_EVENT_PORT 0x600u   /* status, then enable, 2 bytes each */
#define POWER_CONTROL_PORT 0x604u /* 2 bytes */
#define POWER_SCI_GSI 9u
#define POWER_RESET_PORT 0xcf9u
#define POWER_RESET_VALUE 0x06u
#define POWER_SLEEP_TYPE_OFF 5u /* SLP_TYP of S5, as the DSDT's \_S5 says */

struct device *power_new(struct platform *platform, struct error *error);

/* Presses the power button: the guest's operating system is asked to shut down. */
void power_press_button(struct device *power);
