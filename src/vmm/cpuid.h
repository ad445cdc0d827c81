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

/* Whether a vCPU was given this feature of KVM's (KVM_FEATURE_…). */
bool cpuid_has_kvm_feature(const struct kvm_cpuid2 *cpuid, unsigned feature);

/*
 * A processor as a guest sees it, or as this host could show it: with all that KVM supports, be it shown to
 * new guests or not (older Ferrys showed more).
 */
struct processor_view {
	const struct kvm_cpuid_entry2 *entries;
	uint32_t count;
	uint64_t capabilities; /* IA32_ARCH_CAPABILITIES */
	bool is_host;
};
struct processor_view cpuid_host(const struct kvm *kvm);

/* 0 where this host can give the guest what it saw, else -EOPNOTSUPP with a sentence that names what is
 * missing. */
int cpuid_check(const struct kvm *kvm, const struct processor_view *seen, struct error *error);

/*
 * The names of what a guest has, or a host could give, as in cpuid_check's sentence: new arrays. A host can
 * run whoever has no more than it. `needs` are those that older Ferrys do not tell: further features, the
 * vendor, where XSAVE puts what, the width of addresses, faults that the processor does not have.
 */
json_t *cpuid_features(const struct processor_view *view);
json_t *cpuid_needs(const struct processor_view *view);
