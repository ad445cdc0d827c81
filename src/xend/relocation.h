/*
 * The relocation port (xend-relocation-server): each connection is a visitor, which a worker serves with a
 * carrier of its own.
 *
 * A visitor is a stranger until its carrier has told what it wants, which with TLS only a trusted host gets
 * to say. Strangers have places of their own, so that who connects and says nothing takes none from a guest
 * that arrives; when they run out, the one that has waited longest is closed.
 */
#pragma once

#include "xend/xend.h"

#define VISITOR_ADDRESS_SIZE 64

struct visitor {
	struct xend *xend;
	int socket;                         /* owned */
	int cancel;                         /* eventfd: ends the carrier's job; owned */
	bool known;                         /* no stranger any more */
	bool closed;                        /* told to leave */
	char address[VISITOR_ADDRESS_SIZE]; /* numeric */
	char ticket[37];                    /* of the guest that it brings; "": none yet */
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

/* The visitor has said what it wants: from now on it is not closed for others' sake. With the lock. */
void relocation_known(struct visitor *visitor);
