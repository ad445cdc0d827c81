/*
 * The jobs that move a guest: save, restore, migrate, receive. Each is called in
 * a worker, with the lock held, and reads from top to bottom; whatever happens,
 * the guest afterwards is here, there, or in a file, and in no two of them.
 */
#pragma once

#include "xend/clone.h"
#include "xend/domain.h"
#include "xend/relocation.h"
#include "xend/reply.h"

#include <netinet/in.h>

struct save_options {
	const char *file; /* absolute path */
	bool keep;        /* the guest goes on afterwards */
	bool live, force, compress;
};

/* Each of these answers its reply, as a job stream once something was begun. */
void job_save(struct domain *domain, const struct save_options *options, struct reply *reply);
struct restore_options {
	const char *file; /* absolute path */
	bool paused;
	bool eager;                 /* the guest runs once all of its memory is there and verified */
	const json_t *accept;       /* differences that are no reason to refuse it (objections.h), or NULL */
	struct clone_options clone; /* its name NULL: the guest itself */
};

void job_restore(struct xend *xend, const struct restore_options *options, struct reply *reply);

struct migrate_options {
	const char *host;
	unsigned port;
	bool live;
	unsigned rate_mbit;       /* 0: no limit */
	unsigned max_downtime_ms; /* 0: as configured */
	unsigned timeout_s;       /* from when the copying begins, 0: none */
	const char *on_stall;     /* "stop" or "cancel" */
	const char *compress;     /* "auto", "yes" or "no" */
	const json_t *accept;     /* differences that are no objection (objections.h), or NULL */
	bool detach;              /* the client's leaving ends it only before there is any progress */
};

void job_migrate(struct domain *domain, const struct migrate_options *options, struct reply *reply);
/* Whether the other host would take it, and how long that would take: xm migrate --dryrun. */
void job_forecast(struct domain *domain, const struct migrate_options *options, struct reply *reply);

/* Serves one connection to the relocation port. */
void job_receive(struct visitor *visitor);
