/*
 * Calls to storage that may not answer: the server of a file system on the network is away, and whoever
 * opens, renames or closes a file there waits until it is back. An errand is such a call made by a worker,
 * without the lock; the job waits for it as long as is reasonable and then goes on without it.
 *
 *	static const struct errand opening = {.run = open_it, .late = close_it};
 *	r = errand_run(xend, &opening, &place, cancel, &error);	// place: a pointer to what is allocated
 *	if (!place)	// left alone: late() frees it some day
 */
#pragma once

#include "xend/xend.h"

struct errand {
	int (*run)(void *context, struct error *error); /* without the lock */
	void (*late)(
		void *context); /* the same, after a run() that nobody waited for to its end; frees context */
	unsigned patience_ms;   /* 0: as xend's storage-timeout says */
};

/*
 * Returns what run() does. -ETIMEDOUT, and -ECANCELED when `cancel` (an eventfd; -1: nothing cancels) becomes
 * readable or xend stops meanwhile, leave the context to the errand: *context is NULL then. Lets go of the
 * lock.
 */
int errand_run(
	struct xend *xend, const struct errand *errand, void *context, int cancel, struct error *error);
