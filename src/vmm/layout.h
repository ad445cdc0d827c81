/*
 * Where things are in the guest's memory below 1 MiB when it starts, and in its
 * I/O space: what boot.c, acpi.c and dsdt.asl must agree upon.
 */
#pragma once

#define LAYOUT_GDT 0x1000ull
#define LAYOUT_START_INFO 0x6000ull  /* PVH: struct hvm_start_info and what it points to, one page */
#define LAYOUT_BOOT_PARAMS 0x7000ull /* bzImage: the zero page */
#define LAYOUT_STACK 0x8ff0ull       /* grows down from here */
#define LAYOUT_PAGE_TABLES 0x9000ull /* six pages: the first 4 GiB, one to one */
#define LAYOUT_COMMAND_LINE 0x20000ull
#define LAYOUT_COMMAND_LINE_MAX 0x1000u
#define LAYOUT_LOW_END 0x9fc00ull /* conventional memory ends */
#define LAYOUT_ACPI 0xe0000ull    /* RSDP and tables, found by scanning as well */
#define LAYOUT_ACPI_SIZE 0x1f000u
#define LAYOUT_GENERATION 0xff000ull /* the VM generation ID, in a page of its own */
#define LAYOUT_HIGH 0x100000ull      /* kernel and all else from here */

#define LAYOUT_IOAPIC 0xfec00000u
#define LAYOUT_LAPIC 0xfee00000u
