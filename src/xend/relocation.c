#include "xend/relocation.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "xend/jobs.h"

#include <errno.h>
#include <event2/listener.h>
#include <event2/util.h>
#include <fcntl.h>
#include <netdb.h>
#include <string.h>
#include <time.h>

/* Receptions and questions at a time; who comes then is cut off and tries again. */
#define RELOCATIONS_MAX 16
#define BUSY_RETRIES 40
#define BUSY_PAUSE_NS 50000000

struct visitor {
	struct xend *xend;
	int socket;
};

static void serve(void *argument)
{
	struct visitor *visitor = argument;
	struct xend *xend = visitor->xend;

	job_receive(xend, visitor->socket);
	xend->relocations--;
	free(visitor);
}

/* The worker owns the socket when this succeeds. With the lock. */
static int hand_to_worker(struct xend *xend, int socket, struct error *error)
{
	struct visitor *visitor;
	int r;

	if (xend->stopping)
		return error_set(error, EBUSY, "xend is being stopped.");
	if (xend->relocations >= RELOCATIONS_MAX)
		return error_set(error, EBUSY, "There are %d connections already.", RELOCATIONS_MAX);
	visitor = malloc(sizeof(*visitor));
	if (!visitor)
		return error_set(error, ENOMEM, "Out of memory.");
	*visitor = (struct visitor){xend, socket};
	r = xend_worker(xend, serve, visitor, error);
	if (r < 0)
		free(visitor);
	else
		xend->relocations++;
	return r;
}

static void accepted(struct evconnlistener *listener, evutil_socket_t fd, struct sockaddr *address,
	int length, void *argument)
{
	struct xend *xend = argument;
	struct error error;

	(void)listener;
	(void)address;
	(void)length;
	/* The carrier reads and writes it plainly. */
	fcntl((int)fd, F_SETFL, fcntl((int)fd, F_GETFL) & ~O_NONBLOCK);
	xend_lock(xend);
	if (hand_to_worker(xend, (int)fd, &error) < 0) {
		log_warning("A connection to the relocation port was closed: %s", error.text);
		close((int)fd);
	}
	xend_unlock(xend);
}

/* An address of a killed xend is free once the last child that it was just starting has become its program.
 */
static struct evconnlistener *listen_on(struct xend *xend, const struct addrinfo *address)
{
	const struct timespec pause = {.tv_nsec = BUSY_PAUSE_NS};
	struct evconnlistener *listener = NULL;

	for (unsigned i = 0; i < BUSY_RETRIES; i++) {
		listener = evconnlistener_new_bind(xend->base, accepted, xend,
			LEV_OPT_CLOSE_ON_EXEC | LEV_OPT_CLOSE_ON_FREE | LEV_OPT_REUSEABLE, 16,
			address->ai_addr, (int)address->ai_addrlen);
		if (listener || errno != EADDRINUSE)
			break;
		nanosleep(&pause, NULL);
	}
	return listener;
}

int relocation_start(struct xend *xend, struct error *error)
{
	const char *host = *xend->config.relocation_address ? xend->config.relocation_address : NULL;
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *found = NULL;
	struct evconnlistener *listener = NULL;
	char port[16];
	int r, failed = 0;

	if (!xend->config.relocation_server)
		return 0;
	snprintf(port, sizeof(port), "%u", (unsigned)xend->config.relocation_port);
	r = getaddrinfo(host, port, &hints, &found);
	if (r)
		return error_set(error, EINVAL,
			"xend-relocation-address '%s' is no address of this host: %s.", host ? host : "",
			gai_strerror(r));
	for (struct addrinfo *one = found; one && !listener; one = one->ai_next) {
		listener = listen_on(xend, one);
		failed = errno;
	}
	freeaddrinfo(found);
	if (!listener)
		return error_set(error, failed, "Unable to listen for relocations on port %s: %s.", port,
			strerror(failed));
	return 0;
}
