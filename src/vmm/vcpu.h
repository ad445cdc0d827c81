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
	bool parked; /* outside KVM_RUN, and stays there while all->wanted is false */
};

struct vcpus {
	struct kvm *kvm;
	struct platform *platform;
	uint32_t count;
	struct vcpu vcpu[VCPUS_MAX];
	int fds[VCPUS_MAX]; /* borrowed from vcpu[]: for clock.h */
	bool wanted;        /* they shall run */
	bool ending;
	uint32_t parked_count;
	pthread_cond_t changed;            /* wanted or ending changed */
	void (*all_parked)(void *context); /* on a vCPU's thread, when the last one has left the guest */
	void *context;
};

/* Makes `count` vCPUs and their threads, parked. On failure everything is undone. */
int vcpus_open(struct vcpus *vcpus, struct kvm *kvm, struct platform *platform, uint32_t count,
	void (*all_parked)(void *context), void *context, struct error *error);

/* Ends the threads; releases the machine lock while it waits for them. */
void vcpus_close(struct vcpus *vcpus);

void vcpus_run(struct vcpus *vcpus);

/* Asks all to leave the guest; all_parked is called when they have. */
void vcpus_pause(struct vcpus *vcpus);
bool vcpus_parked(const struct vcpus *vcpus);

/* Time that the vCPU's thread has run, in ns; and whether it waits in a HLT (false where this KVM cannot
 * tell). */
uint64_t vcpu_cpu_time(const struct vcpu *vcpu);
bool vcpu_halted(const struct vcpu *vcpu);
