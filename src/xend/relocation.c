#include "xend/relocation.h"
#include "base/channel.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "xend/jobs.h"

#include <errno.h>
#include <event2/listener.h>
#include <event2/util.h>
#include <fcntl.h>
#include <netdb.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>

#define STRANGERS_MAX 64
#define STRANGERS_OF_ONE_ADDRESS 16
#define BUSY_RETRIES 100
#define BUSY_PAUSE_NS 50000000

static void visitor_free(struct visitor *visitor)
{
	if (visitor->socket >= 0)
		close(visitor->socket);
	if (visitor->cancel >= 0)
		close(visitor->cancel);
	if (visitor->joins >= 0)
		close(visitor->joins);
	free(visitor);
}

static void serve(void *argument)
{
	struct visitor *visitor = argument;

	job_receive(visitor);
	TAILQ_REMOVE(&visitor->xend->visitors, visitor, next);
	visitor_free(visitor);
}

void relocation_known(struct visitor *visitor)
{
	visitor->known = true;
}

int relocation_expect_joins(struct visitor *visitor, int *theirs, struct error *error)
{
	int pair[2];

	/* xend never waits for a carrier that does not read. */
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
		return error_set(
			error, errno, "Unable to make a channel to the carrier: %s.", strerror(errno));
	visitor->joins = pair[0];
	*theirs = pair[1];
	return 0;
}

int relocation_join(const struct visitor *visitor, const char *ticket, int stream, struct error *error)
{
	_cleanup_json_ json_t *body =
		json_pack("{s:s, s:i, s:{s:i}}", "do", "join", "stream", stream, "socket", "fd", 0);
	const struct visitor *other;

	TAILQ_FOREACH(other, &visitor->xend->visitors, next)
	if (other->joins >= 0 && strcmp(other->ticket, ticket) == 0)
		return channel_send(other->joins, body, &visitor->socket, 1, error);
	return error_set(error, ENOENT, "No guest arrives here that this connection could belong to.");
}

/* Closes the stranger that has waited longest where there are too many, of all or of this address. */
static void make_room(struct xend *xend, const char *address)
{
	struct visitor *visitor, *oldest = NULL, *oldest_there = NULL;
	unsigned all = 0, there = 0;

	TAILQ_FOREACH(visitor, &xend->visitors, next)
	{
		if (visitor->known || visitor->closed)
			continue;
		all++;
		oldest = oldest ? oldest : visitor;
		if (strcmp(visitor->address, address) == 0) {
			there++;
			oldest_there = oldest_there ? oldest_there : visitor;
		}
	}
	if (there >= STRANGERS_OF_ONE_ADDRESS)
		oldest = oldest_there;
	else if (all < STRANGERS_MAX)
		return;
	log_warning("%u connections to the relocation port say nothing: the oldest, from %s, is closed.", all,
		oldest->address);
	oldest->closed = true;
	eventfd_write(oldest->cancel, 1);
}

/* The worker owns the visitor when this succeeds. With the lock. */
static int hand_to_worker(struct visitor *visitor, struct error *error)
{
	struct xend *xend = visitor->xend;
	int r;

	if (xend->stopping)
		return error_set(error, EBUSY, "xend is being stopped.");
	if (visitor->cancel < 0)
		return error_set(error, errno, "Unable to make an eventfd: %s.", strerror(errno));
	make_room(xend, visitor->address);
	r = xend_worker(xend, serve, visitor, error);
	if (r >= 0)
		TAILQ_INSERT_TAIL(&xend->visitors, visitor, next);
	return r;
}

static void accepted(struct evconnlistener *listener, evutil_socket_t fd, struct sockaddr *address,
	int length, void *argument)
{
	struct xend *xend = argument;
	struct visitor *visitor = calloc(1, sizeof(*visitor));
	struct error error;

	(void)listener;
	/* The carrier reads and writes it plainly. */
	fcntl((int)fd, F_SETFL, fcntl((int)fd, F_GETFL) & ~O_NONBLOCK);
	if (!visitor) {
		close((int)fd);
		return;
	}
	*visitor = (struct visitor){.xend = xend,
		.socket = (int)fd,
		.joins = -1,
		.cancel = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
	getnameinfo(address, (socklen_t)length, visitor->address, sizeof(visitor->address), NULL, 0,
		NI_NUMERICHOST);
	xend_lock(xend);
	if (hand_to_worker(visitor, &error) < 0) {
		log_warning("A connection to the relocation port was closed: %s", error.text);
		visitor_free(visitor);
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
			LEV_OPT_CLOSE_ON_EXEC | LEV_OPT_CLOSE_ON_FREE | LEV_OPT_REUSEABLE, 128,
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
