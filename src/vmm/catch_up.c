#include "vmm/catch_up.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "vmm/chips.h"
#include "vmm/device.h"
#include "vmm/steal.h"

#include <errno.h>
#include <string.h>
#include <sys/timerfd.h>
#include <time.h>

#define NS_PER_MS 1000000ll
#define NS_PER_S 1000000000ull

/*
 * systemd's services say that they live between a half and three quarters of their watchdog's time
 * (sd-event.c, arm_watchdog), which is 3 minutes with those that come with it: in the last quarter, 45 s,
 * there are at least two steps. Short gaps are made up in shorter steps, for watchdogs that are shorter.
 */
#define STEP_LEAST (2 * NS_PER_S)
#define STEP_MOST (20 * NS_PER_S)
#define STEPS 200u

/*
 * How long the guest runs between two steps: until it has nothing to do, in two looks. One that always has
 * something to do is let run for a moment only; it takes some steps to know that, for where hosts are
 * emulated, a guest needs a hundred times as long to come to rest as elsewhere.
 *
 * Long is what it has had of its processors, not what has passed: a guest whose host has no time for it has
 * not had its chance to answer, however long ago the step was. What a look was late by does not count either,
 * for this host stood still itself then, or was too busy.
 */
#define LOOK_NS NS_PER_MS
#define LOOK_MOST_NS (100 * NS_PER_MS)
#define RESTS 2
#define FIRST_STEPS 3
#define FIRST_PATIENCE_NS                                                                                    \
	(200 * NS_PER_MS) /* also while its memory is still coming, from which nothing is learnt */
#define PATIENCE_MOST_NS (1000 * NS_PER_MS)
/* One that is never seen at rest: so much for each second of a step, and in all hardly more than so much. */
#define BUSY_NS_PER_S (5 * NS_PER_MS)
#define BUSY_MOST_NS (10 * 1000 * NS_PER_MS)
#define PATIENCE_LEAST_NS (3 * NS_PER_MS)
/* Then it is not waited for any more, and then the rest is made up at once. */
#define HURRY_NS (30 * 1000 * NS_PER_MS)
#define LONGEST_NS (60 * 1000 * NS_PER_MS)
#define LONGEST_PASSED_NS (10 * LONGEST_NS) /* whatever it has had */

uint64_t catch_up_step(uint64_t gap)
{
	uint64_t step = gap / STEPS;

	return step < STEP_LEAST ? STEP_LEAST : step > STEP_MOST ? STEP_MOST : step;
}

static int64_t monotonic(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * (int64_t)NS_PER_S + now.tv_nsec;
}

/* What is still to be made up where the guest's time is this. */
static uint64_t behind(const struct catch_up *catch_up, const struct guest_time *time)
{
	int64_t lack = (int64_t)(catch_up->kvmclock + (time->instant.realtime - catch_up->realtime) -
				 time->instant.kvmclock);

	return lack > 0 ? (uint64_t)lack : 0;
}

void catch_up_end(struct catch_up *catch_up)
{
	if (!catch_up->under_way)
		return;
	catch_up->under_way = catch_up->parking = false;
	loop_remove(catch_up->vcpus->platform->loop, &catch_up->timer);
	close(catch_up->timer.fd);
}

void catch_up_stand_still(struct catch_up *catch_up, struct vcpus *vcpus)
{
	struct error error;

	/* A guest that has a state but has not run since. */
	if (catch_up->standing)
		return;
	if (clock_take(vcpus->kvm, vcpus->fds, vcpus->count, &catch_up->time, &error) < 0) {
		log_error("The guest's time goes on while it stands still: %s", error.text);
		catch_up_end(catch_up);
		return;
	}
	catch_up->standing = true;
	if (catch_up->under_way) {
		uint64_t lack = behind(catch_up, &catch_up->time);

		catch_up->was_behind = lack > 0;
		/* Whoever lets it run on, here or elsewhere, takes it for time that has passed since. */
		catch_up->time.instant.realtime -= lack;
	}
	catch_up_end(catch_up);
}

void catch_up_loaded(struct catch_up *catch_up, const struct guest_time *time)
{
	catch_up->time = *time;
	catch_up->standing = catch_up->loaded = true;
}

/* Processors halt and no device is at work: the guest waits for time to pass, or for the outside. */
static bool has_nothing_to_do(const struct vcpus *vcpus)
{
	for (uint32_t i = 0; i < vcpus->count; i++)
		if (!vcpu_halted(&vcpus->vcpu[i]))
			return false;
	for (struct device *device = vcpus->platform->devices; device; device = device->next)
		if (device->class->busy && device->class->busy(device))
			return false;
	return true;
}

int64_t catch_up_busy_patience(uint64_t gap, uint64_t step)
{
	int64_t in_step = (int64_t)(step * BUSY_NS_PER_S / NS_PER_S);
	int64_t in_all = (int64_t)(BUSY_MOST_NS / (gap / step + 1));

	if (in_step > in_all)
		in_step = in_all;
	return in_step < PATIENCE_LEAST_NS ? PATIENCE_LEAST_NS : in_step;
}

static int64_t patience(const struct catch_up *catch_up)
{
	int64_t most = 4 * catch_up->usual, least = catch_up_busy_patience(catch_up->gap, catch_up->step);

	if (catch_up->spent > HURRY_NS)
		return PATIENCE_LEAST_NS;
	if (catch_up->usual == 0 && catch_up->tries < FIRST_STEPS)
		most = FIRST_PATIENCE_NS;
	if (catch_up->memory_comes && most < FIRST_PATIENCE_NS)
		most = FIRST_PATIENCE_NS;
	return most < least ? least : most > PATIENCE_MOST_NS ? PATIENCE_MOST_NS : most;
}

static uint64_t cpu_time(const struct vcpus *vcpus)
{
	uint64_t total = 0;

	for (uint32_t i = 0; i < vcpus->count; i++)
		total += vcpu_cpu_time(&vcpus->vcpu[i]);
	return total;
}

/* What the guest had since the last look: each of those that run its part of it. Where all wait, or this KVM
 * does not tell who does, it is the time. */
static int64_t had(struct catch_up *catch_up)
{
	const struct vcpus *vcpus = catch_up->vcpus;
	uint64_t total = cpu_time(vcpus);
	int64_t got = (int64_t)(total - catch_up->cpu_time);
	uint32_t running = 0;

	catch_up->cpu_time = total;
	for (uint32_t i = 0; i < vcpus->count; i++)
		running += vcpus->vcpu[i].stats >= 0 && !vcpu_halted(&vcpus->vcpu[i]);
	if (running == 0 || got / running > catch_up->interval)
		return catch_up->interval;
	return got / running;
}

/* Looks again in a moment, which is the longer the longer it has been waited: looking takes the guest's time.
 */
static int look_again(struct catch_up *catch_up, int64_t waited)
{
	int64_t interval = waited / 8;
	struct itimerspec in = {0};

	interval = interval < LOOK_NS ? LOOK_NS : interval > LOOK_MOST_NS ? LOOK_MOST_NS : interval;
	catch_up->interval = interval;
	in.it_value.tv_nsec = interval;
	return timerfd_settime(catch_up->timer.fd, 0, &in, NULL) < 0 ? -errno : 0;
}

/* It has come to rest after so long, or not. */
static void learn(struct catch_up *catch_up)
{
	if (catch_up->memory_comes)
		return;
	catch_up->tries++;
	catch_up->usual /= 2;
	if (catch_up->rests >= RESTS && catch_up->had > catch_up->usual)
		catch_up->usual = catch_up->had;
}

static bool too_long(const struct catch_up *catch_up)
{
	return catch_up->spent > LONGEST_NS || monotonic() - catch_up->began > LONGEST_PASSED_NS;
}

static void begin_step(struct catch_up *catch_up)
{
	struct vcpus *vcpus = catch_up->vcpus;

	catch_up->parking = true;
	vcpus_pause(vcpus);
	/* Those that have not left since the last step say nothing. */
	if (vcpus_parked(vcpus))
		vcpus->all_parked(vcpus->context);
}

static void look(void *context, uint32_t events)
{
	struct catch_up *catch_up = context;
	int64_t more;
	uint64_t expirations;

	(void)events;
	if (read(catch_up->timer.fd, &expirations, sizeof(expirations)) != sizeof(expirations) ||
		catch_up->parking)
		return;
	more = had(catch_up);
	catch_up->had += more;
	catch_up->spent += more;
	catch_up->rests = has_nothing_to_do(catch_up->vcpus) ? catch_up->rests + 1 : 0;
	if (catch_up->rests < RESTS && catch_up->had < patience(catch_up) && !too_long(catch_up) &&
		look_again(catch_up, monotonic() - catch_up->ran_since) == 0)
		return;
	learn(catch_up);
	begin_step(catch_up);
}

static int begin(struct catch_up *catch_up, struct vcpus *vcpus, struct error *error)
{
	int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK), r;

	if (fd < 0)
		return error_set(error, errno, "Unable to make a timer: %s.", strerror(errno));
	catch_up->timer = (struct watch){.fd = fd, .handler = look, .context = catch_up};
	r = look_again(catch_up, 0) < 0 ? error_set(error, EINVAL, "Unable to set a timer.")
					: loop_add(vcpus->platform->loop, &catch_up->timer, EPOLLIN, error);
	if (r < 0) {
		close(fd);
		return r;
	}
	catch_up->vcpus = vcpus;
	catch_up->under_way = true;
	catch_up->parking = false;
	catch_up->steps = 1;
	catch_up->rests = catch_up->tries = 0;
	catch_up->usual = catch_up->had = catch_up->spent = 0;
	catch_up->cpu_time = cpu_time(vcpus);
	catch_up->began = catch_up->ran_since = monotonic();
	return 0;
}

void catch_up_translate(struct catch_up *catch_up, int64_t realtime_offset)
{
	catch_up->time.instant.realtime += (uint64_t)realtime_offset;
}

int catch_up_go_on(struct catch_up *catch_up, struct vcpus *vcpus, struct error *error)
{
	const struct clock_instant *stopped = &catch_up->time.instant;
	int64_t since = (int64_t)(clock_realtime() - stopped->realtime);
	uint64_t gap = since > 0 && catch_up->how != CLOCK_STOP ? (uint64_t)since : 0;
	uint64_t step = catch_up_step(gap);
	bool all = catch_up->how != CLOCK_CATCH_UP || gap <= step, sets;
	int r = 0;

	if (!catch_up->standing)
		return 0;
	catch_up->gap = gap;
	catch_up->step = step;
	catch_up->kvmclock = stopped->kvmclock;
	catch_up->realtime = stopped->realtime;
	if (!all && begin(catch_up, vcpus, error) < 0) {
		log_warning("The guest's clock goes forward by %.1f s at once: %s", (double)gap / NS_PER_S,
			error->text);
		all = true;
	}
	/* Over a short pause KVM's clocks have gone on themselves, and more evenly. */
	sets = catch_up->loaded || catch_up->was_behind || catch_up->how == CLOCK_STOP || !all;
	if (sets)
		r = clock_set(vcpus->kvm, vcpus->fds, vcpus->count, &catch_up->time, all ? gap : step, error);
	if (r < 0) {
		catch_up_end(catch_up);
		return r;
	}
	catch_up->standing = catch_up->loaded = catch_up->was_behind = false;
	clock_forgive(vcpus->fds, vcpus->count);
	steal_add(vcpus, all ? gap : step, catch_up->memory_comes);
	if (sets || gap > step)
		chips_forget_ticks(vcpus->kvm);
	return 0;
}

/* One step; true where that was the last. */
static bool make_step(struct catch_up *catch_up, struct guest_time *time, struct error *error)
{
	struct vcpus *vcpus = catch_up->vcpus;
	uint64_t lack, forward;

	if (clock_take(vcpus->kvm, vcpus->fds, vcpus->count, time, error) < 0)
		return true;
	lack = behind(catch_up, time);
	forward = lack < catch_up->step ? lack : catch_up->step;
	if (too_long(catch_up)) {
		log_warning("The guest's clock is still %.1f s behind and goes forward by that at once.",
			(double)lack / NS_PER_S);
		forward = lack;
	}
	if (clock_set(vcpus->kvm, vcpus->fds, vcpus->count, time, forward, error) < 0)
		return true;
	clock_forgive(vcpus->fds, vcpus->count);
	steal_add(vcpus, forward, catch_up->memory_comes);
	catch_up->steps++;
	return forward == lack;
}

void catch_up_parked(struct catch_up *catch_up)
{
	struct guest_time time;
	struct error error = {0};

	if (!catch_up->parking)
		return;
	catch_up->parking = false;
	catch_up->rests = 0;
	if (!make_step(catch_up, &time, &error) && look_again(catch_up, 0) == 0) {
		catch_up->ran_since = monotonic();
		catch_up->had = 0;
		catch_up->cpu_time = cpu_time(catch_up->vcpus);
		vcpus_run(catch_up->vcpus);
		return;
	}
	if (error.code)
		log_error("The guest's clock stays behind: %s", error.text);
	else
		log_info("The guest's clock has made up for %.1f s, in %u steps within %.2f s.",
			(double)catch_up->gap / NS_PER_S, catch_up->steps,
			(double)(monotonic() - catch_up->began) / NS_PER_S);
	catch_up_end(catch_up);
	vcpus_run(catch_up->vcpus);
}
