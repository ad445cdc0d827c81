#include "vmm/msr.h"
#include "base/cleanup.h"

#include <asm/kvm_para.h>
#include <stddef.h>

struct msr_range {
	uint32_t first, last;
	const char *why; /* for the reader */
};

/* Listed by KVM, but not restored as plain values. */
static const struct msr_range left_out[] = {
	{MSR_TSC, MSR_TSC, "clock.h: a counter that runs"},
	{MSR_TSC_DEADLINE, MSR_TSC_DEADLINE, "clock.h: after the counter"},
	{MSR_KVM_WALL_CLOCK, MSR_KVM_WALL_CLOCK,
		"writing it makes KVM write guest memory; guests write before they read"},
	{MSR_KVM_WALL_CLOCK_NEW, MSR_KVM_WALL_CLOCK_NEW, "as above"},
	{MSR_KVM_ASYNC_PF_EN, MSR_KVM_ASYNC_PF_EN, "not offered"},
	{MSR_KVM_ASYNC_PF_INT, MSR_KVM_MIGRATION_CONTROL, "not offered"},
	{0x3a, 0x3a, "feature control: for VMX and SGX, not offered"},
	{0xc1, 0xc8, "performance counters, not offered (also below)"},
	{0x186, 0x198, "performance event selectors"},
	{0x309, 0x318, "fixed performance counters"},
	{0x345, 0x345, "performance capabilities"},
	{0x38d, 0x390, "performance global control"},
	{0x3f1, 0x3f2, "performance event sampling"},
	{0x480, 0x4ff, "VMX capabilities, not offered"},
	{0x560, 0x587, "processor trace, not offered"},
	{0x179, 0x17b, "machine check, not offered"},
	{0x4d0, 0x4d0, "machine check, not offered"},
	{0x40000000, 0x400001ff, "Hyper-V's, not offered"},
	{0xc0000104, 0xc0000104, "nested TSC ratio, not offered"},
	{0xc0010000, 0xc0010007, "AMD performance counters"},
	{0xc0010114, 0xc0010117, "SVM, not offered"},
	{0xc0010200, 0xc001020f, "AMD performance counters"},
	{0xc0000300, 0xc0000303, "AMD performance counters"},
};

/* Not listed by KVM, but a guest sets them: memory types (Intel SDM volume 3, 12.11). */
static const struct msr_range added[] = {
	{0x200, 0x20f, "variable range MTRRs"},
	{0x250, 0x250, "fixed range MTRRs"},
	{0x258, 0x259, "fixed range MTRRs"},
	{0x268, 0x26f, "fixed range MTRRs"},
	{MSR_MTRR_DEF_TYPE, MSR_MTRR_DEF_TYPE, "default memory type"},
};

static bool among(const struct msr_range *ranges, size_t count, uint32_t index)
{
	for (size_t i = 0; i < count; i++)
		if (index >= ranges[i].first && index <= ranges[i].last)
			return true;
	return false;
}

uint32_t msr_select(const uint32_t *listed, uint32_t count, uint32_t *to, uint32_t most)
{
	uint32_t used = 0;

	for (uint32_t i = 0; i < count && used < most; i++)
		if (!among(left_out, ARRAY_SIZE(left_out), listed[i]) &&
			!among(added, ARRAY_SIZE(added), listed[i]))
			to[used++] = listed[i];
	for (size_t i = 0; i < ARRAY_SIZE(added); i++)
		for (uint32_t index = added[i].first; index <= added[i].last && used < most; index++)
			to[used++] = index;
	return used;
}
