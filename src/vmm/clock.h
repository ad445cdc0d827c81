/*
 * The guest's time: taken at one instant, and set.
 *
 * A guest counts time with kvmclock and the processors' time-stamp counters
 * (TSC). What is taken, and saved, is one instant: kvmclock, each TSC and the host's real time, all
 * at the same moment. Set again, kvmclock and every TSC are as far on as is asked for, never back; the
 * differences between the TSCs stay exactly as they were. How far, and in which steps: catch_up.h.
 *
 * The method is that of Linux Documentation/virt/kvm/devices/vcpu.rst, 4.1 (KVM_VCPU_TSC_OFFSET).
 */
#pragma once

#include "vmm/kvm.h"
#include "state/fields.h"

struct clock_instant {
	uint64_t kvmclock; /* ns */
	uint64_t realtime; /* CLOCK_REALTIME in ns */
};

/* Of one vCPU at that instant. */
struct vcpu_time {
	uint64_t tsc, tsc_khz;
	uint64_t tsc_deadline; /* of its timer; 0: not set */
};

struct guest_time {
	struct clock_instant instant;
	struct vcpu_time vcpus[VCPUS_MAX];
};

extern const struct field_table clock_table;

/* Makes the TSCs of vCPUs that have not run yet equal. `count` descriptors. */
void clock_synchronize(const int *vcpus, uint32_t count);

/* The frequency in kHz at which a vCPU's TSC runs now. */
uint64_t clock_tsc_khz(int vcpu);

/* Asks KVM to run a vCPU's TSC at the guest's frequency. Where the host cannot, it stays as it is and a
 * warning is logged. */
void clock_set_tsc_khz(int vcpu, uint64_t khz);

/* CLOCK_REALTIME in ns. */
uint64_t clock_realtime(void);

/* Takes the guest's time as it is now. The vCPUs do not run. */
int clock_take(const struct kvm *kvm, const int *vcpus, uint32_t count, struct guest_time *time,
	struct error *error);

/* From now on the guest's time goes on from `time` and `forward` ns; the TSC deadline timers too. The vCPUs
 * do not run. */
int clock_set(const struct kvm *kvm, const int *vcpus, uint32_t count, const struct guest_time *time,
	uint64_t forward, struct error *error);

/* Tells the guest that it was stopped, so that its watchdogs do not take the gap for a hang. */
void clock_forgive(const int *vcpus, uint32_t count);
