#include "vmm/cpuid.h"
#include "base/cleanup.h"
#include "vmm/cpuid_words.h"
#include "vmm/msr.h"

#include <asm/kvm_para.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

struct missing {
	char text[512];
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

static const struct cpuid_leaf *leaf_of(const struct kvm_cpuid_entry2 *entry)
{
	for (size_t i = 0; i < cpuid_leaf_count; i++) {
		const struct cpuid_leaf *leaf = &cpuid_leaves[i];

		if (entry->function == leaf->function && entry->index >= leaf->first &&
			entry->index <= leaf->last)
			return leaf;
	}
	return NULL;
}

static bool is_word_of(const struct cpuid_word *word, const struct kvm_cpuid_entry2 *entry)
{
	return word->function == entry->function && word->index == entry->index;
}

/* Leaves of the entry what a guest may have; false: nothing. */
static bool reduce(struct kvm_cpuid_entry2 *entry)
{
	const struct cpuid_leaf *leaf = leaf_of(entry);
	uint32_t allowed[4];

	if (!leaf)
		return false;
	if (entry->function == 0xd && entry->index >= 2 && !(CPUID_XSAVE_COMPONENTS >> entry->index & 1))
		return false;
	for (unsigned i = 0; i < ARRAY_SIZE(allowed); i++)
		allowed[i] = leaf->passes[i] ? ~0u : 0;
	for (size_t i = 0; i < cpuid_word_count; i++)
		if (is_word_of(&cpuid_words[i], entry))
			allowed[cpuid_words[i].reg] |= cpuid_words[i].allowed;
	for (unsigned i = 0; i < ARRAY_SIZE(allowed); i++)
		*register_of(entry, (enum cpuid_register)i) &= allowed[i];
	return true;
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
	case 0x4: /* caches: the last level is shared by all, the others are each core's own; 6 bits for the
		   * cores
		   */
		if ((entry->eax & 0x1f) == 0)
			break;
		entry->eax = (entry->eax & 0x3fffu) | (vcpus > 64 ? 63 : vcpus - 1) << 26 |
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
	struct kvm_cpuid_entry2 features = {.function = KVM_CPUID_FEATURES},
				signature = {.function = KVM_CPUID_SIGNATURE, .eax = KVM_CPUID_FEATURES};

	memcpy(&signature.ebx, "KVMK", 4);
	memcpy(&signature.ecx, "VMKV", 4);
	memcpy(&signature.edx, "M\0\0\0", 4);
	add(to, count, signature);
	features.eax = host ? host->eax : 0;
	for (size_t i = 0; i < cpuid_word_count; i++)
		if (is_word_of(&cpuid_words[i], &features))
			features.eax &= cpuid_words[i].allowed;
	add(to, count, features);
}

uint32_t cpuid_make(const struct kvm *kvm, uint32_t apic_id, uint32_t vcpus, struct kvm_cpuid_entry2 *to)
{
	uint32_t count = 0;

	for (uint32_t i = 0; i < kvm->cpuid_count; i++) {
		struct kvm_cpuid_entry2 entry = kvm->cpuid[i];

		if (!reduce(&entry))
			continue;
		set_topology(&entry, apic_id, vcpus);
		add(to, &count, entry);
	}
	set_xsave_size(to, count);
	add_topology(to, &count, apic_id, vcpus);
	add_hypervisor(kvm, to, &count);
	return count;
}

bool cpuid_has_kvm_feature(const struct kvm_cpuid2 *cpuid, unsigned feature)
{
	const struct kvm_cpuid_entry2 *entry =
		find((struct kvm_cpuid_entry2 *)cpuid->entries, cpuid->nent, KVM_CPUID_FEATURES, 0);

	return entry && entry->eax >> feature & 1;
}

static void feature_name(char *text, size_t size, const struct cpuid_word *word, unsigned bit)
{
	static const char *const registers[] = {"eax", "ebx", "ecx", "edx"};

	if (word->names[bit])
		snprintf(text, size, "%s", word->names[bit]);
	else
		snprintf(text, size, "CPUID 0x%x.%u %s bit %u", word->function, word->index,
			registers[word->reg], bit);
}

/* Appends one more to what is missing. */
static void name_one(struct missing *missing, const char *name)
{
	size_t length = strlen(missing->text);

	snprintf(missing->text + length, sizeof(missing->text) - length, "%s%s", length ? ", " : "", name);
}

/* What a guest sees of these features, without what is none: OSXSAVE and OSPKE mirror CR4; that there is a
 * hypervisor, and how many processors, is made here. */
static uint32_t features_of(
	const struct cpuid_word *word, const struct kvm_cpuid_entry2 *entries, uint32_t count)
{
	static const struct {
		uint32_t function;
		enum cpuid_register reg;
		uint32_t bits;
	} none[] = {{0x1, ECX, BIT(27) | BIT(31)}, {0x1, EDX, BIT(28)}, {0x7, ECX, BIT(4)},
		{0x80000001, ECX, BIT(1)}};
	struct kvm_cpuid_entry2 *entry =
		find((struct kvm_cpuid_entry2 *)(uintptr_t)entries, count, word->function, word->index);
	uint32_t bits = entry ? *register_of(entry, word->reg) : 0;

	for (size_t i = 0; i < ARRAY_SIZE(none); i++)
		if (word->function == none[i].function && word->index == 0 && word->reg == none[i].reg)
			bits &= ~none[i].bits;
	return bits;
}

static void add_name(json_t *names, const char *name)
{
	json_array_append_new(names, json_string(name));
}

static void add_words(json_t *names, const struct processor_view *view, bool later)
{
	for (size_t i = 0; i < cpuid_word_count; i++) {
		const struct cpuid_word *word = &cpuid_words[i];
		uint32_t bits = features_of(word, view->entries, view->count);
		char name[64];

		for (unsigned bit = 0; bit < 32 && word->later == later; bit++)
			if (bits >> bit & 1) {
				feature_name(name, sizeof(name), word, bit);
				add_name(names, name);
			}
	}
}

/* As older Ferrys tell them too, who count those for features that are made here. */
json_t *cpuid_features(const struct processor_view *view)
{
	static const char *const made[] = {
		"CPUID 0x1.0 ecx bit 31", "CPUID 0x1.0 edx bit 28", "CPUID 0x80000001.0 ecx bit 1"};
	json_t *names = json_array();

	add_words(names, view, false);
	for (size_t i = 0; i < ARRAY_SIZE(made) && view->is_host; i++)
		add_name(names, made[i]);
	return names;
}

static const struct kvm_cpuid_entry2 *leaf(
	const struct processor_view *view, uint32_t function, uint32_t index)
{
	return find((struct kvm_cpuid_entry2 *)(uintptr_t)view->entries, view->count, function, index);
}

static void vendor_name(const struct processor_view *view, char name[32])
{
	const struct kvm_cpuid_entry2 *entry = leaf(view, 0, 0);

	*name = 0;
	if (entry)
		snprintf(name, 32, "vendor %.4s%.4s%.4s", (const char *)&entry->ebx,
			(const char *)&entry->edx, (const char *)&entry->ecx);
}

/* "" where there is none. */
static void component_name(const struct processor_view *view, unsigned component, char name[64])
{
	const struct kvm_cpuid_entry2 *all = leaf(view, 0xd, 0), *one = leaf(view, 0xd, component);

	*name = 0;
	if (all && one && all->eax >> component & 1)
		snprintf(name, 64, "XSAVE component %u of %u bytes at %u", component, one->eax, one->ebx);
}

static unsigned address_bits(const struct processor_view *view, bool linear)
{
	const struct kvm_cpuid_entry2 *entry = leaf(view, 0x80000008, 0);

	return entry ? entry->eax >> (linear ? 8 : 0) & 0xff : 0;
}

static void address_name(unsigned bits, bool linear, char name[64])
{
	snprintf(name, 64, "%u bits of %s address", bits, linear ? "linear" : "physical");
}

static uint64_t capabilities_of(const struct processor_view *view)
{
	const struct kvm_cpuid_entry2 *entry = leaf(view, 0x7, 0);

	return entry && entry->edx & BIT(29) ? view->capabilities : 0;
}

json_t *cpuid_needs(const struct processor_view *view)
{
	json_t *names = json_array();
	char name[64];

	add_words(names, view, true);
	vendor_name(view, name);
	if (*name)
		add_name(names, name);
	for (unsigned i = 2; i < 32; i++) {
		component_name(view, i, name);
		if (*name)
			add_name(names, name);
	}
	for (unsigned linear = 0; linear < 2; linear++) {
		unsigned bits = address_bits(view, linear);

		/* A host has narrower ones, too. */
		for (unsigned at = view->is_host ? 32 : bits; at <= bits && at; at++) {
			address_name(at, linear, name);
			add_name(names, name);
		}
	}
	for (size_t i = 0; i < capability_name_count; i++)
		if (capabilities_of(view) >> capability_names[i].bit & 1)
			add_name(names, capability_names[i].name);
	return names;
}

static void check_words(
	const struct processor_view *here, const struct processor_view *seen, struct missing *missing)
{
	for (size_t i = 0; i < cpuid_word_count; i++) {
		const struct cpuid_word *word = &cpuid_words[i];
		uint32_t lacks = features_of(word, seen->entries, seen->count) &
				 ~features_of(word, here->entries, here->count);
		char name[64];

		for (unsigned bit = 0; bit < 32; bit++)
			if (lacks >> bit & 1) {
				feature_name(name, sizeof(name), word, bit);
				name_one(missing, name);
			}
	}
}

static void check_values(
	const struct processor_view *here, const struct processor_view *seen, struct missing *missing)
{
	char name[64], other[64];

	vendor_name(seen, name);
	vendor_name(here, other);
	if (strcmp(name, other) != 0)
		name_one(missing, name);
	for (unsigned i = 2; i < 32; i++) {
		component_name(seen, i, name);
		component_name(here, i, other);
		if (*name && strcmp(name, other) != 0)
			name_one(missing, name);
	}
	for (unsigned linear = 0; linear < 2; linear++)
		if (address_bits(seen, linear) > address_bits(here, linear)) {
			address_name(address_bits(seen, linear), linear, name);
			name_one(missing, name);
		}
	for (size_t i = 0; i < capability_name_count; i++)
		if (capabilities_of(seen) >> capability_names[i].bit & 1 &&
			!(capabilities_of(here) >> capability_names[i].bit & 1))
			name_one(missing, capability_names[i].name);
}

struct processor_view cpuid_host(const struct kvm *kvm)
{
	return (struct processor_view){.entries = kvm->cpuid,
		.count = kvm->cpuid_count,
		.capabilities = kvm->capabilities,
		.is_host = true};
}

int cpuid_check(const struct kvm *kvm, const struct processor_view *seen, struct error *error)
{
	const struct processor_view here = cpuid_host(kvm);
	struct missing missing = {0};

	check_words(&here, seen, &missing);
	check_values(&here, seen, &missing);
	if (!*missing.text)
		return 0;
	return error_set(error, EOPNOTSUPP,
		"This host's processor lacks features that the guest uses: %s. Run the guest on a host that "
		"has them.",
		missing.text);
}
