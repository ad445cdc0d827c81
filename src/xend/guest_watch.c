#include "xend/guest_watch.h"
#include "base/channel.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "xend/guest.h"
#include "xend/supervise.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>

/* Of one that has always something to tell so much is heard, and then nothing for a while. */
#define EVENTS_AT_ONCE 32
#define DEAF_MS 1000

struct word {
	const char *word;
	int value;
};

static const struct word states[] = {{"empty", GUEST_EMPTY}, {"incoming", GUEST_INCOMING},
	{"paused", GUEST_PAUSED}, {"running", GUEST_RUNNING}, {"shutdown", GUEST_SHUTDOWN}};
static const struct word reasons[] = {{"poweroff", REASON_POWEROFF}, {"reboot", REASON_REBOOT},
	{"crash", REASON_CRASH}, {"error", REASON_ERROR}};

static int find(const struct word *words, size_t count, const json_t *json, int otherwise)
{
	const char *word = json_string_value(json);

	for (size_t i = 0; word && i < count; i++)
		if (strcmp(words[i].word, word) == 0)
			return words[i].value;
	return otherwise;
}

void guest_note_state(struct domain *domain, const json_t *json)
{
	const char *detail = json_string_value(json_object_get(json, "detail"));
	const char *waits = json_string_value(json_object_get(json, "waits"));
	const json_t *cpu_time = json_object_get(json, "cpu_time_ns"),
		     *vcpus = json_object_get(json, "vcpus"), *vcpu;
	const json_t *filling = json_object_get(json, "filling");
	enum guest_state before = domain->state;
	bool was_filling = domain->filling;
	size_t i;

	if (domain->dead) /* what it said before its end */
		return;

	domain->state = (enum guest_state)find(
		states, ARRAY_SIZE(states), json_object_get(json, "state"), (int)domain->state);
	if (domain->state == GUEST_SHUTDOWN)
		domain->reason = (enum guest_reason)find(
			reasons, ARRAY_SIZE(reasons), json_object_get(json, "reason"), REASON_CRASH);
	if (detail)
		snprintf(domain->detail, sizeof(domain->detail), "%.500s", detail);
	if (waits && strcmp(domain->waits, waits) != 0) {
		snprintf(domain->waits, sizeof(domain->waits), "%.250s", waits);
		if (*waits)
			log_warning("Domain '%s' waits: %s. It goes on by itself when that is over.",
				domain->config.name, waits);
		else
			log_info("Domain '%s' goes on.", domain->config.name);
	}
	if (json_is_integer(cpu_time))
		domain->cpu_time_ns = (uint64_t)json_integer_value(cpu_time);
	if (json_is_array(vcpus)) {
		domain->halted = true;
		json_array_foreach(vcpus, i, vcpu) if (!json_is_true(json_object_get(vcpu, "halted")))
			domain->halted = false;
	}
	if (json_is_boolean(json_object_get(json, "shared")))
		domain->shared = json_is_true(json_object_get(json, "shared"));
	if (json_is_boolean(filling))
		domain->filling = json_is_true(filling);
	if (domain->state != before || domain->filling != was_filling)
		xend_changed(domain->xend);
}

int channel_wait(int socket, struct message *reply, int timeout_ms)
{
	long long deadline = monotonic_ms() + timeout_ms;
	int r;

	for (;;) {
		struct pollfd ready = {.fd = socket, .events = POLLIN};
		long long left = deadline - monotonic_ms();

		r = poll(&ready, 1, left > 0 ? (int)left : 0);
		if (r == 0)
			return -ETIMEDOUT;
		if (r < 0 && errno != EINTR)
			return -errno;
		if (r < 0)
			continue;
		r = channel_receive(socket, reply, NULL);
		if (r < 0 || !json_object_get(reply->body, "event"))
			return r;
		message_free(reply);
		/* Who has always something else to say does not answer either. */
		if (monotonic_ms() >= deadline)
			return -ETIMEDOUT;
	}
}

static void hear_again(evutil_socket_t fd, short what, void *argument)
{
	struct domain *domain = argument;
	struct xend *xend = domain->xend;

	(void)fd;
	(void)what;
	xend_lock(xend);
	if (domain->events_ready)
		event_add(domain->events_ready, NULL);
	domain_unref(domain);
	xend_unlock(xend);
}

/* What it tells meanwhile is heard then, and is kept by the kernel as far as that has room for it. */
static void hear_later(struct domain *domain)
{
	const struct timeval later = {.tv_sec = DEAF_MS / 1000, .tv_usec = DEAF_MS % 1000 * 1000};

	if (!domain->events_ready ||
		event_base_once(domain->xend->base, -1, EV_TIMEOUT, hear_again, domain, &later) < 0)
		return;
	domain_ref(domain);
	event_del(domain->events_ready);
}

static void events_ready(evutil_socket_t fd, short what, void *argument)
{
	struct domain *domain = argument;
	struct xend *xend = domain->xend;
	unsigned heard = 0;

	(void)what;
	xend_lock(xend);
	for (; heard < EVENTS_AT_ONCE; heard++) {
		_cleanup_message_ struct message message = {0};
		int r = channel_receive((int)fd, &message, NULL);

		if (r >= 0 && domain->events == (int)fd) {
			guest_note_state(domain, message.body);
			continue;
		}
		/* A closed or broken channel: the end of the process, if it is one, comes through its pidfd.
		 */
		if (r != -EAGAIN && domain->events_ready)
			event_del(domain->events_ready);
		break;
	}
	if (heard == EVENTS_AT_ONCE)
		hear_later(domain);
	supervise(domain);
	xend_unlock(xend);
}

static void process_ended(evutil_socket_t fd, short what, void *argument)
{
	struct domain *domain = argument;
	struct xend *xend = domain->xend;

	(void)fd;
	(void)what;
	xend_lock(xend);
	if (domain->process >= 0 && domain->process_ended) {
		domain->dead = true;
		xend_changed(xend);
		supervise(domain);
	}
	xend_unlock(xend);
}

int guest_watch(struct domain *domain, struct error *error)
{
	struct xend *xend = domain->xend;
	_cleanup_json_ json_t *subscribe = json_pack("{s:s}", "do", "subscribe");
	_cleanup_close_ int events = guest_connect(domain, error);
	int r, ended;

	if (events < 0)
		return events;
	xend_unlock(xend);
	r = guest_explain_closed(
		domain, channel_call(events, subscribe, NULL, 0, NULL, GUEST_ANSWER_MS, error), error);
	xend_lock(xend);
	if (r < 0)
		return r;
	if (fcntl(events, F_SETFL, O_NONBLOCK) < 0)
		return error_set(error, errno, "Unable to listen to domain '%s': %s.", domain->config.name,
			strerror(errno));
	/* A descriptor of the loop's own: guest_end closes the domain's at any time. */
	ended = fcntl(domain->process, F_DUPFD_CLOEXEC, 0);
	if (ended < 0)
		return error_set(error, errno, "Unable to listen to domain '%s': %s.", domain->config.name,
			strerror(errno));
	domain_ref(domain); /* until take_down */
	domain->events = take_fd(&events);
	domain->events_ready =
		event_new(xend->base, domain->events, EV_READ | EV_PERSIST, events_ready, domain);
	domain->process_ended = event_new(xend->base, ended, EV_READ, process_ended, domain);
	if (!domain->events_ready || !domain->process_ended || event_add(domain->events_ready, NULL) < 0 ||
		event_add(domain->process_ended, NULL) < 0)
		return error_set(error, ENOMEM, "Unable to listen to domain '%s'.", domain->config.name);
	/* What it said between its start and now. */
	return guest_refresh_one(domain, error);
}

/* What the loop's thread has to take down, because its callbacks may be running just now. */
struct unwatched {
	struct domain *domain;
	struct event *events_ready, *process_ended;
	int events;
};

static void take_down(void *argument)
{
	struct unwatched *unwatched = argument;
	struct xend *xend = unwatched->domain->xend;

	if (unwatched->events_ready)
		event_free(unwatched->events_ready);
	if (unwatched->process_ended) {
		int process = (int)event_get_fd(unwatched->process_ended);

		event_free(unwatched->process_ended);
		cleanup_close(&process);
	}
	close(unwatched->events);
	xend_lock(xend);
	domain_unref(unwatched->domain);
	xend_unlock(xend);
	free(unwatched);
}

void guest_unwatch(struct domain *domain)
{
	struct unwatched *unwatched;

	if (domain->events < 0)
		return;
	unwatched = malloc(sizeof(*unwatched));
	if (!unwatched)
		abort(); /* see xend_post */
	*unwatched = (struct unwatched){domain, take_pointer(domain->events_ready),
		take_pointer(domain->process_ended), take_fd(&domain->events)};
	xend_post(domain->xend, take_down, unwatched);
}
