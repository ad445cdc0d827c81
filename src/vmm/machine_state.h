/*
 * The records of a machine's state, as a checkpoint has them and a move sends them: the guest's time, its
 * vCPUs, KVM's chips, the devices. machine.h says in which states of the machine they may be asked for.
 */
#pragma once

#include "vmm/machine.h"

/* Appends all of them. */
int machine_state_save(struct machine *machine, struct buffer *out, struct error *error);

/* Loads all of them; *time is the guest's, which stands still. On failure the machine is good for nothing. */
int machine_state_load(
	struct machine *machine, const struct cursor *records, struct guest_time *time, struct error *error);
