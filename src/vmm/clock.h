/*
 * The guest's time across a save and a load.
 *
 * A guest counts time with kvmclock and the processors' time-stamp counters
 * (TSC). What is saved is one instant: kvmclock, each TSC and the host's real time, all
 * at the same moment. When the guest runs again, kvmclock and every TSC go forward by the real time that
 * has passed, never back; the differences between the TSCs stay exactly as they were.
 *
 * The method is that of Linux Documentation/virt/kvm/devices/vcpu.rst, 4.1 (KVM_VCPU_TSC_OFFSET).
 */
#pragma once

#include "vmm/kvm.h"
#include "vmm/vcpu_state.h"

struct clock_instant {
	uint64_t kvmclock; /* ns */
	uint64_t realtime; /* CLOCK_REALTIME in ns */
};

extern const struct field_table clock_table;

/* Makes the TSCs of vCPUs that have not run yet equal. `count` descriptors. */
void clock_synchronize(const int *vcpus, uint32_t count);

/* The frequency in kHz at which a vCPU's TSC runs now. */
uint64_t clock_tsc_khz(int vcpu);

/* Asks KVM to run a vCPU's TSC at the guest's frequency. Where the host cannot, it stays as it is and a
 * warning is logged. */
void clock_set_tsc_khz(int vcpu, uint64_t khz);

/* Takes the instant: clock, and `tsc` of every vCPU's state. */
int clock_take(const struct kvm *kvm, const int *vcpus, uint32_t count, struct clock_instant *clock,
	struct vcpu_state *const *states, struct error *error);

/*
 * Sets the clocks to the instant moved on by what passed since: now - realtime_offset - the instant's
 * realtime (offset: how far this host's real time is ahead of the other's, ns). Sets the TSC deadline timers
 * too.
 */
int clock_continue(const struct kvm *kvm, const int *vcpus, uint32_t count, const struct clock_instant *clock,
	const struct vcpu_state *const *states, int64_t realtime_offset, struct error *error);

/* Tells the guest that it was stopped, so that its watchdogs do not take the gap for a hang. */
void clock_forgive(const int *vcpus, uint32_t count);
