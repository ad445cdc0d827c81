/*
 * The virtual processors: a thread each, which runs the guest and brings what KVM
 * does not handle to the buses, under the machine lock.
 *
 * All functions are called with the machine lock held.
 */
#pragma once

#include "vmm/device.h"
#include "vmm/kvm.h"

#include <pthread.h>
#include <time.h>

#define VCPU_PERIOD_NS 10000000ll /* of vcpus_charge */

struct vcpus;

struct vcpu {
	struct vcpus *all;
	uint32_t id; /* also its APIC id */
	int fd;
	int stats;           /* KVM_GET_STATS_FD, -1: none */
	uint64_t stats_halt; /* where in it "blocking" is */
	struct kvm_run *run;
	struct kvm_cpuid2
		*cpuid; /* owned; as the guest was given it: not every KVM gives back what it was given */
	pthread_t thread;
	bool started;
	bool parked;     /* outside KVM_RUN, and stays there while all->wanted is false */
	bool due;        /* the time that it has run is to be set against its rest (vcpus_charge) */
	uint64_t stolen; /* ns that the guest has yet to be told of (steal.h) */
	int64_t charged, rest_until; /* ns of its thread's time that have been; monotonic ns */
	timer_t timer;               /* takes it out of the guest, where `timed` */
	bool timed;
	int64_t limited_until,
		limit_ns; /* monotonic ns: when it does; after so much. 0: not since the last rest */
};

struct vcpus {
	struct kvm *kvm;
	struct platform *platform;
	uint32_t count;
	struct vcpu vcpu[VCPUS_MAX];
	int fds[VCPUS_MAX]; /* borrowed from vcpu[]: for clock.h */
	bool wanted;        /* they shall run */
	bool ending;
	uint8_t slowed; /* percent of its time that each is to be kept out of the guest */
	uint32_t parked_count;
	pthread_cond_t changed;            /* wanted, ending or slowed changed */
	void (*all_parked)(void *context); /* on a vCPU's thread, when the last one has left the guest */
	void *context;
};

/* Makes `count` vCPUs and their threads, parked. On failure everything is undone. */
int vcpus_open(struct vcpus *vcpus, struct kvm *kvm, struct platform *platform, uint32_t count,
	void (*all_parked)(void *context), void *context, struct error *error);

/* Ends the threads; releases the machine lock while it waits for them. */
void vcpus_close(struct vcpus *vcpus);

/* The handler of SIGUSR1, which must be there first: KVM_RUN returns, or does so as soon as it is called. */
void vcpus_kicked(int signal);

void vcpus_run(struct vcpus *vcpus);

/* Asks all to leave the guest; all_parked is called when they have. */
void vcpus_pause(struct vcpus *vcpus);
bool vcpus_parked(const struct vcpus *vcpus);

/* From now on a vCPU that runs is kept out of the guest for `percent` (below 100) of its time: in
 * vcpus_charge, which takes all out, each rests for as long as what it has run since then calls for. */
void vcpus_slow(struct vcpus *vcpus, unsigned percent);
void vcpus_charge(struct vcpus *vcpus);

/* Time that the vCPU's thread has run, in ns; and whether it waits in a HLT (false where this KVM cannot
 * tell). */
uint64_t vcpu_cpu_time(const struct vcpu *vcpu);
bool vcpu_halted(const struct vcpu *vcpu);
