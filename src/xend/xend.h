/*
 * The daemon: what all its parts share, and how they take turns.
 *
 * The main thread runs the event loop (libevent): API connections, relocation
 * connections, guests' events, ends of processes. It never waits for anybody.
 * Whatever has to wait (a guest's answer, a carrier, a script) is done by a
 * worker: a thread that lives as long as one request or one job and reads from
 * top to bottom.
 *
 * One lock guards all state. Workers run with the lock held and let go of it
 * only around calls that wait; a comment at each function that does so says
 * "lets go of the lock". The loop's callbacks take it for as long as they run.
 */
#pragma once

#include "base/error.h"
#include "config/xend_config.h"
#include "xend/paths.h"

#include <event2/event.h>
#include <jansson.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

struct domain;
struct end_watch;
struct move;
struct porch;
struct shared_memory;
struct store;
struct trust;
struct visitor;
struct xend;

struct post {
	STAILQ_ENTRY(post) next;
	void (*run)(void *argument);
	void *argument;
};

#define PROCESSOR_SOURCES 4u

/* What this host's processor can do, as ferry-guest told last (processor.h), and what that depends on. */
struct known_processor {
	json_t *answer; /* owned; NULL: not asked yet */
	struct processor_source {
		uint64_t inode;
		int64_t changed_s, changed_ns;
	} sources[PROCESSOR_SOURCES];
};

struct xend {
	struct paths paths;
	struct xend_config config;
	struct store *store;
	struct trust *trust; /* set once, before anybody looks */
	char self[37];       /* drawn at the start: who hears it in a question hears himself */
	struct event_base *base;

	pthread_mutex_t lock;
	pthread_cond_t changed;                /* a domain's state, a job's end, a worker's end */
	struct domain *domains;                /* in the order of their IDs */
	struct move *moves;                    /* migrations away from here, the latest first */
	struct shared_memory *shared_memories; /* of clones */
	struct known_processor processor;
	TAILQ_HEAD(, visitor) visitors; /* of the relocation port (relocation.h) */
	struct porch *porch;            /* where they wait; NULL: no relocation port */
	unsigned workers, carriers_started;
	unsigned requests;                   /* that workers are at (dispatch.c) */
	TAILQ_HEAD(, end_watch) end_watches; /* watch.h */
	unsigned watchers;                   /* these and streams */
	bool listening_for_silent;           /* silence.h */
	bool stopping;
	struct {
		bool tried;   /* once */
		bool awaited; /* its bridge was not there when the latest attempt began, which has not held */
		char failure[512]; /* of the latest attempt that has ended; "": it held, or there is none */
	} network;                 /* of the host (host_network.h) */
	int stop;                  /* eventfd: readable from when xend is to stop */

	pthread_mutex_t post_lock;
	STAILQ_HEAD(, post) posts;
	struct event *posted;
};

/* Makes event base, locks and queue; paths, config and store are the caller's to fill. */
int xend_init(struct xend *xend, struct error *error);
void xend_free(struct xend *xend);

void xend_lock(struct xend *xend);
void xend_unlock(struct xend *xend);

/* Lets go of the lock until something has changed, or for timeout_ms (-1: for ever). */
void xend_wait(struct xend *xend, int timeout_ms);
void xend_changed(struct xend *xend);

/* Has the loop's thread call run(argument), in the order of posting, without the lock. From any thread. */
void xend_post(struct xend *xend, void (*run)(void *argument), void *argument);

/* Starts a worker that calls run(argument) with the lock held. The caller holds the lock. Who starts workers
 * for others' sake bounds their number, so that there are always some for xend's own. */
int xend_worker(struct xend *xend, void (*run)(void *argument), void *argument, struct error *error);

long long monotonic_ms(void);
/* Since the host's boot, also while it slept. */
int64_t boottime_ns(void);
