/* What a guest's scheduler is told of time in which it did not run: written where it asked for it, and
 * nowhere else; and the ticks of that time, which it does not get. */
#include "vmm/steal.h"

#include "base/cleanup.h"
#include "vmm/chips.h"
#include "vmm/loop.h"
#include "vmm/memory.h"

#include <asm/kvm_para.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <cmocka.h>

#define SIZE (1u << 20)
#define FD 1000 /* of the first vCPU; nobody's */
#define VCPUS 2

static uint64_t registers[VCPUS]; /* what the guest wrote into MSR_KVM_STEAL_TIME */
static bool has_register;
static struct kvm_pit_state2 timer;
static unsigned timer_sets;

int __wrap_ioctl(int fd, unsigned long request, void *argument);

int __wrap_ioctl(int fd, unsigned long request, void *argument)
{
	struct few_msrs *msrs = argument;

	if (request == KVM_GET_PIT2) {
		memcpy(argument, &timer, sizeof(timer));
		return 0;
	}
	if (request == KVM_SET_PIT2) {
		assert_memory_equal(argument, &timer, sizeof(timer));
		timer_sets++;
		return 0;
	}
	assert_true(request == KVM_GET_MSRS && fd >= FD && fd < FD + VCPUS);
	assert_int_equal(msrs->count, 1);
	assert_int_equal(msrs->entries[0].index, MSR_KVM_STEAL_TIME);
	msrs->entries[0].data = registers[fd - FD];
	return has_register;
}

struct rig {
	struct memory memory;
	struct platform platform;
	struct vcpus vcpus;
	uint64_t dirty[SIZE / GUEST_PAGE_SIZE / 64];
};

/* Both ways: at once, or by the vCPUs' threads before they go on. */
static void tell(struct rig *rig, uint64_t ns, bool later)
{
	steal_add(&rig->vcpus, ns, later);
	loop_lock(rig->platform.loop);
	for (uint32_t i = 0; i < VCPUS; i++)
		if (rig->vcpus.vcpu[i].stolen)
			steal_tell(&rig->vcpus.vcpu[i]);
	loop_unlock(rig->platform.loop);
	for (uint32_t i = 0; i < VCPUS; i++)
		assert_int_equal(rig->vcpus.vcpu[i].stolen, 0);
}

static struct rig *new_rig(uint32_t features)
{
	struct rig *rig = calloc(1, sizeof(*rig));
	int fd = memfd_create("ram", MFD_CLOEXEC);
	struct error error;

	assert_int_equal(ftruncate(fd, SIZE), 0);
	assert_int_equal(memory_map(&rig->memory, fd, SIZE, false, &error), 0);
	rig->memory.device_dirty = rig->dirty;
	rig->platform.memory = &rig->memory;
	rig->platform.loop = loop_new(&error);
	rig->vcpus = (struct vcpus){.platform = &rig->platform, .count = VCPUS};
	for (uint32_t i = 0; i < VCPUS; i++) {
		struct kvm_cpuid2 *cpuid = calloc(1, sizeof(*cpuid) + sizeof(cpuid->entries[0]));

		cpuid->nent = 1;
		cpuid->entries[0] =
			(struct kvm_cpuid_entry2){.function = KVM_CPUID_FEATURES, .eax = features};
		rig->vcpus.vcpu[i] =
			(struct vcpu){.id = i, .fd = FD + (int)i, .cpuid = cpuid, .all = &rig->vcpus};
		registers[i] = 0;
	}
	has_register = true;
	return rig;
}

static void free_rig(struct rig *rig)
{
	for (uint32_t i = 0; i < VCPUS; i++)
		free(rig->vcpus.vcpu[i].cpuid);
	memory_unmap(&rig->memory);
	loop_free(rig->platform.loop);
	free(rig);
}

static bool is_untouched(const struct rig *rig)
{
	for (uint64_t i = 0; i < SIZE; i++)
		if (rig->memory.base[i])
			return false;
	return rig->dirty[0] == 0;
}

static void it_is_added_where_the_guest_asked_for_it(void **state)
{
	struct rig *rig = new_rig(1u << KVM_FEATURE_STEAL_TIME);
	struct kvm_steal_time *first = memory_at(&rig->memory, 0x5040, sizeof(*first)),
			      *last = memory_at(&rig->memory, SIZE - 64, sizeof(*last)), before;

	(void)state;
	registers[0] = 0x5040 | KVM_MSR_ENABLED;
	registers[1] = (SIZE - 64) | KVM_MSR_ENABLED;
	memset(first, 0xa5, sizeof(*first));
	first->steal = 7;
	first->version = 40;
	before = *first;
	last->version = 41; /* never written to yet: junk */
	tell(rig, 2000000000, false);
	assert_int_equal(first->steal, 2000000007);
	assert_int_equal(first->version, 42);
	assert_memory_equal(
		&first->flags, &before.flags, sizeof(before) - offsetof(struct kvm_steal_time, flags));
	assert_int_equal(last->steal, 2000000000);
	assert_int_equal(last->version, 42);
	assert_int_equal(rig->dirty[0], 1ull << 5);
	assert_int_equal(rig->dirty[SIZE / GUEST_PAGE_SIZE / 64 - 1], 1ull << 63);
	tell(rig, 1, true);
	assert_int_equal(first->steal, 2000000008);
	assert_int_equal(first->version, 44);
	free_rig(rig);
}

static void who_did_not_ask_is_left_alone(void **state)
{
	static const struct {
		uint32_t features;
		uint64_t value;
		uint64_t ns;
		bool has_register;
	} cases[] = {
		{1u << KVM_FEATURE_STEAL_TIME, 0x5040, 5, true},                      /* not enabled */
		{~(1u << KVM_FEATURE_STEAL_TIME), 0x5040 | KVM_MSR_ENABLED, 5, true}, /* not offered */
		{1u << KVM_FEATURE_STEAL_TIME, 0x5040 | KVM_MSR_ENABLED, 5, false},   /* not in this KVM */
		{1u << KVM_FEATURE_STEAL_TIME, 0x5040 | KVM_MSR_ENABLED, 0, true},
		{1u << KVM_FEATURE_STEAL_TIME, SIZE | KVM_MSR_ENABLED, 5, true}, /* no RAM */
		{1u << KVM_FEATURE_STEAL_TIME, ~0ull, 5, true},
		{1u << KVM_FEATURE_STEAL_TIME, 0xfffffffffffff000 | KVM_MSR_ENABLED, 5, true},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct rig *rig = new_rig(cases[i].features);

		registers[0] = cases[i].value;
		has_register = cases[i].has_register;
		tell(rig, cases[i].ns, true);
		tell(rig, cases[i].ns, false);
		assert_true(is_untouched(rig));
		free_rig(rig);
	}
}

/* KVM starts a timer anew that is set: one that has rung would ring once more. */
static void ticks_are_forgotten_where_there_are_any(void **state)
{
	const struct kvm kvm = {.vm = FD};

	(void)state;
	for (uint8_t mode = 0; mode < 6; mode++) {
		timer = (struct kvm_pit_state2){.channels[0] = {.mode = mode, .count = 1193}};
		timer_sets = 0;
		chips_forget_ticks(&kvm);
		assert_int_equal(timer_sets, mode == 2 || mode == 3);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(it_is_added_where_the_guest_asked_for_it),
		cmocka_unit_test(who_did_not_ask_is_left_alone),
		cmocka_unit_test(ticks_are_forgotten_where_there_are_any),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
