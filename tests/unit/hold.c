/* A guest that waits for its host: it tries again by itself, unless somebody has paused it, and says when
 * that is over. */
#include "vmm/hold.h"
#include "vmm/machine.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/timerfd.h>
#include <unistd.h>
#include <cmocka.h>

static struct machine machine;
static unsigned resumed, told;
static bool room; /* the host has some again */

/* Instead of the machine's: the guest runs for as long as it does not meet what it waits for. */
int machine_resume(struct machine *of, bool announce, struct error *error)
{
	(void)announce, (void)error;
	resumed++;
	hold_end(of);
	of->state = MACHINE_RUNNING;
	hold_watch(of);
	if (!room) {
		hold_begin(of, "the storage of its disk xvda is full");
		assert_true(of->hold.waiting);
		of->state = MACHINE_PAUSED;
		hold_watch(of);
	}
	return 0;
}

static void changed(void *context)
{
	(void)context;
	told++;
}

static void time_is_up(void *context, uint32_t events)
{
	uint64_t times;

	(void)events;
	if (read(((struct watch *)context)->fd, &times, sizeof(times)) > 0)
		loop_stop(machine.loop);
}

static void run(unsigned ms)
{
	const struct itimerspec when = {.it_value = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000l}};
	struct watch timer = {
		.fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC), .handler = time_is_up, .context = &timer};
	struct error error = {0};

	timerfd_settime(timer.fd, 0, &when, NULL);
	assert_int_equal(loop_add(machine.loop, &timer, EPOLLIN, &error), 0);
	assert_int_equal(loop_run(machine.loop, &error), 0);
	loop_remove(machine.loop, &timer);
	close(timer.fd);
}

static void begin(void)
{
	struct error error = {0};

	machine = (struct machine){.loop = loop_new(&error), .state = MACHINE_RUNNING, .changed = changed};
	assert_non_null(machine.loop);
	resumed = told = 0;
	room = false;
	hold_begin(&machine, "the storage of its disk xvda is full");
	assert_true(machine.hold.waiting);
	machine.state = MACHINE_PAUSED;
	hold_watch(&machine);
}

static void end(void)
{
	hold_free(&machine);
	loop_free(machine.loop);
}

static void it_goes_on_when_there_is_room(void **state)
{
	(void)state;
	begin();
	run(2200); /* after 0.5, 1 and 2 s, each time in vain */
	assert_true(resumed >= 1);
	assert_int_equal(machine.state, MACHINE_PAUSED);
	assert_string_equal(machine.hold.why, "the storage of its disk xvda is full");
	room = true;
	for (unsigned i = 0; i < 20 && machine.hold.why[0]; i++)
		run(500);
	assert_int_equal(machine.state, MACHINE_RUNNING);
	assert_string_equal(machine.hold.why, "");
	assert_true(told > 0);
	end();
}

static void who_has_paused_it_lets_it_run_again(void **state)
{
	unsigned before;

	(void)state;
	begin();
	hold_end(&machine); /* xm pause, a save */
	room = true;
	run(1500);
	assert_int_equal(resumed, 0);
	assert_int_equal(machine.state, MACHINE_PAUSED);
	machine_resume(&machine, false, NULL);
	before = told;
	for (unsigned i = 0; i < 20 && machine.hold.why[0]; i++)
		run(500);
	assert_true(told > before);
	assert_int_equal(resumed, 1);
	end();
}

/* A pause that was under way already is another's. */
static void a_machine_that_is_being_paused_stays_paused(void **state)
{
	struct error error = {0};

	(void)state;
	machine = (struct machine){.loop = loop_new(&error), .state = MACHINE_RUNNING, .quieting = true};
	resumed = 0;
	hold_begin(&machine, "the storage of its disk xvda is full");
	assert_false(machine.hold.waiting);
	machine.quieting = false;
	machine.state = MACHINE_PAUSED;
	hold_watch(&machine);
	run(800);
	assert_int_equal(resumed, 0);
	end();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(it_goes_on_when_there_is_room),
		cmocka_unit_test(who_has_paused_it_lets_it_run_again),
		cmocka_unit_test(a_machine_that_is_being_paused_stays_paused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
