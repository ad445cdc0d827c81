#include "vmm/machine.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "vmm/acpi/acpi.h"
#include "vmm/boot.h"
#include "vmm/chips.h"
#include "vmm/cpuid.h"
#include "vmm/dev/blk.h"
#include "vmm/dev/console.h"
#include "vmm/dev/crash.h"
#include "vmm/dev/generation.h"
#include "vmm/dev/net.h"
#include "vmm/dev/power.h"
#include "vmm/dev/rng.h"
#include "vmm/dev/rtc.h"
#include "vmm/dev/serial.h"
#include "vmm/dirty_log.h"
#include "vmm/faults.h"
#include "vmm/interrupts.h"
#include "vmm/loop.h"
#include "vmm/machine_state.h"
#include "vmm/msr.h"
#include "vmm/pci.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

#define SLOT_CONSOLE 1u
#define SLOT_RNG 2u
#define MTRR_WRITE_BACK 0x806u /* enabled, default write-back (Intel SDM volume 3, 12.11.2.1) */
#define MISC_FAST_STRINGS 0x1u /* as every firmware leaves it */

static void all_parked(void *context);
static void settled(void *context);
static void hold(void *context, const char *why);
static void stop(void *context, enum stop_reason reason, const char *detail);

void machine_init(struct machine *machine, struct loop *loop, struct disk_rings *disk_rings)
{
	*machine = (struct machine){.loop = loop, .disk_rings = disk_rings, .faults = -1, .bitmap_fd = -1};
	machine->kvm.system = machine->kvm.vm = machine->memory.fd = -1;
	machine->config = MACHINE_CONFIG_NONE;
}

void machine_free(struct machine *machine)
{
	struct machine old = *machine;

	throttle_end(&machine->throttle);
	hold_free(machine);
	catch_up_end(&machine->catch_up);
	vcpus_close(&machine->vcpus);
	platform_free_devices(&machine->platform);
	interrupts_free(machine->platform.interrupts);
	dirty_log_close(machine);
	kvm_close(&machine->kvm);
	cleanup_close(&machine->faults);
	memory_unmap(&machine->memory);
	machine_config_free(&machine->config);
	machine_init(machine, old.loop, old.disk_rings);
	machine->changed = old.changed;
	machine->paused = old.paused;
	machine->context = old.context;
}

const char *machine_state_name(const struct machine *machine)
{
	static const char *const names[] = {[MACHINE_EMPTY] = "empty",
		[MACHINE_INCOMING] = "incoming",
		[MACHINE_PAUSED] = "paused",
		[MACHINE_RUNNING] = "running",
		[MACHINE_SHUTDOWN] = "shutdown"};

	return names[machine->state];
}

const char *machine_stop_name(const struct machine *machine)
{
	static const char *const names[] = {[STOP_POWEROFF] = "poweroff",
		[STOP_REBOOT] = "reboot",
		[STOP_CRASH] = "crash",
		[STOP_ERROR] = "error"};

	return machine->state == MACHINE_SHUTDOWN ? names[machine->reason] : NULL;
}

static void set_state(struct machine *machine, enum machine_state state)
{
	machine->state = state;
	if (machine->changed)
		machine->changed(machine->context);
}

/* A device took the descriptor over, or it could not be made. */
static int made(const struct device *device, int *fd)
{
	if (!device)
		return -EIO;
	*fd = -1;
	return 0;
}

static int add_devices(struct machine *machine, struct error *error)
{
	struct platform *platform = &machine->platform;
	struct machine_config *config = &machine->config;
	int r = 0;

	machine->console = console_hub_new(platform, config->console_limit_kib, error);
	if (!machine->console)
		return -ENOMEM;
	machine->power = power_new(platform, error);
	if (!machine->power || !serial_new(platform, machine->console, error) || !rtc_new(platform, error) ||
		!crash_new(platform, error) ||
		!generation_new(platform, config->has_generation ? config->generation : NULL,
			config->incoming, error) ||
		!pci_bus_new(platform, error) ||
		!virtio_console_new(platform, SLOT_CONSOLE, machine->console, error) ||
		!virtio_rng_new(platform, SLOT_RNG, error))
		return -EIO;
	for (unsigned i = 0; i < config->disk_count && r == 0; i++) {
		struct disk_config *disk = &config->disks[i];

		r = made(virtio_blk_new(platform, disk->slot, disk->image,
				 &(struct virtio_blk_options){.read_only = disk->read_only,
					 .no_discard = disk->no_discard,
					 .full_is_error = disk->full_is_error,
					 .serial = disk->serial},
				 error),
			&disk->image);
	}
	for (unsigned i = 0; i < config->net_count && r == 0; i++) {
		struct net_config *net = &config->nets[i];

		r = made(virtio_net_new(platform, net->slot, net->tap, net->mac, error), &net->tap);
	}
	return r;
}

/* What a firmware sets before it starts a kernel. */
static int set_firmware_msrs(int vcpu, struct error *error)
{
	struct few_msrs msrs = {.count = 2,
		.entries = {{.index = MSR_MTRR_DEF_TYPE, .data = MTRR_WRITE_BACK},
			{.index = MSR_MISC_ENABLE, .data = MISC_FAST_STRINGS}}};

	if (ioctl(vcpu, KVM_SET_MSRS, &msrs) != 2)
		return error_set(error, EIO, "KVM refuses the registers with which a processor starts.");
	return 0;
}

static int set_up_vcpu(struct machine *machine, uint32_t id, struct error *error)
{
	struct kvm_cpuid_entry2 entries[CPUID_ENTRIES_MAX];
	uint32_t count = cpuid_make(&machine->kvm, id, machine->config.vcpus, entries);
	int r = vcpu_set_cpuid(&machine->vcpus.vcpu[id], entries, count, error);

	return r < 0 ? r : set_firmware_msrs(machine->vcpus.fds[id], error);
}

/* The other processors wait, as after a reset, until the first one starts them. */
static int boot(struct machine *machine, struct error *error)
{
	struct machine_config *config = &machine->config;
	int vcpu = machine->vcpus.fds[0], r;
	struct boot_entry entry;
	struct kvm_regs regs;
	struct kvm_sregs sregs;

	r = boot_load(&machine->memory, config->kernel, config->ramdisk, config->command_line, &entry, error);
	if (r == 0)
		r = acpi_write(&machine->memory, config->vcpus, error);
	for (uint32_t i = 0; i < config->vcpus && r == 0; i++)
		r = set_up_vcpu(machine, i, error);
	if (r < 0)
		return r;
	if (ioctl(vcpu, KVM_GET_REGS, &regs) < 0 || ioctl(vcpu, KVM_GET_SREGS, &sregs) < 0)
		return error_set(
			error, errno, "KVM does not give a processor's registers: %s.", strerror(errno));
	boot_registers(&entry, &regs, &sregs);
	if (ioctl(vcpu, KVM_SET_REGS, &regs) < 0 || ioctl(vcpu, KVM_SET_SREGS, &sregs) < 0)
		return error_set(error, errno, "KVM refuses the registers with which the kernel starts: %s.",
			strerror(errno));
	cleanup_close(&config->kernel);
	cleanup_close(&config->ramdisk);
	config->kernel = config->ramdisk = -1;
	return 0;
}

static int build(struct machine *machine, struct error *error)
{
	struct machine_config *config = &machine->config;
	int r = kvm_open(&machine->kvm, config->kvm, error);

	if (r < 0)
		return r;
	config->kvm = -1;
	machine->capabilities = machine->kvm.capabilities;
	r = memory_map(&machine->memory, config->ram, config->memory_size, config->shared, error);
	if (r < 0)
		return r;
	config->ram = -1;
	r = kvm_set_memory(&machine->kvm, &machine->memory, false, error);
	if (r < 0)
		return r;
	machine->platform = (struct platform){.memory = &machine->memory,
		.loop = machine->loop,
		.disk_rings = machine->disk_rings,
		.ports = &machine->ports,
		.mmio = &machine->mmio,
		.interrupts = interrupts_new(machine->kvm.vm, error),
		.paused = true,
		.settled = settled,
		.hold = hold,
		.stop = stop,
		.machine = machine};
	if (!machine->platform.interrupts)
		return -EIO;
	r = vcpus_open(&machine->vcpus, &machine->kvm, &machine->platform, config->vcpus, all_parked, machine,
		error);
	if (r == 0)
		machine->tsc_khz = clock_tsc_khz(machine->vcpus.fds[0]);
	if (r == 0)
		r = add_devices(machine, error);
	if (r == 0 && !config->incoming)
		r = boot(machine, error);
	/* After KVM's descriptors: a killed process closes the latest first, so that what waits for a page
	 * inside KVM waits no more when KVM waits for it. */
	if (r == 0)
		machine->faults = faults_catch(&config->faults, &machine->memory);
	if (r == 0 && config->shared && machine->faults < 0)
		return error_set(error, EOPNOTSUPP, "This kernel cannot bring a clone its memory.");
	return r;
}

int machine_create(struct machine *machine, struct machine_config *config, struct error *error)
{
	int r;

	if (machine->state != MACHINE_EMPTY)
		return error_set(error, EBUSY, "This process has its guest already.");
	machine->config = *config;
	machine->catch_up.how = config->clock_over_pause;
	*config = MACHINE_CONFIG_NONE;
	r = build(machine, error);
	if (r < 0) {
		machine_free(machine);
		return r;
	}
	set_state(machine, machine->config.incoming ? MACHINE_INCOMING : MACHINE_PAUSED);
	return 0;
}

static int refuse(const struct machine *machine, const char *what, struct error *error)
{
	return error_set(error, EBUSY, "The guest cannot be %s: its state is '%s'%s.", what,
		machine_state_name(machine), machine->quieting ? ", about to change" : "");
}

static int refuse_filling(const char *what, struct error *error)
{
	return error_set(error, EBUSY, "The guest cannot be %s: its memory is still coming.", what);
}

void machine_filled(struct machine *machine)
{
	if (machine->faults < 0)
		return;
	faults_end(&machine->faults, &machine->memory);
	machine->catch_up.memory_comes = false;
	set_state(machine, machine->state);
}

int machine_translate_clock(struct machine *machine, int64_t realtime_offset, struct error *error)
{
	if (machine->state != MACHINE_PAUSED || !machine->catch_up.loaded)
		return refuse(machine, "told of another host's clock", error);
	catch_up_translate(&machine->catch_up, realtime_offset);
	return 0;
}

int machine_resume(struct machine *machine, bool announce, struct error *error)
{
	struct platform *platform = &machine->platform;
	int r;

	if (machine->state == MACHINE_RUNNING && !machine->quieting)
		return 0;
	if (machine->state == MACHINE_RUNNING && !machine->stopped && !machine->quitting) {
		machine->resume_wanted = true;
		machine->announce_wanted |= announce;
		return 0;
	}
	if (machine->state != MACHINE_PAUSED || machine->quieting)
		return refuse(machine, "resumed", error);
	machine->catch_up.memory_comes = machine->faults >= 0;
	r = catch_up_go_on(&machine->catch_up, &machine->vcpus, error);
	if (r < 0)
		return r;
	platform->paused = false;
	for (struct device *device = platform->devices; device; device = device->next)
		if (device->class->resume)
			device->class->resume(device);
	vcpus_run(&machine->vcpus);
	for (struct device *device = platform->devices; device && announce; device = device->next)
		if (device->class->announce)
			device->class->announce(device);
	hold_end(machine);
	set_state(machine, MACHINE_RUNNING);
	hold_watch(machine);
	return 0;
}

static bool take_wish(bool *wish)
{
	bool wanted = *wish;

	*wish = false;
	return wanted;
}

/* Everything is quiet: what it was for happens now. */
static void become_quiet(struct machine *machine)
{
	struct error error = {0};
	bool goes_on = take_wish(&machine->resume_wanted);

	for (struct device *device = machine->platform.devices; device; device = device->next)
		if (device->class->quiet)
			device->class->quiet(device);
	machine->quieting = false;
	catch_up_stand_still(&machine->catch_up, &machine->vcpus);
	if (machine->quitting) {
		loop_stop(machine->loop);
		return;
	}
	if (machine->stopped) {
		error_set(&error, ESHUTDOWN, "The guest has shut down meanwhile.");
		set_state(machine, MACHINE_SHUTDOWN);
	} else {
		set_state(machine, MACHINE_PAUSED);
		hold_watch(machine);
		if (goes_on)
			error_set(&error, ECANCELED, "The guest was resumed meanwhile.");
	}
	if (machine->paused)
		machine->paused(machine->context, error.code ? &error : NULL);
	if (goes_on && !machine->stopped &&
		machine_resume(machine, take_wish(&machine->announce_wanted), &error) < 0)
		log_error("%s", error.text);
}

/* One step towards quiet: vCPUs first, then no new work of devices, then none under way. */
static void quiet_step(void *context)
{
	struct machine *machine = context;
	struct platform *platform = &machine->platform;

	if (!vcpus_parked(&machine->vcpus))
		return;
	if (!machine->quieting) {
		catch_up_parked(&machine->catch_up);
		return;
	}
	if (!platform->paused) {
		platform->paused = true;
		for (struct device *device = platform->devices; device; device = device->next)
			if (device->class->pause)
				device->class->pause(device);
	}
	for (struct device *device = platform->devices; device; device = device->next)
		if (device->class->busy && device->class->busy(device))
			return;
	become_quiet(machine);
}

static void begin_quiet(struct machine *machine)
{
	machine->quieting = true;
	vcpus_pause(&machine->vcpus);
	loop_defer(machine->loop, quiet_step, machine);
}

/* On a vCPU's thread, or in a device: the work goes on on the main thread. */
static void all_parked(void *context)
{
	struct machine *machine = context;

	loop_defer(machine->loop, quiet_step, machine);
}

static void settled(void *context)
{
	all_parked(context);
}

static void stop(void *context, enum stop_reason reason, const char *detail)
{
	struct machine *machine = context;

	if (machine->stopped)
		return;
	machine->stopped = true;
	machine->reason = reason;
	snprintf(machine->detail, sizeof(machine->detail), "%s", detail ? detail : "");
	if (!machine->quieting)
		begin_quiet(machine);
}

/* The guest waits for its host: it stands still, so that no time passes for it. */
static void hold(void *context, const char *why)
{
	struct machine *machine = context;

	hold_begin(machine, why);
	if (machine->hold.waiting && !machine->quieting)
		begin_quiet(machine);
}

int machine_pause(struct machine *machine, struct error *error)
{
	hold_end(machine);
	if (machine->state == MACHINE_PAUSED) {
		machine->paused(machine->context, NULL);
		return 0;
	}
	if (machine->state != MACHINE_RUNNING)
		return refuse(machine, "paused", error);
	machine->resume_wanted = machine->announce_wanted = false; /* the last word counts */
	if (!machine->quieting)
		begin_quiet(machine);
	return 0;
}

int machine_flush(struct machine *machine, bool begin, struct error *error)
{
	int result = 0;

	for (struct device *device = machine->platform.devices; device; device = device->next) {
		int r = device->class->flush ? device->class->flush(device, begin, error) : 0;

		/* One that has failed counts at once, one that is under way only when no other has. */
		if (r < 0 && (result == 0 || result == -EINPROGRESS))
			result = r;
	}
	return result;
}

void machine_quit(struct machine *machine)
{
	machine->quitting = true;
	if (machine->state != MACHINE_RUNNING)
		loop_stop(machine->loop);
	else if (!machine->quieting)
		begin_quiet(machine);
}

int machine_save(struct machine *machine, struct buffer *out, struct error *error)
{
	if (machine->state != MACHINE_PAUSED || machine->quieting)
		return refuse(machine, "saved", error);
	if (machine->faults >= 0)
		return refuse_filling("saved", error);
	return machine_state_save(machine, out, error);
}

int machine_load(struct machine *machine, const struct cursor *records, struct error *error)
{
	struct guest_time time = {0};
	int r;

	if (machine->state != MACHINE_INCOMING)
		return refuse(machine, "given a state", error);
	r = machine_state_load(machine, records, &time, error);
	if (r < 0)
		return r;
	catch_up_loaded(&machine->catch_up, &time);
	set_state(machine, MACHINE_PAUSED);
	return 0;
}
