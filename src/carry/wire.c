#include "carry/wire.h"
#include "base/cleanup.h"
#include "carry/clock.h"
#include "carry/tls.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#define CONNECT_MS 10000
#define FINISH_MS 2000

static int cut(const struct wire *wire, int code, struct error *error)
{
	return error_set(error, code, "The connection to %s was cut: %s.", wire->peer, strerror(code));
}

int wire_cancelled(const struct wire *wire, struct error *error)
{
	struct pollfd stop = {.fd = wire->stop ? *wire->stop : -1, .events = POLLIN};
	int r = wire->deaf_to_xend ? 0 : job_cancelled(wire->job, error);

	return r == 0 && poll(&stop, 1, 0) > 0 ? error_set(error, ECANCELED, "Given up.") : r;
}

/* Who may end a wait: the peer, xend, another thread. */
#define WAKERS 3

static void wakers(const struct wire *wire, short events, struct pollfd ready[WAKERS])
{
	ready[0] = (struct pollfd){.fd = wire->fd, .events = events};
	ready[1] = (struct pollfd){.fd = wire->deaf_to_xend ? -1 : wire->job->channel, .events = POLLIN};
	ready[2] = (struct pollfd){.fd = wire->stop ? *wire->stop : -1, .events = POLLIN};
}

int wire_wait(const struct wire *wire, int milliseconds, struct error *error)
{
	int64_t end = monotonic_ns() + milliseconds * NS_PER_MS;

	for (;;) {
		struct pollfd ready[WAKERS];
		int64_t left = (end - monotonic_ns() + NS_PER_MS - 1) / NS_PER_MS;
		/* What TLS has read already is no longer in the socket. */
		bool heard = wire->tls && tls_heard(wire->tls);
		int n;

		wakers(wire, POLLIN, ready);
		n = poll(ready, WAKERS, heard || left < 0 ? 0 : (int)left);
		if (n < 0 && errno != EINTR)
			return error_set(
				error, errno, "Unable to wait for %s: %s.", wire->peer, strerror(errno));
		if (n > 0 && (ready[1].revents || ready[2].revents))
			return 2;
		if (heard || (n > 0 && ready[0].revents && !wire->tls))
			return 1;
		if (n == 0 && left <= 0)
			return 0;
	}
}

/* Waits until the socket is ready for `events`. */
static int wait_ready(struct wire *wire, short events, struct error *error)
{
	int64_t now = monotonic_ns(), end = now + WIRE_SILENCE_MS * NS_PER_MS;

	if (wire->deadline && wire->deadline < end)
		end = wire->deadline;
	for (;;) {
		struct pollfd ready[WAKERS];
		int64_t began = now, left = (end - now + NS_PER_MS - 1) / NS_PER_MS;
		int n;

		wakers(wire, events, ready);
		n = poll(ready, WAKERS, left > 0 ? (int)left : 0);
		now = monotonic_ns();
		wire->waited_ns += now - began;
		if (n < 0 && errno != EINTR)
			return error_set(
				error, errno, "Unable to wait for %s: %s.", wire->peer, strerror(errno));
		if (n > 0 && (ready[1].revents || ready[2].revents))
			return wire_cancelled(wire, error);
		if (n > 0)
			return 0;
		if (n == 0 && left <= 0)
			return error_set(error, ETIMEDOUT,
				"No word from %s in time: the connection is given up.", wire->peer);
	}
}

/* Steps over `done` bytes of the parts. */
static void advance(struct iovec **parts, unsigned *count, size_t done)
{
	while (*count && done >= (*parts)->iov_len) {
		done -= (*parts)->iov_len;
		(*parts)++;
		(*count)--;
	}
	if (*count) {
		(*parts)->iov_base = (char *)(*parts)->iov_base + done;
		(*parts)->iov_len -= done;
	}
}

int wire_handshake(struct wire *wire, struct error *error)
{
	short events;
	int r = wire->tls ? tls_handshake(wire->tls, &events, error) : 0;

	while (r == -EAGAIN) {
		r = wait_ready(wire, events, error);
		if (r == 0)
			r = tls_handshake(wire->tls, &events, error);
	}
	return r;
}

/* Encrypts and sends `size` bytes. */
static int send_secured(struct wire *wire, const uint8_t *data, size_t size, struct error *error)
{
	while (size) {
		short events;
		ssize_t n = tls_send(wire->tls, data, size, &events, error);
		int r = n > 0 ? 0 : n == -EAGAIN ? wait_ready(wire, events, error) : (int)n;

		if (r < 0)
			return r;
		if (n > 0) {
			wire->sent_bytes += (uint64_t)n;
			data += n;
			size -= (size_t)n;
		}
	}
	return 0;
}

/* What is smaller than a TLS record is gathered to full ones; what is not goes from where it is. */
static int send_gathered(struct wire *wire, const struct iovec *parts, unsigned count, struct error *error)
{
	uint8_t gathered[TLS_RECORD_MAX];
	size_t filled = 0;
	int r = 0;

	for (unsigned i = 0; i < count && r == 0; i++) {
		const uint8_t *data = parts[i].iov_base;
		size_t left = parts[i].iov_len;

		while (left && r == 0) {
			size_t size = left;

			if (filled || left < sizeof(gathered)) {
				size = left < sizeof(gathered) - filled ? left : sizeof(gathered) - filled;
				memcpy(gathered + filled, data, size);
				filled += size;
			} else {
				size -= left % sizeof(gathered);
				r = send_secured(wire, data, size, error);
			}
			data += size;
			left -= size;
			if (filled == sizeof(gathered)) {
				r = send_secured(wire, gathered, filled, error);
				filled = 0;
			}
		}
	}
	return r == 0 ? send_secured(wire, gathered, filled, error) : r;
}

int wire_send_clear(struct wire *wire, struct iovec *parts, unsigned count, struct error *error)
{
	advance(&parts, &count, 0);
	while (count) {
		struct msghdr message = {.msg_iov = parts, .msg_iovlen = count};
		ssize_t n = sendmsg(wire->fd, &message, MSG_NOSIGNAL);
		int r;

		if (n >= 0) {
			wire->sent_bytes += (uint64_t)n;
			advance(&parts, &count, (size_t)n);
			continue;
		}
		if (errno == EINTR)
			continue;
		if (errno != EAGAIN)
			return cut(wire, errno, error);
		r = wait_ready(wire, POLLOUT, error);
		if (r < 0)
			return r;
	}
	return 0;
}

int wire_send(struct wire *wire, struct iovec *parts, unsigned count, struct error *error)
{
	int r = wire->tls ? send_gathered(wire, parts, count, error)
			  : wire_send_clear(wire, parts, count, error);

	wire->sent_at = monotonic_ns();
	return r;
}

static int receive_secured(struct wire *wire, struct iovec *parts, unsigned count, struct error *error)
{
	advance(&parts, &count, 0);
	while (count) {
		short events;
		ssize_t n = tls_receive(wire->tls, parts->iov_base, parts->iov_len, &events, error);
		int r = n > 0 ? 0 : n == -EAGAIN ? wait_ready(wire, events, error) : (int)n;

		if (r < 0)
			return r;
		if (n > 0)
			advance(&parts, &count, (size_t)n);
	}
	return 0;
}

static int closed(const struct wire *wire, struct error *error)
{
	return error_set(error, EPIPE, "%s closed the connection.", wire->peer);
}

int wire_receive_clear(struct wire *wire, struct iovec *parts, unsigned count, struct error *error)
{
	advance(&parts, &count, 0);
	while (count) {
		struct msghdr message = {.msg_iov = parts, .msg_iovlen = count};
		ssize_t n = recvmsg(wire->fd, &message, 0);
		int r;

		if (n > 0) {
			advance(&parts, &count, (size_t)n);
			continue;
		}
		if (n == 0)
			return closed(wire, error);
		if (errno == EINTR)
			continue;
		if (errno != EAGAIN)
			return cut(wire, errno, error);
		r = wait_ready(wire, POLLIN, error);
		if (r < 0)
			return r;
	}
	return 0;
}

int wire_receive(struct wire *wire, struct iovec *parts, unsigned count, struct error *error)
{
	return wire->tls ? receive_secured(wire, parts, count, error)
			 : wire_receive_clear(wire, parts, count, error);
}

int wire_peek_clear(struct wire *wire, uint8_t *byte, struct error *error)
{
	for (;;) {
		ssize_t n = recv(wire->fd, byte, 1, MSG_PEEK);
		int r;

		if (n > 0)
			return 0;
		if (n == 0)
			return closed(wire, error);
		if (errno == EINTR)
			continue;
		if (errno != EAGAIN)
			return cut(wire, errno, error);
		r = wait_ready(wire, POLLIN, error);
		if (r < 0)
			return r;
	}
}

bool wire_heard(const struct wire *wire)
{
	struct pollfd ready = {.fd = wire->fd, .events = POLLIN};

	return wire->tls ? tls_heard(wire->tls) : poll(&ready, 1, 0) > 0;
}

void wire_limit(struct wire *wire, int milliseconds)
{
	wire->deadline = milliseconds ? monotonic_ns() + milliseconds * NS_PER_MS : 0;
}

static int prepare_socket(
	struct wire *wire, const struct job *job, int socket, const char *peer, struct error *error)
{
	int on = 1, silence = WIRE_SILENCE_MS, flags;

	*wire = (struct wire){.fd = socket, .job = job, .sent_at = monotonic_ns()};
	snprintf(wire->peer, sizeof(wire->peer), "%s", peer);
	flags = fcntl(socket, F_GETFL);
	if (flags < 0 || fcntl(socket, F_SETFL, flags | O_NONBLOCK) < 0)
		return error_set(
			error, errno, "The connection to %s cannot be used: %s.", peer, strerror(errno));
	/* A socket that is not TCP (tests) has neither; that harms nothing. */
	setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	setsockopt(socket, IPPROTO_TCP, TCP_USER_TIMEOUT, &silence, sizeof(silence));
	return 0;
}

int wire_adopt(struct wire *wire, const struct job *job, int socket, const char *peer, struct error *error)
{
	int r = prepare_socket(wire, job, socket, peer, error);

	return r == 0 && job->secure ? tls_prepare(&wire->tls, job->secure, socket, NULL, error) : r;
}

int wire_further(struct wire *wire, const struct wire *first, int socket, struct error *error)
{
	int r = prepare_socket(wire, first->job, socket, first->peer, error);

	return r == 0 && first->tls ? tls_further(&wire->tls, first->tls, socket, error) : r;
}

static int connect_one(struct wire *wire, const struct addrinfo *address, struct error *error)
{
	int code = 0, r;
	socklen_t size = sizeof(code);

	if (connect(wire->fd, address->ai_addr, address->ai_addrlen) < 0) {
		if (errno != EINPROGRESS)
			return cut(wire, errno, error);
		wire_limit(wire, CONNECT_MS);
		r = wait_ready(wire, POLLOUT, error);
		if (r < 0)
			return r;
		if (getsockopt(wire->fd, SOL_SOCKET, SO_ERROR, &code, &size) < 0 || code)
			return cut(wire, code ? code : errno, error);
	}
	return 0;
}

int wire_connect(
	struct wire *wire, const struct job *job, const char *host, const char *port, struct error *error)
{
	const struct addrinfo hints = {
		.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_ADDRCONFIG};
	struct addrinfo *all = NULL;
	int r = getaddrinfo(host, port, &hints, &all);

	*wire = (struct wire){.fd = -1, .job = job};
	if (r != 0)
		return error_set(
			error, EHOSTUNREACH, "The host %s cannot be found: %s.", host, gai_strerror(r));
	r = -EHOSTUNREACH;
	for (const struct addrinfo *one = all; one && r < 0 && r != -ECANCELED; one = one->ai_next) {
		int fd = socket(one->ai_family, one->ai_socktype | SOCK_CLOEXEC, one->ai_protocol);

		wire_close(wire);
		if (fd < 0) {
			r = error_set(error, errno, "Unable to make a connection: %s.", strerror(errno));
			continue;
		}
		r = prepare_socket(wire, job, fd, host, error);
		if (r == 0)
			r = connect_one(wire, one, error);
	}
	freeaddrinfo(all);
	wire->deadline = 0;
	if (r < 0 && r != -ECANCELED)
		return error_set(error, -r,
			"Unable to connect to %s port %s: %s. Does xend run there, with "
			"(xend-relocation-server yes)?",
			host, port, strerror(-r));
	if (r == 0)
		address_of_peer(wire->fd, wire->address);
	if (r < 0 || !job->secure)
		return r;
	return tls_prepare(&wire->tls, job->secure, wire->fd,
		&(struct tls_peer){.host = host, .fingerprint = job->only_peer, .any = job->any_peer}, error);
}

void wire_close(struct wire *wire)
{
	tls_free(wire->tls);
	wire->tls = NULL;
	if (wire->fd >= 0)
		close(wire->fd);
	wire->fd = -1;
}

void wire_finish(struct wire *wire)
{
	int64_t end = monotonic_ns() + FINISH_MS * NS_PER_MS;
	char dropped[16384];

	if (wire->fd >= 0 && wire->tls)
		tls_finish(wire->tls);
	if (wire->fd < 0 || shutdown(wire->fd, SHUT_WR) < 0)
		return;
	for (;;) {
		struct pollfd ready = {.fd = wire->fd, .events = POLLIN};
		int64_t left = (end - monotonic_ns()) / NS_PER_MS;

		if (left <= 0 || poll(&ready, 1, (int)left) <= 0 ||
			recv(wire->fd, dropped, sizeof(dropped), 0) <= 0)
			return;
	}
}
