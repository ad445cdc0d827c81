/*
 * The machine: memory, processors and devices put together, and its life: created
 * paused (or waiting for a state), running, paused, shut down.
 *
 * All functions are called on the main thread with the machine lock held.
 */
#pragma once

#include "base/buffer.h"
#include "vmm/bus.h"
#include "vmm/catch_up.h"
#include "vmm/console_hub.h"
#include "vmm/device.h"
#include "vmm/hold.h"
#include "vmm/machine_config.h"
#include "vmm/throttle.h"
#include "vmm/vcpu.h"

enum machine_state { MACHINE_EMPTY, MACHINE_INCOMING, MACHINE_PAUSED, MACHINE_RUNNING, MACHINE_SHUTDOWN };

struct machine {
	struct loop *loop;
	enum machine_state state;
	struct machine_config config; /* descriptors that devices took are -1 */
	struct disk_rings *disk_rings;
	struct kvm kvm;
	uint64_t capabilities; /* IA32_ARCH_CAPABILITIES that the guest has seen */
	uint64_t tsc_khz;      /* the frequency of its time-stamp counter that it has seen */
	struct memory memory;
	struct bus ports, mmio;
	struct platform platform;
	struct vcpus vcpus;
	struct throttle throttle;
	struct console_hub *console;
	struct device *power;

	bool quieting;                       /* on the way to paused or shut down */
	bool resume_wanted, announce_wanted; /* once it is paused */
	bool stopped;                        /* the guest will not run again: reason and detail say why */
	enum stop_reason reason;
	char detail[512];
	bool quitting; /* ends the loop when quiet */

	struct hold hold;         /* the guest waits for its host */
	struct catch_up catch_up; /* the guest's time while it stands still and after that */

	int faults;    /* userfaultfd while memory is still coming, else -1 */
	int bitmap_fd; /* the dirty log's bitmap while one is kept, else -1: dirty_log.h */
	uint64_t *bitmap;

	void (*changed)(void *context); /* the state has changed, or memory is complete */
	void (*paused)(void *context,
		const struct error *error); /* a pause has come to its end; error: it did not work */
	void *context;
};

/* disk_rings: one for each disk (vmm/dev/disk_ring.h); outlives the machine. */
void machine_init(struct machine *machine, struct loop *loop, struct disk_rings *disk_rings);
void machine_free(struct machine *machine);

const char *machine_state_name(const struct machine *machine);
/* "poweroff", "reboot", "crash", "error"; NULL while it is not shut down. */
const char *machine_stop_name(const struct machine *machine);

/* Takes the configuration over in case of success. On failure the machine is empty again. */
int machine_create(struct machine *machine, struct machine_config *config, struct error *error);

/* Starts vCPUs and devices. */
int machine_resume(struct machine *machine, bool announce, struct error *error);

/* About how many bytes machine_save() would give now. */
size_t machine_state_size(struct machine *machine);

/* A state was loaded, and the guest has not run since: catch_up_translate(). */
int machine_translate_clock(struct machine *machine, int64_t realtime_offset, struct error *error);

/* Begins to pause: `paused` is called when nothing runs any more, perhaps at once. */
int machine_pause(struct machine *machine, struct error *error);

/*
 * Makes stable on the host what the guest has written to its disks: 0 where it is, -EINPROGRESS where it is
 * not yet, else why it is not. `begin`: all that was written until now counts; else what counted before. May
 * be asked in every state.
 */
int machine_flush(struct machine *machine, bool begin, struct error *error);

/* Appends all device-state records. The machine must be paused. */
int machine_save(struct machine *machine, struct buffer *out, struct error *error);

/* Loads all records into a machine that was created for it, and is then paused. */
int machine_load(struct machine *machine, const struct cursor *records, struct error *error);

/* All memory has come that shall come. */
void machine_filled(struct machine *machine);

/* Stops everything, lets devices finish, and ends the loop. */
void machine_quit(struct machine *machine);
