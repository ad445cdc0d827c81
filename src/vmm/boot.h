/*
 * Loading a kernel: puts kernel, ramdisk, command line and what the kernel wants
 * to know into guest memory, and says where the first processor starts.
 *
 * Two kinds of kernel: bzImage, entered by the 64-bit boot protocol (Linux
 * Documentation/arch/x86/boot.rst), and ELF with a PVH entry (Xen docs/misc/pvh.pandoc, note
 * XEN_ELFNOTE_PHYS32_ENTRY). Both files are hostile input.
 */
#pragma once

#include "base/error.h"
#include "vmm/memory.h"

struct kvm_regs;
struct kvm_sregs;

enum boot_mode { BOOT_64BIT, BOOT_PVH };

struct boot_entry {
	enum boot_mode mode;
	uint64_t rip;
	uint64_t parameters; /* gpa of struct boot_params, or of struct hvm_start_info */
};

/*
 * Loads the kernel in `kernel`, the ramdisk in `ramdisk` (-1: none) and the command line. The descriptors
 * stay the caller's. The sentences name what is wrong with which file; guest memory is then half written.
 */
int boot_load(struct memory *memory, int kernel, int ramdisk, const char *command_line,
	struct boot_entry *entry, struct error *error);

/* Turns the first processor's registers as KVM made them into those that the entry wants. */
void boot_registers(const struct boot_entry *entry, struct kvm_regs *regs, struct kvm_sregs *sregs);
