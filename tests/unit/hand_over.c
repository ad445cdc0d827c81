#include "hand_over.h"

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
