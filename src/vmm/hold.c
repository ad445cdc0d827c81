#include "vmm/hold.h"
#include "base/log.h"
#include "vmm/machine.h"

#include <errno.h>
#include <string.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define FIRST_MS 500u
#define MOST_MS 5000u

/* So long after it was let run again without having to wait anew, a machine waits no more. */
#define OVER_MS 1000u

static void arm(struct machine *machine, unsigned ms)
{
	const struct itimerspec when = {
		.it_value = {.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000}};

	timerfd_settime(machine->hold.timer.fd, 0, &when, NULL);
}

static void say(struct machine *machine)
{
	if (machine->changed)
		machine->changed(machine->context);
}

static void look_again(void *context, uint32_t events)
{
	struct machine *machine = context;
	struct hold *hold = &machine->hold;
	struct error error = {0};
	uint64_t times;

	(void)events;
	if (read(hold->timer.fd, &times, sizeof(times)) < 0 || machine->quieting)
		return;
	if (machine->state == MACHINE_RUNNING) {
		hold->why[0] = '\0';
		hold->tries = 0;
		say(machine);
	} else if (hold->waiting && machine->state == MACHINE_PAUSED &&
		   machine_resume(machine, false, &error) < 0) {
		log_error("%s", error.text);
		hold_watch(machine);
	}
}

static int make_timer(struct machine *machine, struct error *error)
{
	struct watch *timer = &machine->hold.timer;
	int r;

	if (timer->handler)
		return 0;
	*timer = (struct watch){.fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK),
		.handler = look_again,
		.context = machine};
	r = timer->fd < 0 ? error_set(error, errno, "Unable to make a timer: %s.", strerror(errno))
			  : loop_add(machine->loop, timer, EPOLLIN, error);
	if (r < 0) {
		if (timer->fd >= 0)
			close(timer->fd);
		timer->handler = NULL;
	}
	return r;
}

void hold_begin(struct machine *machine, const char *why)
{
	struct hold *hold = &machine->hold;
	struct error error = {0};

	snprintf(hold->why, sizeof(hold->why), "%s", why);
	if (make_timer(machine, &error) < 0)
		log_error("%s", error.text);
	/* A machine that is being paused for somebody tries again when that one resumes it. */
	if (machine->state == MACHINE_RUNNING && !machine->quieting)
		hold->waiting = true;
}

void hold_end(struct machine *machine)
{
	machine->hold.waiting = false;
}

void hold_watch(struct machine *machine)
{
	struct hold *hold = &machine->hold;
	unsigned ms = FIRST_MS << (hold->tries < 4 ? hold->tries : 4);

	if (!hold->why[0] || !hold->timer.handler)
		return;
	if (machine->state == MACHINE_RUNNING) {
		arm(machine, OVER_MS);
	} else if (hold->waiting) {
		hold->tries++;
		arm(machine, ms < MOST_MS ? ms : MOST_MS);
	}
}

void hold_free(struct machine *machine)
{
	struct watch *timer = &machine->hold.timer;

	if (!timer->handler)
		return;
	loop_remove(machine->loop, timer);
	close(timer->fd);
	timer->handler = NULL;
}
