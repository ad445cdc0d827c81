/*
 * The carrier's hold on one guest: its RAM, mapped, and the verbs of
 * docs/internal/guest-control.md that move it.
 */
#pragma once

#include "base/buffer.h"
#include "base/error.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#define PAGE_SIZE 4096u

struct wire;

struct guest {
	int channel, ram_fd; /* owned */
	uint8_t *ram;        /* the whole memfd */
	uint64_t size, pages;
	uint64_t state_size;   /* about how much guest_save_state will give; 0: its process does not say */
	json_t *regions;       /* owned, as ferry-guest gave them */
	const uint64_t *dirty; /* its bitmap while tracking, else NULL */
	bool paused;           /* by us */
	bool slowed;           /* by us */
	bool left;             /* it runs elsewhere: nothing is undone in what stays behind */
	struct wire *
		peer; /* borrowed: who is told, while the guest's process takes its time, that we are alive */
};

#define _cleanup_guest_ __attribute__((cleanup(guest_close)))

enum guest_purpose {
	GUEST_CARRY, /* its memory is read; a clone that shares its memory is refused */
	GUEST_WRITE, /* its memory is written */
	GUEST_FILL,  /* its memory comes another way (its userfaultfd, its memfd), or is only counted */
};

/* Takes over the channel (also when it fails) and maps the RAM. */
int guest_open(struct guest *guest, int channel, enum guest_purpose purpose, struct error *error);
/* Stops tracking and slowing (unless the guest has left), unmaps, closes. Leaves the guest paused or running
 * as it is. */
void guest_close(struct guest *guest);

int guest_track(struct guest *guest, bool on, struct error *error);
/* Fills guest->dirty with what was written since the last call; returns how many pages in *pages. */
int guest_dirty(struct guest *guest, uint64_t *pages, struct error *error);
/* Keeps its processors out of the guest for this part of their time (0: none), until guest_close at the
 * latest. */
int guest_throttle(struct guest *guest, unsigned percent, struct error *error);
int guest_pause(struct guest *guest, struct error *error);
/*
 * Whether what it has written to its disks is stable on the host. With `begin` all that it wrote until now
 * counts. An error names the disk that it cannot be said of; -EINVAL: the guest's process is of an earlier
 * Ferry.
 */
int guest_flush(struct guest *guest, bool begin, bool *done, struct error *error);
int guest_save_state(struct guest *guest, struct buffer *state, struct error *error);
/*
 * The userfaultfd through which this guest waits for its memory, and where RAM begins in its process.
 * -EOPNOTSUPP where it does not wait. *faults is the caller's.
 */
int guest_faults(struct guest *guest, int *faults, uint64_t *base, struct error *error);
/* The request that hands the guest its state, NULL on an error; *fd, the caller's, goes with it. */
json_t *guest_state_request(const struct buffer *state, int *fd, struct error *error);
int guest_load_state(struct guest *guest, const struct buffer *state, struct error *error);
/* Our real time is so far ahead of that in the state that was loaded. */
int guest_translate_clock(struct guest *guest, int64_t realtime_offset_ns, struct error *error);
