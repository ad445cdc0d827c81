/*
 * A ferry-guest without a guest, for tests of the carrier: a memfd as RAM, a thread that
 * answers the control verbs on it, and one that writes to it while the "guest" runs.
 * And a carrier's job as a thread, with its channel as xend would hold it.
 */
#pragma once

#include "carry/jobs.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#define FAKE_PAGE 4096u

struct fake_guest {
	uint64_t pages;
	int ram_fd, bitmap_fd;
	uint8_t *ram;
	uint64_t *bitmap;      /* as shared with the carrier */
	uint64_t *dirty;       /* since the last 'dirty' */
	uint64_t working_set;  /* pages that the writer writes to, from page 0 */
	bool scatters;         /* it also writes once to one page anywhere, now and then */
	int64_t written_at_us; /* monotonic: until when it has written */
	uint64_t seed;         /* of what it writes */
	char state[256];       /* what save-state gives, what load-state was given */
	size_t state_size;
	bool tracking, refuses_state;
	_Atomic int64_t clock_offset_ns; /* as it was told */
	atomic_bool clock_told;
	bool forgets; /* writes to page 0 are not in the log */
	atomic_bool running, ended, loaded;
	atomic_uint slowed, slowed_most; /* percent; now, and at most so far */
	unsigned pauses;
	unsigned pause_s, load_s;          /* how long it takes for that */
	unsigned flush_takes, flush_looks; /* how often a flush is looked at before it is done; still */
	unsigned flushes;
	bool flushed_paused;             /* the last of them began while it stood still */
	bool flush_fails, flush_unknown; /* while it stands still; always, as of an earlier Ferry's process */
	pthread_mutex_t lock;
	pthread_t server, writer;
	int server_end, carrier_end;
	int faults; /* userfaultfd while its memory may still come, else -1 */
	uint64_t
		looks_at; /* the page that load-state looks at, as devices do; its first bytes go to `seen` */
	uint64_t seen;
	void (*when_told)(
		struct fake_guest *guest); /* that all is there; before it waits no more. NULL: nothing */
	atomic_bool filled;
};

/* A paused guest; `carrier_end` is the channel for the carrier. */
void fake_guest_begin(struct fake_guest *guest, uint64_t pages);
/* From now on whoever touches a page that is not there waits for it. Skips the test where the kernel cannot.
 */
void fake_guest_wait_for_memory(struct fake_guest *guest);
/* Starts writing to the first `working_set` pages. */
void fake_guest_run(struct fake_guest *guest, uint64_t working_set);
void fake_guest_end(struct fake_guest *guest);
/* Fills `count` pages from `first` with contents that depend on `seed`; every fifth of them with zeros. */
void fake_guest_fill(struct fake_guest *guest, uint64_t first, uint64_t count, uint64_t seed);
/* Pages that its memfd has allocated. */
uint64_t fake_guest_allocated(const struct fake_guest *guest);

struct carrier_thread {
	int channel; /* xend's end */
	int (*run)(struct job *job, confine_function *confine, struct error *error);
	int carrier_channel;
	struct fake_guest *shows; /* to a carrier that asks for the guest; NULL: it may not ask */
	pthread_t thread;
};

void carrier_thread_begin(struct carrier_thread *carrier,
	int (*run)(struct job *job, confine_function *confine, struct error *error));
/* Closes xend's end where that is not done yet, and waits. */
void carrier_thread_end(struct carrier_thread *carrier);
/* Accepts what was offered: the guest's memory is there at once, the guest when the carrier asks for it. */
void carrier_accept(struct carrier_thread *carrier, struct fake_guest *guest);
/* Whether the event is one that the test need not care about: progress, or what carrier_accept has promised.
 */
bool carrier_event_is_aside(struct carrier_thread *carrier, const struct message *event);
/* The next event but those, whose name must be this; fails the test otherwise. The caller owns the
 * message. */
struct message carrier_event(struct carrier_thread *carrier, const char *name);
void carrier_say(struct carrier_thread *carrier, json_t *body, const int *fds, unsigned count);
