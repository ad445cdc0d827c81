#include "xend/watch.h"
#include "base/cleanup.h"
#include "xend/http.h"

#include <errno.h>
#include <unistd.h>

/* A client that does not read: the guest's output is then left to the guest, which drops what is too much. */
#define BACKLOG_MAX 1048576
#define BACKLOG_LOOK_US 50000

int watch_begin(struct xend *xend, struct error *error)
{
	if (xend->watchers >= http_streams_max())
		return error_set(error, EUSERS, "%u clients are watching guests already; end some of them.",
			xend->watchers);
	xend->watchers++;
	return 0;
}

/* ---- a guest's end ---- */

struct end_watch {
	struct domain *domain; /* referenced */
	struct reply *reply;   /* referenced */
	TAILQ_ENTRY(end_watch) next;
};

void watch_for_end(struct domain *domain, struct reply *reply)
{
	struct xend *xend = domain->xend;
	struct end_watch *watch = malloc(sizeof(*watch));

	if (!watch) {
		reply_error(reply, &(struct error){.code = ENOMEM, .text = "Out of memory."});
		xend->watchers--;
		return;
	}
	*watch = (struct end_watch){.domain = domain_ref(domain), .reply = reply_ref(reply)};
	TAILQ_INSERT_TAIL(&xend->end_watches, watch, next);
	/* A stream, so that a client that leaves is noticed. */
	reply_stream(reply, "application/json");
	watch_look(xend);
}

void watch_look(struct xend *xend)
{
	struct end_watch *watch = TAILQ_FIRST(&xend->end_watches), *next;

	for (; watch; watch = next) {
		bool over = watch->domain->phase == DOMAIN_GONE || watch->domain->preserved;

		next = TAILQ_NEXT(watch, next);
		if (!over && !reply_gone(watch->reply) && !xend->stopping)
			continue;
		if (over) {
			reply_line(watch->reply, json_object());
			reply_end(watch->reply);
		} else {
			struct error error;

			error_set(&error, ECANCELED,
				"xend is being stopped, and domain '%s' has not ended yet.",
				watch->domain->config.name);
			reply_error(watch->reply, &error);
		}
		TAILQ_REMOVE(&xend->end_watches, watch, next);
		xend->watchers--;
		reply_unref(watch->reply);
		domain_unref(watch->domain);
		free(watch);
	}
}

/* ---- a stream ---- */

/* The loop's thread only. */
struct stream_watch {
	struct xend *xend;
	struct reply *reply; /* referenced */
	int stream;          /* owned */
	struct event *readable, *left, *stopped, *later;
};

static void leave(struct stream_watch *watch)
{
	struct event *const events[] = {watch->readable, watch->left, watch->stopped, watch->later};
	struct xend *xend = watch->xend;

	for (size_t i = 0; i < ARRAY_SIZE(events); i++)
		if (events[i])
			event_free(events[i]);
	close(watch->stream);
	reply_unref(watch->reply);
	free(watch);
	xend_lock(xend);
	xend->watchers--;
	xend_unlock(xend);
}

static void end(struct stream_watch *watch)
{
	reply_end(watch->reply);
	leave(watch);
}

static void wait_for_more(struct stream_watch *watch)
{
	const struct timeval pause = {.tv_usec = BACKLOG_LOOK_US};

	if (reply_backlog(watch->reply) > BACKLOG_MAX)
		event_add(watch->later, &pause);
	else
		event_add(watch->readable, NULL);
}

static void pass_on(evutil_socket_t fd, short what, void *argument)
{
	struct stream_watch *watch = argument;
	char bytes[16384];
	ssize_t size = read((int)fd, bytes, sizeof(bytes));

	(void)what;
	if (size <= 0) {
		end(watch);
		return;
	}
	reply_bytes(watch->reply, bytes, (size_t)size);
	wait_for_more(watch);
}

static void look_again(evutil_socket_t fd, short what, void *argument)
{
	(void)fd;
	(void)what;
	wait_for_more(argument);
}

static void over(evutil_socket_t fd, short what, void *argument)
{
	(void)fd;
	(void)what;
	leave(argument);
}

static void begin(void *argument)
{
	struct stream_watch *watch = argument;
	struct event_base *base = watch->xend->base;

	watch->readable = event_new(base, watch->stream, EV_READ, pass_on, watch);
	watch->left = event_new(base, reply_cancel_fd(watch->reply), EV_READ, over, watch);
	watch->stopped = event_new(base, watch->xend->stop, EV_READ, over, watch);
	watch->later = evtimer_new(base, look_again, watch);
	if (!watch->readable || !watch->left || !watch->stopped || !watch->later ||
		event_add(watch->left, NULL) < 0 || event_add(watch->stopped, NULL) < 0 ||
		event_add(watch->readable, NULL) < 0)
		end(watch);
}

void watch_stream(struct xend *xend, int stream, struct reply *reply)
{
	struct stream_watch *watch = malloc(sizeof(*watch));

	if (!watch) {
		close(stream);
		xend->watchers--;
		reply_error(reply, &(struct error){.code = ENOMEM, .text = "Out of memory."});
		return;
	}
	*watch = (struct stream_watch){.xend = xend, .stream = stream, .reply = reply_ref(reply)};
	reply_stream(reply, "application/octet-stream");
	xend_post(xend, begin, watch);
}
