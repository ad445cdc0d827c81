#include "xend/listening.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "xend/xend.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <string.h>
#include <time.h>

#define BACKLOG 1024
#define ACCEPTED_AT_ONCE 64
#define AGAIN_MS 5000
#define PAUSE_MS 200 /* where there are no descriptors: somebody closes one some time */
#define BUSY_RETRIES 100
#define BUSY_PAUSE_NS 50000000

static int listen_on(const struct addrinfo *address)
{
	const int on = 1;
	_cleanup_close_ int fd = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) < 0 ||
		(address->ai_family == AF_INET6 &&
			setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on)) < 0) ||
		bind(fd, address->ai_addr, address->ai_addrlen) < 0 || listen(fd, BACKLOG) < 0)
		return -errno;
	return take_fd(&fd);
}

/* An address of a killed xend is free once the last child that it was just starting has become its program.
 */
static int listen_patiently(const struct addrinfo *address, unsigned tries)
{
	const struct timespec pause = {.tv_nsec = BUSY_PAUSE_NS};
	int fd = listen_on(address);

	while (fd == -EADDRINUSE && --tries) {
		nanosleep(&pause, NULL);
		fd = listen_on(address);
	}
	return fd;
}

static const char *place(const struct listening *listening)
{
	return *listening->host ? listening->host : "any address";
}

static void tell(struct listening *listening, const char *why)
{
	if (listening->told)
		return;
	listening->told = true;
	log_warning("Unable to listen for relocations at %s, port %u: %s. No guest can come that way yet; "
		    "xend tries again "
		    "every %d s.",
		place(listening), listening->port, why, AGAIN_MS / 1000);
}

static bool has(const struct listening *listening, const struct addrinfo *address)
{
	for (unsigned i = 0; i < listening->count; i++)
		if (memcmp(&listening->listeners[i].address, address->ai_addr, address->ai_addrlen) == 0)
			return true;
	return false;
}

/* Those that are not there yet. Returns why one of them could not be, 0: none. */
static int try_addresses(struct listening *listening, const struct addrinfo *found, unsigned tries)
{
	int failed = 0;

	for (const struct addrinfo *one = found; one && listening->count < LISTENING_MAX;
		one = one->ai_next) {
		int fd = has(listening, one) ? -EALREADY : listen_patiently(one, failed ? 1 : tries);
		struct listener *listener = &listening->listeners[listening->count];

		if (fd >= 0) {
			*listener = (struct listener){.socket = fd};
			memcpy(&listener->address, one->ai_addr, one->ai_addrlen);
			listening->count++;
		} else if (fd != -EALREADY &&
			   (*listening->host || (fd != -EAFNOSUPPORT && fd != -EADDRNOTAVAIL))) {
			/* A host may have no IPv6, or only that: of every address they count as well. */
			failed = -fd;
		}
	}
	return failed || listening->count ? failed : EADDRNOTAVAIL;
}

static void try_all(struct listening *listening, unsigned tries, bool numeric)
{
	const struct addrinfo hints = {
		.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | (numeric ? AI_NUMERICHOST : 0)};
	struct addrinfo *found = NULL;
	char port[16];
	int r, failed;

	snprintf(port, sizeof(port), "%u", listening->port);
	r = getaddrinfo(*listening->host ? listening->host : NULL, port, &hints, &found);
	if (r) {
		if (!numeric || r != EAI_NONAME)
			tell(listening, gai_strerror(r));
		return;
	}
	failed = try_addresses(listening, found, tries);
	freeaddrinfo(found);
	if (failed) {
		tell(listening, strerror(failed));
		return;
	}
	if (listening->told)
		log_info("Listening for relocations at %s, port %u.", place(listening), listening->port);
	listening->complete = true;
}

void listening_begin(struct listening *listening, const char *host, unsigned port)
{
	*listening = (struct listening){.host = host, .port = port};
	/* A name is asked for later, by who may wait for the answer. */
	try_all(listening, BUSY_RETRIES, true);
	listening->next_try_ms = listening->told ? monotonic_ms() + AGAIN_MS : 0;
}

unsigned listening_poll(struct listening *listening, struct pollfd *ready, long long now_ms)
{
	if (!listening->complete && now_ms >= listening->next_try_ms) {
		try_all(listening, 1, false);
		listening->next_try_ms = now_ms + AGAIN_MS;
	}
	for (unsigned i = 0; i < listening->count; i++)
		ready[i] = (struct pollfd){
			.fd = now_ms < listening->paused_until_ms ? -1 : listening->listeners[i].socket,
			.events = POLLIN};
	return listening->count;
}

int listening_patience(const struct listening *listening, long long now_ms)
{
	long long due = now_ms < listening->paused_until_ms ? listening->paused_until_ms
			: !listening->complete              ? listening->next_try_ms
							    : -1;

	return due < 0 ? -1 : due < now_ms ? 0 : (int)(due - now_ms);
}

void listening_accept(struct listening *listening, const struct pollfd *ready, unsigned count,
	void (*arrived)(void *context, int socket, const struct sockaddr *address, socklen_t size),
	void *context)
{
	for (unsigned i = 0; i < count; i++) {
		for (unsigned n = 0; ready[i].revents && n < ACCEPTED_AT_ONCE; n++) {
			struct sockaddr_storage address;
			socklen_t size = sizeof(address);
			int fd = accept4(ready[i].fd, (struct sockaddr *)&address, &size, SOCK_CLOEXEC);

			if (fd >= 0) {
				arrived(context, fd, (struct sockaddr *)&address, size);
				continue;
			}
			/* The others: what that one connection met (accept(2)), or there is none left. */
			if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
				log_seldom(LOG_WARNING_,
					"A connection to the relocation port has to wait: %s.",
					strerror(errno));
				listening->paused_until_ms = monotonic_ms() + PAUSE_MS;
			}
			break;
		}
	}
}

void listening_close(struct listening *listening)
{
	while (listening->count)
		close(listening->listeners[--listening->count].socket);
}
