/*
 * Threads that are there before the sandbox is entered, which has no call to start one, and wait for their
 * work; and how they end together: when one fails, or crew_stop is called, `stop` becomes readable, which
 * every wire that has it (wire.h) notices.
 *
 *	crew_begin(&crew, count, &error);		// before the sandbox
 *	crew_give(&crew, i, work, context);		// each thread works once
 *	crew_wait(&crew, &error);			// for all that were given work
 *	crew_end(&crew);
 *
 * What the threads and their owner share is guarded by `lock`, and changes are told by `changed`.
 */
#pragma once

#include "base/error.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#define CREW_MAX 8u

/* Returns 0, or a negative errno with the sentence of the whole crew's failure. */
typedef int crew_work(void *context, struct error *error);

struct crew {
	pthread_t threads[CREW_MAX];
	unsigned count;
	int stop; /* eventfd; owned */
	pthread_mutex_t lock;
	pthread_cond_t changed; /* broadcast; its clock is CLOCK_MONOTONIC */
	/* All below with the lock. */
	struct {
		crew_work *work; /* NULL: nothing yet */
		void *context;
	} given[CREW_MAX];
	unsigned ready, working;
	bool leaving;
	struct error failure; /* the first one; code 0: none */
};

/* Starts the threads (none: that costs nothing) and waits until they need no call that a sandbox would
 * refuse. A crew that was not begun is all zero. */
int crew_begin(struct crew *crew, unsigned count, struct error *error);
void crew_give(struct crew *crew, unsigned thread, crew_work *work, void *context);
/* Waits until all work is done, or one has failed. */
int crew_wait(struct crew *crew, struct error *error);
/* The first failure, 0 while there is none. */
int crew_failure(struct crew *crew, struct error *error);
/* What to make of a `result` of who works beside the threads: where it was made to give up (-ECANCELED)
 * because one of them failed, that failure. */
int crew_judge(struct crew *crew, int result, struct error *error);
/* Tells all to leave, and waits until none works any more. */
void crew_stop(struct crew *crew);
/* The same, and ends the threads. */
void crew_end(struct crew *crew);

void crew_lock(struct crew *crew);
void crew_unlock(struct crew *crew);
/* With the lock, which it lets go of: until something has changed, or it is `until` (monotonic ns; false). */
bool crew_await(struct crew *crew, int64_t until);
/* With the lock: something has changed. */
void crew_changed(struct crew *crew);
/* With the lock: whether a thread is to give up its work. */
bool crew_leaving(const struct crew *crew);
