/* Processors as data: what CPUID shows a guest, which hosts can take it, and the state that travels. No KVM
 * needed. */
#include "vmm/cpuid.h"
#include "vmm/msr.h"
#include "vmm/vcpu_state.h"

#include "base/cleanup.h"

#include <asm/kvm_para.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <cmocka.h>

#define INDEXED KVM_CPUID_FLAG_SIGNIFCANT_INDEX

/* A processor that has nearly everything. */
static struct kvm *new_kvm(void)
{
	static const struct kvm_cpuid_entry2 entries[] = {
		{.function = 0x0, .eax = 0x20, .ebx = 0x756e6547, .ecx = 0x6c65746e, .edx = 0x49656e69},
		{.function = 0x1, .ebx = 0x00000800, .ecx = ~(1u << 27), .edx = ~0u},
		{.function = 0x4, .index = 0, .flags = INDEXED, .eax = 0x0c000121},
		{.function = 0x4, .index = 1, .flags = INDEXED, .eax = 0x0c000163},
		{.function = 0x5, .eax = 64, .ebx = 64},
		{.function = 0x6, .eax = ~0u, .ebx = ~0u, .ecx = ~0u},
		{.function = 0x7, .index = 0, .flags = INDEXED, .eax = 2, .ebx = ~0u, .ecx = ~0u, .edx = ~0u},
		{.function = 0x7,
			.index = 1,
			.flags = INDEXED,
			.eax = ~0u,
			.ebx = ~0u,
			.ecx = ~0u,
			.edx = ~0u},
		{.function = 0x7,
			.index = 2,
			.flags = INDEXED,
			.eax = ~0u,
			.ebx = ~0u,
			.ecx = ~0u,
			.edx = ~0u},
		{.function = 0xa, .eax = 0x07300804},
		{.function = 0xb, .index = 0, .flags = INDEXED, .eax = 1, .ebx = 2},
		{.function = 0xd, .index = 0, .flags = INDEXED, .eax = 0x602e7, .ebx = 576, .ecx = 11008},
		{.function = 0xd, .index = 1, .flags = INDEXED, .eax = ~0u, .ecx = ~0u, .edx = ~0u},
		{.function = 0xd, .index = 2, .flags = INDEXED, .eax = 256, .ebx = 576},
		{.function = 0xd, .index = 9, .flags = INDEXED, .eax = 8, .ebx = 2688},
		{.function = 0xd, .index = 11, .flags = INDEXED, .eax = 16, .ecx = 1},
		{.function = 0xd, .index = 18, .flags = INDEXED, .eax = 8192, .ebx = 2816},
		{.function = 0x19, .eax = ~0u},
		{.function = 0x1d, .index = 0, .flags = INDEXED, .eax = 1},
		{.function = 0x40000000, .eax = 0x40000001},
		{.function = 0x40000001, .eax = ~0u},
		{.function = 0x80000000, .eax = 0x80000021},
		{.function = 0x80000001, .ecx = ~0u, .edx = ~0u},
		{.function = 0x80000007, .edx = 0x100},
		{.function = 0x80000008, .eax = 0x302e, .ebx = ~0u, .ecx = 0x503f},
		{.function = 0x8000000a, .eax = 1, .edx = ~0u},
		{.function = 0x80000021, .eax = ~0u, .ebx = ~0u, .ecx = ~0u, .edx = ~0u},
		{.function = 0xc0000001, .edx = ~0u},
	};
	struct kvm *kvm = calloc(1, sizeof(*kvm));

	kvm->capabilities = 1 << 26 | 1 << 2;
	kvm->cpuid_count = ARRAY_SIZE(entries);
	memcpy(kvm->cpuid, entries, sizeof(entries));
	return kvm;
}

static const struct kvm_cpuid_entry2 *find(
	const struct kvm_cpuid_entry2 *entries, uint32_t count, uint32_t function, uint32_t index)
{
	for (uint32_t i = 0; i < count; i++)
		if (entries[i].function == function &&
			(!(entries[i].flags & INDEXED) || entries[i].index == index))
			return &entries[i];
	return NULL;
}

static int check(
	const struct kvm *kvm, const struct kvm_cpuid_entry2 *seen, uint32_t count, struct error *error)
{
	return cpuid_check(kvm,
		&(struct processor_view){.entries = seen, .count = count, .capabilities = 1 << 26}, error);
}

static void what_cannot_move_is_hidden(void **state)
{
	_cleanup_free_ struct kvm *kvm = new_kvm();
	struct kvm_cpuid_entry2 seen[CPUID_ENTRIES_MAX];
	uint32_t count = cpuid_make(kvm, 0, 1, seen);

	(void)state;
	assert_int_equal(find(seen, count, 0x1, 0)->ecx >> 5 & 1, 0);        /* VMX */
	assert_int_equal(find(seen, count, 0x1, 0)->ecx >> 31, 1);           /* a hypervisor */
	assert_int_equal(find(seen, count, 0x1, 0)->edx >> 28 & 1, 0);       /* one thread */
	assert_int_equal(find(seen, count, 0x80000001, 0)->ecx >> 2 & 1, 0); /* SVM */
	assert_int_equal(find(seen, count, 0x80000007, 0)->edx, 0);          /* invariant TSC */
	assert_int_equal(find(seen, count, 0x6, 0)->eax, 4);
	assert_null(find(seen, count, 0x5, 0));
	assert_null(find(seen, count, 0xa, 0));
	assert_null(find(seen, count, 0x1d, 0));
	assert_null(find(seen, count, 0xd, 18));
	assert_null(find(seen, count, 0x8000000a, 0));
	assert_int_equal(find(seen, count, 0x40000001, 0)->eax >> KVM_FEATURE_ASYNC_PF & 1, 0);
	assert_int_equal(find(seen, count, 0x40000001, 0)->eax >> KVM_FEATURE_CLOCKSOURCE2 & 1, 1);
	assert_memory_equal(&find(seen, count, 0x40000000, 0)->ebx, "KVMK", 4);
}

/* A processor and a KVM that offer everything that there is a bit for. */
static void what_is_not_known_is_not_shown(void **state)
{
	_cleanup_free_ struct kvm *kvm = new_kvm();
	struct kvm_cpuid_entry2 seen[CPUID_ENTRIES_MAX];
	uint32_t count = cpuid_make(kvm, 0, 1, seen);

	(void)state;
	assert_int_equal(find(seen, count, 0x7, 0)->ecx >> 7 & 1, 0);  /* shadow stacks */
	assert_int_equal(find(seen, count, 0x7, 0)->edx >> 20 & 1, 0); /* indirect branch tracking */
	assert_int_equal(find(seen, count, 0x7, 0)->ecx >> 31, 0);     /* keys for supervisors */
	assert_int_equal(find(seen, count, 0x7, 0)->ebx >> 5 & 1, 1);  /* avx2 */
	assert_int_equal(find(seen, count, 0x7, 1)->eax >> 17 & 1, 0); /* FRED */
	assert_int_equal(find(seen, count, 0x7, 1)->edx >> 19 & 1, 0); /* AVX10 */
	assert_int_equal(find(seen, count, 0x7, 1)->edx >> 21 & 1, 0); /* APX */
	assert_int_equal(find(seen, count, 0x7, 1)->ebx | find(seen, count, 0x7, 1)->ecx, 0);
	assert_int_equal(find(seen, count, 0x7, 2)->edx, 0x3f);
	assert_int_equal(find(seen, count, 0xd, 1)->eax, 0xf);
	assert_int_equal(find(seen, count, 0xd, 1)->ecx | find(seen, count, 0xd, 1)->edx, 0);
	assert_int_equal(find(seen, count, 0x80000021, 0)->ebx | find(seen, count, 0x80000021, 0)->edx, 0);
	assert_null(find(seen, count, 0xd, 11));
	assert_null(find(seen, count, 0x19, 0));
	assert_null(find(seen, count, 0xc0000001, 0));
}

static bool named(const json_t *names, const char *name)
{
	for (size_t i = 0; i < json_array_size(names); i++)
		if (strcmp(json_string_value(json_array_get(names, i)), name) == 0)
			return true;
	return false;
}

/* The words that are not bits of features, or that older versions did not compare. */
static void every_word_counts(void **state)
{
	static const struct {
		uint32_t function, index;
		size_t at;
		uint32_t bits; /* that the other host has otherwise */
		const char *name;
	} differences[] = {
		{0x7, 1, offsetof(struct kvm_cpuid_entry2, edx), 1 << 4, "avx_vnni_int8"},
		{0x7, 2, offsetof(struct kvm_cpuid_entry2, edx), 1 << 4, "bhi_ctrl"},
		{0x0, 0, offsetof(struct kvm_cpuid_entry2, ebx), 1, "vendor GenuineIntel"},
		{0xd, 9, offsetof(struct kvm_cpuid_entry2, ebx), 0x100,
			"XSAVE component 9 of 8 bytes at 2688"},
		{0x80000008, 0, offsetof(struct kvm_cpuid_entry2, eax), 0x302e ^ 0x272e,
			"48 bits of linear address"},
		{0x80000021, 0, offsetof(struct kvm_cpuid_entry2, eax), 1 << 8,
			"CPUID 0x80000021.0 eax bit 8"},
	};
	struct kvm_cpuid_entry2 seen[CPUID_ENTRIES_MAX];
	struct error error;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(differences); i++) {
		_cleanup_free_ struct kvm *kvm = new_kvm();
		struct processor_view guest = {.entries = seen, .count = cpuid_make(kvm, 0, 1, seen)}, host;
		_cleanup_json_ json_t *has = cpuid_needs(&guest), *more = cpuid_features(&guest),
				      *here = NULL, *further = NULL;

		for (uint32_t j = 0; j < kvm->cpuid_count; j++)
			if (kvm->cpuid[j].function == differences[i].function &&
				kvm->cpuid[j].index == differences[i].index)
				*(uint32_t *)(void *)((char *)&kvm->cpuid[j] + differences[i].at) ^=
					differences[i].bits;
		host = cpuid_host(kvm);
		here = cpuid_needs(&host);
		further = cpuid_features(&host);
		assert_int_equal(cpuid_check(kvm, &guest, &error), -EOPNOTSUPP);
		assert_non_null(strstr(error.text, differences[i].name));
		assert_true(named(has, differences[i].name) || named(more, differences[i].name));
		assert_false(named(here, differences[i].name) || named(further, differences[i].name));
	}
}

static void a_fault_that_the_guest_believes_it_is_free_of(void **state)
{
	_cleanup_free_ struct kvm *kvm = new_kvm();
	struct kvm_cpuid_entry2 seen[CPUID_ENTRIES_MAX];
	struct processor_view guest = {
		.entries = seen, .count = cpuid_make(kvm, 0, 1, seen), .capabilities = kvm->capabilities};
	_cleanup_json_ json_t *names = cpuid_needs(&guest);
	struct error error;

	(void)state;
	assert_true(named(names, "gds_no"));
	assert_int_equal(cpuid_check(kvm, &guest, &error), 0);
	kvm->capabilities = 0;
	assert_int_equal(cpuid_check(kvm, &guest, &error), -EOPNOTSUPP);
	assert_non_null(strstr(error.text, "uses: gds_no."));
}

/* A guest that an older Ferry showed more than this one would. */
static void a_guest_keeps_what_it_has_seen(void **state)
{
	_cleanup_free_ struct kvm *kvm = new_kvm();
	struct kvm_cpuid_entry2 seen[CPUID_ENTRIES_MAX];
	uint32_t count = cpuid_make(kvm, 0, 1, seen);
	_cleanup_json_ json_t *names = NULL, *here = NULL;
	struct processor_view guest = {.entries = seen, .count = count}, host = cpuid_host(kvm);
	struct error error;

	(void)state;
	for (uint32_t i = 0; i < count; i++)
		if (seen[i].function == 0x80000001)
			seen[i].ecx |= 1 << 14;
	names = cpuid_features(&guest);
	here = cpuid_features(&host);
	assert_int_equal(cpuid_check(kvm, &guest, &error), 0);
	assert_true(named(names, "CPUID 0x80000001.0 ecx bit 14"));
	for (size_t i = 0; i < json_array_size(names); i++)
		assert_true(named(here, json_string_value(json_array_get(names, i))));
	assert_true(named(here, "CPUID 0x1.0 ecx bit 31")); /* as older Ferrys tell of every guest */
}

static void the_xsave_area_is_as_large_as_its_parts(void **state)
{
	_cleanup_free_ struct kvm *kvm = new_kvm();
	struct kvm_cpuid_entry2 seen[CPUID_ENTRIES_MAX];
	uint32_t count = cpuid_make(kvm, 0, 1, seen);

	(void)state;
	assert_int_equal(find(seen, count, 0xd, 0)->eax, 0x2e7);
	assert_int_equal(find(seen, count, 0xd, 0)->ecx, 2696);
	assert_true(find(seen, count, 0xd, 0)->ecx <= XSAVE_SIZE);
}

static void processors_are_cores_of_one_package(void **state)
{
	_cleanup_free_ struct kvm *kvm = new_kvm();
	struct kvm_cpuid_entry2 seen[CPUID_ENTRIES_MAX];

	(void)state;
	for (uint32_t vcpus = 1; vcpus <= VCPUS_MAX; vcpus++) {
		uint32_t id = vcpus - 1, count = cpuid_make(kvm, id, vcpus, seen);
		const struct kvm_cpuid_entry2 *threads = find(seen, count, 0xb, 0),
					      *cores = find(seen, count, 0xb, 1);

		assert_int_equal(find(seen, count, 0x1, 0)->ebx >> 24, id);
		assert_int_equal(find(seen, count, 0x1, 0)->ebx >> 16 & 0xff, vcpus);
		assert_int_equal(find(seen, count, 0x1, 0)->edx >> 28 & 1, vcpus > 1);
		assert_int_equal(threads->ebx, 1);
		assert_int_equal(threads->edx, id);
		assert_int_equal(cores->ebx, vcpus);
		assert_true(1u << cores->eax >= vcpus);
		assert_true(cores->eax == 0 || 1u << (cores->eax - 1) < vcpus);
		assert_int_equal(find(seen, count, 0xb, 2)->ebx, 0);
		assert_int_equal(find(seen, count, 0x4, 0)->eax >> 26, vcpus > 64 ? 63 : vcpus - 1);
		assert_int_equal(find(seen, count, 0x4, 0)->eax >> 14 & 0xfff, 0);
		assert_int_equal(find(seen, count, 0x4, 1)->eax >> 14 & 0xfff, vcpus - 1);
		assert_int_equal(find(seen, count, 0x80000008, 0)->ecx & 0xff, vcpus - 1);
	}
}

static void the_same_host_takes_its_guest_back(void **state)
{
	_cleanup_free_ struct kvm *kvm = new_kvm();
	struct kvm_cpuid_entry2 seen[CPUID_ENTRIES_MAX];
	uint32_t count = cpuid_make(kvm, 3, 4, seen);
	struct error error = {0};

	(void)state;
	for (uint32_t i = 0; i < count; i++) /* as KVM shows it once the guest has turned these on */
		if (seen[i].function == 1)
			seen[i].ecx |= 1u << 27;
	assert_int_equal(check(kvm, seen, count, &error), 0);
}

static void a_lesser_host_is_told_what_it_lacks(void **state)
{
	_cleanup_free_ struct kvm *kvm = new_kvm();
	struct kvm_cpuid_entry2 seen[CPUID_ENTRIES_MAX];
	uint32_t count = cpuid_make(kvm, 0, 1, seen);
	struct error error = {0};

	(void)state;
	for (uint32_t i = 0; i < kvm->cpuid_count; i++) {
		if (kvm->cpuid[i].function == 0x7)
			kvm->cpuid[i].ebx &= ~(1u << 16 | 1u << 5);
		if (kvm->cpuid[i].function == 0x80000001)
			kvm->cpuid[i].ecx &= ~(1u << 9); /* no name */
		if (kvm->cpuid[i].function == 0x80000008)
			kvm->cpuid[i].eax = 0x3028;
	}
	assert_int_equal(check(kvm, seen, count, &error), -EOPNOTSUPP);
	assert_non_null(strstr(error.text, "avx2, avx512f, CPUID 0x80000001.0 ecx bit 9"));
	assert_non_null(strstr(error.text, "46 bits of physical address"));
}

static void nothing_at_all_is_named_within_bounds(void **state)
{
	_cleanup_free_ struct kvm *kvm = new_kvm();
	struct kvm_cpuid_entry2 seen[CPUID_ENTRIES_MAX];
	uint32_t count = cpuid_make(kvm, 0, 1, seen);
	struct error error = {0};

	(void)state;
	kvm->cpuid_count = 0;
	assert_int_equal(check(kvm, seen, count, &error), -EOPNOTSUPP);
	assert_non_null(strstr(error.text, "sse3"));
}

static void running_counters_are_no_plain_state(void **state)
{
	const uint32_t listed[] = {MSR_TSC, MSR_TSC_DEADLINE, MSR_KVM_WALL_CLOCK_NEW, MSR_KVM_SYSTEM_TIME_NEW,
		0x480, 0xc0000082, MSR_MTRR_DEF_TYPE};
	uint32_t picked[MSRS_MAX], count = msr_select(listed, ARRAY_SIZE(listed), picked, MSRS_MAX), mtrr = 0;

	(void)state;
	assert_int_equal(picked[0], MSR_KVM_SYSTEM_TIME_NEW);
	assert_int_equal(picked[1], 0xc0000082);
	assert_true(count > 2 + 16);
	for (uint32_t i = 0; i < count; i++)
		mtrr += picked[i] == MSR_MTRR_DEF_TYPE;
	assert_int_equal(mtrr, 1);
	assert_int_equal(msr_select(listed, ARRAY_SIZE(listed), picked, 1), 1);
}

/* Fills an object with bytes that repeat nowhere near. */
static void fill(void *object, size_t size)
{
	uint32_t seed = 1;

	for (size_t i = 0; i < size; i++) {
		seed = seed * 1103515245u + 12345u;
		((uint8_t *)object)[i] = (uint8_t)(seed >> 16);
	}
}

static void a_processors_state_comes_back(void **state)
{
	struct vcpu_state *from = calloc(1, sizeof(*from)), *to = calloc(1, sizeof(*to));
	_cleanup_buffer_ struct buffer saved = {0}, again = {0};
	struct cursor records;
	struct error error = {0};

	(void)state;
	fill(from, sizeof(*from));
	from->msr_count = 7;
	from->cpuid_count = 5;
	from->xcrs.nr_xcrs = 1;
	fields_save(&saved, &vcpu_state_table, 2, from);
	assert_false(saved.failed);
	records = cursor_over(saved.data, saved.size);
	assert_int_equal(fields_load(&records, &vcpu_state_table, 2, to, &error), 0);
	assert_memory_equal(&to->regs, &from->regs, sizeof(to->regs));
	assert_memory_equal(to->sregs.interrupt_bitmap, from->sregs.interrupt_bitmap, 32);
	assert_true(to->sregs.efer == from->sregs.efer && to->sregs.tr.base == from->sregs.tr.base);
	assert_memory_equal(&to->xsave, &from->xsave, XSAVE_SIZE);
	assert_memory_equal(&to->lapic, &from->lapic, sizeof(to->lapic));
	assert_int_equal(to->msr_count, 7);
	assert_true(to->msrs[6].data == from->msrs[6].data && to->msrs[7].data == 0);
	assert_true(to->tsc == from->tsc && to->tsc_deadline == from->tsc_deadline);
	fields_save(&again, &vcpu_state_table, 2, to);
	assert_int_equal(saved.size, again.size);
	assert_memory_equal(saved.data, again.data, saved.size);
	free(from);
	free(to);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_cannot_move_is_hidden),
		cmocka_unit_test(what_is_not_known_is_not_shown),
		cmocka_unit_test(every_word_counts),
		cmocka_unit_test(a_fault_that_the_guest_believes_it_is_free_of),
		cmocka_unit_test(a_guest_keeps_what_it_has_seen),
		cmocka_unit_test(the_xsave_area_is_as_large_as_its_parts),
		cmocka_unit_test(processors_are_cores_of_one_package),
		cmocka_unit_test(the_same_host_takes_its_guest_back),
		cmocka_unit_test(a_lesser_host_is_told_what_it_lacks),
		cmocka_unit_test(nothing_at_all_is_named_within_bounds),
		cmocka_unit_test(running_counters_are_no_plain_state),
		cmocka_unit_test(a_processors_state_comes_back),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
