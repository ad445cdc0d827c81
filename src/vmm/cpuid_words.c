#include "vmm/cpuid_words.h"
#include "base/cleanup.h"

#include <asm/kvm_para.h>

/* KVM's features that the guest gets. Not asynchronous page faults: faults under way could not move. */
#define PARAVIRTUAL_FEATURES                                                                                 \
	(BIT(KVM_FEATURE_CLOCKSOURCE) | BIT(KVM_FEATURE_NOP_IO_DELAY) | BIT(KVM_FEATURE_CLOCKSOURCE2) |      \
		BIT(KVM_FEATURE_STEAL_TIME) | BIT(KVM_FEATURE_PV_EOI) | BIT(KVM_FEATURE_PV_UNHALT) |         \
		BIT(KVM_FEATURE_PV_TLB_FLUSH) | BIT(KVM_FEATURE_PV_SEND_IPI) |                               \
		BIT(KVM_FEATURE_POLL_CONTROL) | BIT(KVM_FEATURE_PV_SCHED_YIELD) |                            \
		BIT(KVM_FEATURE_CLOCKSOURCE_STABLE_BIT))

/*
 * What is not here: MONITOR, VMX, SVM, machine check, performance counters, processor trace, SGX, resource
 * director, thermal and power control: the host's business. AMX: 8 KiB more state, which a process must ask
 * for. Shadow stacks and indirect branch tracking, FRED, UINTR, protection keys for supervisors, key locker,
 * last branch records, APX, AVX10: they have state that is not saved (KVM_REG_GUEST_SSP and its like). The
 * invariant TSC: a guest that moves cannot rely on it.
 */
const struct cpuid_word cpuid_words[] = {
	{0x1, 0, ECX, false, BIT(0) | BIT(1) | BIT(9) | BIT(12) | BIT(13) | BIT(17) | BITS(19, 31),
		{[0] = "sse3",
			[1] = "pclmulqdq",
			[9] = "ssse3",
			[12] = "fma",
			[13] = "cx16",
			[17] = "pcid",
			[19] = "sse4_1",
			[20] = "sse4_2",
			[21] = "x2apic",
			[22] = "movbe",
			[23] = "popcnt",
			[24] = "tsc_deadline_timer",
			[25] = "aes",
			[26] = "xsave",
			[28] = "avx",
			[29] = "f16c",
			[30] = "rdrand"}},
	{0x1, 0, EDX, false,
		BITS(0, 6) | BIT(8) | BIT(9) | BITS(11, 13) | BITS(15, 17) | BIT(19) | BITS(23, 28),
		{[12] = "mtrr", [16] = "pat", [19] = "clflush", [25] = "sse", [26] = "sse2"}},
	{0x7, 0, EBX, false,
		BIT(0) | BIT(1) | BITS(3, 11) | BIT(13) | BIT(14) | BITS(16, 21) | BIT(23) | BIT(24) |
			BITS(26, 31),
		{[0] = "fsgsbase",
			[1] = "tsc_adjust",
			[3] = "bmi1",
			[4] = "hle",
			[5] = "avx2",
			[7] = "smep",
			[8] = "bmi2",
			[9] = "erms",
			[10] = "invpcid",
			[11] = "rtm",
			[14] = "mpx",
			[16] = "avx512f",
			[17] = "avx512dq",
			[18] = "rdseed",
			[19] = "adx",
			[20] = "smap",
			[21] = "avx512ifma",
			[23] = "clflushopt",
			[24] = "clwb",
			[28] = "avx512cd",
			[29] = "sha_ni",
			[30] = "avx512bw",
			[31] = "avx512vl"}},
	{0x7, 0, ECX, false,
		BITS(0, 4) | BIT(6) | BITS(8, 12) | BIT(14) | BITS(16, 22) | BIT(24) | BIT(25) | BIT(27) |
			BIT(28),
		{[1] = "avx512vbmi",
			[2] = "umip",
			[3] = "pku",
			[6] = "avx512_vbmi2",
			[8] = "gfni",
			[9] = "vaes",
			[10] = "vpclmulqdq",
			[11] = "avx512_vnni",
			[12] = "avx512_bitalg",
			[14] = "avx512_vpopcntdq",
			[16] = "la57",
			[22] = "rdpid",
			[24] = "bus_lock_detect",
			[25] = "cldemote",
			[27] = "movdiri",
			[28] = "movdir64b"}},
	{0x7, 0, EDX, false,
		BITS(2, 4) | BIT(8) | BIT(10) | BIT(11) | BIT(13) | BIT(14) | BIT(16) | BIT(23) |
			BITS(26, 29) | BIT(31),
		{[4] = "fsrm",
			[8] = "avx512_vp2intersect",
			[10] = "md_clear",
			[14] = "serialize",
			[23] = "avx512_fp16",
			[26] = "spec_ctrl",
			[27] = "stibp",
			[28] = "flush_l1d",
			[29] = "arch_capabilities",
			[31] = "ssbd"}},
	{0x7, 1, EAX, false,
		BITS(0, 2) | BIT(4) | BIT(5) | BIT(7) | BITS(10, 12) | BIT(19) | BIT(23) | BIT(26),
		{[4] = "avx_vnni", [5] = "avx512_bf16", [10] = "fzrm", [11] = "fsrs", [12] = "fsrc"}},
	{0xd, 0, EAX, false, CPUID_XSAVE_COMPONENTS,
		{[1] = "sse state",
			[2] = "avx state",
			[5] = "avx512 opmask state",
			[6] = "avx512 upper state",
			[7] = "avx512 high state",
			[9] = "pkru state"}},
	{0xd, 1, EAX, false, BITS(0, 3), {[0] = "xsaveopt", [1] = "xsavec", [2] = "xgetbv1", [3] = "xsaves"}},
	{KVM_CPUID_FEATURES, 0, EAX, false, PARAVIRTUAL_FEATURES,
		{[KVM_FEATURE_CLOCKSOURCE2] = "kvmclock",
			[KVM_FEATURE_STEAL_TIME] = "kvm steal time",
			[KVM_FEATURE_PV_EOI] = "kvm pv eoi",
			[KVM_FEATURE_PV_UNHALT] = "kvm pv unhalt",
			[KVM_FEATURE_PV_TLB_FLUSH] = "kvm pv tlb flush",
			[KVM_FEATURE_PV_SEND_IPI] = "kvm pv ipi",
			[KVM_FEATURE_POLL_CONTROL] = "kvm poll control",
			[KVM_FEATURE_PV_SCHED_YIELD] = "kvm sched yield"}},
	{0x80000001, 0, ECX, false, BIT(0) | BIT(1) | BITS(4, 9) | BIT(11) | BIT(16) | BIT(17) | BIT(21),
		{[0] = "lahf_lm",
			[5] = "abm",
			[6] = "sse4a",
			[7] = "misalignsse",
			[8] = "3dnowprefetch",
			[11] = "xop",
			[16] = "fma4",
			[21] = "tbm"}},
	{0x80000001, 0, EDX, false,
		BITS(0, 6) | BIT(8) | BIT(9) | BITS(11, 13) | BITS(15, 17) | BIT(20) | BITS(22, 27) |
			BITS(29, 31),
		{[11] = "syscall", [20] = "nx", [26] = "pdpe1gb", [27] = "rdtscp", [29] = "lm"}},
	{0x80000008, 0, EBX, false,
		BIT(0) | BIT(2) | BIT(9) | BIT(12) | BITS(14, 20) | BITS(24, 26) | BITS(28, 30),
		{[0] = "clzero",
			[2] = "xsaveerptr",
			[9] = "wbnoinvd",
			[12] = "ibpb",
			[14] = "ibrs",
			[15] = "stibp",
			[24] = "amd_ssbd",
			[25] = "virt_ssbd"}},
	{0x80000021, 0, EAX, false, BITS(0, 2) | BIT(5) | BIT(6) | BITS(8, 11) | BIT(20) | BITS(27, 30),
		{[0] = "no_nested_data_bp", [2] = "lfence_rdtsc", [6] = "null_sel_clr_base"}},
	/* Since the second version of what hosts tell each other. */
	{0x6, 0, EAX, true, BIT(2), {[2] = "arat"}},
	{0x7, 1, EDX, true, BIT(4) | BIT(5) | BIT(10) | BIT(14),
		{[4] = "avx_vnni_int8",
			[5] = "avx_ne_convert",
			[10] = "avx_vnni_int16",
			[14] = "prefetchiti"}},
	{0x7, 2, EDX, true, BITS(0, 5),
		{[0] = "psfd",
			[1] = "ipred_ctrl",
			[2] = "rrsba_ctrl",
			[3] = "ddpd_u",
			[4] = "bhi_ctrl",
			[5] = "mcdt_no"}},
	{0x8000001a, 0, EAX, true, BITS(0, 2), {[0] = "fp128", [1] = "movu", [2] = "fp256"}},
	{0x80000021, 0, ECX, true, BIT(1) | BIT(2), {[1] = "tsa_sq_no", [2] = "tsa_l1_no"}},
};
const size_t cpuid_word_count = ARRAY_SIZE(cpuid_words);

/* All but those words: a leaf that is not here, the guest does not get. */
const struct cpuid_leaf cpuid_leaves[] = {
	{0x0, 0, 0, {true, true, true, true}},   /* highest leaf; vendor */
	{0x1, 0, 0, {true, true, false, false}}, /* signature; cache line, and topology */
	{0x2, 0, 0, {true, true, true, true}},   /* caches */
	{0x4, 0, 31, {true, true, true, true}},
	{0x6, 0, 0, {false}},
	{0x7, 0, 0, {true}}, /* highest sub-leaf */
	{0x7, 1, 2, {false}},
	{0xd, 0, 0, {false, true, true, false}}, /* size of the XSAVE area */
	{0xd, 1, 1, {false, true, false, false}},
	{0xd, 2, 31, {true, true, true, false}}, /* each component's size and place */
	{0x80000000, 0, 0, {true, true, true, true}},
	{0x80000001, 0, 0, {true, true, false, false}},
	{0x80000002, 0, 0, {true, true, true, true}}, /* the brand */
	{0x80000003, 0, 0, {true, true, true, true}},
	{0x80000004, 0, 0, {true, true, true, true}},
	{0x80000005, 0, 0, {true, true, true, true}}, /* caches */
	{0x80000006, 0, 0, {true, true, true, true}},
	{0x80000007, 0, 0, {false}},
	{0x80000008, 0, 0, {true, false, true, false}}, /* width of addresses; topology */
	{0x8000001a, 0, 0, {false}},
	{0x80000021, 0, 0, {false}},
};
const size_t cpuid_leaf_count = ARRAY_SIZE(cpuid_leaves);

/* Whatever says that the processor is free of a fault, or has a way round it, which the guest's kernel then
 * uses or spares itself. Not what only a hypervisor in the guest would need; not RSBA and RRSBA, which say
 * the opposite. */
const struct capability_name capability_names[] = {
	{0, "rdcl_no"},
	{1, "ibrs_all"},
	{4, "ssb_no"},
	{5, "mds_no"},
	{7, "tsx_ctrl"},
	{8, "taa_no"},
	{13, "sbdr_ssdp_no"},
	{14, "fbsdp_no"},
	{15, "psdp_no"},
	{17, "fb_clear"},
	{20, "bhi_no"},
	{24, "pbrsb_no"},
	{26, "gds_no"},
	{27, "rfds_no"},
	{28, "rfds_clear"},
	{62, "its_no"},
};
const size_t capability_name_count = ARRAY_SIZE(capability_names);
