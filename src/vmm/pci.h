/*
 * The PCI bus: configuration mechanism #1 (ports 0xcf8/0xcfc; PCI Local Bus
 * Specification 3.0, 3.2.2.3.2), a host bridge in slot 0, and for each device
 * one memory BAR and MSI-X.
 *
 * A PCI device embeds `struct pci_device`, fills identity and BAR handlers and
 * calls pci_add. The address of BAR 0 follows from the slot, so a restored
 * machine has it where it was. MSI-X table and pending bits live in the BAR, at MSIX_TABLE_OFFSET.
 */
#pragma once

#include "vmm/bus.h"
#include "vmm/device.h"
#include "vmm/interrupts.h"

#define PCI_SLOTS 32
#define PCI_BAR_SIZE 0x8000u
#define PCI_BAR_BASE 0xe0000000ull /* slot n's BAR 0: base + n × PCI_BAR_SIZE × 2 */
#define PCI_MSIX_VECTORS_MAX 36u

struct pci_bus;

struct pci_bus *pci_bus_new(struct platform *platform, struct error *error);
/* The pci_device structure, MSI-X handling and pci_add/pci_trigger follow below (owner: devices). */
