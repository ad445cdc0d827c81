#include "xend/dial.h"
#include "base/cleanup.h"
#include "base/log.h"

#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#define DIAL_MAX 8
#define DIAL_MS 5000

struct dialled {
	int sockets[DIAL_MAX];
	unsigned count;
};

static void hang_up(struct dialled *dialled)
{
	while (dialled->count)
		close(dialled->sockets[--dialled->count]);
}

/* Whether one that was begun is made, or cannot be. */
static int finish(int fd, const struct carrier *carrier, long long end)
{
	struct pollfd ready[] = {{.fd = fd, .events = POLLOUT}, {.fd = carrier->cancel, .events = POLLIN},
		{.fd = carrier->xend->stop, .events = POLLIN}};
	int code = 0, n;
	socklen_t size = sizeof(code);

	do {
		long long left = end - monotonic_ms();

		n = poll(ready, ARRAY_SIZE(ready), left > 0 ? (int)left : 0);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	if (!ready[0].revents)
		return n ? -ECANCELED : -ETIMEDOUT;
	if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &code, &size) < 0)
		return -errno;
	return -code;
}

/* All of them are begun before the first is waited for. */
static int dial_address(struct dialled *dialled, const struct carrier *carrier,
	const struct addrinfo *address, unsigned count, long long end)
{
	int r = 0;

	while (r == 0 && dialled->count < count) {
		int fd = socket(address->ai_family, address->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK,
			address->ai_protocol);

		if (fd < 0)
			return -errno;
		dialled->sockets[dialled->count++] = fd;
		if (connect(fd, address->ai_addr, address->ai_addrlen) < 0 && errno != EINPROGRESS)
			r = -errno;
	}
	for (unsigned i = 0; r == 0 && i < count; i++)
		r = finish(dialled->sockets[i], carrier, end);
	return r;
}

/* Without the lock. */
static int dial(struct dialled *dialled, const struct carrier *carrier, const char *host, unsigned port,
	unsigned count)
{
	const struct addrinfo hints = {
		.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_ADDRCONFIG};
	struct addrinfo *all = NULL;
	long long end = monotonic_ms() + DIAL_MS;
	char service[16];
	int r = -EHOSTUNREACH;

	snprintf(service, sizeof(service), "%u", port);
	if (getaddrinfo(host, service, &hints, &all) != 0)
		return r;
	for (const struct addrinfo *one = all; one && r < 0 && r != -ECANCELED; one = one->ai_next) {
		hang_up(dialled);
		r = dial_address(dialled, carrier, one, count, end);
	}
	freeaddrinfo(all);
	return r;
}

int dial_for_carrier(struct carrier *carrier, const struct message *wish, const char *host, unsigned port,
	struct error *error)
{
	json_int_t count = json_integer_value(json_object_get(wish->body, "count"));
	/* Where the carrier itself is: a name may lead to several hosts. */
	const char *address = json_string_value(json_object_get(wish->body, "address"));
	struct dialled dialled = {0};
	json_t *sockets = json_array();
	int r;

	if (count < 1 || count > DIAL_MAX) {
		json_decref(sockets);
		return error_set(error, EPROTO, "The carrier asks for an impossible number of connections.");
	}
	xend_unlock(carrier->xend);
	r = dial(&dialled, carrier, address && *address ? address : host, port, (unsigned)count);
	xend_lock(carrier->xend);
	if (r < 0) {
		log_info("Further connections to %s cannot be made: %s.", host, strerror(-r));
		hang_up(&dialled);
	}
	for (unsigned i = 0; i < dialled.count; i++)
		json_array_append_new(sockets, json_pack("{s:{s:i}}", "socket", "fd", (int)i));
	r = carrier_say(carrier, json_pack("{s:s, s:o}", "do", "connected", "sockets", sockets),
		dialled.sockets, dialled.count, error);
	hang_up(&dialled);
	return r;
}
