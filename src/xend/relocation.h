/*
 * The relocation port (xend-relocation-server): each connection is a visitor, which a worker serves with a
 * carrier of its own.
 *
 * A thread of its own, which does not need xend's lock for that, accepts them and lets in whom the door lets
 * in (door.h); so whatever strangers do there, the API is answered meanwhile. Who has been let in stays a
 * stranger until its carrier has told what it wants, which with TLS only a trusted host gets to say. When too
 * many are just being heard, the one that has taken longest is closed.
 */
#pragma once

#include "xend/door.h"
#include "xend/xend.h"

struct visitor {
	struct xend *xend;
	int socket;  /* owned */
	int cancel;  /* eventfd: ends the carrier's job; owned */
	bool known;  /* no stranger any more */
	bool closed; /* told to leave */
	enum door_class class;
	struct door_address from;
	char address[DOOR_TEXT_SIZE]; /* numeric */
	char ticket[37];              /* of the guest that it brings; "": none yet */
	int joins; /* where its carrier is handed its further connections, owned; -1: none can come */
	TAILQ_ENTRY(visitor) next; /* the oldest first */
};

int relocation_start(struct xend *xend, struct error *error);

/* A way for the visitor's carrier to be handed further connections: its end in *theirs, which is the
 * caller's. */
int relocation_expect_joins(struct visitor *visitor, int *theirs, struct error *error);
/* Another visitor is a further connection, of this number, of the one that brings a guest by this ticket: its
 * socket is handed over. With the lock. */
int relocation_join(const struct visitor *visitor, const char *ticket, int stream, struct error *error);

/* The visitor has said what it wants and may: from now on it is not closed for others' sake, and its address
 * is familiar. With the lock. */
void relocation_known(struct visitor *visitor);
