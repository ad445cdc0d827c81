#include "vmm/loop.h"
#include "base/cleanup.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#define BATCH 16

struct deferred {
	void (*handler)(void *context);
	void *context;
	struct deferred *next;
};

struct loop {
	int epoll, wake; /* wake: eventfd that ends epoll_wait */
	pthread_mutex_t lock;
	bool stopped;
	struct epoll_event batch[BATCH];
	int batch_at, batch_count; /* events of the batch not handled yet: batch_at … batch_count - 1 */
	bool waiting;              /* the main thread waits for events, without the lock */
	struct watch **removed;    /* removed by vCPU threads meanwhile: the batch may still name them */
	size_t removed_count;
	struct deferred *deferred, **deferred_end;
};

struct loop *loop_new(struct error *error)
{
	struct loop *loop = calloc(1, sizeof(*loop));
	struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};

	if (!loop) {
		error_set(error, ENOMEM, "Out of memory while starting the event loop.");
		return NULL;
	}
	loop->epoll = epoll_create1(EPOLL_CLOEXEC);
	loop->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	loop->deferred_end = &loop->deferred;
	pthread_mutex_init(&loop->lock, NULL);
	if (loop->epoll < 0 || loop->wake < 0 ||
		epoll_ctl(loop->epoll, EPOLL_CTL_ADD, loop->wake, &event) < 0) {
		error_set(error, errno, "Unable to start the event loop: %s.", strerror(errno));
		loop_free(loop);
		return NULL;
	}
	return loop;
}

void loop_free(struct loop *loop)
{
	if (!loop)
		return;
	while (loop->deferred) {
		struct deferred *first = loop->deferred;

		loop->deferred = first->next;
		free(first);
	}
	free(loop->removed);
	cleanup_close(&loop->epoll);
	cleanup_close(&loop->wake);
	pthread_mutex_destroy(&loop->lock);
	free(loop);
}

static int control(
	struct loop *loop, int operation, struct watch *watch, uint32_t events, struct error *error)
{
	struct epoll_event event = {.events = events, .data.ptr = watch};

	if (epoll_ctl(loop->epoll, operation, watch->fd, &event) < 0)
		return error_set(error, errno, "Unable to watch a descriptor: %s.", strerror(errno));
	return 0;
}

int loop_add(struct loop *loop, struct watch *watch, uint32_t events, struct error *error)
{
	return control(loop, EPOLL_CTL_ADD, watch, events, error);
}

int loop_modify(struct loop *loop, struct watch *watch, uint32_t events, struct error *error)
{
	return control(loop, EPOLL_CTL_MOD, watch, events, error);
}

static void forget(struct loop *loop, const struct watch *watch)
{
	for (int i = loop->batch_at; i < loop->batch_count; i++)
		if (loop->batch[i].data.ptr == watch)
			loop->batch[i].data.ptr = loop; /* nobody's any more */
}

void loop_remove(struct loop *loop, struct watch *watch)
{
	struct watch **more;

	epoll_ctl(loop->epoll, EPOLL_CTL_DEL, watch->fd, NULL);
	forget(loop, watch);
	if (!loop->waiting)
		return;
	more = realloc(loop->removed, (loop->removed_count + 1) * sizeof(struct watch *));
	if (!more)
		abort(); /* a few bytes: a process that cannot have them can do nothing else either */
	loop->removed = more;
	loop->removed[loop->removed_count++] = watch;
}

/* Those that are there now: what they defer in turn waits for the events that have come meanwhile. */
static void run_deferred(struct loop *loop)
{
	struct deferred **end = loop->deferred_end;

	for (bool more = loop->deferred; more;) {
		struct deferred *first = loop->deferred;

		more = &first->next != end;

		loop->deferred = first->next;
		if (!loop->deferred)
			loop->deferred_end = &loop->deferred;
		first->handler(first->context);
		free(first);
	}
}

/* What is left of it when the loop is stopped is handled when it runs again: an edge does not come twice. */
static void handle_batch(struct loop *loop)
{
	while (loop->batch_at < loop->batch_count && !loop->stopped) {
		struct epoll_event event = loop->batch[loop->batch_at++];
		struct watch *watch = event.data.ptr;
		uint64_t ignored;

		if (event.data.ptr == loop)
			continue;
		if (watch)
			watch->handler(watch->context, event.events);
		else if (read(loop->wake, &ignored, sizeof(ignored)) < 0)
			continue; /* another wake-up took it */
	}
	if (loop->batch_at == loop->batch_count)
		loop->batch_at = loop->batch_count = 0;
}

int loop_run(struct loop *loop, struct error *error)
{
	int r = 0;

	loop_lock(loop);
	handle_batch(loop);
	while (r == 0) {
		int count;

		run_deferred(loop);
		if (loop->stopped)
			break;
		loop->waiting = true;
		loop_unlock(loop);
		count = epoll_wait(loop->epoll, loop->batch, BATCH, -1);
		loop_lock(loop);
		loop->waiting = false;
		if (count < 0 && errno != EINTR)
			r = error_set(error, errno, "Unable to wait for events: %s.", strerror(errno));
		loop->batch_count = count > 0 ? count : 0;
		while (loop->removed_count)
			forget(loop, loop->removed[--loop->removed_count]);
		handle_batch(loop);
	}
	loop->stopped = false;
	loop_unlock(loop);
	return r;
}

static void wake(struct loop *loop)
{
	uint64_t one = 1;

	/* A full eventfd is awake already. */
	if (write(loop->wake, &one, sizeof(one)) < 0)
		return;
}

void loop_stop(struct loop *loop)
{
	loop->stopped = true;
	wake(loop);
}

void loop_lock(struct loop *loop)
{
	pthread_mutex_lock(&loop->lock);
}

void loop_unlock(struct loop *loop)
{
	pthread_mutex_unlock(&loop->lock);
}

void loop_wait(struct loop *loop, pthread_cond_t *condition)
{
	pthread_cond_wait(condition, &loop->lock);
}

void loop_wait_until(struct loop *loop, pthread_cond_t *condition, int64_t until)
{
	const struct timespec when = {.tv_sec = until / 1000000000, .tv_nsec = until % 1000000000};

	pthread_cond_clockwait(condition, &loop->lock, CLOCK_MONOTONIC, &when);
}

void loop_defer(struct loop *loop, void (*handler)(void *context), void *context)
{
	struct deferred *last = malloc(sizeof(*last));

	if (!last)
		abort(); /* 24 bytes: a process that cannot have them can do nothing else either */
	*last = (struct deferred){handler, context, NULL};
	*loop->deferred_end = last;
	loop->deferred_end = &last->next;
	wake(loop);
}
