/*
 * The ACPI tables that a guest finds: RSDP, XSDT, FADT, FACS, MADT (made for the
 * number of vCPUs) and the DSDT (compiled from dsdt.asl). ACPI specification 6.4; sections at each table.
 */
#pragma once

#include "base/error.h"
#include "vmm/memory.h"

/* Writes them to LAYOUT_ACPI. */
int acpi_write(struct memory *memory, uint32_t vcpus, struct error *error);
