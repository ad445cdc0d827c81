/*
 * The kernel's side of a machine: the VM descriptor, what this host's KVM can
 * do, and guest memory in its slots with the dirty log.
 *
 * Interface: Linux Documentation/virt/kvm/api.rst; "KVM_X" in comments names its sections.
 */
#pragma once

#include "base/error.h"
#include "vmm/memory.h"

#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>

#define VCPUS_MAX 128u /* APIC ids have 8 bits, of which IOAPIC and broadcast need some */
#define CPUID_ENTRIES_MAX 192u
#define MSRS_MAX 320u

struct kvm {
	int system, vm;     /* owned; -1 while not open */
	size_t run_size;    /* of a vCPU's struct kvm_run mapping */
	uint32_t clear_log; /* flags of KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 in use; 0: KVM_GET_DIRTY_LOG clears
			     */
	bool triple_fault_event; /* KVM_CAP_X86_TRIPLE_FAULT_EVENT is enabled */
	bool xcrs;               /* KVM_CAP_XCRS: the processor has XSAVE */
	bool stats;              /* KVM_CAP_BINARY_STATS_FD */
	bool tsc_scaling; /* KVM_CAP_TSC_CONTROL: a guest's time-stamp counter can run at any frequency */
	uint64_t tsc_khz; /* this host's; 0: KVM does not tell */
	uint32_t cpuid_count;
	struct kvm_cpuid_entry2 cpuid[CPUID_ENTRIES_MAX]; /* KVM_GET_SUPPORTED_CPUID */
	uint64_t capabilities;                            /* IA32_ARCH_CAPABILITIES that a guest gets */
	uint32_t msr_count;
	uint32_t msrs[MSRS_MAX]; /* what belongs to a vCPU's state, see msr.h */
};

/* Makes a VM with irqchip and PIT on the KVM that `system` is open on (taken over in case of success). */
int kvm_open(struct kvm *kvm, int system, struct error *error);
void kvm_close(struct kvm *kvm);

/* Shows the guest its memory. `log`: the dirty log is on, all pages clean. */
int kvm_set_memory(struct kvm *kvm, const struct memory *memory, bool log, struct error *error);

/*
 * Takes the pages that vCPUs wrote since the log was taken last into `bitmap` (a bit per page of the memfd,
 * overwritten) and marks them clean.
 */
int kvm_take_dirty(struct kvm *kvm, const struct memory *memory, uint64_t *bitmap, struct error *error);

/* struct kvm_msrs with room for two (KVM_GET_MSRS, KVM_SET_MSRS). */
struct few_msrs {
	uint32_t count, unused;
	struct kvm_msr_entry entries[2];
};
