/*
 * Who owns a guest that is on its way to another host: two-phase commit with
 * presumed abort, recorded on both sides (store.h, tickets).
 *
 * The source may run the guest until it has recorded COMMITTED; from then on only
 * if the destination has refused the ticket. The destination
 * may run it once it has recorded OWNED, which it can only from RECEIVED. A
 * destination that is asked about a ticket that it is receiving refuses it for ever.
 *
 * Only the host that received the guest can say what became of it: the one with the
 * key that it showed then, whatever the name leads to now. A ticket is on that host's
 * disk before it says RECEIVED, so that one that knows nothing of it ("unknown") is
 * another host, or has lost its records, and may run the guest all the same: this
 * settles nothing, and is not recorded there, or the next answer would be "refused".
 * The same goes for whoever tells that its records are others than they were.
 *
 * No process killed at any moment changes that: what is not recorded has not
 * happened, and each side asks the other about what is open. A power cut ends
 * the guest of its side, so of the records only OWNED must outlast one: else the
 * source would run again a guest that has run at the destination.
 *
 * All functions are called with the lock held.
 */
#pragma once

#include "base/address.h"
#include "base/identity.h"
#include "xend/domain.h"

/* The destination of a hand-over. */
struct handover_peer {
	char host[256]; /* as the user named it */
	unsigned port;
	/* As it was when it had received the guest; "": not known, since it or xend was an older Ferry then
	 */
	char address[ADDRESS_SIZE];         /* numeric */
	char fingerprint[FINGERPRINT_SIZE]; /* of its key; "" in clear text as well */
	char records[37];                   /* what identifies its store (store_records) */
};

/* The source's point of no return. */
int handover_commit(
	struct domain *domain, const char *ticket, const struct handover_peer *peer, struct error *error);
/* The destination owns the guest: this one leaves (lifecycle_leave). Lets go of the lock. */
void handover_gone(struct domain *domain, const char *ticket);
/* The destination will never run it: it is ours again, and runs. Lets go of the lock. */
void handover_back(struct domain *domain, const char *ticket);

/* What is known of a hand-over that only the destination can settle, while it does not answer. */
struct doubt {
	const struct handover_peer *peer;
	int64_t since, asked_at; /* seconds since 1970 */
	unsigned asked;          /* how often, in vain */
	char answer[512];        /* what came of it the last time */
	bool ask_now;            /* somebody wants to know: do not wait for the next turn */
	enum { DOUBT_ASK, DOUBT_KEEP, DOUBT_FORGET } decision; /* a person's, for when no answer will come */
};

/*
 * Asks the destination until it answers, then does one of the two above.
 * HANDOVER_OPEN: xend is stopping, and the next xend will ask. Lets go of the lock.
 */
enum handover_end { HANDOVER_GONE, HANDOVER_BACK, HANDOVER_OPEN };
enum handover_end handover_settle(
	struct domain *domain, const char *ticket, const struct handover_peer *peer);

/*
 * One sentence for `xm list`, or several for `xm migrate --resolve`, after asking
 * once more (lets go of the lock then).
 */
void handover_doubt_sentence(const struct domain *domain, char *text, size_t size);
json_t *handover_explain(struct domain *domain);

/*
 * A person decides that no answer will come: keep the guest here, or forget it. The
 * destination is asked a last time, and its answer, if it gives one, counts more
 * (-EALREADY). -EINVAL where nothing is in doubt. Lets go of the lock.
 */
int handover_force(struct domain *domain, bool keep, struct error *error);

/* At xend's start: settles what an earlier xend has left open, each in a worker. An error: what is open
 * cannot be known, and no guest may be let run. */
int handover_resume(struct xend *xend, struct error *error);

/* The destination's records. A ticket is taken once, and changes only as above. */
int handover_receiving(struct xend *xend, const char *ticket, const char *uuid, struct error *error);
int handover_received(struct xend *xend, const char *ticket, const char *uuid, struct error *error);
/* RECEIVED → OWNED, and the domain → LIVE, as one change. -EALREADY: it was refused meanwhile. */
int handover_own(struct domain *domain, const char *ticket, struct error *error);
/* Unless it is OWNED. */
void handover_refuse(struct xend *xend, const char *ticket, const char *uuid);
/* What to answer a source that asks: "owned", "refused" or, where this store has no such ticket, "unknown";
 * never leaves a ticket open. */
const char *handover_answer(struct xend *xend, const char *ticket, struct error *error);
