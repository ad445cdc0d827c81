#include "hand_over.h"
#include "carry/clock.h"
#include "carry/peer.h"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

struct secured secured;

int secure_all(void **state)
{
	(void)state;
	secured.on = true;
	test_host_begin(&secured.source);
	test_host_begin(&secured.dest);
	return 0;
}

int secure_no_more(void **state)
{
	(void)state;
	secured.on = false;
	test_host_end(&secured.source);
	test_host_end(&secured.dest);
	return 0;
}

void say_job(struct carrier_thread *carrier, json_t *job, int *fds, unsigned count, bool source)
{
	if (secured.on) {
		const struct test_host *own = source ? &secured.source : &secured.dest,
				       *other = source ? &secured.dest : &secured.source;

		json_object_set_new(job, "secure", json_pack("{s:i}", "fd", (int)count));
		fds[count] =
			secure_fd(own, json_pack("[o]", trusted("127.0.0.1", "", other->fingerprint)), NULL);
	}
	carrier_say(carrier, job, fds, count + secured.on);
	if (secured.on)
		close(fds[count]);
}

void say(struct carrier_thread *carrier, const char *verb)
{
	carrier_say(carrier, json_pack("{s:s}", "do", verb), NULL, 0);
}

void pass(struct carrier_thread *carrier, const char *event)
{
	struct message message = carrier_event(carrier, event);

	message_free(&message);
}

int accept_from(int listener)
{
	struct pollfd ready = {.fd = listener, .events = POLLIN};

	return poll(&ready, 1, 60000) > 0 ? accept4(listener, NULL, NULL, SOCK_CLOEXEC) : -1;
}

int64_t set_forward_ns;

int __wrap_peer_answer_clock(struct wire *wire, struct error *error);

int __wrap_peer_answer_clock(struct wire *wire, struct error *error)
{
	return peer_send(wire, RECORD_TIME, (uint64_t)(realtime_ns() + set_forward_ns), NULL, 0, error);
}
