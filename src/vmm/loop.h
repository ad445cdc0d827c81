/*
 * The event loop of ferry-guest, and the machine lock.
 *
 * Handlers run one at a time on the main thread with the machine lock held; a
 * vCPU thread takes the same lock around the exits it handles, so device code is
 * single-threaded wherever it runs. A watch is embedded in its owner:
 *
 *	device->tap = (struct watch){.fd = fd, .handler = tap_ready, .context = device};
 *	loop_add(loop, &device->tap, EPOLLIN, &error);
 *
 * A handler may remove any watch, its own too; a removed watch's handler is not
 * called again.
 */
#pragma once

#include "base/error.h"

#include <pthread.h>
#include <stdint.h>
#include <sys/epoll.h>

struct loop;

struct watch {
	int fd; /* stays the owner's; close it after loop_remove */
	void (*handler)(void *context, uint32_t events);
	void *context;
};

struct loop *loop_new(struct error *error); /* NULL with a sentence on failure */
void loop_free(struct loop *loop);
int loop_add(struct loop *loop, struct watch *watch, uint32_t events, struct error *error);
int loop_modify(struct loop *loop, struct watch *watch, uint32_t events, struct error *error);
void loop_remove(struct loop *loop, struct watch *watch);

/* Handles events until loop_stop (callable from handlers and from vCPU threads under the lock). */
int loop_run(struct loop *loop, struct error *error);
void loop_stop(struct loop *loop);

void loop_lock(struct loop *loop);
void loop_unlock(struct loop *loop);

/* Waits for a condition that is signalled under the machine lock; the lock is free meanwhile. For vCPU
 * threads. */
void loop_wait(struct loop *loop, pthread_cond_t *condition);
/* The same, at most until then (monotonic ns). */
void loop_wait_until(struct loop *loop, pthread_cond_t *condition, int64_t until);

/*
 * Calls handler once on the main thread, soon, with the lock held. For vCPU threads that must
 * hand work over (state events). Safe from any thread under the lock.
 */
void loop_defer(struct loop *loop, void (*handler)(void *context), void *context);
