/*
 * Steal time: what the guest's scheduler is told of time in which a processor of its own did not run, so that
 * it charges it to nobody (Linux Documentation/virt/kvm/x86/msr.rst, MSR_KVM_STEAL_TIME). KVM counts there
 * how long a vCPU's thread waited for a processor; it does not count a guest that stands still, for then the
 * thread does not wait for one.
 */
#pragma once

#include "vmm/vcpu.h"

/*
 * Adds so many ns to the steal time of each vCPU that the guest has asked to be told of. All are parked.
 * Where memory is still to come, the page may be missing: then only the vCPU's own thread waits for it, in
 * steal_tell. With the machine lock held, as below.
 */
void steal_add(struct vcpus *vcpus, uint64_t ns, bool memory_comes);

/* On the vCPU's thread, before it enters the guest: adds what is left to be. Lets go of the lock meanwhile.
 */
void steal_tell(struct vcpu *vcpu);
