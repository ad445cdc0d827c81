/*
 * The other hosts: those that this one has relocated guests with, or was told to trust, are
 * remembered, and asked before a guest is started whether they have it. No lock of a block
 * device crosses hosts, so this is what keeps a guest from being started twice.
 *
 * It is advice, not proof: a host that cannot be reached within WHO_HAS_REACH_MS, or
 * that was reached and does not answer within WHO_HAS_ANSWER_MS, is logged and counts
 * as having nothing; whoever starts the guest is told (domain->warnings). All known hosts
 * are asked, some at a time. Two hosts that start one guest at the same moment both hear of
 * the other, and both refuse; who is to start it again by itself tries again, and then one of them does.
 *
 * All functions are called with the lock held.
 */
#pragma once

#include "xend/domain.h"

#define WHO_HAS_REACH_MS 2000
#define WHO_HAS_ANSWER_MS 8000

/* A guest has gone to this host, or come from it, or may. It is known by its address where that is known
 * (""), so that it is asked once, and without DNS. */
void peers_remember(struct xend *xend, const char *host, const char *address, unsigned port);
/* The same for the other end of a connection, whose xend listens on `port`. */
void peers_remember_socket(struct xend *xend, int socket, unsigned port);

/* -EBUSY with a sentence where another host has the guest, or a disk of it; -EALREADY where the guest runs
 * there. The domain is enlisted already. Lets go of the lock. */
int peers_ask(struct domain *domain, struct error *error);

/* What to answer a peer's question; a new object. Lets go of the lock. */
json_t *peers_answer(struct xend *xend, const json_t *query);

/* One question to one host; `line`, where it is not NULL, is how the line to it was found
 * (docs/internal/carrier-jobs.md, `query`); the caller's. Lets go of the lock. `query` is consumed; *reply is
 * the caller's. */
int peers_query(struct xend *xend, const char *host, unsigned port, json_t *query, int cancel, json_t **reply,
	json_t **line, struct error *error);
