/*
 * Memory that the clones of one checkpoint share: a memfd which each of their machines maps copy-on-write,
 * and which the carriers of all of them fill from the file, each with what its guest waits for and one of
 * them with the rest. A page in it has been verified, and does not change any more.
 */
#pragma once

#include "base/error.h"

#include <stdbool.h>
#include <stdint.h>

struct shared {
	int ram; /* owned; the open file is this carrier's alone, so that its lock is; -1: no such memory */
	int faults;   /* userfaultfd of our own mapping, which gives pages whole or not at all; owned */
	uint8_t *map; /* ours */
	uint64_t size;
	bool leads; /* it is us who bring what nobody waits for */
};

#define SHARED_NONE ((struct shared){.ram = -1, .faults = -1})

/* Takes over both descriptors, `device` being an open /dev/userfaultfd, also when it fails. */
int shared_open(struct shared *shared, int ram, int device, uint64_t size, struct error *error);
void shared_close(struct shared *shared);

/* Whether all of these pages are there. */
bool shared_has(const struct shared *shared, uint64_t page, uint64_t count);
/* Puts pages there; those that are there already stay. */
int shared_place(
	struct shared *shared, uint64_t page, uint64_t count, const uint8_t *content, struct error *error);
/* Whether we are, or from now on can be, the one who brings what nobody waits for. The next is when we end.
 */
bool shared_lead(struct shared *shared);
