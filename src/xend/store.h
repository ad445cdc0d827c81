/*
 * What xend knows for certain: the guests, the hand-over tickets, the counter
 * of IDs, in SQLite.
 *
 * All of it survives xend, killed at any moment. Guests and IDs belong to one
 * boot of the host: what an earlier boot left is dropped when the store is
 * opened, and with them a source's tickets, so nothing waits for the disk for
 * their sake. A destination's tickets stay, because the source may ask about
 * one after this host was restarted: OWNED and REFUSED are on the disk before
 * anybody acts on them. What was RECEIVING or RECEIVED has ended with the power
 * and is refused either way.
 */
#pragma once

#include "base/error.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

struct store;

enum stored_phase {
	STORED_STARTING,   /* being created, received or restored: does not survive a restart of xend */
	STORED_LIVE,       /* the guest is ours and runs, or is paused, or has ended and is preserved */
	STORED_ENDING,     /* decided to be no more */
	STORED_RESTARTING, /* has ended, and is to be started again once nothing is left of it (restart.h) */
	STORED_PRESERVED,  /* has ended, and what is left of it is kept */
};

/* One guest as the store has it, and its own record (guest_record.c): what is added here is added there too.
 * Strings are borrowed. */
struct stored_domain {
	const char *uuid, *name;
	unsigned id;
	enum stored_phase phase;
	bool paused;               /* by the user */
	int64_t restart_wanted_ns; /* xm reboot: start it again once it has powered off (boottime_ns(), 0: no)
				    */
	int64_t started_at;        /* seconds since 1970 */
	int64_t booted_ns;         /* the same as boottime_ns() */
	unsigned early_reboots;    /* see supervise.h */
	const json_t *config;
	const json_t *places; /* of its disks (disks_places); NULL: not known */
	int64_t recorded_ns;  /* when, since the host's boot (CLOCK_BOOTTIME) */
};

/*
 * Tickets name one hand-over of one guest, on both sides.
 *
 *	source       COMMITTED → GONE (the guest is the peer's) or no row (it never became the peer's)
 *	destination  RECEIVING → RECEIVED → OWNED, or from either of the first two REFUSED, for ever
 */
enum ticket_state {
	TICKET_NONE,
	TICKET_COMMITTED,
	TICKET_GONE,
	TICKET_RECEIVING,
	TICKET_RECEIVED,
	TICKET_OWNED,
	TICKET_REFUSED
};

struct stored_ticket {
	const char *ticket, *uuid; /* of the hand-over, of the guest */
	enum ticket_state state;
	const char *host; /* of the peer, as it was named; "" at the destination, as all that follows */
	unsigned port;
	/* The peer as it was when it had received the guest; "": not known. See handover.h. */
	const char *address, *fingerprint, *records;
};

/* boot_id: this boot of the host (/proc/sys/kernel/random/boot_id). */
int store_open(struct store **store, const char *path, const char *boot_id, struct error *error);
void store_close(struct store *store);

/* Drawn when this store was made: another one, an empty one too, has another. */
const char *store_records(const struct store *store);

/* The next unused ID, never given before since the host's boot. */
int store_next_id(struct store *store, unsigned *id, struct error *error);

/* Adds the guest, or replaces what is known about the one of this uuid. */
int store_put_domain(struct store *store, const struct stored_domain *domain, struct error *error);
int store_drop_domain(struct store *store, const char *uuid, struct error *error);
/* Drops a guest of that name which has another uuid: one that is no more, and whose row could not be dropped.
 */
int store_drop_namesake(struct store *store, const char *name, const char *uuid, struct error *error);
/* Forgets them all: when the store turns out not to be the latest. */
int store_drop_domains(struct store *store, struct error *error);
/* No ID below this one is given any more. */
int store_reserve_ids(struct store *store, unsigned next_id, struct error *error);
int store_each_domain(struct store *store, int (*visit)(void *context, const struct stored_domain *domain),
	void *context, struct error *error);

int store_put_ticket(struct store *store, const struct stored_ticket *ticket, struct error *error);
int store_drop_ticket(struct store *store, const char *ticket, struct error *error);
int store_each_ticket(struct store *store, int (*visit)(void *context, const struct stored_ticket *ticket),
	void *context, struct error *error);
/*
 * Drops what is left of tickets whose guest is no longer here: it has gone for good. A guest of that uuid
 * that comes here afterwards must not be taken for it.
 */
int store_drop_departed(struct store *store, struct error *error);
/* Drops all that a guest has left from here by, or was to. */
int store_drop_departures(struct store *store, const char *uuid, struct error *error);
/* TICKET_NONE where there is none of that name. */
int store_ticket_state(
	struct store *store, const char *ticket, enum ticket_state *state, struct error *error);

/* A host whose key is trusted. Strings are borrowed. */
struct trusted_host {
	const char *host, *address; /* as the user named it; as it was reached then, "": unknown */
	const char *fingerprint;
	int64_t since; /* seconds since 1970; store_trust sets it itself */
};

/* Adds the host, or replaces what is known of one of this name: a key that it had before is forgotten. */
int store_trust(struct store *store, const struct trusted_host *host, struct error *error);
/* Its key, under all names that it has here; they are added to the array `names`. By the name, or the address
 * of what has no such name. It is no peer any more either. -ENOENT where it is not trusted. */
int store_distrust(struct store *store, const char *host, json_t *names, struct error *error);
int store_each_trusted(struct store *store, int (*visit)(void *context, const struct trusted_host *host),
	void *context, struct error *error);

/* Several changes as one: after store_commit all of them are there, or none; lasting: on the disk. */
int store_begin(struct store *store, bool lasting, struct error *error);
int store_commit(struct store *store, struct error *error);
void store_rollback(struct store *store);
/* Whether one is begun and not yet ended. */
bool store_is_busy(const struct store *store);

/* Files that must not outlive the job that writes them. */
int store_add_leftover(struct store *store, const char *path, struct error *error);
int store_drop_leftover(struct store *store, const char *path, struct error *error);
/* An array of their names: what a killed xend has left. */
json_t *store_leftovers(struct store *store);

enum save_fate {
	SAVE_ENDS_GUEST,  /* where the guest has ended it is in the file */
	SAVE_KEEPS_GUEST, /* the guest goes on either way, and the file may stay */
	SAVE_FAILED,      /* the guest goes on, and the file is to go, whatever becomes of the guest */
};

/* A file that has got its name while it is open whether the guest in it has ended. Strings are borrowed. */
struct stored_save {
	const char *uuid;       /* of the guest */
	const char *path;       /* of the file */
	const char *aside;      /* where that is which it replaces, "": nothing */
	uint64_t device, inode; /* of the file */
	uint64_t header;        /* digest of how it begins, which no other does; 0: not known */
	enum save_fate fate;
};

/* Adds it, or replaces what is known of the same; it is on the disk before this returns. */
int store_put_save(struct store *store, const struct stored_save *save, struct error *error);
/* The saves of this guest to this file become SAVE_FAILED. */
int store_fail_saves(struct store *store, const char *uuid, const char *path, struct error *error);
int store_drop_save(struct store *store, const char *uuid, uint64_t inode, struct error *error);
int store_each_save(struct store *store, int (*visit)(void *context, const struct stored_save *save),
	void *context, struct error *error);

/* Hosts that guests have gone to or come from, or may; the latest first. None is forgotten by itself, since a
 * guest may run there for years. */
/* By its address, where that is known (else ""), in place of what stands for it by its name. */
int store_put_peer(
	struct store *store, const char *host, const char *address, unsigned port, struct error *error);
int store_each_peer(struct store *store, int (*visit)(void *context, const char *host, unsigned port),
	void *context, struct error *error);

/* How a guest ended here (endings.h). Strings are borrowed. */
struct stored_ending {
	const char *name, *uuid;
	unsigned id;
	int64_t ended_at;   /* seconds since 1970; store_put_ending sets it itself */
	const char *reason; /* "poweroff", "crash" … */
	const char *exit;   /* of its process, where that ended */
	const char *detail; /* why */
	const char *then;   /* what was done about it: "destroy" … */
	const char *file;   /* that it was saved to */
	const char *console;
};

/* The latest `most` are kept, of each name one. */
int store_put_ending(
	struct store *store, const struct stored_ending *ending, unsigned most, struct error *error);
/* By name, or ID where no name is that. `found` is not called where there is none. */
int store_find_ending(struct store *store, const char *name_or_id,
	int (*found)(void *context, const struct stored_ending *ending), void *context, struct error *error);

/* Where the guest of this name went, and when (seconds since 1970; 0: no such guest left this host). */
int store_put_destination(struct store *store, const char *name, const char *host, struct error *error);
int store_destination(struct store *store, const char *name, char *host, size_t size, int64_t *went_at,
	struct error *error);
/* That guest is on this host again. */
int store_drop_destination(struct store *store, const char *name, struct error *error);

/* A migration from here, as moves.h has it. Strings are borrowed. */
struct stored_move {
	int64_t number; /* in the order in which they began */
	const char *name, *host;
	unsigned id, state;
	int64_t began_at, ended_at;
	bool returned;            /* the guest has been here again since */
	const char *result, *why; /* JSON and a sentence; "": none */
};

/* Adds it, or replaces what is known of the one of this number. */
int store_put_move(struct store *store, const struct stored_move *move, struct error *error);
/* Forgets those with lower numbers. */
int store_drop_moves(struct store *store, int64_t before, struct error *error);
/* In their order. */
int store_each_move(struct store *store, int (*visit)(void *context, const struct stored_move *move),
	void *context, struct error *error);
