/*
 * CPUID: the processor that a guest sees. Made once, from what this host's KVM
 * supports; from then on it is part of the guest's state, and a host that lacks one
 * of its features refuses the guest by the feature's name.
 *
 * Leaves and bits: Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E;
 * hypervisor leaves: Linux Documentation/virt/kvm/x86/cpuid.rst.
 */
#pragma once

#include "vmm/kvm.h"

#include <jansson.h>

/* What a vCPU with this APIC id of `vcpus` sees; `to` has room for CPUID_ENTRIES_MAX. Returns the count. */
uint32_t cpuid_make(const struct kvm *kvm, uint32_t apic_id, uint32_t vcpus, struct kvm_cpuid_entry2 *to);

/* 0 where this host can give the guest what it saw, else -EOPNOTSUPP with a sentence that names what is
 * missing. */
int cpuid_check(
	const struct kvm *kvm, const struct kvm_cpuid_entry2 *seen, uint32_t count, struct error *error);

/* The names of the features in these entries, as in cpuid_check's sentence: a new array. A host can run
 * whoever sees no more than it has. */
json_t *cpuid_features(const struct kvm_cpuid_entry2 *entries, uint32_t count);
