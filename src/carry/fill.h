/*
 * A guest's memory that comes from the checkpoint while the guest runs already: what is
 * touched comes first, the rest follows in the file's order. The way in is the userfaultfd
 * of the guest's process (docs/internal/guest-control.md, `faults`; Linux,
 * Documentation/admin-guide/mm/userfaultfd.rst).
 *
 * One thread serves whatever happens next: a page is missed, a read is complete, the
 * guest's process answers, xend says something. It never waits for one of them alone. So
 * whatever the guest's process is doing when it misses a page, even answering us, the
 * page comes. An extent's digest is checked before any page of it reaches the guest.
 */
#pragma once

#include "carry/file_io.h"
#include "carry/guest.h"
#include "carry/job.h"
#include "carry/shared.h"
#include "state/checkpoint.h"

#define FILL_SLOTS 8u       /* extents on their way at once */
#define FILL_AHEAD 3u       /* of them, at most, that nobody waits for */
#define FILL_WANTED_MAX 64u /* remembered to come next; beyond that they come in the file's order */

struct fill_slot {
	uint8_t *content; /* room for one extent */
	uint64_t extent;
	bool used;
};

struct fill {
	struct job *job;
	struct guest *guest;
	struct checkpoint *checkpoint;
	struct file_io *io;
	int faults;           /* userfaultfd; owned, -1: none */
	struct shared shared; /* where its pages go when it is a clone; owned */
	uint64_t base;        /* address of RAM in the guest's process */
	uint8_t *buffer;      /* the slots' room; owned */
	uint8_t *progress;    /* per extent: enum extent_progress; owned */
	uint64_t missing;     /* extents that are not yet in the guest */
	uint64_t next;        /* where the file's order is */
	struct fill_slot slots[FILL_SLOTS];
	unsigned used, wanted_count;
	uint64_t wanted[FILL_WANTED_MAX];
	bool asked;     /* the guest's process has yet to answer */
	bool told;      /* that all memory is there: it stops waiting for any at some moment from here on */
	bool alone;     /* xend has said go-on: what becomes of xend does not matter any more */
	bool xend_gone; /* that is what became of it */
	bool brought;   /* something that no earlier carrier had brought */
	bool said_so;   /* to xend */
};

#define _cleanup_fill_ __attribute__((cleanup(fill_end)))

/*
 * Takes the userfaultfd of `guest` (whose channel is open). All but `fill` is borrowed; nothing else may be
 * read through `io` meanwhile. -EOPNOTSUPP where this guest cannot wait for memory.
 */
int fill_begin(struct fill *fill, struct job *job, struct guest *guest, struct checkpoint *checkpoint,
	struct file_io *io, struct error *error);
/* The guest is a clone: what it misses goes to memory that it shares, which is taken over. */
void fill_share(struct fill *fill, struct shared *shared);
/* After file_io_end: a read may still be on its way into the buffer. */
void fill_end(struct fill *fill);

/* Has every access that waits ask again: an earlier carrier may have heard of it and died. */
int fill_repeat(struct fill *fill, struct error *error);

/* Asks the guest's process something and serves until it has answered; `request` is consumed, `fd` may be
 * NULL.
 */
int fill_call(struct fill *fill, json_t *request, const int *fd, struct error *error);

/* Serves until all memory is there and xend has said go-on, then has the guest's process note it. */
int fill_complete(struct fill *fill, struct error *error);
