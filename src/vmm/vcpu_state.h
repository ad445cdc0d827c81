/*
 * Everything that a vCPU is, as one struct with a field table: what KVM's
 * KVM_GET_… calls give, by name, and how it goes back.
 */
#pragma once

#include "state/fields.h"
#include "vmm/kvm.h"
#include "vmm/vcpu.h"

#define XSAVE_SIZE 4096u /* KVM_GET_XSAVE; more only with AMX, which is hidden */

struct vcpu_state {
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	struct kvm_debugregs debugregs;
	struct kvm_xcrs xcrs;
	uint32_t xsave[XSAVE_SIZE / sizeof(uint32_t)]; /* struct kvm_xsave */
	struct kvm_lapic_state lapic;
	struct kvm_mp_state mp_state;
	struct kvm_vcpu_events events;
	uint32_t msr_count;
	struct kvm_msr_entry msrs[MSRS_MAX];
	uint32_t cpuid_count;
	struct kvm_cpuid_entry2 cpuid[CPUID_ENTRIES_MAX];
	uint64_t tsc_khz;      /* frequency that the guest has seen */
	uint64_t tsc;          /* at the instant of the machine's clock record (clock.h) */
	uint64_t tsc_deadline; /* MSR_TSC_DEADLINE: 0 where no timer is set */
};

extern const struct field_table vcpu_state_table;

/* Reads all but tsc, tsc_khz and tsc_deadline (clock.h). The vCPU must not run, and has been given its CPUID.
 */
int vcpu_state_get(
	const struct kvm *kvm, const struct vcpu *vcpu, struct vcpu_state *state, struct error *error);

/* Writes all but tsc and tsc_deadline (clock.h), in the order KVM needs; CPUID first. The vCPU must never
 * have run. */
int vcpu_state_set(
	const struct kvm *kvm, struct vcpu *vcpu, const struct vcpu_state *state, struct error *error);

/* KVM_SET_CPUID2, and keeps what was given in vcpu->cpuid. */
int vcpu_set_cpuid(
	struct vcpu *vcpu, const struct kvm_cpuid_entry2 *entries, uint32_t count, struct error *error);
