/*
 * Domains: the guests that xend knows, from the moment their name is taken
 * until nothing of them is left.
 *
 *	STARTING ──▶ LIVE ──▶ ENDING ──▶ GONE (no longer in the list)
 *	    └────────────────────▲
 *
 * A live domain may be busy with one job at a time (save, migration, its end).
 * All of this is called with xend's lock held.
 */
#pragma once

#include "config/guest_config.h"
#include "xend/xend.h"

#include <sys/types.h>

enum domain_phase { DOMAIN_STARTING, DOMAIN_LIVE, DOMAIN_ENDING, DOMAIN_GONE };

enum guest_state { GUEST_EMPTY, GUEST_INCOMING, GUEST_PAUSED, GUEST_RUNNING, GUEST_SHUTDOWN };
enum guest_reason { REASON_NONE, REASON_POWEROFF, REASON_REBOOT, REASON_CRASH, REASON_ERROR };

struct domain {
	struct xend *xend;
	struct domain *next;
	unsigned references;

	unsigned id;
	struct guest_config config; /* complete: has name and uuid */
	enum domain_phase phase;
	bool paused;       /* by the user */
	bool preserved;    /* has ended and is kept (on_crash='preserve') */
	bool again;        /* has ended, and it or its successor is to be started again (restart.h) */
	bool no_successor; /* somebody destroys it: it is not started again after all */
	bool in_trouble;   /* it could not be started again yet; why: detail */
	bool pausing;      /* until that is tried again, and the other hosts are asked before */
	bool arrived;      /* restored or received, not booted here */
	bool found;        /* of an earlier xend, and not seen alive by this one: others may have it by now */
	bool handed_over;  /* COMMIT is recorded: whether it is still ours, only the peer can say */
	long long left_ms; /* when it was complete elsewhere (lifecycle_leave), else 0; monotonic_ms() */
	struct doubt *doubt; /* the peer has not said so far (handover.h); NULL: no doubt */
	int64_t started_at;  /* seconds since 1970 */
	int64_t booted_ns;   /* the same as boottime_ns(): no clock that is set changes how long it runs */
	int64_t restart_wanted_ns; /* since when xm reboot wants it to be started again, 0: it does not */
	unsigned early_reboots;    /* one after the other, right after each start (supervise.h) */
	int64_t recorded_ns;       /* when it was last recorded, boottime_ns() */

	const char *busy; /* "being saved", NULL: no job */
	int cancel;       /* eventfd of its job, -1: none or past cancelling */

	/* what ferry-guest said last */
	enum guest_state state;
	enum guest_reason reason;
	char detail[512];
	char waits[256]; /* for its host: what it waits for; "": nothing */
	uint64_t cpu_time_ns;
	bool halted; /* every vCPU */

	/* the process; -1, NULL where there is none */
	pid_t pid;
	int process;             /* pidfd */
	struct process_log *log; /* what it says; NULL: nothing is heard */
	int ram;                 /* memfd */
	int events;              /* subscribed control connection; -1: a guest that has yet to be met */
	int question;            /* control connection with a question that it has not answered (silence.h) */
	bool being_met;          /* by a worker: it is listened to again (adopt.h) */
	long long silent_ms;     /* since when it does not answer, monotonic_ms(); 0: it does */
	long long ask_again_ms;  /* not before: it answered, and could not be met all the same */
	int unlocked[GUEST_DISKS_MAX]; /* disks as ferry-guest has them, still to be locked (guest_lock_disks)
					*/
	unsigned unlocked_count;
	uint32_t lockless;    /* bit per disk: there are no locks where it lies */
	unsigned vifs_online; /* for how many of its vifs the script has been run */
	bool dead;            /* the process has ended by itself */
	bool ended_before;    /* and an earlier xend has taken away what was left of it: on purpose */
	bool filling;         /* its memory is still coming (filling.h) */
	bool shared;          /* its memory is mapped from what clones share */
	struct shared_memory *shared_memory; /* that; NULL: none, or an earlier xend's */
	bool lost; /* its memory could not come: to start it afresh would take its disks past its checkpoint
		    */
	bool followed;      /* by a worker that knows when it is there */
	int filling_cancel; /* eventfd that ends its waiting for storage, -1: there is none */
	struct event *events_ready, *process_ended;
	json_t *warnings; /* sentences for whoever starts it, owned; NULL: none */
};

struct domain *domain_ref(struct domain *domain);
void domain_unref(struct domain *domain);

static inline void cleanup_domain(struct domain **domain)
{
	if (*domain)
		domain_unref(*domain);
}
#define _cleanup_domain_ __attribute__((cleanup(cleanup_domain)))

/* By name or ID; with a reference for the caller. The sentence is xm's "Domain 'x' does not exist.", and
 * where it went. */
int domain_find(struct xend *xend, const char *name_or_id, struct domain **domain, struct error *error);
struct domain *domain_by_uuid(struct xend *xend, const char *uuid); /* borrowed, NULL: none */
struct domain *domain_by_name(struct xend *xend, const char *name); /* the same */

/*
 * Checks that the host can take this guest now (admission.c): name and uuid are free, memory
 * suffices, no other guest here has its disks. `is_clone`: its memory is what clones share, which is counted
 * already.
 */
int domain_admit(struct xend *xend, const struct guest_config *config, bool is_clone, struct error *error);
/* The same for one that is in the list already, and has its name and uuid: memory and disks. */
int domain_admit_again(struct domain *domain, struct error *error);
/* The same, with a sentence added to the array for everything that stands against it. */
void domain_objections(struct xend *xend, const struct guest_config *config, json_t *objections);

/*
 * `shared`: of a clone, which needs little memory beside it; else NULL. Admits the configuration (which the
 * domain then owns: *config is all zero afterwards), gives it an ID and records it as STARTING. The caller
 * gets a reference.
 */
int domain_new(struct xend *xend, struct guest_config *config, struct shared_memory *shared,
	struct domain **domain, struct error *error);

/* The same for a guest found again: as the store had it. */
struct domain *domain_adopt(struct xend *xend, struct guest_config *config, unsigned id);

/*
 * It is saved, or runs on another host: while its process here ends, which takes as long as its memory takes
 * to be freed, nobody is shown it any more, unless that takes a minute.
 */
bool domain_has_left(const struct domain *domain);

/*
 * Waits until all that those held who have left by now is free: name, memory, disks. For whoever needs them
 * next, before it looks whether they are. Not longer than they are hidden. Lets go of the lock.
 */
void domain_await_leavers(struct xend *xend);

/* Records the domain as it is now: in the store, and beside the guest's process (guest_record.h). */
int domain_record(struct domain *domain, struct error *error);
/* In the store only, as domain_record does in a transaction: guest_record_write is to follow once that is
 * committed. */
int domain_store(struct domain *domain, struct error *error);
/* As the store has it, but for what is JSON. Strings are the domain's. */
struct stored_domain;
void domain_to_stored(const struct domain *domain, struct stored_domain *stored);

/* It starts now. */
void domain_note_start(struct domain *domain);

/*
 * xm reboot: once it has powered off it is started again. A guest that has not followed for
 * RESTART_WANTED_S never will, and powers off for good later on.
 */
#define RESTART_WANTED_S 600
void domain_want_restart(struct domain *domain, bool wanted);
bool domain_restart_is_wanted(const struct domain *domain);

/* Takes it out of the list, not out of the store: that of its uuid is another's by now. */
void domain_unlist(struct domain *domain);

/* Takes it out of the list and the store: from now on name, uuid and memory are free. */
void domain_forget(struct domain *domain);

/* Gives the domain another name, here and in the store. */
int domain_rename(struct domain *domain, const char *name, struct error *error);

/* Whether it is there to be asked: neither being started or ended, nor ended. */
int domain_check_lives(const struct domain *domain, struct error *error);
/* After a job that has failed: where that is because the guest has ended by itself, *error says so. */
void domain_explain_end(const struct domain *domain, const char *what, struct error *error);
/* Whether no job has it. */
int domain_check_free(const struct domain *domain, struct error *error);

/* Takes the domain for one job ("being saved"), which watches the eventfd cancel (-1: cannot be cancelled).
 */
int domain_begin_job(struct domain *domain, const char *what, int cancel, struct error *error);
void domain_end_job(struct domain *domain);

/* MiB that new guests may have now. */
int domain_memory_free(struct xend *xend, uint64_t *mib, struct error *error);

/* For the API (docs/internal/api.md) and for `xm list`'s first line. */
json_t *domain_describe(const struct domain *domain);
json_t *domain_describe_host(struct xend *xend);

/* What travels with a checkpoint or a migration, and back: the configuration goes through the same checks as
 * one from the API. */
json_t *domain_pack(const struct domain *domain);
/* Whether it had been told to reboot (domain_want_restart) and had not followed yet. */
bool domain_packed_restart(const json_t *json);
int domain_unpack(const json_t *json, struct guest_config *config, bool *paused, struct error *error);
