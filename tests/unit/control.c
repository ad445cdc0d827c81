/* The control socket when those who ask have gone, or do not read: what they asked is done all the same, and
 * nobody else's connection suffers. The machine has no processors here. */
#include "vmm/control.h"
#include "base/channel.h"
#include "base/cleanup.h"
#include "vmm/clock.h"

#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <unistd.h>
#include <cmocka.h>

#define TURNS 4000 /* of some milliseconds */

int __wrap_clock_take(
	const struct kvm *kvm, const int *vcpus, uint32_t count, struct guest_time *time, struct error *error)
{
	(void)kvm, (void)vcpus, (void)count, (void)error;
	*time = (struct guest_time){.instant.realtime = clock_realtime()};
	return 0;
}

struct rig {
	struct machine machine;
	struct control *control;
	struct watch timer;
	struct sockaddr_un address;
	socklen_t address_size;
};

static void time_is_up(void *context, uint32_t events)
{
	struct rig *rig = context;
	uint64_t times;

	(void)events;
	if (read(rig->timer.fd, &times, sizeof(times)) > 0)
		loop_stop(rig->machine.loop);
}

/* Handles what there is, unless the machine is very busy. */
static void run(struct rig *rig)
{
	const struct itimerspec soon = {.it_value.tv_nsec = 4000000};
	struct error error;

	timerfd_settime(rig->timer.fd, 0, &soon, NULL);
	assert_int_equal(loop_run(rig->machine.loop, &error), 0);
}

static struct rig *new_rig(enum machine_state state)
{
	struct rig *rig = calloc(1, sizeof(*rig));
	int listening = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	struct error error;

	machine_init(&rig->machine, loop_new(&error), NULL);
	rig->machine.state = state;
	rig->machine.platform.loop = rig->machine.loop;
	rig->address.sun_family = AF_UNIX; /* the kernel chooses an abstract name */
	assert_int_equal(bind(listening, (struct sockaddr *)&rig->address, sizeof(sa_family_t)), 0);
	rig->address_size = sizeof(rig->address);
	assert_int_equal(getsockname(listening, (struct sockaddr *)&rig->address, &rig->address_size), 0);
	assert_int_equal(listen(listening, 16), 0);
	rig->control = control_new(&rig->machine, listening, &error);
	assert_non_null(rig->control);
	rig->timer = (struct watch){
		.fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC), .handler = time_is_up, .context = rig};
	assert_int_equal(loop_add(rig->machine.loop, &rig->timer, EPOLLIN, &error), 0);
	return rig;
}

static void free_rig(struct rig *rig)
{
	control_free(rig->control);
	loop_remove(rig->machine.loop, &rig->timer);
	close(rig->timer.fd);
	loop_free(rig->machine.loop);
	free(rig);
}

static int join(struct rig *rig)
{
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	assert_int_equal(connect(fd, (struct sockaddr *)&rig->address, rig->address_size), 0);
	return fd;
}

static void ask(int fd, const char *verb)
{
	_cleanup_json_ json_t *request = json_pack("{s:s}", "do", verb);
	struct error error;

	assert_int_equal(channel_send(fd, request, NULL, 0, &error), 0);
}

/* The next message has this member; what it says. */
static void expect(struct rig *rig, int fd, const char *member, const char *text)
{
	struct pollfd readable = {.fd = fd, .events = POLLIN};
	_cleanup_message_ struct message message = {0};
	const json_t *value;
	struct error error;

	for (unsigned i = 0; i < TURNS && poll(&readable, 1, 0) == 0; i++)
		run(rig);
	assert_int_equal(poll(&readable, 1, 0), 1);
	assert_int_equal(channel_receive(fd, &message, &error), 0);
	value = json_object_get(message.body, member);
	assert_non_null(value);
	if (text)
		assert_string_equal(json_string_value(value), text);
}

static int subscriber(struct rig *rig)
{
	int fd = join(rig);

	ask(fd, "subscribe");
	expect(rig, fd, "ok", NULL);
	return fd;
}

/* Each asks for something whose answer is given inside of what it does, and has gone by then. */
static void who_asks_and_leaves_is_no_harm(void **state)
{
	static const struct {
		const char *verb;
		enum machine_state before, after;
	} cases[] = {
		{"pause", MACHINE_PAUSED, MACHINE_PAUSED},
		{"resume", MACHINE_PAUSED, MACHINE_RUNNING},
		{"status", MACHINE_PAUSED, MACHINE_PAUSED},
		{"pause", MACHINE_RUNNING, MACHINE_PAUSED},
		{"no such thing", MACHINE_PAUSED, MACHINE_PAUSED},
		{"save-state", MACHINE_RUNNING, MACHINE_RUNNING},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++)
		for (int subscribed = 0; subscribed < 2; subscribed++) {
			struct rig *rig = new_rig(cases[i].before);
			int first = subscriber(rig), leaving = subscribed ? subscriber(rig) : join(rig),
			    last = subscriber(rig);

			ask(leaving, cases[i].verb);
			ask(leaving, "status");
			close(leaving);
			run(rig);
			for (unsigned turn = 0; turn < TURNS && rig->machine.state != cases[i].after; turn++)
				run(rig);
			assert_int_equal(rig->machine.state, cases[i].after);
			for (unsigned other = 0; other < 2; other++) {
				int fd = other ? last : first;

				if (cases[i].before != cases[i].after)
					expect(rig, fd, "event", "state");
				ask(fd, "status");
				expect(rig, fd, "state",
					cases[i].after == MACHINE_PAUSED ? "paused" : "running");
				close(fd);
			}
			run(rig);
			free_rig(rig);
		}
}

/* One change is told to many of whom every second has gone; their own events are in the same batch. */
static void those_who_have_gone_are_passed_over(void **state)
{
	struct rig *rig = new_rig(MACHINE_PAUSED);
	int fds[12];

	(void)state;
	for (unsigned i = 0; i < ARRAY_SIZE(fds); i++)
		fds[i] = subscriber(rig);
	for (unsigned i = 0; i < ARRAY_SIZE(fds); i += 2) {
		ask(fds[i], i % 4 ? "resume" : "pause");
		close(fds[i]);
	}
	for (unsigned i = 1; i < ARRAY_SIZE(fds); i += 2) {
		expect(rig, fds[i], "event", "state");
		close(fds[i]);
	}
	run(rig);
	free_rig(rig);
}

/* One that does not read loses its connection, also as the one who asks for what is told to it. */
static void who_does_not_read_is_closed(void **state)
{
	struct rig *rig = new_rig(MACHINE_PAUSED);
	int deaf = subscriber(rig), other = subscriber(rig), asked = 0;

	(void)state;
	for (unsigned i = 0; i < 10000; i++) {
		_cleanup_json_ json_t *request = json_pack("{s:s}", "do", i % 2 ? "pause" : "resume");
		_cleanup_free_ char *text = json_dumps(request, JSON_COMPACT);

		if (send(deaf, text, strlen(text), MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
			break;
		run(rig);
		asked++;
		while (recv(other, (char[4096]){0}, 4096, MSG_DONTWAIT) > 0)
			;
	}
	assert_true(asked < 10000);
	ask(other, "status");
	expect(rig, other, "state", NULL);
	close(deaf);
	close(other);
	free_rig(rig);
}

/* The control socket may go while somebody waits, and right after somebody has gone. */
static void it_ends_with_whom_it_has(void **state)
{
	struct rig *rig = new_rig(MACHINE_PAUSED);
	int left = join(rig), stays = subscriber(rig);

	(void)state;
	ask(left, "quit");
	close(left);
	run(rig);
	ask(stays, "pause");
	free_rig(rig);
	close(stays);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(who_asks_and_leaves_is_no_harm),
		cmocka_unit_test(those_who_have_gone_are_passed_over),
		cmocka_unit_test(who_does_not_read_is_closed),
		cmocka_unit_test(it_ends_with_whom_it_has),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
