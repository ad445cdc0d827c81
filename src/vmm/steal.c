#include "vmm/steal.h"
#include "vmm/cpuid.h"
#include "vmm/loop.h"
#include "vmm/memory.h"

#include <asm/kvm_para.h>
#include <stddef.h>
#include <sys/ioctl.h>

/* Where the vCPU's steal time is; false: the guest has not asked for it. */
static bool address_of(const struct vcpu *vcpu, uint64_t *gpa)
{
	struct few_msrs one = {.count = 1, .entries = {{.index = MSR_KVM_STEAL_TIME}}};

	if (!vcpu->cpuid || !cpuid_has_kvm_feature(vcpu->cpuid, KVM_FEATURE_STEAL_TIME) ||
		ioctl(vcpu->fd, KVM_GET_MSRS, &one) != 1 || !(one.entries[0].data & KVM_MSR_ENABLED))
		return false;
	*gpa = one.entries[0].data & KVM_STEAL_VALID_BITS;
	return true;
}

/* KVM writes there only when it enters the guest, and goes on from what it finds. */
static void add(const struct vcpu *vcpu, uint64_t gpa, uint64_t ns)
{
	struct memory *memory = vcpu->all->platform->memory;
	struct kvm_steal_time time;

	if (memory_read(memory, gpa, &time, sizeof(time)) < 0)
		return;
	time.steal += ns;
	/* Even, and another one: whoever was stopped while reading reads once more. */
	time.version = (time.version | 1) + 1;
	memory_write(memory, gpa, &time, offsetof(struct kvm_steal_time, flags));
}

void steal_add(struct vcpus *vcpus, uint64_t ns, bool memory_comes)
{
	for (uint32_t i = 0; i < vcpus->count && ns; i++) {
		struct vcpu *vcpu = &vcpus->vcpu[i];
		uint64_t gpa;

		if (memory_comes)
			vcpu->stolen += ns;
		else if (address_of(vcpu, &gpa))
			add(vcpu, gpa, ns);
	}
}

void steal_tell(struct vcpu *vcpu)
{
	const struct platform *platform = vcpu->all->platform;
	struct kvm_steal_time time;
	uint64_t gpa, ns = vcpu->stolen;
	int r;

	vcpu->stolen = 0;
	if (!address_of(vcpu, &gpa))
		return;
	loop_unlock(platform->loop);
	r = memory_read(platform->memory, gpa, &time, sizeof(time));
	loop_lock(platform->loop);
	if (r == 0)
		add(vcpu, gpa, ns);
}
