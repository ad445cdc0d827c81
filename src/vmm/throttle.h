/*
 * Slowing a guest down so that whoever copies its memory can keep up: when it has had its
 * part of 10 ms, and every 10 ms in any case, each vCPU leaves the guest and rests as long as
 * what it has run calls for. One that sleeps anyway is left alone.
 *
 * All functions are called on the main thread with the machine lock held.
 */
#pragma once

#include "vmm/loop.h"
#include "vmm/vcpu.h"

#define THROTTLE_MOST 99u /* percent: a guest must get on a little, or it would wait for nothing */

struct throttle {
	struct watch timer; /* while percent is not 0 */
	struct loop *loop;
	struct vcpus *vcpus;
	unsigned percent;
};

/* The vCPUs stay outside for `percent` of the time, from 0 (they run freely) to THROTTLE_MOST. */
int throttle_set(struct throttle *throttle, struct loop *loop, struct vcpus *vcpus, unsigned percent,
	struct error *error);

/* As percent 0. Harmless for a throttle that was never set (all zero). */
void throttle_end(struct throttle *throttle);
