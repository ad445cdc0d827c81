#include "xend/xend.h"
#include "xend/moves.h"
#include "xend/uuid.h"
#include "xend/watch.h"

#include <errno.h>
#include <event2/thread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#define WORKER_STACK 262144

struct worker {
	struct xend *xend;
	void (*run)(void *argument);
	void *argument;
};

static void run_posts(evutil_socket_t fd, short what, void *argument)
{
	struct xend *xend = argument;

	(void)fd;
	(void)what;
	for (;;) {
		struct post *post;

		pthread_mutex_lock(&xend->post_lock);
		post = STAILQ_FIRST(&xend->posts);
		if (post)
			STAILQ_REMOVE_HEAD(&xend->posts, next);
		pthread_mutex_unlock(&xend->post_lock);
		if (!post)
			return;
		post->run(post->argument);
		free(post);
	}
}

int xend_init(struct xend *xend, struct error *error)
{
	pthread_condattr_t monotonic;

	STAILQ_INIT(&xend->posts);
	TAILQ_INIT(&xend->visitors);
	TAILQ_INIT(&xend->end_watches);
	pthread_mutex_init(&xend->lock, NULL);
	pthread_mutex_init(&xend->post_lock, NULL);
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&xend->changed, &monotonic);
	pthread_condattr_destroy(&monotonic);
	xend->stop = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (xend->stop < 0)
		return error_set(error, errno, "Unable to make an eventfd: %s.", strerror(errno));
	if (evthread_use_pthreads() < 0 || !(xend->base = event_base_new()) ||
		!(xend->posted = event_new(xend->base, -1, EV_PERSIST, run_posts, xend)))
		return error_set(error, ENOMEM, "Unable to make xend's event loop.");
	return uuid_draw(xend->self, error);
}

void xend_free(struct xend *xend)
{
	run_posts(-1, 0, xend);
	if (xend->posted)
		event_free(xend->posted);
	if (xend->base)
		event_base_free(xend->base);
	moves_free(xend);
	json_decref(xend->processor.answer);
	close(xend->stop);
	pthread_mutex_destroy(&xend->lock);
	pthread_mutex_destroy(&xend->post_lock);
	pthread_cond_destroy(&xend->changed);
}

void xend_lock(struct xend *xend)
{
	pthread_mutex_lock(&xend->lock);
}

void xend_unlock(struct xend *xend)
{
	pthread_mutex_unlock(&xend->lock);
}

void xend_wait(struct xend *xend, int timeout_ms)
{
	struct timespec until;

	if (timeout_ms < 0) {
		pthread_cond_wait(&xend->changed, &xend->lock);
		return;
	}
	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += timeout_ms / 1000;
	until.tv_nsec += timeout_ms % 1000 * 1000000L;
	if (until.tv_nsec >= 1000000000L) {
		until.tv_sec++;
		until.tv_nsec -= 1000000000L;
	}
	pthread_cond_timedwait(&xend->changed, &xend->lock, &until);
}

void xend_changed(struct xend *xend)
{
	pthread_cond_broadcast(&xend->changed);
	watch_look(xend);
}

void xend_post(struct xend *xend, void (*run)(void *argument), void *argument)
{
	struct post *post = malloc(sizeof(*post));

	if (!post)
		abort(); /* a lost post would leave a client hanging for ever; the guests outlive xend */
	*post = (struct post){.run = run, .argument = argument};
	pthread_mutex_lock(&xend->post_lock);
	STAILQ_INSERT_TAIL(&xend->posts, post, next);
	pthread_mutex_unlock(&xend->post_lock);
	event_active(xend->posted, EV_TIMEOUT, 0);
}

static void *worker_main(void *argument)
{
	struct worker *worker = argument;
	struct xend *xend = worker->xend;

	xend_lock(xend);
	worker->run(worker->argument);
	xend->workers--;
	xend_changed(xend);
	xend_unlock(xend);
	free(worker);
	return NULL;
}

int xend_worker(struct xend *xend, void (*run)(void *argument), void *argument, struct error *error)
{
	struct worker *worker = malloc(sizeof(*worker));
	pthread_attr_t attributes;
	pthread_t thread;
	int r;

	if (!worker)
		return error_set(error, ENOMEM, "Out of memory.");
	*worker = (struct worker){xend, run, argument};
	pthread_attr_init(&attributes);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	pthread_attr_setstacksize(&attributes, WORKER_STACK);
	r = pthread_create(&thread, &attributes, worker_main, worker);
	pthread_attr_destroy(&attributes);
	if (r) {
		free(worker);
		return error_set(error, r, "Unable to start a thread: %s.", strerror(r));
	}
	xend->workers++;
	return 0;
}

long long monotonic_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

int64_t boottime_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_BOOTTIME, &now);
	return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}
