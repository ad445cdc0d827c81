#include "xend/relocation.h"
#include "base/address.h"
#include "base/channel.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "xend/jobs.h"
#include "xend/listening.h"
#include "xend/store.h"

#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

/* Who is being heard by a carrier and has not said what it wants: so many of each class, and no more than
 * twice as many processes, with those that are just being ended. */
static const unsigned heard_max[DOOR_CLASSES] = {[DOOR_STRANGER] = 16, [DOOR_FAMILIAR] = 64};

#define FAMILIAR_LOOK_MS 30000 /* at the hosts that are trusted or known */
#define TELL_MS 60000

struct porch {
	struct xend *xend;
	struct listening listening;
	struct door door;
	pthread_mutex_t lock; /* of the door; nobody takes xend's with it */
	atomic_uint heard[DOOR_CLASSES];
	long long next_look_ms, next_tell_ms;
};

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
	if (!visitor->known)
		atomic_fetch_sub(&visitor->xend->porch->heard[visitor->class], 1);
	TAILQ_REMOVE(&visitor->xend->visitors, visitor, next);
	visitor_free(visitor);
}

void relocation_known(struct visitor *visitor)
{
	struct porch *porch = visitor->xend->porch;

	visitor->known = true;
	atomic_fetch_sub(&porch->heard[visitor->class], 1);
	pthread_mutex_lock(&porch->lock);
	door_familiar(&porch->door, visitor->from, monotonic_ms());
	pthread_mutex_unlock(&porch->lock);
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

/* The one of the class that has been heard for longest leaves, where too many are. */
static void make_room(struct xend *xend, enum door_class class)
{
	struct visitor *visitor, *oldest = NULL;
	unsigned staying = 0;

	TAILQ_FOREACH(visitor, &xend->visitors, next)
	{
		if (visitor->known || visitor->closed || visitor->class != class)
			continue;
		staying++;
		oldest = oldest ? oldest : visitor;
	}
	if (staying < heard_max[class])
		return;
	log_seldom(LOG_WARNING_,
		"%u connections to the relocation port do not say what they want: the oldest, from %s, is "
		"closed.",
		staying, oldest->address);
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
	make_room(xend, visitor->class);
	r = xend_worker(xend, serve, visitor, error);
	if (r < 0)
		return r;
	atomic_fetch_add(&xend->porch->heard[visitor->class], 1);
	TAILQ_INSERT_TAIL(&xend->visitors, visitor, next);
	return 0;
}

static void let_in(
	struct xend *xend, const struct waiting *waiting, enum door_class class, struct door_address from)
{
	struct visitor *visitor = calloc(1, sizeof(*visitor));
	struct error error;

	if (!visitor) {
		close(waiting->socket);
		return;
	}
	*visitor = (struct visitor){.xend = xend,
		.socket = waiting->socket,
		.class = class,
		.from = from,
		.joins = -1,
		.cancel = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
	snprintf(visitor->address, sizeof(visitor->address), "%s", waiting->text);
	xend_lock(xend);
	if (hand_to_worker(visitor, &error) < 0) {
		log_seldom(LOG_WARNING_, "A connection to the relocation port was closed: %s", error.text);
		visitor_free(visitor);
	}
	xend_unlock(xend);
}

static void let_in_all(struct porch *here)
{
	for (;;) {
		enum door_class class = DOOR_STRANGER;
		struct door_address from = {0};
		bool open[DOOR_CLASSES], any;
		struct waiting waiting;

		for (unsigned i = 0; i < DOOR_CLASSES; i++)
			open[i] = atomic_load(&here->heard[i]) < 2 * heard_max[i];
		pthread_mutex_lock(&here->lock);
		any = door_next(&here->door, open, &waiting, monotonic_ms());
		if (any) {
			class = door_class_of(&waiting);
			from = waiting.caller->address;
		}
		pthread_mutex_unlock(&here->lock);
		if (!any)
			return;
		let_in(here->xend, &waiting, class, from);
	}
}

/* Whether hosts-allow may have the address. Where it is of networks only that is known at once; what matches
 * names, or patterns, is looked at by a carrier. */
static bool may_come(const struct xend_config *config, const char *address)
{
	bool found = !config->allow_count;

	for (size_t i = 0; i < config->allow_count && !found; i++) {
		struct network network;

		found = !network_parse(config->allow[i], &network) || network_has(&network, address);
	}
	return found;
}

static void arrived(void *context, int socket, const struct sockaddr *address, socklen_t size)
{
	struct porch *here = context;
	char text[ADDRESS_SIZE];

	address_text(address, size, text);
	if (!may_come(&here->xend->config, text)) {
		log_seldom(LOG_WARNING_,
			"Relocation from %s: it may not relocate guests to this host "
			"(xend-relocation-hosts-allow).",
			text);
		close(socket);
		return;
	}
	pthread_mutex_lock(&here->lock);
	door_enter(&here->door, socket, door_address_of(address), text, monotonic_ms());
	pthread_mutex_unlock(&here->lock);
}

static int add_familiar(struct porch *here, const char *address)
{
	const struct addrinfo numeric = {.ai_flags = AI_NUMERICHOST, .ai_socktype = SOCK_STREAM};
	struct addrinfo *found = NULL;

	if (getaddrinfo(address, NULL, &numeric, &found) != 0)
		return 0;
	pthread_mutex_lock(&here->lock);
	door_familiar(&here->door, door_address_of(found->ai_addr), monotonic_ms());
	pthread_mutex_unlock(&here->lock);
	freeaddrinfo(found);
	return 0;
}

static int add_trusted(void *context, const struct trusted_host *host)
{
	return add_familiar(context, *host->address ? host->address : host->host);
}

static int add_peer(void *context, const char *host, unsigned port)
{
	(void)port;
	return add_familiar(context, host);
}

/* Who is known by a name only becomes familiar when it has been let in once. */
static void look_who_is_familiar(struct porch *here)
{
	struct error error;

	xend_lock(here->xend);
	if (store_each_trusted(here->xend->store, add_trusted, here, &error) < 0 ||
		store_each_peer(here->xend->store, add_peer, here, &error) < 0)
		log_seldom(LOG_WARNING_, "%s", error.text);
	xend_unlock(here->xend);
}

static void tell_of_those_turned_away(struct porch *here, long long now_ms)
{
	if (!here->door.turned_away || now_ms < here->next_tell_ms)
		return;
	log_warning("%lu connections to the relocation port were closed because they said nothing, or "
		    "because there were "
		    "too many at once.",
		here->door.turned_away);
	here->door.turned_away = 0;
	here->next_tell_ms = now_ms + TELL_MS;
}

/* What has happened at the door; the listening sockets are the first in `ready`. */
static void look(struct porch *here, const struct pollfd *ready, unsigned count)
{
	long long now = monotonic_ms();
	bool spoke = false;

	pthread_mutex_lock(&here->lock);
	for (unsigned i = count; i-- > 0;)
		if (ready[i].revents)
			door_look(&here->door, i);
	door_expire(&here->door, now);
	tell_of_those_turned_away(here, now);
	for (unsigned i = 0; i < here->door.count; i++)
		spoke = spoke || here->door.waiting[i].spoke;
	pthread_mutex_unlock(&here->lock);
	if (spoke)
		let_in_all(here);
}

static int shorter(int one, int other)
{
	return one < 0 || (other >= 0 && other < one) ? other : one;
}

static void *attend(void *argument)
{
	struct porch *here = argument;
	struct pollfd ready[1 + LISTENING_MAX + DOOR_WAITING_MAX];

	for (;;) {
		long long now = monotonic_ms();
		unsigned listening, waiting;
		int patience;

		if (now >= here->next_look_ms) {
			look_who_is_familiar(here);
			here->next_look_ms = now + FAMILIAR_LOOK_MS;
		}
		ready[0] = (struct pollfd){.fd = here->xend->stop, .events = POLLIN};
		listening = listening_poll(&here->listening, ready + 1, now);
		pthread_mutex_lock(&here->lock);
		waiting = here->door.count;
		for (unsigned i = 0; i < waiting; i++)
			ready[1 + listening + i] = (struct pollfd){.fd = here->door.waiting[i].socket,
				.events = here->door.waiting[i].spoke ? POLLRDHUP : POLLIN};
		patience = door_patience(&here->door, now);
		pthread_mutex_unlock(&here->lock);
		patience = shorter(patience, listening_patience(&here->listening, now));
		patience = shorter(patience, (int)(here->next_look_ms - now));
		if (poll(ready, 1 + listening + waiting, patience) < 0 && errno != EINTR)
			log_seldom(LOG_ERROR_, "Unable to wait at the relocation port: %s.", strerror(errno));
		if (ready[0].revents)
			break;
		look(here, ready + 1 + listening, waiting);
		listening_accept(&here->listening, ready + 1, listening, arrived, here);
	}
	listening_close(&here->listening);
	pthread_mutex_lock(&here->lock);
	door_close(&here->door);
	pthread_mutex_unlock(&here->lock);
	return NULL;
}

int relocation_start(struct xend *xend, struct error *error)
{
	pthread_attr_t attributes;
	pthread_t thread;
	int r;

	if (!xend->config.relocation_server)
		return 0;
	xend->porch = calloc(1, sizeof(*xend->porch));
	if (!xend->porch)
		return error_set(error, ENOMEM, "Out of memory.");
	xend->porch->xend = xend;
	pthread_mutex_init(&xend->porch->lock, NULL);
	listening_begin(&xend->porch->listening, xend->config.relocation_address,
		(unsigned)xend->config.relocation_port);
	pthread_attr_init(&attributes);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	r = pthread_create(&thread, &attributes, attend, xend->porch);
	pthread_attr_destroy(&attributes);
	return r ? error_set(error, r, "Unable to attend to the relocation port: %s.", strerror(r)) : 0;
}
