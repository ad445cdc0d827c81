/*
 * The inside of the control socket (control.h): control.c has the connections, control_verbs.c what can be
 * asked on one. A verb may find its own connection closed when it returns, for what it does to the machine is
 * told to all who have asked for that: the connection stays valid until the loop turns.
 */
#pragma once

#include "base/channel.h"
#include "vmm/machine.h"

struct connection {
	struct watch watch; /* its descriptor is -1 once the connection is closed */
	struct control *control;
	bool subscribed;
	bool waiting; /* for the pause it asked for; its next request waits too */
	bool slows;   /* the guest is slowed for its sake */
	bool tracks;  /* the log of written pages is kept for it */
	bool ousted;  /* it was, until somebody else's began or it was turned off */
	struct connection *next;
};

struct control {
	struct machine *machine;
	struct watch listening;
	struct connection *connections;
	struct connection *closed; /* freed when whoever is at work with them is done */
	unsigned count;
};

/* A reply: its members, and descriptors that {"fd": N} in it names (borrowed: they stay the machine's). */
struct reply {
	json_t *body; /* owned */
	int fds[4];
	unsigned fd_count;
	bool later; /* it comes when the machine is quiet */
};

struct verb {
	const char *name;
	int (*function)(struct connection *connection, struct message *request, struct reply *reply,
		struct error *error);
	bool needs_machine;
	bool gives_state; /* the reply's first descriptor was made for it */
};

/* NULL: there is no such verb. */
const struct verb *control_find_verb(const char *name);

/* The members that tell the machine's state. */
void control_add_state(const struct machine *machine, json_t *to);
