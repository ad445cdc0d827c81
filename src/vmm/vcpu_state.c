#include "vmm/vcpu_state.h"
#include "base/cleanup.h"
#include "vmm/msr.h"

#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>

static const struct field regs_fields[] = {
	FIELD(struct kvm_regs, rax, FIELD_U64),
	FIELD(struct kvm_regs, rbx, FIELD_U64),
	FIELD(struct kvm_regs, rcx, FIELD_U64),
	FIELD(struct kvm_regs, rdx, FIELD_U64),
	FIELD(struct kvm_regs, rsi, FIELD_U64),
	FIELD(struct kvm_regs, rdi, FIELD_U64),
	FIELD(struct kvm_regs, rsp, FIELD_U64),
	FIELD(struct kvm_regs, rbp, FIELD_U64),
	FIELD(struct kvm_regs, r8, FIELD_U64),
	FIELD(struct kvm_regs, r9, FIELD_U64),
	FIELD(struct kvm_regs, r10, FIELD_U64),
	FIELD(struct kvm_regs, r11, FIELD_U64),
	FIELD(struct kvm_regs, r12, FIELD_U64),
	FIELD(struct kvm_regs, r13, FIELD_U64),
	FIELD(struct kvm_regs, r14, FIELD_U64),
	FIELD(struct kvm_regs, r15, FIELD_U64),
	FIELD(struct kvm_regs, rip, FIELD_U64),
	FIELD(struct kvm_regs, rflags, FIELD_U64),
};
static const struct field_table regs_table = FIELD_TABLE("regs", 1, regs_fields);

static const struct field segment_fields[] = {
	FIELD(struct kvm_segment, base, FIELD_U64),
	FIELD(struct kvm_segment, limit, FIELD_U32),
	FIELD(struct kvm_segment, selector, FIELD_U16),
	FIELD(struct kvm_segment, type, FIELD_U8),
	FIELD(struct kvm_segment, present, FIELD_U8),
	FIELD(struct kvm_segment, dpl, FIELD_U8),
	FIELD(struct kvm_segment, db, FIELD_U8),
	FIELD(struct kvm_segment, s, FIELD_U8),
	FIELD(struct kvm_segment, l, FIELD_U8),
	FIELD(struct kvm_segment, g, FIELD_U8),
	FIELD(struct kvm_segment, avl, FIELD_U8),
	FIELD(struct kvm_segment, unusable, FIELD_U8),
};
static const struct field_table segment_table = FIELD_TABLE("segment", 1, segment_fields);

static const struct field descriptor_table_fields[] = {
	FIELD(struct kvm_dtable, base, FIELD_U64),
	FIELD(struct kvm_dtable, limit, FIELD_U16),
};
static const struct field_table descriptor_table_table =
	FIELD_TABLE("descriptor_table", 1, descriptor_table_fields);

static const struct field sregs_fields[] = {
	FIELD_NESTED(struct kvm_sregs, cs, 1, &segment_table),
	FIELD_NESTED(struct kvm_sregs, ds, 1, &segment_table),
	FIELD_NESTED(struct kvm_sregs, es, 1, &segment_table),
	FIELD_NESTED(struct kvm_sregs, fs, 1, &segment_table),
	FIELD_NESTED(struct kvm_sregs, gs, 1, &segment_table),
	FIELD_NESTED(struct kvm_sregs, ss, 1, &segment_table),
	FIELD_NESTED(struct kvm_sregs, tr, 1, &segment_table),
	FIELD_NESTED(struct kvm_sregs, ldt, 1, &segment_table),
	FIELD_NESTED(struct kvm_sregs, gdt, 1, &descriptor_table_table),
	FIELD_NESTED(struct kvm_sregs, idt, 1, &descriptor_table_table),
	FIELD(struct kvm_sregs, cr0, FIELD_U64),
	FIELD(struct kvm_sregs, cr2, FIELD_U64),
	FIELD(struct kvm_sregs, cr3, FIELD_U64),
	FIELD(struct kvm_sregs, cr4, FIELD_U64),
	FIELD(struct kvm_sregs, cr8, FIELD_U64),
	FIELD(struct kvm_sregs, efer, FIELD_U64),
	FIELD(struct kvm_sregs, apic_base, FIELD_U64),
	FIELD(struct kvm_sregs, interrupt_bitmap, FIELD_U64),
};
static const struct field_table sregs_table = FIELD_TABLE("sregs", 1, sregs_fields);

static const struct field debugregs_fields[] = {
	FIELD(struct kvm_debugregs, db, FIELD_U64),
	FIELD(struct kvm_debugregs, dr6, FIELD_U64),
	FIELD(struct kvm_debugregs, dr7, FIELD_U64),
	FIELD(struct kvm_debugregs, flags, FIELD_U64),
};
static const struct field_table debugregs_table = FIELD_TABLE("debugregs", 1, debugregs_fields);

static const struct field xcr_fields[] = {
	FIELD(struct kvm_xcr, xcr, FIELD_U32),
	FIELD(struct kvm_xcr, value, FIELD_U64),
};
static const struct field_table xcr_table = FIELD_TABLE("xcr", 1, xcr_fields);

static const struct field xcrs_fields[] = {
	FIELD(struct kvm_xcrs, flags, FIELD_U32),
	FIELD_VARYING(struct kvm_xcrs, xcrs, nr_xcrs, KVM_MAX_XCRS, &xcr_table),
};
static const struct field_table xcrs_table = FIELD_TABLE("xcrs", 1, xcrs_fields);

static const struct field events_fields[] = {
	FIELD(struct kvm_vcpu_events, exception.injected, FIELD_U8),
	FIELD(struct kvm_vcpu_events, exception.nr, FIELD_U8),
	FIELD(struct kvm_vcpu_events, exception.has_error_code, FIELD_U8),
	FIELD(struct kvm_vcpu_events, exception.pending, FIELD_U8),
	FIELD(struct kvm_vcpu_events, exception.error_code, FIELD_U32),
	FIELD(struct kvm_vcpu_events, interrupt.injected, FIELD_U8),
	FIELD(struct kvm_vcpu_events, interrupt.nr, FIELD_U8),
	FIELD(struct kvm_vcpu_events, interrupt.soft, FIELD_U8),
	FIELD(struct kvm_vcpu_events, interrupt.shadow, FIELD_U8),
	FIELD(struct kvm_vcpu_events, nmi.injected, FIELD_U8),
	FIELD(struct kvm_vcpu_events, nmi.pending, FIELD_U8),
	FIELD(struct kvm_vcpu_events, nmi.masked, FIELD_U8),
	FIELD(struct kvm_vcpu_events, sipi_vector, FIELD_U32),
	FIELD(struct kvm_vcpu_events, flags, FIELD_U32),
	FIELD(struct kvm_vcpu_events, smi.smm, FIELD_U8),
	FIELD(struct kvm_vcpu_events, smi.pending, FIELD_U8),
	FIELD(struct kvm_vcpu_events, smi.smm_inside_nmi, FIELD_U8),
	FIELD(struct kvm_vcpu_events, smi.latched_init, FIELD_U8),
	FIELD(struct kvm_vcpu_events, triple_fault.pending, FIELD_U8),
	FIELD(struct kvm_vcpu_events, exception_has_payload, FIELD_U8),
	FIELD(struct kvm_vcpu_events, exception_payload, FIELD_U64),
};
static const struct field_table events_table = FIELD_TABLE("events", 1, events_fields);

static const struct field msr_fields[] = {
	FIELD(struct kvm_msr_entry, index, FIELD_U32),
	FIELD(struct kvm_msr_entry, data, FIELD_U64),
};
static const struct field_table msr_table = FIELD_TABLE("msr", 1, msr_fields);

static const struct field cpuid_fields[] = {
	FIELD(struct kvm_cpuid_entry2, function, FIELD_U32),
	FIELD(struct kvm_cpuid_entry2, index, FIELD_U32),
	FIELD(struct kvm_cpuid_entry2, flags, FIELD_U32),
	FIELD(struct kvm_cpuid_entry2, eax, FIELD_U32),
	FIELD(struct kvm_cpuid_entry2, ebx, FIELD_U32),
	FIELD(struct kvm_cpuid_entry2, ecx, FIELD_U32),
	FIELD(struct kvm_cpuid_entry2, edx, FIELD_U32),
};
static const struct field_table cpuid_table = FIELD_TABLE("cpuid", 1, cpuid_fields);

/* The LAPIC's register page and the XSAVE area have the layouts of the processor's specification. */
static const struct field vcpu_fields[] = {
	FIELD_VARYING(struct vcpu_state, cpuid, cpuid_count, CPUID_ENTRIES_MAX, &cpuid_table),
	FIELD(struct vcpu_state, tsc_khz, FIELD_U64),
	FIELD(struct vcpu_state, tsc, FIELD_U64),
	FIELD(struct vcpu_state, tsc_deadline, FIELD_U64),
	FIELD_NESTED(struct vcpu_state, regs, 1, &regs_table),
	FIELD_NESTED(struct vcpu_state, sregs, 1, &sregs_table),
	FIELD_NESTED(struct vcpu_state, debugregs, 1, &debugregs_table),
	FIELD_NESTED(struct vcpu_state, xcrs, 1, &xcrs_table),
	FIELD(struct vcpu_state, xsave, FIELD_BYTES),
	FIELD(struct vcpu_state, lapic.regs, FIELD_BYTES),
	FIELD(struct vcpu_state, mp_state.mp_state, FIELD_U32),
	FIELD_NESTED(struct vcpu_state, events, 1, &events_table),
	FIELD_VARYING(struct vcpu_state, msrs, msr_count, MSRS_MAX, &msr_table),
};
const struct field_table vcpu_state_table = FIELD_TABLE("vcpu", 1, vcpu_fields);

/* The parts that one ioctl each reads or writes whole, in the order of writing: KVM checks later ones against
 * earlier. */
static const struct part {
	const char *name;
	unsigned long get, set;
	size_t offset;
} parts[] = {
	{"special registers", KVM_GET_SREGS, KVM_SET_SREGS, offsetof(struct vcpu_state, sregs)},
	{"registers", KVM_GET_REGS, KVM_SET_REGS, offsetof(struct vcpu_state, regs)},
	{"extended control registers", KVM_GET_XCRS, KVM_SET_XCRS, offsetof(struct vcpu_state, xcrs)},
	{"vector and floating-point registers", KVM_GET_XSAVE, KVM_SET_XSAVE,
		offsetof(struct vcpu_state, xsave)},
	{"debug registers", KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS, offsetof(struct vcpu_state, debugregs)},
	{"local APIC", KVM_GET_LAPIC, KVM_SET_LAPIC, offsetof(struct vcpu_state, lapic)},
	{"pending events", KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS, offsetof(struct vcpu_state, events)},
	{"run state", KVM_GET_MP_STATE, KVM_SET_MP_STATE, offsetof(struct vcpu_state, mp_state)},
};
#define PARTS_BEFORE_MSRS 5u

static struct kvm_msrs *msrs_new(uint32_t count, struct error *error)
{
	struct kvm_msrs *msrs = calloc(1, sizeof(*msrs) + count * sizeof(msrs->entries[0]));

	if (!msrs)
		error_set(error, ENOMEM, "Out of memory for a processor's registers.");
	return msrs;
}

/* KVM lists registers that this processor then does not have: those are left out. */
static int get_msrs(const struct kvm *kvm, int vcpu, struct vcpu_state *state, struct error *error)
{
	_cleanup_free_ struct kvm_msrs *msrs = msrs_new(kvm->msr_count, error);
	uint32_t next = 0;

	if (!msrs)
		return -ENOMEM;
	state->msr_count = 0;
	while (next < kvm->msr_count) {
		int got;

		msrs->nmsrs = kvm->msr_count - next;
		for (uint32_t i = 0; i < msrs->nmsrs; i++)
			msrs->entries[i] = (struct kvm_msr_entry){.index = kvm->msrs[next + i]};
		got = ioctl(vcpu, KVM_GET_MSRS, msrs);
		if (got < 0)
			return error_set(error, errno, "KVM does not give a processor's registers: %s.",
				strerror(errno));
		memcpy(state->msrs + state->msr_count, msrs->entries, (size_t)got * sizeof(msrs->entries[0]));
		state->msr_count += (uint32_t)got;
		next += (uint32_t)got + 1;
	}
	return 0;
}

/* A register that is not here is missed only if it was in use. */
static int set_msrs(int vcpu, const struct vcpu_state *state, struct error *error)
{
	_cleanup_free_ struct kvm_msrs *msrs = msrs_new(state->msr_count, error);
	uint32_t next = 0;

	if (!msrs)
		return -ENOMEM;
	while (next < state->msr_count) {
		int set;

		msrs->nmsrs = state->msr_count - next;
		for (uint32_t i = 0; i < msrs->nmsrs; i++)
			msrs->entries[i] = (struct kvm_msr_entry){
				.index = state->msrs[next + i].index, .data = state->msrs[next + i].data};
		set = ioctl(vcpu, KVM_SET_MSRS, msrs);
		if (set < 0)
			return error_set(
				error, errno, "KVM refuses a processor's registers: %s.", strerror(errno));
		next += (uint32_t)set;
		if (next < state->msr_count && state->msrs[next].data != 0)
			return error_set(error, EOPNOTSUPP,
				"This host's KVM refuses value 0x%llx of the processor's register 0x%x, "
				"which the guest uses.",
				(unsigned long long)state->msrs[next].data, state->msrs[next].index);
		next++;
	}
	return 0;
}

int vcpu_state_get(
	const struct kvm *kvm, const struct vcpu *whole, struct vcpu_state *state, struct error *error)
{
	int vcpu = whole->fd;

	/* In reverse: reading the run state first makes KVM accept pending INIT and SIPI (KVM_GET_MP_STATE).
	 */
	for (size_t i = ARRAY_SIZE(parts); i-- > 0;)
		if (parts[i].get == KVM_GET_XCRS && !kvm->xcrs)
			state->xcrs.nr_xcrs = 0;
		else if (ioctl(vcpu, parts[i].get, (char *)state + parts[i].offset) < 0)
			return error_set(error, errno, "KVM does not give a processor's %s: %s.",
				parts[i].name, strerror(errno));
	state->cpuid_count = whole->cpuid->nent;
	memcpy(state->cpuid, whole->cpuid->entries, whole->cpuid->nent * sizeof(state->cpuid[0]));
	return get_msrs(kvm, vcpu, state, error);
}

static int set_parts(int vcpu, const struct vcpu_state *state, size_t from, size_t to, struct error *error)
{
	for (size_t i = from; i < to; i++)
		if (!(parts[i].set == KVM_SET_XCRS && state->xcrs.nr_xcrs == 0) &&
			ioctl(vcpu, parts[i].set, (const char *)state + parts[i].offset) < 0)
			return error_set(error, errno, "This host's KVM refuses a processor's %s: %s.",
				parts[i].name, strerror(errno));
	return 0;
}

int vcpu_state_set(
	const struct kvm *kvm, struct vcpu *whole, const struct vcpu_state *state, struct error *error)
{
	_cleanup_free_ struct vcpu_state *copy = malloc(sizeof(*copy));
	int vcpu = whole->fd, r;

	if (!copy)
		return error_set(error, ENOMEM, "Out of memory for a processor's state.");
	*copy = *state;
	/* KVM reads a pending NMI only where told so, and knows pending triple faults only where it offers
	 * them. */
	copy->events.flags |= KVM_VCPUEVENT_VALID_NMI_PENDING;
	if (!kvm->triple_fault_event)
		copy->events.flags &= ~(uint32_t)KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
	r = vcpu_set_cpuid(whole, state->cpuid, state->cpuid_count, error);
	if (r == 0)
		r = set_parts(vcpu, copy, 0, PARTS_BEFORE_MSRS, error);
	if (r == 0)
		r = set_msrs(vcpu, copy, error);
	return r == 0 ? set_parts(vcpu, copy, PARTS_BEFORE_MSRS, ARRAY_SIZE(parts), error) : r;
}

int vcpu_set_cpuid(
	struct vcpu *vcpu, const struct kvm_cpuid_entry2 *entries, uint32_t count, struct error *error)
{
	_cleanup_free_ struct kvm_cpuid2 *table =
		calloc(1, sizeof(*table) + count * sizeof(table->entries[0]));

	if (!table)
		return error_set(error, ENOMEM, "Out of memory for a processor's features.");
	table->nent = count;
	memcpy(table->entries, entries, count * sizeof(table->entries[0]));
	if (ioctl(vcpu->fd, KVM_SET_CPUID2, table) < 0)
		return error_set(error, errno, "This host's KVM refuses the processor's features: %s.",
			strerror(errno));
	free(vcpu->cpuid);
	vcpu->cpuid = take_pointer(table);
	return 0;
}
