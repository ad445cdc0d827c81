#include "vmm/machine_state.h"
#include "base/cleanup.h"
#include "vmm/chips.h"
#include "vmm/cpuid.h"
#include "vmm/msr.h"

#include <errno.h>
#include <stdlib.h>

static void save_devices(struct machine *machine, struct buffer *out)
{
	for (struct device *device = machine->platform.devices; device; device = device->next) {
		if (device->class->before_save)
			device->class->before_save(device);
		fields_save(out, device->class->state, device->instance, device);
	}
}

static void free_states(struct vcpu_state *(*states)[VCPUS_MAX])
{
	for (uint32_t i = 0; i < VCPUS_MAX; i++)
		free((*states)[i]);
}

static int allocate_states(const struct machine *machine, struct vcpu_state **states, struct error *error)
{
	for (uint32_t i = 0; i < machine->vcpus.count; i++) {
		states[i] = calloc(1, sizeof(*states[i]));
		if (!states[i])
			return error_set(error, ENOMEM, "Out of memory for the processors' state.");
	}
	return 0;
}

/* Reads all vCPUs, and the guest's time, which has stopped with it unless it has never run. */
static int get_states(
	struct machine *machine, struct vcpu_state **states, struct clock_instant *clock, struct error *error)
{
	struct guest_time time = machine->catch_up.time;
	int r = 0;

	for (uint32_t i = 0; i < machine->vcpus.count && r == 0; i++)
		r = vcpu_state_get(&machine->kvm, &machine->vcpus.vcpu[i], states[i], error);
	if (r == 0 && !machine->catch_up.standing)
		r = clock_take(&machine->kvm, machine->vcpus.fds, machine->vcpus.count, &time, error);
	*clock = time.instant;
	for (uint32_t i = 0; i < machine->vcpus.count; i++) {
		states[i]->tsc = time.vcpus[i].tsc;
		states[i]->tsc_khz = time.vcpus[i].tsc_khz;
		states[i]->tsc_deadline = time.vcpus[i].tsc_deadline;
	}
	return r;
}

int machine_state_save(struct machine *machine, struct buffer *out, struct error *error)
{
	_cleanup_(free_states) struct vcpu_state *states[VCPUS_MAX] = {NULL};
	struct clock_instant clock = {0};
	int r = allocate_states(machine, states, error);

	if (r == 0)
		r = get_states(machine, states, &clock, error);
	if (r < 0)
		return r;
	fields_save(out, &clock_table, 0, &clock);
	for (uint32_t i = 0; i < machine->vcpus.count; i++)
		fields_save(out, &vcpu_state_table, i, states[i]);
	r = chips_save(&machine->kvm, out, error);
	if (r < 0)
		return r;
	save_devices(machine, out);
	return out->failed ? error_set(error, ENOMEM, "Out of memory while saving the guest's state.") : 0;
}

size_t machine_state_size(struct machine *machine)
{
	_cleanup_buffer_ struct buffer devices = {0};

	save_devices(machine, &devices);
	return devices.size + machine->vcpus.count * sizeof(struct vcpu_state);
}

static int load_devices(struct machine *machine, const struct cursor *records, struct error *error)
{
	for (struct device *device = machine->platform.devices; device; device = device->next) {
		int r = fields_load(records, device->class->state, device->instance, device, error);

		if (r == -ENOENT && device->class->state_may_lack)
			r = 0;
		if (r == 0 && device->class->after_load)
			r = device->class->after_load(device, error);
		if (r < 0)
			return r;
	}
	return 0;
}

/* What each processor has seen, of which the first stands for all. */
static int check_processors(struct machine *machine, struct vcpu_state **states, struct error *error)
{
	int r = 0;

	for (uint32_t i = machine->vcpus.count; i-- > 0 && r == 0;) {
		const struct vcpu_state *state = states[i];
		struct processor_view seen = {.entries = state->cpuid, .count = state->cpuid_count};

		for (uint32_t k = 0; k < state->msr_count; k++)
			if (state->msrs[k].index == MSR_ARCH_CAPABILITIES)
				seen.capabilities = state->msrs[k].data;
		machine->capabilities = seen.capabilities;
		machine->tsc_khz = state->tsc_khz;
		r = cpuid_check(&machine->kvm, &seen, error);
	}
	return r;
}

/* LAPICs before the IOAPIC: what waits there is delivered when it is set. */
static int load_all(struct machine *machine, const struct cursor *records, struct vcpu_state **states,
	struct guest_time *time, struct error *error)
{
	int r = fields_load(records, &clock_table, 0, &time->instant, error);

	for (uint32_t i = 0; i < machine->vcpus.count && r == 0; i++)
		r = fields_load(records, &vcpu_state_table, i, states[i], error);
	if (r == 0)
		r = check_processors(machine, states, error);
	for (uint32_t i = 0; i < machine->vcpus.count && r == 0; i++) {
		time->vcpus[i] = (struct vcpu_time){.tsc = states[i]->tsc,
			.tsc_khz = states[i]->tsc_khz,
			.tsc_deadline = states[i]->tsc_deadline};
		clock_set_tsc_khz(machine->vcpus.fds[i], states[i]->tsc_khz);
		r = vcpu_state_set(&machine->kvm, &machine->vcpus.vcpu[i], states[i], error);
	}
	if (r == 0)
		r = chips_load(&machine->kvm, records, error);
	return r == 0 ? load_devices(machine, records, error) : r;
}

int machine_state_load(
	struct machine *machine, const struct cursor *records, struct guest_time *time, struct error *error)
{
	_cleanup_(free_states) struct vcpu_state *states[VCPUS_MAX] = {NULL};
	int r = allocate_states(machine, states, error);

	return r == 0 ? load_all(machine, records, states, time, error) : r;
}
