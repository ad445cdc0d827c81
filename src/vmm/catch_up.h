/*
 * The guest's time over a pause, a save and a move.
 *
 * While a guest stands still, so does its time. When it runs on, its clock has to be right, or all that it
 * believes of the date is wrong; but time must not jump either, or all that has been waiting for an answer at
 * most three minutes gives it up, although nobody had a moment to answer: systemd kills every service with a
 * watchdog. So the guest's time catches up with the world's in steps that are small for what waits, and
 * between them the guest runs until it has nothing left to do, for as long as it is given processors to do
 * it. Ten minutes take half a second so, and longer on a host that has no time for the guest.
 *
 * Whoever runs in the guest when its time goes on has not run for that long: it is steal time (steal.h).
 *
 * Such is the default. With "jump" all of the gap is made up at once, with "stop" none.
 *
 * All functions are called with the machine lock held.
 */
#pragma once

#include "vmm/clock.h"
#include "vmm/loop.h"
#include "vmm/machine_config.h"
#include "vmm/vcpu.h"
#include "vmm/vcpu_state.h"

struct catch_up {
	enum clock_over_pause how;
	bool memory_comes; /* the guest waits for its memory, and gets more time between steps */

	struct guest_time time; /* while the guest stands still */
	bool standing;          /* `time` is known */
	bool loaded;            /* it came with a state: KVM's clocks show another */
	bool was_behind;        /* it had not caught up when it was stopped */

	/* While it catches up: kvmclock as it should be at an instant of the host's real time. */
	bool under_way;
	uint64_t kvmclock, realtime, step;
	uint64_t gap;
	unsigned steps, rests, tries;
	bool parking; /* the vCPUs are leaving the guest, for a step */
	int64_t began, ran_since;
	uint64_t cpu_time;  /* of all vCPUs, at the last look */
	int64_t interval;   /* from the last look to the next */
	int64_t had, spent; /* what the guest had of its processors since the last step, and in all */
	int64_t usual;      /* how much of it a step takes before it has nothing to do; 0: not known */
	struct watch timer;
	struct vcpus *vcpus;
};

/* How far time may go on at once where `gap` is to be made up; all in ns. */
uint64_t catch_up_step(uint64_t gap);

/* How long a guest that always has something to do runs between two such steps; all in ns. */
int64_t catch_up_busy_patience(uint64_t gap, uint64_t step);

/* The vCPUs have been parked and stay so: the guest's time stops. */
void catch_up_stand_still(struct catch_up *catch_up, struct vcpus *vcpus);

/* The guest's time is that of a loaded state. */
void catch_up_loaded(struct catch_up *catch_up, const struct guest_time *time);

/* Real time in that state is another host's, and this host's is so far ahead of it (ns). To be said once. */
void catch_up_translate(struct catch_up *catch_up, int64_t realtime_offset);

/* The vCPUs are about to run: the guest's time goes on, and makes up for what has passed. */
int catch_up_go_on(struct catch_up *catch_up, struct vcpus *vcpus, struct error *error);

/* The vCPUs are parked, and nobody wants the guest to stand still: perhaps for a step, which is then made. */
void catch_up_parked(struct catch_up *catch_up);

void catch_up_end(struct catch_up *catch_up);
