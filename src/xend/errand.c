#include "xend/errand.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>

/* A look counts for no more than this: while the whole host stood still, nobody could answer. */
#define LOOK_MS 200

/* Threads that wait for storage, which may never answer. */
#define GOING_MAX 256u

struct going {
	struct xend *xend;
	struct errand errand;
	void *context;
	struct error error;
	int result;
	bool done, left;
};

static unsigned going_count; /* with the lock */

static void go(void *argument)
{
	struct going *going = argument;
	struct xend *xend = going->xend;

	xend_unlock(xend);
	going->result = going->errand.run(going->context, &going->error);
	xend_lock(xend);
	going->done = true;
	if (!going->left) {
		going_count--;
		xend_changed(xend);
		return;
	}
	xend_unlock(xend);
	going->errand.late(going->context);
	xend_lock(xend);
	going_count--;
	free(going);
}

/* Whether it is done; or why it is not waited for any longer. */
static int wait_for(struct going *going, int cancel, struct error *error)
{
	struct xend *xend = going->xend;
	long long patience = going->errand.patience_ms ? going->errand.patience_ms
						       : (long long)xend->config.storage_timeout * 1000;
	long long left = patience, before = monotonic_ms();

	while (!going->done) {
		struct pollfd cancelled = {.fd = cancel, .events = POLLIN};
		long long now;

		if (cancel >= 0 && xend->stopping)
			return error_set(error, ECANCELED, "xend is being stopped.");
		if (poll(&cancelled, 1, 0) > 0)
			return error_set(error, ECANCELED, "Cancelled.");
		if (patience && left <= 0)
			return error_set(
				error, ETIMEDOUT, "its storage has not answered for %lld s", patience / 1000);
		xend_wait(xend, LOOK_MS);
		now = monotonic_ms();
		left -= now - before < LOOK_MS ? now - before : LOOK_MS;
		before = now;
	}
	return 0;
}

int errand_run(struct xend *xend, const struct errand *errand, void *context, int cancel, struct error *error)
{
	void **place = context;
	struct going *going = malloc(sizeof(*going));
	int r;

	if (going_count >= GOING_MAX) {
		free(going);
		return error_set(error, EUSERS,
			"%u calls to storage have not been answered yet, and no more are made meanwhile",
			going_count);
	}
	if (!going)
		return error_set(error, ENOMEM, "Out of memory.");
	*going = (struct going){.xend = xend, .errand = *errand, .context = *place};
	r = xend_worker(xend, go, going, error);
	if (r < 0) {
		free(going);
		return r;
	}
	going_count++;
	r = wait_for(going, cancel, error);
	if (r < 0) {
		going->left = true;
		*place = NULL;
		return r;
	}
	r = going->result;
	if (r < 0)
		*error = going->error;
	free(going);
	return r;
}
