/* The guest's console over the API: its output as a stream, its input as it comes (guest-control.md,
 * `console`). */
#include "xend/api.h"
#include "base/cleanup.h"
#include "xend/guest.h"
#include "xend/watch.h"

#include <errno.h>
#include <linux/sockios.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#define INPUT_MS 5000

/* Attaches a new stream to the guest's console. Returns our end. Lets go of the lock. */
static int attach(struct domain *domain, bool history, struct error *error)
{
	_cleanup_json_ json_t *request =
		json_pack("{s:s, s:{s:i}, s:b}", "do", "console", "stream", "fd", 0, "history", history);
	_cleanup_close_ int control = guest_connect(domain, error), ours = -1, theirs = -1;
	int pair[2], r;

	if (control < 0)
		return control;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
		return error_set(error, errno, "Unable to make a console stream: %s.", strerror(errno));
	ours = pair[0];
	theirs = pair[1];
	xend_unlock(domain->xend);
	r = channel_call(control, request, &theirs, 1, NULL, GUEST_ANSWER_MS, error);
	xend_lock(domain->xend);
	return r < 0 ? guest_explain_closed(domain, r, error) : take_fd(&ours);
}

static struct domain *find(struct call *call)
{
	struct domain *domain = NULL;
	struct error error;

	if (domain_find(call->xend, call->domain, &domain, &error) >= 0)
		return domain;
	reply_error(call->reply, &error);
	return NULL;
}

void console_stream(struct call *call)
{
	_cleanup_domain_ struct domain *domain = find(call);
	_cleanup_close_ int stream = -1;
	struct error error;

	if (!domain)
		return;
	if (watch_begin(call->xend, &error) < 0) {
		reply_error(call->reply, &error);
		return;
	}
	stream = attach(domain, call->history, &error);
	if (stream < 0) {
		call->xend->watchers--;
		reply_error(call->reply, &error);
		return;
	}
	watch_stream(call->xend, take_fd(&stream), call->reply);
}

/* How much of what we have sent is still unread: unix(7), SIOCOUTQ. */
static bool all_read(int stream)
{
	int unread = 0;

	return ioctl(stream, SIOCOUTQ, &unread) == 0 && unread == 0;
}

/* Without the lock. Ends when the guest has read everything. */
static int put_in(int stream, const char *bytes, size_t size, struct error *error)
{
	long long deadline = monotonic_ms() + INPUT_MS, left;
	char output[4096];

	while ((left = deadline - monotonic_ms()) > 0) {
		struct pollfd ready = {.fd = stream, .events = (short)(POLLIN | (size ? POLLOUT : 0))};
		ssize_t n;

		if (!size && all_read(stream))
			return 0;
		/* Nothing wakes us when the last byte is read: look again soon. */
		if (poll(&ready, 1, size || left < 5 ? (int)left : 5) < 0 && errno != EINTR)
			break;
		if (ready.revents & POLLOUT && size) {
			n = send(stream, bytes, size, MSG_NOSIGNAL | MSG_DONTWAIT);
			if (n < 0 && errno != EAGAIN)
				break;
			bytes += n > 0 ? n : 0;
			size -= n > 0 ? (size_t)n : 0;
		}
		/* The guest's output comes here as well; it is for those who watch. */
		if (ready.revents & (POLLIN | POLLHUP) &&
			recv(stream, output, sizeof(output), MSG_DONTWAIT) == 0)
			return error_set(error, EIO, "The guest has closed its console.");
	}
	return error_set(error, ETIMEDOUT, "The guest does not read its console.");
}

void console_input(struct call *call)
{
	_cleanup_domain_ struct domain *domain = find(call);
	_cleanup_close_ int stream = -1;
	struct error error;
	int r = 0;

	if (!domain)
		return;
	if (call->size) {
		r = stream = attach(domain, false, &error);
		if (r >= 0) {
			xend_unlock(call->xend);
			r = put_in(stream, call->bytes, call->size, &error);
			xend_lock(call->xend);
		}
	}
	if (r < 0)
		reply_error(call->reply, &error);
	else
		reply_json(call->reply, 200, json_object());
}
