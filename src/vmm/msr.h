/*
 * Model-specific registers: which of them are a vCPU's state.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

/* Indices that other files name too (Intel SDM volume 4; AMD APM volume 2, appendix A; KVM's:
 * asm/kvm_para.h). */
#define MSR_TSC 0x10u
#define MSR_ARCH_CAPABILITIES 0x10au
#define MSR_MISC_ENABLE 0x1a0u
#define MSR_MTRR_DEF_TYPE 0x2ffu
#define MSR_TSC_DEADLINE 0x6e0u

/*
 * Picks from KVM's list (KVM_GET_MSR_INDEX_LIST) what to save and restore as plain values, and adds what KVM
 * has but does not list. Returns how many are in `to`, at most `most`.
 */
uint32_t msr_select(const uint32_t *listed, uint32_t count, uint32_t *to, uint32_t most);
