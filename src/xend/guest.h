/*
 * The process that is a domain's guest, ferry-guest: started with everything it
 * needs, asked things over its control socket (docs/internal/guest-control.md),
 * found again after a restart of xend, and ended without a trace.
 *
 * Every guest process runs as a user of its own (GUEST_UID_BASE + ID; no account
 * is needed) without a network. All functions are called with the lock held.
 */
#pragma once

#include "base/channel.h"
#include "xend/domain.h"
#include "xend/process.h"

#define GUEST_UID_BASE 0x70000000u
#define GUEST_ANSWER_MS 10000

enum guest_beginning {
	GUEST_BOOT,
	GUEST_RESTORE,      /* its state comes from a file */
	GUEST_RESTORE_LAZY, /* the same, and its memory may come after it */
	GUEST_RECEIVE,      /* its state comes from a peer, which has the locks of the disks for now */
};

/* Who has use for a guest's memory while its process still builds the machine. */
struct guest_memory_user {
	/* Called once, with the lock held; `ram` stays the caller's. An error ends the guest. */
	int (*ready)(struct guest_memory_user *user, int ram, struct error *error);
};

/* A guest's run directory, and what is in it. */
struct guest_place {
	char directory[112];
	char control[128]; /* its socket */
	char process[128]; /* record of its process (process.h) */
	char carrier[128]; /* of the carrier that brings it its memory (filling.h) */
	char source[128];  /* the file that one reads, until all of it is there */
	char domain[128];  /* what xend knows of it (guest_record.h) */
	char log[128];     /* what it says (process_log.h) */
};
void guest_place_of(const struct xend *xend, const char *uuid, struct guest_place *place);
void guest_place_remove(const struct guest_place *place);

/*
 * Opens what the guest needs, starts its process and has it build the machine:
 * paused, or waiting for its state. After an error guest_end is to follow. `memory_user` may be NULL. Lets go
 * of the lock.
 */
int guest_start(struct domain *domain, enum guest_beginning beginning, struct guest_memory_user *memory_user,
	struct error *error);

/*
 * After something asked of the guest has failed with r: where its channel broke because its process has
 * ended, *error says so, and of what. Returns r, or -EIO then.
 */
int guest_explain(const struct domain *domain, int r, struct error *error);

/* Finds the process that an earlier xend has started for the domain. -ESRCH: it is no more. */
int guest_find(struct domain *domain, struct error *error);
/* Asks whoever has the run directory what it is: the reply to `status`. Without the lock. */
int guest_ask_status(
	const struct guest_place *place, int timeout_ms, struct message *reply, struct error *error);

/* Where a call came back with r because the process closed its end: says so. Returns r. What was asked of it
 * has not been done. */
int guest_explain_closed(const struct domain *domain, int r, struct error *error);

/* Whether its process, as it was recorded, has yet to end. */
bool guest_has_process(const struct domain *domain);

/* Whether it has a run directory, as each guest that nobody has ended. */
bool guest_has_place(const struct domain *domain);

/* Listens again to the one that was found. -ETIMEDOUT, -EAGAIN: it does not answer. Lets go of the lock. */
int guest_adopt(struct domain *domain, struct error *error);

/* Ends the process, takes taps and run directory away. Harmless when there is none. Lets go of the lock. */
void guest_end(struct domain *domain);

/* /dev/kvm, owned by the caller. */
int guest_open_kvm(struct error *error);

/* A new control connection, owned by the caller. */
int guest_connect(const struct domain *domain, struct error *error);

/* One request on a connection of its own; `request` is consumed, reply may be NULL. Lets go of the lock. */
int guest_call(
	struct domain *domain, json_t *request, struct message *reply, int timeout_ms, struct error *error);

/* A connection on which the guest is asked for its status, for channel_wait; -1: not possible just now. */
int guest_question(const struct domain *domain);

/* Verbs. All let go of the lock. */
int guest_pause(struct domain *domain, struct error *error);
int guest_power_button(struct domain *domain, struct error *error);

/* announce: the network is told where the guest is now. */
int guest_resume(struct domain *domain, bool announce, struct error *error);

/*
 * After a job that did not end in the guest's leaving: stops dirty tracking and
 * lets the guest run on, unless the user had paused it. Lets go of the lock.
 */
int guest_carry_on(struct domain *domain, struct error *error);

/* Asks every live guest for its state and CPU time, all at once; who does not answer soon keeps the old. Lets
 * go of the lock. */
void guest_refresh(struct xend *xend);
int guest_refresh_one(struct domain *domain, struct error *error);
