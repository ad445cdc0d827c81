/* A guest's time over a pause: how far it goes at once, that it has had its chance to answer before it goes
 * on, and that in the end nothing is missing. The clocks are numbers here, and so is what the guest has to
 * do. */
#include "vmm/catch_up.h"

#include "base/cleanup.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#define S 1000000000ull
#define MS 1000000ull

static uint64_t real, guest, guest_at; /* the host's time; the guest's, and when that was */
static uint64_t longest;               /* way that the guest's time went at once */
static uint64_t stolen;                /* what the guest was told to charge to nobody */
static unsigned sets, forgotten;       /* how often the timer's ticks were forgotten */
static bool broken;

/*
 * The guest's one processor, which tells whether it waits (stats >= 0): after each step it has to run for
 * `work` ns, and is given one in `share` of the time; 0: it never comes to rest. `late`: how long each look
 * takes, as if this whole host were slow. `leap`: how far the host's monotonic time is ahead.
 */
static struct {
	int64_t work;
	unsigned share, late_ms;
	int64_t leap;
	int64_t before, since; /* monotonic ns of the last step */
	unsigned hurried;      /* steps that came before the work was done */
} load;

int __real_clock_gettime(clockid_t clock, struct timespec *now);
int __wrap_clock_gettime(clockid_t clock, struct timespec *now);

int __wrap_clock_gettime(clockid_t clock, struct timespec *now)
{
	int r = __real_clock_gettime(clock, now);

	if (clock == CLOCK_MONOTONIC)
		now->tv_sec += load.leap;
	return r;
}

static int64_t monotonic(void)
{
	struct timespec now;

	__real_clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * (int64_t)S + now.tv_nsec;
}

static int64_t ran(void)
{
	return load.share ? (monotonic() - load.since) / load.share : 0;
}

uint64_t __wrap_vcpu_cpu_time(const struct vcpu *vcpu)
{
	(void)vcpu;
	return (uint64_t)(load.before + (load.work && ran() > load.work ? load.work : ran()));
}

bool __wrap_vcpu_halted(const struct vcpu *vcpu)
{
	bool rests = load.work && ran() >= load.work;

	(void)vcpu;
	if (load.late_ms)
		usleep(load.late_ms * 1000);
	return rests;
}

uint64_t __wrap_clock_realtime(void)
{
	return real;
}

int __wrap_clock_take(
	const struct kvm *kvm, const int *vcpus, uint32_t count, struct guest_time *time, struct error *error)
{
	(void)kvm, (void)vcpus, (void)count, (void)error;
	time->instant = (struct clock_instant){.kvmclock = guest + (real - guest_at), .realtime = real};
	return 0;
}

int __wrap_clock_set(const struct kvm *kvm, const int *vcpus, uint32_t count, const struct guest_time *time,
	uint64_t forward, struct error *error)
{
	(void)kvm, (void)vcpus, (void)count;
	if (broken)
		return error_set(error, 5, "It is broken.");
	guest = time->instant.kvmclock + forward;
	guest_at = real;
	longest = forward > longest ? forward : longest;
	if (sets++ > 0 && load.work)
		load.hurried += ran() < load.work;
	load.before = (int64_t)vcpu_cpu_time(NULL);
	load.since = monotonic();
	return 0;
}

void __wrap_clock_forgive(const int *vcpus, uint32_t count)
{
	(void)vcpus, (void)count;
}

void __wrap_steal_add(struct vcpus *vcpus, uint64_t ns, bool memory_comes)
{
	(void)vcpus, (void)memory_comes;
	stolen += ns;
}

void __wrap_chips_forget_ticks(const struct kvm *kvm)
{
	(void)kvm;
	forgotten++;
}

void __wrap_vcpus_pause(struct vcpus *vcpus)
{
	(void)vcpus;
}

void __wrap_vcpus_run(struct vcpus *vcpus)
{
	(void)vcpus;
	real += MS;
}

struct rig {
	struct platform platform;
	struct vcpus vcpus; /* none, or one that is always parked */
	struct catch_up catch_up;
	unsigned leave_after; /* steps */
};

static void parked(void *context)
{
	struct rig *rig = context;

	catch_up_parked(&rig->catch_up);
	if (!rig->catch_up.under_way || rig->catch_up.steps == rig->leave_after)
		loop_stop(rig->platform.loop);
}

static void all_parked(void *context)
{
	struct rig *rig = context;

	loop_defer(rig->platform.loop, parked, rig);
}

static struct rig *new_rig(enum clock_over_pause how)
{
	struct rig *rig = calloc(1, sizeof(*rig));
	struct error error;

	rig->platform.loop = loop_new(&error);
	rig->vcpus = (struct vcpus){.platform = &rig->platform, .all_parked = all_parked, .context = rig};
	rig->catch_up.how = how;
	real = 1000000 * S;
	guest = 5 * S;
	guest_at = real - 3 * S;
	longest = stolen = 0;
	sets = forgotten = 0;
	memset(&load, 0, sizeof(load));
	load.since = monotonic();
	broken = false;
	return rig;
}

static void free_rig(struct rig *rig)
{
	catch_up_end(&rig->catch_up);
	loop_free(rig->platform.loop);
	free(rig);
}

/* Runs on until it has caught up or has made so many steps (0: all). */
static void go_on(struct rig *rig, unsigned steps)
{
	struct error error;

	rig->leave_after = steps;
	assert_int_equal(catch_up_go_on(&rig->catch_up, &rig->vcpus, &error), 0);
	assert_false(rig->catch_up.standing);
	if (rig->catch_up.under_way)
		assert_int_equal(loop_run(rig->platform.loop, &error), 0);
}

/* What the guest's clock shows: it showed 8 s when real time was 1000000 s. */
static uint64_t shown(void)
{
	return guest + (real - guest_at);
}

static void steps_are_neither_short_nor_long(void **state)
{
	(void)state;
	assert_int_equal(catch_up_step(0), 2 * S);
	assert_int_equal(catch_up_step(600 * S), 3 * S);
	assert_int_equal(catch_up_step(365 * 86400 * S), 20 * S);
}

static void a_guest_that_never_rests_has_its_time_too(void **state)
{
	(void)state;
	/* Three seconds for ten minutes, ten for an hour; what is much longer is hurried. */
	assert_int_equal(catch_up_busy_patience(600 * S, 3 * S), 15 * MS);
	assert_in_range(catch_up_busy_patience(3600 * S, 18 * S), 45 * MS, 50 * MS);
	assert_int_equal(catch_up_busy_patience(365 * 86400 * S, 20 * S), 3 * MS);
	assert_int_equal(catch_up_busy_patience(0, 2 * S), 10 * MS);
}

static void time_catches_up(void **state)
{
	static const uint64_t gaps[] = {0, 10 * MS, 2 * S, 7 * S, 600 * S, 8000 * S};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(gaps); i++) {
		struct rig *rig = new_rig(CLOCK_CATCH_UP);

		catch_up_stand_still(&rig->catch_up, &rig->vcpus);
		assert_true(rig->catch_up.standing);
		real += gaps[i];
		guest_at = real; /* it has not gone on, though KVM's may have: what is set counts */
		guest = 8 * S + (gaps[i] <= 2 * S ? gaps[i] : 0);
		go_on(rig, 0);
		assert_int_equal(shown() - 8 * S, real - 1000000 * S);
		assert_true(longest <= catch_up_step(gaps[i]));
		assert_int_equal(stolen, gaps[i]);
		assert_int_equal(forgotten, gaps[i] > 2 * S);
		assert_int_equal(sets,
			gaps[i] <= 2 * S ? 0
					 : (gaps[i] + catch_up_step(gaps[i]) - 1) / catch_up_step(gaps[i]));
		free_rig(rig);
	}
}

static void a_loaded_state_goes_on_where_it_stopped(void **state)
{
	struct rig *rig = new_rig(CLOCK_CATCH_UP);
	/* The other host's clock is 50 s ahead. */
	struct guest_time loaded = {.instant = {.kvmclock = 8 * S, .realtime = 1000050 * S}};

	(void)state;
	real = 1000001 * S;
	catch_up_loaded(&rig->catch_up, &loaded);
	catch_up_stand_still(&rig->catch_up, &rig->vcpus); /* paused again before it ever ran */
	assert_int_equal(rig->catch_up.time.instant.kvmclock, 8 * S);
	catch_up_translate(&rig->catch_up, -50 * (int64_t)S);
	go_on(rig, 0);
	assert_int_equal(shown(), 9 * S);
	free_rig(rig);
}

/* It arrives paused, and is sent on before it ever ran: what is saved of it is of the host where it is. */
static void a_loaded_state_is_sent_on(void **state)
{
	struct rig *rig = new_rig(CLOCK_CATCH_UP), *there = new_rig(CLOCK_CATCH_UP);
	struct guest_time loaded = {.instant = {.kvmclock = 8 * S, .realtime = 1000050 * S}};

	(void)state;
	real = 1000001 * S;
	catch_up_loaded(&rig->catch_up, &loaded);
	catch_up_translate(&rig->catch_up, -50 * (int64_t)S);
	catch_up_stand_still(&rig->catch_up, &rig->vcpus);
	assert_int_equal(rig->catch_up.time.instant.realtime, 1000000 * S);
	catch_up_loaded(&there->catch_up, &rig->catch_up.time);
	catch_up_translate(&there->catch_up, 0);
	go_on(there, 0);
	assert_int_equal(shown(), 9 * S);
	free_rig(rig);
	free_rig(there);
}

static void what_is_behind_stays_so_when_it_is_stopped(void **state)
{
	struct rig *rig = new_rig(CLOCK_CATCH_UP), *there = new_rig(CLOCK_CATCH_UP);

	(void)state;
	catch_up_stand_still(&rig->catch_up, &rig->vcpus);
	real += 600 * S;
	go_on(rig, 50);
	assert_true(rig->catch_up.under_way);
	catch_up_stand_still(&rig->catch_up, &rig->vcpus);
	assert_false(rig->catch_up.under_way);
	/* As if it had been stopped when its clock was right. */
	assert_int_equal(rig->catch_up.time.instant.kvmclock - 8 * S,
		rig->catch_up.time.instant.realtime - 1000000 * S);
	assert_true(shown() < 8 * S + 200 * S);
	catch_up_loaded(&there->catch_up, &rig->catch_up.time);
	real += 30 * S;
	go_on(there, 0);
	assert_int_equal(shown() - 8 * S, real - 1000000 * S);
	free_rig(rig);
	free_rig(there);
}

static void one_that_was_nearly_there_is_not_forgotten(void **state)
{
	struct rig *rig = new_rig(CLOCK_CATCH_UP);

	(void)state;
	catch_up_stand_still(&rig->catch_up, &rig->vcpus);
	real += 5 * S;
	go_on(rig, 2);
	catch_up_stand_still(&rig->catch_up, &rig->vcpus);
	go_on(rig, 0); /* 1 s is missing: less than a step */
	assert_int_equal(shown() - 8 * S, real - 1000000 * S);
	free_rig(rig);
}

/* The timer of a state has ticked since that was loaded. */
static void a_jump_forgets_ticks_too(void **state)
{
	(void)state;
	for (unsigned loaded = 0; loaded < 2; loaded++) {
		struct rig *rig = new_rig(CLOCK_JUMP);

		catch_up_stand_still(&rig->catch_up, &rig->vcpus);
		if (loaded)
			catch_up_loaded(&rig->catch_up, &(struct guest_time){rig->catch_up.time.instant});
		else
			real += 600 * S;
		go_on(rig, 0);
		assert_int_equal(forgotten, 1);
		free_rig(rig);
	}
}

static void a_user_may_want_a_jump_or_none(void **state)
{
	struct rig *rig = new_rig(CLOCK_JUMP);

	(void)state;
	catch_up_stand_still(&rig->catch_up, &rig->vcpus);
	catch_up_loaded(&rig->catch_up, &(struct guest_time){rig->catch_up.time.instant});
	real += 600 * S;
	go_on(rig, 0);
	assert_int_equal(shown(), 608 * S);
	assert_int_equal(longest, 600 * S);
	assert_int_equal(stolen, 600 * S);
	free_rig(rig);
	rig = new_rig(CLOCK_STOP);
	catch_up_stand_still(&rig->catch_up, &rig->vcpus);
	real += 600 * S;
	go_on(rig, 0);
	assert_int_equal(shown(), 8 * S);
	assert_int_equal(stolen, 0);
	assert_int_equal(forgotten, 1);
	free_rig(rig);
}

static void a_clock_that_was_set_back_does_not_take_the_guests_along(void **state)
{
	struct rig *rig = new_rig(CLOCK_CATCH_UP);

	(void)state;
	catch_up_stand_still(&rig->catch_up, &rig->vcpus);
	catch_up_loaded(&rig->catch_up, &(struct guest_time){rig->catch_up.time.instant});
	real -= 100 * S;
	go_on(rig, 0);
	assert_int_equal(shown(), 8 * S);
	free_rig(rig);
}

static void what_cannot_be_set_keeps_the_guest_from_running(void **state)
{
	struct rig *rig = new_rig(CLOCK_CATCH_UP);
	struct error error;

	(void)state;
	catch_up_stand_still(&rig->catch_up, &rig->vcpus);
	real += 600 * S;
	broken = true;
	assert_true(catch_up_go_on(&rig->catch_up, &rig->vcpus, &error) < 0);
	assert_true(rig->catch_up.standing && !rig->catch_up.under_way);
	broken = false;
	go_on(rig, 0);
	assert_int_equal(shown() - 8 * S, real - 1000000 * S);
	free_rig(rig);
}

/* Ten minutes in steps of 3 s, or fewer. */
static struct rig *with_a_processor(uint64_t gap)
{
	struct rig *rig = new_rig(CLOCK_CATCH_UP);

	rig->vcpus.count = rig->vcpus.parked_count = 1;
	catch_up_stand_still(&rig->catch_up, &rig->vcpus);
	guest_at = real += gap;
	guest = 8 * S;
	return rig;
}

/* However little of a processor the host gives it: after each step it has had what it needs to answer. */
static void a_starved_guest_is_waited_for(void **state)
{
	struct rig *rig = with_a_processor(10 * S);

	(void)state;
	load.work = 6 * MS;
	load.share = 60;
	go_on(rig, 0);
	assert_int_equal(shown() - 8 * S, real - 1000000 * S);
	assert_int_equal(sets, 5);
	assert_int_equal(load.hurried, 0);
	assert_int_equal(longest, 2 * S);
	free_rig(rig);
}

/* As where the host itself is emulated on a busy machine: looks come late, and the guest runs no more than
 * they. */
static void what_a_look_was_late_by_does_not_count(void **state)
{
	struct rig *rig = with_a_processor(4 * S);

	(void)state;
	load.work = 600 * MS;
	load.share = 1;
	load.late_ms = 60;
	go_on(rig, 0);
	assert_int_equal(sets, 2);
	assert_int_equal(load.hurried, 0);
	free_rig(rig);
}

/* The date is right soon in a guest that never rests, in one whose KVM does not tell, and in one that does
 * not run at all. */
static void time_does_not_wait_for_ever(void **state)
{
	static const struct {
		unsigned share;
		int stats;
		int64_t leap;
	} cases[] = {{1, 1, 0}, {3, 1, 0}, {1, -1, 0}, {0, -1, 0}, {0, 1, 700}};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct rig *rig = with_a_processor(40 * S);

		load.share = cases[i].share;
		rig->vcpus.vcpu[0].stats = cases[i].stats;
		rig->leave_after = 0;
		load.leap = 0;
		if (cases[i].leap) {
			struct error error;

			assert_int_equal(catch_up_go_on(&rig->catch_up, &rig->vcpus, &error), 0);
			load.leap = cases[i].leap;
			assert_int_equal(loop_run(rig->platform.loop, &error), 0);
			assert_true(longest > 30 * S);
		} else {
			go_on(rig, 0);
			assert_int_equal(longest, 2 * S);
		}
		assert_int_equal(shown() - 8 * S, real - 1000000 * S);
		free_rig(rig);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(steps_are_neither_short_nor_long),
		cmocka_unit_test(a_guest_that_never_rests_has_its_time_too),
		cmocka_unit_test(time_catches_up),
		cmocka_unit_test(a_loaded_state_goes_on_where_it_stopped),
		cmocka_unit_test(a_loaded_state_is_sent_on),
		cmocka_unit_test(what_is_behind_stays_so_when_it_is_stopped),
		cmocka_unit_test(one_that_was_nearly_there_is_not_forgotten),
		cmocka_unit_test(a_jump_forgets_ticks_too),
		cmocka_unit_test(a_user_may_want_a_jump_or_none),
		cmocka_unit_test(a_clock_that_was_set_back_does_not_take_the_guests_along),
		cmocka_unit_test(what_cannot_be_set_keeps_the_guest_from_running),
		cmocka_unit_test(a_starved_guest_is_waited_for),
		cmocka_unit_test(what_a_look_was_late_by_does_not_count),
		cmocka_unit_test(time_does_not_wait_for_ever),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
