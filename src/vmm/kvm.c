#include "vmm/kvm.h"
#include "base/bitmap.h"
#include "base/cleanup.h"
#include "vmm/msr.h"

#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>

/* Where Intel's KVM keeps pages of its own: below the reset vector, where no RAM and no BAR is
 * (KVM_SET_TSS_ADDR). */
#define IDENTITY_MAP_ADDRESS 0xfffbc000ull
#define TSS_ADDRESS 0xfffbd000ull
#define CPUID_1_ECX_TSC_DEADLINE (1u << 24)

static const struct {
	int capability;
	const char *what;
} needed[] = {
	{KVM_CAP_USER_MEMORY, "guest memory regions"},
	{KVM_CAP_IRQCHIP, "interrupt controllers in the kernel"},
	{KVM_CAP_PIT2, "the interval timer in the kernel"},
	{KVM_CAP_SET_TSS_ADDR, "KVM_SET_TSS_ADDR"},
	{KVM_CAP_EXT_CPUID, "CPUID tables"},
	{KVM_CAP_MP_STATE, "processor run states"},
	{KVM_CAP_VCPU_EVENTS, "pending events of processors"},
	{KVM_CAP_DEBUGREGS, "debug registers"},
	{KVM_CAP_XSAVE, "XSAVE state"},
	{KVM_CAP_ADJUST_CLOCK, "the guest's clock (kvmclock)"},
	{KVM_CAP_KVMCLOCK_CTRL, "telling a guest that it was stopped"},
	{KVM_CAP_GET_TSC_KHZ, "the time-stamp counter's frequency"},
	{KVM_CAP_IRQFD, "interrupts by descriptor (irqfd)"},
	{KVM_CAP_IOEVENTFD, "notifications by descriptor (ioeventfd)"},
	{KVM_CAP_IMMEDIATE_EXIT, "leaving the guest at once"},
};

static int check_capabilities(int system, struct error *error)
{
	if (ioctl(system, KVM_GET_API_VERSION, 0) != KVM_API_VERSION)
		return error_set(error, ENODEV, "The descriptor given as KVM is not a KVM of version %d.",
			KVM_API_VERSION);
	for (size_t i = 0; i < ARRAY_SIZE(needed); i++)
		if (ioctl(system, KVM_CHECK_EXTENSION, needed[i].capability) <= 0)
			return error_set(error, EOPNOTSUPP,
				"This host's KVM lacks what Ferry needs: %s (capability %d). A newer kernel "
				"has it.",
				needed[i].what, needed[i].capability);
	return 0;
}

static int enable(const struct kvm *kvm, uint32_t capability, uint64_t argument)
{
	struct kvm_enable_cap request = {.cap = capability, .args = {argument}};

	return ioctl(kvm->vm, KVM_ENABLE_CAP, &request);
}

/* What a newer KVM does better, and an older one does without. */
static void enable_optional(struct kvm *kvm)
{
	int log = ioctl(kvm->system, KVM_CHECK_EXTENSION, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2), khz;

	if (log > 0 && enable(kvm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, (uint64_t)log) == 0)
		kvm->clear_log = (uint32_t)log;
	if (ioctl(kvm->system, KVM_CHECK_EXTENSION, KVM_CAP_X86_TRIPLE_FAULT_EVENT) > 0)
		kvm->triple_fault_event = enable(kvm, KVM_CAP_X86_TRIPLE_FAULT_EVENT, 1) == 0;
	/* The guest is shown no performance counters; KVM then need not think of them either. */
	if (ioctl(kvm->system, KVM_CHECK_EXTENSION, KVM_CAP_PMU_CAPABILITY) & KVM_PMU_CAP_DISABLE)
		(void)!enable(kvm, KVM_CAP_PMU_CAPABILITY, KVM_PMU_CAP_DISABLE);
	/* Absent on processors without XSAVE. */
	kvm->xcrs = ioctl(kvm->system, KVM_CHECK_EXTENSION, KVM_CAP_XCRS) > 0;
	kvm->tsc_scaling = ioctl(kvm->system, KVM_CHECK_EXTENSION, KVM_CAP_TSC_CONTROL) > 0;
	khz = ioctl(kvm->vm, KVM_GET_TSC_KHZ, 0);
	kvm->tsc_khz = khz > 0 ? (uint64_t)khz : 0;
	kvm->stats = ioctl(kvm->system, KVM_CHECK_EXTENSION, KVM_CAP_BINARY_STATS_FD) > 0;
}

static int read_cpuid(struct kvm *kvm, struct error *error)
{
	_cleanup_free_ struct kvm_cpuid2 *table =
		calloc(1, sizeof(*table) + CPUID_ENTRIES_MAX * sizeof(table->entries[0]));

	if (!table)
		return error_set(error, ENOMEM, "Out of memory while reading the processor's features.");
	table->nent = CPUID_ENTRIES_MAX;
	if (ioctl(kvm->system, KVM_GET_SUPPORTED_CPUID, table) < 0)
		return error_set(error, errno, "KVM does not tell which processor features it supports: %s.",
			strerror(errno));
	kvm->cpuid_count = table->nent;
	memcpy(kvm->cpuid, table->entries, table->nent * sizeof(table->entries[0]));
	/* The one feature that KVM has but leaves to its capability to tell (KVM_GET_SUPPORTED_CPUID). */
	if (ioctl(kvm->system, KVM_CHECK_EXTENSION, KVM_CAP_TSC_DEADLINE_TIMER) > 0)
		for (uint32_t i = 0; i < kvm->cpuid_count; i++)
			if (kvm->cpuid[i].function == 1)
				kvm->cpuid[i].ecx |= CPUID_1_ECX_TSC_DEADLINE;
	return 0;
}

static int read_msrs(struct kvm *kvm, struct error *error)
{
	struct kvm_msr_list most = {.nmsrs = 0};
	_cleanup_free_ struct kvm_msr_list *list = NULL;

	if (ioctl(kvm->system, KVM_GET_MSR_INDEX_LIST, &most) < 0 && errno != E2BIG)
		return error_set(error, errno, "KVM does not tell which registers a processor has: %s.",
			strerror(errno));
	list = calloc(1, sizeof(*list) + most.nmsrs * sizeof(list->indices[0]));
	if (!list)
		return error_set(error, ENOMEM, "Out of memory while reading the processor's registers.");
	list->nmsrs = most.nmsrs;
	if (ioctl(kvm->system, KVM_GET_MSR_INDEX_LIST, list) < 0)
		return error_set(error, errno, "KVM does not tell which registers a processor has: %s.",
			strerror(errno));
	kvm->msr_count = msr_select(list->indices, list->nmsrs, kvm->msrs, MSRS_MAX);
	return 0;
}

/* Where KVM can tell (KVM_CAP_GET_MSR_FEATURES) and the processor has it. */
static void read_capabilities(struct kvm *kvm)
{
	struct few_msrs one = {.count = 1, .entries = {{.index = MSR_ARCH_CAPABILITIES}}};

	if (ioctl(kvm->system, KVM_CHECK_EXTENSION, KVM_CAP_GET_MSR_FEATURES) > 0 &&
		ioctl(kvm->system, KVM_GET_MSRS, &one) == 1)
		kvm->capabilities = one.entries[0].data;
}

static int make_chips(struct kvm *kvm, struct error *error)
{
	uint64_t identity = IDENTITY_MAP_ADDRESS;
	struct kvm_pit_config pit = {.flags = KVM_PIT_SPEAKER_DUMMY};

	if (ioctl(kvm->vm, KVM_SET_IDENTITY_MAP_ADDR, &identity) < 0 ||
		ioctl(kvm->vm, KVM_SET_TSS_ADDR, TSS_ADDRESS) < 0 ||
		ioctl(kvm->vm, KVM_CREATE_IRQCHIP, 0) < 0 || ioctl(kvm->vm, KVM_CREATE_PIT2, &pit) < 0)
		return error_set(error, errno, "KVM refuses to make interrupt controllers and timer: %s.",
			strerror(errno));
	return 0;
}

int kvm_open(struct kvm *kvm, int system, struct error *error)
{
	int r = check_capabilities(system, error), size;

	*kvm = (struct kvm){.system = -1, .vm = -1};
	if (r < 0)
		return r;
	size = ioctl(system, KVM_GET_VCPU_MMAP_SIZE, 0);
	if (size < (int)sizeof(struct kvm_run))
		return error_set(error, EIO, "KVM gives no room for a processor's exits.");
	kvm->run_size = (size_t)size;
	kvm->vm = ioctl(system, KVM_CREATE_VM, 0);
	if (kvm->vm < 0)
		return error_set(error, errno, "KVM refuses to make a virtual machine: %s.", strerror(errno));
	kvm->system = system;
	enable_optional(kvm);
	r = make_chips(kvm, error);
	if (r == 0)
		r = read_cpuid(kvm, error);
	if (r == 0)
		r = read_msrs(kvm, error);
	read_capabilities(kvm);
	if (r < 0) {
		kvm->system = -1; /* stays the caller's */
		kvm_close(kvm);
	}
	return r;
}

void kvm_close(struct kvm *kvm)
{
	cleanup_close(&kvm->vm);
	cleanup_close(&kvm->system);
	kvm->vm = kvm->system = -1;
}

/*
 * Marks pages clean whose bits are set: in bites, so that KVM does not hold its memory lock for long
 * (KVM_CLEAR_DIRTY_LOG; bites are whole 64-page words).
 */
static int clear_log(
	struct kvm *kvm, uint32_t slot, uint64_t *bitmap, uint64_t first, uint64_t pages, struct error *error)
{
	static const uint64_t bite = 1u << 16;

	for (uint64_t at = 0; at < pages; at += bite) {
		uint64_t count = pages - at < bite ? pages - at : bite, start;
		struct kvm_clear_dirty_log request = {.slot = slot,
			.first_page = at,
			.num_pages = (uint32_t)count,
			.dirty_bitmap = bitmap + (first + at) / 64};

		if (bitmap_run(request.dirty_bitmap, count, 0, &start) == 0)
			continue;
		if (ioctl(kvm->vm, KVM_CLEAR_DIRTY_LOG, &request) < 0)
			return error_set(error, errno, "KVM refuses to clear the log of written pages: %s.",
				strerror(errno));
	}
	return 0;
}

/* With KVM_DIRTY_LOG_INITIALLY_SET a log begins with all pages dirty, and unprotected until they are cleared.
 */
static int clear_all(struct kvm *kvm, const struct memory *memory, struct error *error)
{
	uint64_t pages = memory->size / GUEST_PAGE_SIZE;
	_cleanup_free_ uint64_t *all = malloc(bitmap_bytes(pages));
	int r = 0;

	if (!all)
		return error_set(error, ENOMEM, "Out of memory while turning the log of written pages on.");
	memset(all, 0xff, bitmap_bytes(pages));
	for (uint32_t i = 0; i < memory->region_count && r == 0; i++)
		r = clear_log(kvm, i, all, memory->regions[i].offset / GUEST_PAGE_SIZE,
			memory->regions[i].size / GUEST_PAGE_SIZE, error);
	return r;
}

int kvm_set_memory(struct kvm *kvm, const struct memory *memory, bool log, struct error *error)
{
	for (uint32_t i = 0; i < memory->region_count; i++) {
		const struct memory_region *region = &memory->regions[i];
		struct kvm_userspace_memory_region slot = {.slot = i,
			.flags = log ? KVM_MEM_LOG_DIRTY_PAGES : 0,
			.guest_phys_addr = region->gpa,
			.memory_size = region->size,
			.userspace_addr = (uintptr_t)(memory->base + region->offset)};

		if (ioctl(kvm->vm, KVM_SET_USER_MEMORY_REGION, &slot) < 0)
			return error_set(error, errno, "KVM refuses %llu MiB of guest memory: %s.",
				(unsigned long long)(region->size >> 20), strerror(errno));
	}
	return log && kvm->clear_log & KVM_DIRTY_LOG_INITIALLY_SET ? clear_all(kvm, memory, error) : 0;
}

int kvm_take_dirty(struct kvm *kvm, const struct memory *memory, uint64_t *bitmap, struct error *error)
{
	for (uint32_t i = 0; i < memory->region_count; i++) {
		const struct memory_region *region = &memory->regions[i];
		uint64_t first = region->offset / GUEST_PAGE_SIZE, pages = region->size / GUEST_PAGE_SIZE;
		struct kvm_dirty_log request = {.slot = i, .dirty_bitmap = bitmap + first / 64};
		int r;

		if (ioctl(kvm->vm, KVM_GET_DIRTY_LOG, &request) < 0)
			return error_set(error, errno, "KVM does not tell which pages were written: %s.",
				strerror(errno));
		r = kvm->clear_log ? clear_log(kvm, i, bitmap, first, pages, error) : 0;
		if (r < 0)
			return r;
	}
	return 0;
}
