#include "vmm/vcpu.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "base/turns.h"
#include "vmm/bus.h"
#include "vmm/clock.h"
#include "vmm/loop.h"
#include "vmm/steal.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>

#define STACK_SIZE (128u << 10)
#define NS_PER_S 1000000000ll
/* At a stretch, also after a long run: a guest's processors wait for each other. */
#define REST_MOST_NS (6 * VCPU_PERIOD_NS)
/* Of shorter stretches in the guest hardly more is left than coming in and out. With a hundredth of the time
 * for the guest the rest behind it is 50 ms. */
#define PART_LEAST_NS 500000
#define KICK_SIGNAL SIGUSR1

#ifndef sigev_notify_thread_id /* glibc before 2.39 has only the kernel's name */
#define sigev_notify_thread_id _sigev_un._tid
#endif

static _Thread_local struct kvm_run *entered; /* what this thread runs */

void vcpus_kicked(int signal)
{
	(void)signal;
	if (entered)
		entered->immediate_exit = 1;
}

static void exit_ports(struct platform *platform, struct kvm_run *run)
{
	uint8_t *data = (uint8_t *)run + run->io.data_offset;

	for (uint32_t i = 0; i < run->io.count; i++, data += run->io.size)
		if (run->io.direction == KVM_EXIT_IO_IN)
			bus_read(platform->ports, run->io.port, data, run->io.size);
		else
			bus_write(platform->ports, run->io.port, data, run->io.size);
}

static void exit_memory(struct platform *platform, struct kvm_run *run)
{
	if (run->mmio.is_write)
		bus_write(platform->mmio, run->mmio.phys_addr, run->mmio.data, run->mmio.len);
	else
		bus_read(platform->mmio, run->mmio.phys_addr, run->mmio.data, run->mmio.len);
}

static void stop(struct vcpu *vcpu, enum stop_reason reason, const char *detail)
{
	vcpu->all->platform->stop(vcpu->all->platform->machine, reason, detail);
}

/* KVM cannot go on with the guest: says what it tells (KVM_EXIT_INTERNAL_ERROR). */
static void internal_error(struct vcpu *vcpu)
{
	static const char *const kinds[] = {
		[KVM_INTERNAL_ERROR_EMULATION] = "it could not emulate an instruction",
		[KVM_INTERNAL_ERROR_SIMUL_EX] = "an exception came during another",
		[KVM_INTERNAL_ERROR_DELIVERY_EV] = "an event could not be delivered",
		[KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON] =
			"the processor left the guest for an unknown reason"};
	const struct kvm_run *run = vcpu->run;
	uint32_t kind = run->internal.suberror;
	struct kvm_regs regs = {0};
	char text[400], bytes[64] = "";

	if (kind == KVM_INTERNAL_ERROR_EMULATION && run->emulation_failure.ndata >= 3 &&
		run->emulation_failure.flags & KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) {
		size_t count = run->emulation_failure.insn_size;

		for (size_t i = 0; i < count && i < sizeof(run->emulation_failure.insn_bytes); i++)
			snprintf(bytes + strlen(bytes), sizeof(bytes) - strlen(bytes), " %02x",
				run->emulation_failure.insn_bytes[i]);
	}
	if (ioctl(vcpu->fd, KVM_GET_REGS, &regs) < 0)
		log_warning("KVM does not give the registers of processor %u either.", vcpu->id);
	snprintf(text, sizeof(text),
		"This host's KVM cannot run the guest: internal error %u, %s, at 0x%llx%s%s. Use a host "
		"whose KVM "
		"runs Linux guests.",
		kind, kind < ARRAY_SIZE(kinds) && kinds[kind] ? kinds[kind] : "of no known kind",
		(unsigned long long)regs.rip, bytes[0] ? ", bytes" : "", bytes);
	stop(vcpu, STOP_ERROR, text);
}

static void failed_entry(struct vcpu *vcpu)
{
	char text[200];

	snprintf(text, sizeof(text),
		"This host's processor refuses to run the guest: hardware entry failure 0x%llx.",
		(unsigned long long)vcpu->run->fail_entry.hardware_entry_failure_reason);
	stop(vcpu, STOP_ERROR, text);
}

static void triple_fault(struct vcpu *vcpu)
{
	struct kvm_regs regs = {0};
	char text[200];

	if (ioctl(vcpu->fd, KVM_GET_REGS, &regs) < 0)
		log_warning("KVM does not give the registers of processor %u.", vcpu->id);
	snprintf(text, sizeof(text), "The guest's processor %u shut down (triple fault) at 0x%llx.", vcpu->id,
		(unsigned long long)regs.rip);
	stop(vcpu, STOP_CRASH, text);
}

static void unknown_exit(struct vcpu *vcpu)
{
	char text[200];

	snprintf(text, sizeof(text),
		"KVM left the guest for reason %u, of which this Ferry knows nothing; the guest cannot go "
		"on.",
		vcpu->run->exit_reason);
	stop(vcpu, STOP_ERROR, text);
}

static void handle_exit(struct vcpu *vcpu)
{
	struct platform *platform = vcpu->all->platform;

	switch (vcpu->run->exit_reason) {
	case KVM_EXIT_IO:
		exit_ports(platform, vcpu->run);
		break;
	case KVM_EXIT_MMIO:
		exit_memory(platform, vcpu->run);
		break;
	case KVM_EXIT_INTR:
	case KVM_EXIT_IRQ_WINDOW_OPEN:
		break;
	case KVM_EXIT_SHUTDOWN:
		triple_fault(vcpu);
		break;
	case KVM_EXIT_FAIL_ENTRY:
		failed_entry(vcpu);
		break;
	case KVM_EXIT_INTERNAL_ERROR:
		internal_error(vcpu);
		break;
	default:
		unknown_exit(vcpu);
		break;
	}
}

static int64_t clock_ns(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return now.tv_sec * NS_PER_S + now.tv_nsec;
}

/* For how long one that is slowed runs before it rests. */
static int64_t part_ns(const struct vcpus *all)
{
	int64_t part = VCPU_PERIOD_NS / 100 * (100 - all->slowed);

	return part > PART_LEAST_NS ? part : PART_LEAST_NS;
}

/*
 * Who is slowed runs for its part of a period and no longer, also on a host so busy that the main thread, and
 * with it vcpus_charge, comes late: the kernel's own timer takes it out. One that has not run meanwhile is
 * left alone for twice as long the next time: it may be asleep. Whether the timer runs; it is not to
 * interrupt what this thread does outside the guest.
 */
static bool limit_run(struct vcpu *vcpu)
{
	struct itimerspec limit = {0};
	int64_t now = clock_ns(CLOCK_MONOTONIC);

	if (!vcpu->timed || !vcpu->all->slowed)
		return false;
	if (now >= vcpu->limited_until) {
		vcpu->limit_ns = vcpu->limit_ns ? 2 * vcpu->limit_ns : part_ns(vcpu->all);
		vcpu->limited_until = now + vcpu->limit_ns;
	}
	limit.it_value.tv_sec = vcpu->limited_until / NS_PER_S;
	limit.it_value.tv_nsec = vcpu->limited_until % NS_PER_S;
	return timer_settime(vcpu->timer, TIMER_ABSTIME, &limit, NULL) == 0;
}

static void unlimit(struct vcpu *vcpu)
{
	timer_settime(vcpu->timer, 0, &(struct itimerspec){0}, NULL);
}

/* Runs the guest until an exit, without the lock. */
static void enter(struct vcpu *vcpu)
{
	struct loop *loop = vcpu->all->platform->loop;
	bool limited;
	int r;

	/* Whoever kicks holds the lock: a kick from before was for what run_thread has just looked at. */
	vcpu->run->immediate_exit = 0;
	limited = limit_run(vcpu);
	loop_unlock(loop);
	r = ioctl(vcpu->fd, KVM_RUN, 0) < 0 ? -errno : 0;
	if (limited)
		unlimit(vcpu);
	loop_lock(loop);
	if (r == 0) {
		handle_exit(vcpu);
	} else if (r != -EINTR && r != -EAGAIN) {
		char text[200];

		snprintf(text, sizeof(text), "KVM refuses to run the guest: %s.", strerror(-r));
		stop(vcpu, STOP_ERROR, text);
	}
}

/*
 * An access that was handled after the last exit is completed by KVM only on the next entry; with
 * immediate_exit that is all an entry does (api.rst, 5, "KVM_EXIT_IO"). Another part of the same access may
 * come first.
 */
static void complete_access(struct vcpu *vcpu)
{
	vcpu->run->immediate_exit = 1;
	while (ioctl(vcpu->fd, KVM_RUN, 0) == 0 &&
		(vcpu->run->exit_reason == KVM_EXIT_IO || vcpu->run->exit_reason == KVM_EXIT_MMIO))
		handle_exit(vcpu);
}

static void park(struct vcpu *vcpu)
{
	struct vcpus *all = vcpu->all;

	complete_access(vcpu);
	vcpu->parked = true;
	if (++all->parked_count == all->count)
		all->all_parked(all->context);
	while (!all->wanted && !all->ending)
		loop_wait(all->platform->loop, &all->changed);
	vcpu->parked = false;
	all->parked_count--;
}

/* What it has run since it was last asked, it rests for in proportion. */
static void charge(struct vcpu *vcpu)
{
	struct vcpus *all = vcpu->all;
	int64_t spent = clock_ns(CLOCK_THREAD_CPUTIME_ID);
	int64_t rest = (spent - vcpu->charged) * all->slowed / (100 - all->slowed), until;

	until = clock_ns(CLOCK_MONOTONIC) + (rest < REST_MOST_NS ? rest : REST_MOST_NS);
	vcpu->due = false;
	vcpu->charged = spent;
	vcpu->limited_until = vcpu->limit_ns = 0;
	if (until > vcpu->rest_until)
		vcpu->rest_until = until;
}

/* Whether it has run for as long as it may before it rests. */
static bool has_run(const struct vcpu *vcpu)
{
	return clock_ns(CLOCK_THREAD_CPUTIME_ID) - vcpu->charged >= part_ns(vcpu->all) / 2;
}

/* Stays outside for a while where it shall be slowed, unless something else is wanted meanwhile. */
static bool rests(struct vcpu *vcpu)
{
	struct vcpus *all = vcpu->all;

	if (!all->slowed)
		return false;
	if (vcpu->due || has_run(vcpu))
		charge(vcpu);
	if (clock_ns(CLOCK_MONOTONIC) >= vcpu->rest_until)
		return false;
	loop_wait_until(all->platform->loop, &all->changed, vcpu->rest_until);
	return true;
}

/* Without the timer only vcpus_charge takes it out. */
static void make_timer(struct vcpu *vcpu)
{
	struct sigevent kick = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = KICK_SIGNAL};

	kick.sigev_notify_thread_id = gettid();
	vcpu->timed = timer_create(CLOCK_MONOTONIC, &kick, &vcpu->timer) == 0;
}

static void *run_thread(void *context)
{
	struct vcpu *vcpu = context;
	struct vcpus *all = vcpu->all;
	char name[16];

	entered = vcpu->run;
	make_timer(vcpu);

	snprintf(name, sizeof(name), "vcpu %u", vcpu->id);
	pthread_setname_np(pthread_self(), name);
	turns_usual();
	loop_lock(all->platform->loop);
	while (!all->ending)
		if (!all->wanted)
			park(vcpu);
		else if (vcpu->stolen)
			steal_tell(vcpu);
		else if (!rests(vcpu))
			enter(vcpu);
	loop_unlock(all->platform->loop);
	if (vcpu->timed)
		timer_delete(vcpu->timer);
	entered = NULL;
	return NULL;
}

/* Finds the statistic "blocking": the vCPU sleeps in HLT (api.rst, 4.133, "KVM_GET_STATS_FD"). */
static void open_stats(struct vcpu *vcpu)
{
	struct kvm_stats_header header;

	vcpu->stats = ioctl(vcpu->fd, KVM_GET_STATS_FD, NULL);
	if (vcpu->stats < 0)
		return;
	if (pread(vcpu->stats, &header, sizeof(header), 0) == sizeof(header) && header.name_size <= 256)
		for (uint32_t i = 0; i < header.num_desc; i++) {
			size_t size = sizeof(struct kvm_stats_desc) + header.name_size;
			union {
				struct kvm_stats_desc fixed;
				char bytes[sizeof(struct kvm_stats_desc) + 256];
			} one = {0};

			if (pread(vcpu->stats, &one, size, (off_t)(header.desc_offset + i * size)) !=
				(ssize_t)size)
				break;
			if (strncmp(one.bytes + sizeof(one.fixed), "blocking", header.name_size) == 0) {
				vcpu->stats_halt = header.data_offset + one.fixed.offset;
				return;
			}
		}
	close(vcpu->stats);
	vcpu->stats = -1;
}

static int open_vcpu(struct vcpu *vcpu, struct vcpus *all, uint32_t id, struct error *error)
{
	*vcpu = (struct vcpu){.all = all, .id = id, .stats = -1};
	vcpu->fd = ioctl(all->kvm->vm, KVM_CREATE_VCPU, id);
	if (vcpu->fd < 0)
		return error_set(error, errno, "KVM refuses to make processor %u: %s.", id, strerror(errno));
	vcpu->run = mmap(NULL, all->kvm->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
	if (vcpu->run == MAP_FAILED) {
		vcpu->run = NULL;
		return error_set(
			error, errno, "Unable to map the exits of processor %u: %s.", id, strerror(errno));
	}
	if (all->kvm->stats)
		open_stats(vcpu);
	all->fds[id] = vcpu->fd;
	return 0;
}

static int start_threads(struct vcpus *vcpus, struct error *error)
{
	pthread_attr_t attributes;
	int r = 0;

	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, STACK_SIZE);
	for (uint32_t i = 0; i < vcpus->count && r == 0; i++) {
		struct vcpu *vcpu = &vcpus->vcpu[i];

		r = pthread_create(&vcpu->thread, &attributes, run_thread, vcpu);
		vcpu->started = r == 0;
	}
	pthread_attr_destroy(&attributes);
	return r ? error_set(error, r, "Unable to start a processor's thread: %s.", strerror(r)) : 0;
}

int vcpus_open(struct vcpus *vcpus, struct kvm *kvm, struct platform *platform, uint32_t count,
	void (*all_parked)(void *context), void *context, struct error *error)
{
	int r = 0;

	*vcpus = (struct vcpus){
		.kvm = kvm, .platform = platform, .all_parked = all_parked, .context = context};
	pthread_cond_init(&vcpus->changed, NULL);
	for (uint32_t i = 0; i < count && r == 0; i++) {
		r = open_vcpu(&vcpus->vcpu[i], vcpus, i, error);
		vcpus->count++;
	}
	if (r == 0) {
		clock_synchronize(vcpus->fds, count);
		r = start_threads(vcpus, error);
	}
	if (r < 0)
		vcpus_close(vcpus);
	return r;
}

static void kick(struct vcpus *vcpus)
{
	for (uint32_t i = 0; i < vcpus->count; i++) {
		struct vcpu *vcpu = &vcpus->vcpu[i];

		if (!vcpu->started || vcpu->parked)
			continue;
		vcpu->run->immediate_exit = 1; /* before the signal: an entry that it misses ends at once */
		pthread_kill(vcpu->thread, KICK_SIGNAL);
	}
}

void vcpus_close(struct vcpus *vcpus)
{
	if (!vcpus->platform)
		return;
	vcpus->ending = true;
	kick(vcpus);
	pthread_cond_broadcast(&vcpus->changed);
	loop_unlock(vcpus->platform->loop);
	for (uint32_t i = 0; i < vcpus->count; i++)
		if (vcpus->vcpu[i].started)
			pthread_join(vcpus->vcpu[i].thread, NULL);
	loop_lock(vcpus->platform->loop);
	for (uint32_t i = 0; i < vcpus->count; i++) {
		struct vcpu *vcpu = &vcpus->vcpu[i];

		if (vcpu->run)
			munmap(vcpu->run, vcpus->kvm->run_size);
		free(vcpu->cpuid);
		cleanup_close(&vcpu->stats);
		cleanup_close(&vcpu->fd);
	}
	pthread_cond_destroy(&vcpus->changed);
	*vcpus = (struct vcpus){0};
}

void vcpus_run(struct vcpus *vcpus)
{
	vcpus->wanted = true;
	pthread_cond_broadcast(&vcpus->changed);
}

void vcpus_pause(struct vcpus *vcpus)
{
	vcpus->wanted = false;
	kick(vcpus);
	pthread_cond_broadcast(&vcpus->changed); /* those that rest */
}

void vcpus_slow(struct vcpus *vcpus, unsigned percent)
{
	for (uint32_t i = 0; i < vcpus->count && !vcpus->slowed; i++)
		vcpus->vcpu[i].charged = (int64_t)vcpu_cpu_time(&vcpus->vcpu[i]);
	vcpus->slowed = (uint8_t)percent;
	pthread_cond_broadcast(&vcpus->changed);
}

void vcpus_charge(struct vcpus *vcpus)
{
	for (uint32_t i = 0; i < vcpus->count; i++)
		vcpus->vcpu[i].due = true;
	kick(vcpus);
}

bool vcpus_parked(const struct vcpus *vcpus)
{
	return vcpus->parked_count == vcpus->count;
}

uint64_t vcpu_cpu_time(const struct vcpu *vcpu)
{
	struct timespec spent = {0};
	clockid_t clock;

	if (pthread_getcpuclockid(vcpu->thread, &clock) == 0)
		clock_gettime(clock, &spent);
	return (uint64_t)spent.tv_sec * 1000000000ull + (uint64_t)spent.tv_nsec;
}

bool vcpu_halted(const struct vcpu *vcpu)
{
	uint64_t value = 0;

	return vcpu->stats >= 0 &&
	       pread(vcpu->stats, &value, sizeof(value), (off_t)vcpu->stats_halt) == sizeof(value) && value;
}
