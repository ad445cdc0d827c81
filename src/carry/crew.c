#include "carry/crew.h"
#include "carry/clock.h"

#include <errno.h>
#include <malloc.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* Each thread finds out which one it is. */
static unsigned own_number(struct crew *crew)
{
	unsigned number = crew->ready++;

	crew_changed(crew);
	return number;
}

/* With the lock. */
static void end_for_all(struct crew *crew)
{
	eventfd_write(crew->stop, 1);
	crew_changed(crew);
}

static void *run(void *argument)
{
	struct crew *crew = argument;
	unsigned number;

	crew_lock(crew);
	number = own_number(crew);
	while (!crew->given[number].work && !crew->leaving)
		pthread_cond_wait(&crew->changed, &crew->lock);
	if (crew->given[number].work) {
		struct error error = {0};
		int r;

		crew_unlock(crew);
		r = crew->given[number].work(crew->given[number].context, &error);
		crew_lock(crew);
		crew->working--;
		if (r < 0 && !crew->failure.code && !crew->leaving)
			crew->failure = error;
		if (r < 0)
			end_for_all(crew);
		crew_changed(crew);
	}
	crew_unlock(crew);
	return NULL;
}

int crew_begin(struct crew *crew, unsigned count, struct error *error)
{
	pthread_condattr_t monotonic;
	int r = 0;

	if (count == 0)
		return 0;
	crew->stop = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (crew->stop < 0)
		return error_set(error, errno, "Unable to make an eventfd: %s.", strerror(errno));
	pthread_mutex_init(&crew->lock, NULL);
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&crew->changed, &monotonic);
	pthread_condattr_destroy(&monotonic);
	/* One heap for all threads: making another takes calls that the sandbox does not have. */
	mallopt(M_ARENA_MAX, 1);
	crew_lock(crew);
	while (r == 0 && crew->count < count) {
		r = pthread_create(&crew->threads[crew->count], NULL, run, crew);
		crew->count += r == 0;
	}
	while (crew->ready < crew->count)
		pthread_cond_wait(&crew->changed, &crew->lock);
	crew_unlock(crew);
	if (r != 0 && crew->count == 0) /* crew_end will not */
		close(crew->stop);
	return r ? error_set(error, r, "Unable to start a thread for a connection: %s.", strerror(r)) : 0;
}

void crew_give(struct crew *crew, unsigned thread, crew_work *work, void *context)
{
	crew_lock(crew);
	crew->given[thread].context = context;
	crew->given[thread].work = work;
	crew->working++;
	crew_changed(crew);
	crew_unlock(crew);
}

/* With the lock. */
static int judge(const struct crew *crew, struct error *error)
{
	return crew->failure.code ? error_set(error, crew->failure.code, "%s", crew->failure.text) : 0;
}

int crew_wait(struct crew *crew, struct error *error)
{
	int r;

	crew_lock(crew);
	while (crew->working && !crew->failure.code)
		pthread_cond_wait(&crew->changed, &crew->lock);
	r = judge(crew, error);
	crew_unlock(crew);
	return r;
}

int crew_failure(struct crew *crew, struct error *error)
{
	int r;

	if (!crew->count)
		return 0;
	crew_lock(crew);
	r = judge(crew, error);
	crew_unlock(crew);
	return r;
}

int crew_judge(struct crew *crew, int result, struct error *error)
{
	struct error failure = {0};

	if (result != -ECANCELED || crew_failure(crew, &failure) == 0)
		return result;
	return error_set(error, failure.code, "%s", failure.text);
}

void crew_stop(struct crew *crew)
{
	if (!crew->count)
		return;
	crew_lock(crew);
	crew->leaving = true;
	end_for_all(crew);
	while (crew->working)
		pthread_cond_wait(&crew->changed, &crew->lock);
	crew_unlock(crew);
}

void crew_end(struct crew *crew)
{
	if (!crew->count)
		return;
	crew_stop(crew);
	while (crew->count)
		pthread_join(crew->threads[--crew->count], NULL);
	close(crew->stop);
	pthread_cond_destroy(&crew->changed);
	pthread_mutex_destroy(&crew->lock);
}

void crew_lock(struct crew *crew)
{
	pthread_mutex_lock(&crew->lock);
}

void crew_unlock(struct crew *crew)
{
	pthread_mutex_unlock(&crew->lock);
}

bool crew_await(struct crew *crew, int64_t until)
{
	const struct timespec time = {.tv_sec = until / NS_PER_S, .tv_nsec = until % NS_PER_S};

	return pthread_cond_timedwait(&crew->changed, &crew->lock, &time) == 0;
}

void crew_changed(struct crew *crew)
{
	pthread_cond_broadcast(&crew->changed);
}

bool crew_leaving(const struct crew *crew)
{
	return crew->leaving || crew->failure.code;
}
