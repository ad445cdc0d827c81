/*
 * The processor's features that guests may have, as data: for each word of feature bits those that Ferry
 * knows to be without state, or with state that is saved. What a newer processor and KVM offer beyond them,
 * no guest sees.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum cpuid_register { EAX, EBX, ECX, EDX };

#define BIT(n) (1u << (n))
#define BITS(first, last) (~0u >> (31 - (last)) & ~0u << (first))

/* Components of the XSAVE area: x87, SSE, AVX, MPX, AVX-512, PKRU (Intel SDM volume 1, 13.1). */
#define CPUID_XSAVE_COMPONENTS (BITS(0, 7) | BIT(9))

struct cpuid_word {
	uint32_t function, index;
	enum cpuid_register reg;
	bool later; /* hosts of older Ferrys do not know its names (objections.h) */
	uint32_t allowed;
	const char *names[32]; /* of those that differ between processors in use */
};
extern const struct cpuid_word cpuid_words[];
extern const size_t cpuid_word_count;

/* Leaves that guests get, and which of their registers pass as they are; those with feature words pass as
 * these say, others are 0. */
struct cpuid_leaf {
	uint32_t function, first, last; /* indices */
	bool passes[4];
};
extern const struct cpuid_leaf cpuid_leaves[];
extern const size_t cpuid_leaf_count;

/* Bits of IA32_ARCH_CAPABILITIES that a guest goes by. */
struct capability_name {
	unsigned bit;
	const char *name;
};
extern const struct capability_name capability_names[];
extern const size_t capability_name_count;
