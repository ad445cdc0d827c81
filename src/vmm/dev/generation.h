/*
 * The VM generation ID: 128 bits by which a guest's kernel sees that it goes on from a state from which
 * it, or a clone of it, may have gone on before, so that it must not use its random numbers
 * again (Microsoft, "Virtual Machine Generation ID", 2012; Linux, drivers/virt/vmgenid.c).
 *
 * It lies in a page of the guest's memory that acpi/dsdt.asl tells of. Whoever makes the machine draws a new
 * one for each boot and each restore from a file, and none for a migration. The guest is told of a change by
 * an interrupt of the generic event device (ACPI 6.4, 5.6.9).
 */
#pragma once

#include "vmm/device.h"

#include <stdint.h>

#define GENERATION_ID_SIZE 16u
#define GENERATION_GSI 5u /* edge, as in acpi/dsdt.asl */

/*
 * `id`: what this machine's ID is to be, from the start or, where it is `incoming`, in place of the one that
 * comes with the state; NULL: zero, or that one.
 */
struct device *generation_new(
	struct platform *platform, const uint8_t id[GENERATION_ID_SIZE], bool incoming, struct error *error);
