#include "vmm/cpuid.h"
#include "base/cleanup.h"

#include <asm/kvm_para.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

enum cpuid_register { EAX, EBX, ECX, EDX };

#define BIT(n) (1u << (n))
#define XTILE_BITS                                                                                           \
	(BIT(17) | BIT(18)) /* XCR0 components of AMX: 8 KiB more state, which a process must ask for */

/* Leaves that the guest does not get, as ranges: the hardware's own business, or made by us below. */
static const struct {
	uint32_t first, last;
} dropped[] = {
	{0x5, 0x5},               /* MONITOR/MWAIT */
	{0xa, 0xb},               /* performance counters; topology is made below */
	{0xf, 0x10},              /* resource director */
	{0x12, 0x12},             /* SGX */
	{0x14, 0x18},             /* processor trace, clocks (kvmclock tells them), TLB details */
	{0x1b, 0x20},             /* PCONFIG, AMX, history reset; topology again */
	{0x23, 0x24},             /* performance counters */
	{0x40000000, 0x4fffffff}, /* hypervisor: made below */
	{0x8000000a, 0x8000000a}, /* SVM */
	{0x8000001b, 0x8000001f}, /* IBS, cache topology, SEV */
	{0x80000020, 0x80000020}, /* resource control */
	{0x80000022, 0x80000026}, /* performance counters, topology */
};

/* Feature bits that the guest does not get. */
static const struct {
	uint32_t function, index;
	enum cpuid_register reg;
	uint32_t bits;
} hidden[] = {
	/* MONITOR, VMX, SMX, EST, TM2, PDCM, DCA */
	{0x1, 0, ECX, BIT(3) | BIT(5) | BIT(6) | BIT(7) | BIT(8) | BIT(15) | BIT(18)},
	/* machine check (the host's business), debug store, thermal */
	{0x1, 0, EDX, BIT(7) | BIT(14) | BIT(21) | BIT(22) | BIT(29)},
	{0x6, 0, EAX, ~BIT(2)}, /* thermal and power: all but "APIC timer always runs" */
	{0x6, 0, EBX, ~0u}, {0x6, 0, ECX, ~0u},
	{0x7, 0, EBX, BIT(2) | BIT(12) | BIT(15) | BIT(25)},  /* SGX, resource director, processor trace */
	{0x7, 0, ECX, BIT(5) | BIT(30)},                      /* WAITPKG, SGX launch control */
	{0x7, 0, EDX, BIT(18) | BIT(22) | BIT(24) | BIT(25)}, /* PCONFIG, AMX */
	{0x7, 1, EAX, BIT(21)},                               /* AMX FP16 */
	{0xd, 0, EAX, XTILE_BITS}, {0xd, 1, EAX, BIT(4)},     /* XFD, for AMX */
	/* SVM, IBS, SKINIT, watchdog, LWP, NODEID, TOPOEXT, performance counters, MWAITX */
	{0x80000001, 0, ECX,
		BIT(2) | BIT(10) | BIT(12) | BIT(13) | BIT(15) | BIT(19) | BIT(22) | BIT(23) | BIT(24) |
			BIT(28) | BIT(29)},
	{0x80000007, 0, EDX, ~0u}, /* no invariant TSC: a guest that moves cannot rely on it */
};

/* KVM's features that the guest gets. Not asynchronous page faults: faults under way could not move. */
#define PARAVIRTUAL_FEATURES                                                                                 \
	(BIT(KVM_FEATURE_CLOCKSOURCE) | BIT(KVM_FEATURE_NOP_IO_DELAY) | BIT(KVM_FEATURE_CLOCKSOURCE2) |      \
		BIT(KVM_FEATURE_STEAL_TIME) | BIT(KVM_FEATURE_PV_EOI) | BIT(KVM_FEATURE_PV_UNHALT) |         \
		BIT(KVM_FEATURE_PV_TLB_FLUSH) | BIT(KVM_FEATURE_PV_SEND_IPI) |                               \
		BIT(KVM_FEATURE_POLL_CONTROL) | BIT(KVM_FEATURE_PV_SCHED_YIELD) |                            \
		BIT(KVM_FEATURE_CLOCKSOURCE_STABLE_BIT))

/* Words of feature bits, for cpuid_check, and the names of those that differ between processors in use. */
static const struct feature_word {
	uint32_t function, index;
	enum cpuid_register reg;
	const char *names[32];
} feature_words[] = {
	{0x1, 0, ECX,
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
	{0x1, 0, EDX, {[12] = "mtrr", [16] = "pat", [19] = "clflush", [25] = "sse", [26] = "sse2"}},
	{0x7, 0, EBX,
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
	{0x7, 0, ECX,
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
	{0x7, 0, EDX,
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
	{0x7, 1, EAX, {[4] = "avx_vnni", [5] = "avx512_bf16", [10] = "fzrm", [11] = "fsrs", [12] = "fsrc"}},
	{0xd, 0, EAX,
		{[1] = "sse state",
			[2] = "avx state",
			[5] = "avx512 opmask state",
			[6] = "avx512 upper state",
			[7] = "avx512 high state",
			[9] = "pkru state"}},
	{0xd, 1, EAX, {[0] = "xsaveopt", [1] = "xsavec", [2] = "xgetbv1", [3] = "xsaves"}},
	{KVM_CPUID_FEATURES, 0, EAX,
		{[KVM_FEATURE_CLOCKSOURCE2] = "kvmclock",
			[KVM_FEATURE_STEAL_TIME] = "kvm steal time",
			[KVM_FEATURE_PV_EOI] = "kvm pv eoi",
			[KVM_FEATURE_PV_UNHALT] = "kvm pv unhalt",
			[KVM_FEATURE_PV_TLB_FLUSH] = "kvm pv tlb flush",
			[KVM_FEATURE_PV_SEND_IPI] = "kvm pv ipi",
			[KVM_FEATURE_POLL_CONTROL] = "kvm poll control",
			[KVM_FEATURE_PV_SCHED_YIELD] = "kvm sched yield"}},
	{0x80000001, 0, ECX,
		{[0] = "lahf_lm",
			[5] = "abm",
			[6] = "sse4a",
			[7] = "misalignsse",
			[8] = "3dnowprefetch",
			[11] = "xop",
			[16] = "fma4",
			[21] = "tbm",
			[26] = "bpext"}},
	{0x80000001, 0, EDX, {[11] = "syscall", [20] = "nx", [26] = "pdpe1gb", [27] = "rdtscp", [29] = "lm"}},
	{0x80000008, 0, EBX,
		{[0] = "clzero",
			[2] = "xsaveerptr",
			[9] = "wbnoinvd",
			[12] = "ibpb",
			[14] = "ibrs",
			[15] = "stibp",
			[24] = "amd_ssbd",
			[25] = "virt_ssbd"}},
	{0x80000021, 0, EAX, {[0] = "no_nested_data_bp", [2] = "lfence_rdtsc", [6] = "null_sel_clr_base"}},
};

static uint32_t *register_of(struct kvm_cpuid_entry2 *entry, enum cpuid_register reg)
{
	uint32_t *const registers[] = {&entry->eax, &entry->ebx, &entry->ecx, &entry->edx};

	return registers[reg];
}

static struct kvm_cpuid_entry2 *find(
	struct kvm_cpuid_entry2 *entries, uint32_t count, uint32_t function, uint32_t index)
{
	for (uint32_t i = 0; i < count; i++)
		if (entries[i].function == function &&
			(!(entries[i].flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX) || entries[i].index == index))
			return &entries[i];
	return NULL;
}

static bool is_dropped(const struct kvm_cpuid_entry2 *entry)
{
	for (size_t i = 0; i < ARRAY_SIZE(dropped); i++)
		if (entry->function >= dropped[i].first && entry->function <= dropped[i].last)
			return true;
	/* The state components of AMX, of leaf 0xd. */
	return entry->function == 0xd && entry->index < 32 && XTILE_BITS >> entry->index & 1;
}

static void hide(struct kvm_cpuid_entry2 *entry)
{
	for (size_t i = 0; i < ARRAY_SIZE(hidden); i++)
		if (entry->function == hidden[i].function && entry->index == hidden[i].index)
			*register_of(entry, hidden[i].reg) &= ~hidden[i].bits;
}

static unsigned bits_for(uint32_t vcpus)
{
	return vcpus > 1 ? 32u - (unsigned)__builtin_clz(vcpus - 1) : 0;
}

/* One package of `vcpus` cores with one thread each. */
static void set_topology(struct kvm_cpuid_entry2 *entry, uint32_t apic_id, uint32_t vcpus)
{
	switch (entry->function) {
	case 0x1:
		entry->ebx = (entry->ebx & 0xff00u) | vcpus << 16 | apic_id << 24;
		entry->ecx |= BIT(31); /* there is a hypervisor */
		entry->edx = vcpus > 1 ? entry->edx | BIT(28) : entry->edx & ~BIT(28); /* HTT */
		break;
	case 0x4: /* caches: the last level is shared by all, the others are each core's own */
		if ((entry->eax & 0x1f) == 0)
			break;
		entry->eax = (entry->eax & 0x3fffu) | (vcpus - 1) << 26 |
			     ((entry->eax >> 5 & 7) >= 3 ? vcpus - 1 : 0) << 14;
		break;
	case 0x80000001: /* CMP_LEGACY */
		entry->ecx = vcpus > 1 ? entry->ecx | BIT(1) : entry->ecx & ~BIT(1);
		break;
	case 0x80000008:
		entry->ecx = bits_for(vcpus) << 12 | (vcpus - 1);
		break;
	default:
		break;
	}
}

/* The area that all of XCR0's components take (Intel SDM volume 1, 13.2): KVM tells it with AMX. */
static void set_xsave_size(struct kvm_cpuid_entry2 *entries, uint32_t count)
{
	struct kvm_cpuid_entry2 *main = find(entries, count, 0xd, 0);
	uint32_t size = 512 + 64;

	if (!main)
		return;
	for (uint32_t i = 2; i < 32; i++) {
		const struct kvm_cpuid_entry2 *part = find(entries, count, 0xd, i);

		if (main->eax >> i & 1 && part && part->eax + part->ebx > size)
			size = part->eax + part->ebx;
	}
	main->ebx = main->ecx = size;
}

static void add(struct kvm_cpuid_entry2 *to, uint32_t *count, struct kvm_cpuid_entry2 entry)
{
	if (*count < CPUID_ENTRIES_MAX)
		to[(*count)++] = entry;
}

/* Intel SDM volume 2, CPUID leaf 0xb: first level threads of a core, second level cores of the package. */
static void add_topology(struct kvm_cpuid_entry2 *to, uint32_t *count, uint32_t apic_id, uint32_t vcpus)
{
	const uint32_t levels[3][3] = {{0, 1, 1u << 8}, {bits_for(vcpus), vcpus, 2u << 8}, {0, 0, 0}};

	for (uint32_t i = 0; i < 3; i++)
		add(to, count,
			(struct kvm_cpuid_entry2){.function = 0xb,
				.index = i,
				.flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
				.eax = levels[i][0],
				.ebx = levels[i][1],
				.ecx = levels[i][2] | i,
				.edx = apic_id});
}

static void add_hypervisor(const struct kvm *kvm, struct kvm_cpuid_entry2 *to, uint32_t *count)
{
	struct kvm_cpuid_entry2 *host =
		find((struct kvm_cpuid_entry2 *)kvm->cpuid, kvm->cpuid_count, KVM_CPUID_FEATURES, 0);
	struct kvm_cpuid_entry2 signature = {.function = KVM_CPUID_SIGNATURE, .eax = KVM_CPUID_FEATURES};

	memcpy(&signature.ebx, "KVMK", 4);
	memcpy(&signature.ecx, "VMKV", 4);
	memcpy(&signature.edx, "M\0\0\0", 4);
	add(to, count, signature);
	add(to, count,
		(struct kvm_cpuid_entry2){.function = KVM_CPUID_FEATURES,
			.eax = (host ? host->eax : 0) & PARAVIRTUAL_FEATURES});
}

uint32_t cpuid_make(const struct kvm *kvm, uint32_t apic_id, uint32_t vcpus, struct kvm_cpuid_entry2 *to)
{
	uint32_t count = 0;

	for (uint32_t i = 0; i < kvm->cpuid_count; i++) {
		struct kvm_cpuid_entry2 entry = kvm->cpuid[i];

		if (is_dropped(&entry))
			continue;
		hide(&entry);
		set_topology(&entry, apic_id, vcpus);
		add(to, &count, entry);
	}
	set_xsave_size(to, count);
	add_topology(to, &count, apic_id, vcpus);
	add_hypervisor(kvm, to, &count);
	return count;
}

static void feature_name(char *text, size_t size, const struct feature_word *word, unsigned bit)
{
	static const char *const registers[] = {"eax", "ebx", "ecx", "edx"};

	if (word->names[bit])
		snprintf(text, size, "%s", word->names[bit]);
	else
		snprintf(text, size, "CPUID 0x%x.%u %s bit %u", word->function, word->index,
			registers[word->reg], bit);
}

static void name_missing(char *text, size_t size, const struct feature_word *word, uint32_t missing)
{
	for (unsigned bit = 0; bit < 32; bit++) {
		size_t length = strlen(text);
		char name[64];

		if (!(missing >> bit & 1))
			continue;
		feature_name(name, sizeof(name), word, bit);
		snprintf(text + length, size - length, "%s%s", length ? ", " : "", name);
	}
}

/* What a guest sees of these features, without what is none. */
static uint32_t features_of(const struct feature_word *word, struct kvm_cpuid_entry2 *entry)
{
	uint32_t bits = entry ? *register_of(entry, word->reg) : 0;

	/* OSXSAVE and OSPKE mirror CR4. */
	if (word->function == 0x1 && word->reg == ECX)
		bits &= ~BIT(27);
	if (word->function == 0x7 && word->reg == ECX)
		bits &= ~BIT(4);
	return bits;
}

json_t *cpuid_features(const struct kvm_cpuid_entry2 *entries, uint32_t count)
{
	json_t *names = json_array();

	for (size_t i = 0; i < ARRAY_SIZE(feature_words); i++) {
		const struct feature_word *word = &feature_words[i];
		uint32_t bits = features_of(word, find((struct kvm_cpuid_entry2 *)(uintptr_t)entries, count,
							  word->function, word->index));
		char name[64];

		for (unsigned bit = 0; bit < 32; bit++)
			if (bits >> bit & 1) {
				feature_name(name, sizeof(name), word, bit);
				json_array_append_new(names, json_string(name));
			}
	}
	return names;
}

int cpuid_check(
	const struct kvm *kvm, const struct kvm_cpuid_entry2 *seen, uint32_t count, struct error *error)
{
	struct kvm_cpuid_entry2 here[CPUID_ENTRIES_MAX];
	uint32_t here_count = cpuid_make(kvm, 0, VCPUS_MAX, here);
	const struct kvm_cpuid_entry2 *limits_here = find(here, here_count, 0x80000008, 0);
	char missing[512] = "";

	for (size_t i = 0; i < ARRAY_SIZE(feature_words); i++) {
		const struct feature_word *word = &feature_words[i];
		struct kvm_cpuid_entry2 *have = find(here, here_count, word->function, word->index);
		struct kvm_cpuid_entry2 *want =
			find((struct kvm_cpuid_entry2 *)seen, count, word->function, word->index);
		uint32_t needs = features_of(word, want);

		name_missing(
			missing, sizeof(missing), word, needs & ~(have ? *register_of(have, word->reg) : 0));
	}
	for (uint32_t i = 0; i < count && limits_here; i++)
		if (seen[i].function == 0x80000008 && (seen[i].eax & 0xff) > (limits_here->eax & 0xff))
			snprintf(missing + strlen(missing), sizeof(missing) - strlen(missing),
				"%s%u bits of physical address", missing[0] ? ", " : "", seen[i].eax & 0xff);
	if (!missing[0])
		return 0;
	return error_set(error, EOPNOTSUPP,
		"This host's processor lacks features that the guest uses: %s. Run the guest on a host that "
		"has them.",
		missing);
}
