#include "vmm/clock.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "vmm/msr.h"

#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <x86intrin.h>

#define NS_PER_MS 1000000ull

static const struct field clock_fields[] = {
	FIELD(struct clock_instant, kvmclock, FIELD_U64),
	FIELD(struct clock_instant, realtime, FIELD_U64),
};
const struct field_table clock_table = FIELD_TABLE("clock", 1, clock_fields);

/* kvmclock, real time and the host's TSC at one instant. */
struct host_instant {
	uint64_t kvmclock, realtime, tsc;
};

uint64_t clock_realtime(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

static uint64_t between(uint64_t before, uint64_t after)
{
	return before + (after - before) / 2;
}

/* KVM tells all three where its clock follows the host's TSC; else they are read as close together as can be.
 */
static int read_host(const struct kvm *kvm, struct host_instant *instant, struct error *error)
{
	struct kvm_clock_data data = {0};
	uint64_t realtime = clock_realtime(), tsc = __rdtsc();

	if (ioctl(kvm->vm, KVM_GET_CLOCK, &data) < 0)
		return error_set(error, errno, "KVM does not tell the guest's clock: %s.", strerror(errno));
	tsc = between(tsc, __rdtsc());
	realtime = between(realtime, clock_realtime());
	*instant = (struct host_instant){.kvmclock = data.clock,
		.realtime = data.flags & KVM_CLOCK_REALTIME ? data.realtime : realtime,
		.tsc = data.flags & KVM_CLOCK_HOST_TSC ? data.host_tsc : tsc};
	return 0;
}

static int msr(int vcpu, unsigned long request, uint32_t index, uint64_t *value)
{
	struct few_msrs one = {.count = 1, .entries = {{.index = index, .data = *value}}};

	if (ioctl(vcpu, request, &one) != 1)
		return -EIO;
	*value = one.entries[0].data;
	return 0;
}

static int offset(int vcpu, unsigned long request, uint64_t *value)
{
	struct kvm_device_attr attribute = {
		.group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET, .addr = (uintptr_t)value};

	return ioctl(vcpu, request, &attribute) < 0 ? -errno : 0;
}

void clock_synchronize(const int *vcpus, uint32_t count)
{
	uint64_t first;

	/* KVM without the attribute makes TSCs equal that are set within a second, which creation does. */
	if (offset(vcpus[0], KVM_GET_DEVICE_ATTR, &first) < 0)
		return;
	for (uint32_t i = 1; i < count; i++)
		offset(vcpus[i], KVM_SET_DEVICE_ATTR, &first);
}

uint64_t clock_tsc_khz(int vcpu)
{
	int khz = ioctl(vcpu, KVM_GET_TSC_KHZ, 0);

	return khz > 0 ? (uint64_t)khz : 0;
}

void clock_set_tsc_khz(int vcpu, uint64_t khz)
{
	uint64_t now = clock_tsc_khz(vcpu);

	if (khz == 0 || khz == now)
		return;
	if (ioctl(vcpu, KVM_SET_TSC_KHZ, khz) < 0)
		log_warning("The guest's time-stamp counter ran at %llu kHz; this host can only run it at "
			    "%llu kHz. "
			    "Its clock (kvmclock) is right all the same.",
			(unsigned long long)khz, (unsigned long long)now);
}

/*
 * A vCPU's TSC now, as `guest` at the host's `host`. In between KVM multiplies where frequencies differ,
 * so it is measured, not computed.
 */
static int measure(int vcpu, uint64_t *guest, uint64_t *host)
{
	uint64_t before = __rdtsc();
	int r = msr(vcpu, KVM_GET_MSRS, MSR_TSC, guest);

	*host = between(before, __rdtsc());
	return r;
}

/* Ticks of a counter of `khz` in `ns`, without overflow for centuries. */
static uint64_t ticks(uint64_t ns, uint64_t khz)
{
	return (uint64_t)((unsigned __int128)ns * khz / NS_PER_MS);
}

/* The host's TSC in kHz is what an unscaled vCPU's would be; KVM tells it for the VM (KVM_GET_TSC_KHZ). */
static bool is_scaled(const struct kvm *kvm, int vcpu)
{
	int host = ioctl(kvm->vm, KVM_GET_TSC_KHZ, 0);

	return host > 0 && (uint64_t)host != clock_tsc_khz(vcpu);
}

/* The first vCPU's TSC at the host's `instant`. */
static int tsc_at(const struct kvm *kvm, int vcpu, const struct host_instant *instant, uint64_t *tsc)
{
	uint64_t off, host;

	if (offset(vcpu, KVM_GET_DEVICE_ATTR, &off) == 0 && !is_scaled(kvm, vcpu)) {
		*tsc = instant->tsc + off;
		return 0;
	}
	if (measure(vcpu, tsc, &host) < 0)
		return -EIO;
	/* The instant was just before: the error of taking both counters for equally fast is below a tick in
	 * it. */
	*tsc -= host - instant->tsc;
	return 0;
}

int clock_take(
	const struct kvm *kvm, const int *vcpus, uint32_t count, struct guest_time *time, struct error *error)
{
	struct host_instant now = {0};
	uint64_t first_offset, own;
	int r = read_host(kvm, &now, error);

	if (r < 0)
		return r;
	time->instant = (struct clock_instant){.kvmclock = now.kvmclock, .realtime = now.realtime};
	for (uint32_t i = 0; i < count; i++) {
		struct vcpu_time *vcpu = &time->vcpus[i];

		if (i > 0 && offset(vcpus[0], KVM_GET_DEVICE_ATTR, &first_offset) == 0 &&
			offset(vcpus[i], KVM_GET_DEVICE_ATTR, &own) == 0)
			vcpu->tsc = time->vcpus[0].tsc + (own - first_offset);
		else if (tsc_at(kvm, vcpus[i], &now, &vcpu->tsc) < 0)
			return error_set(error, EIO, "KVM does not tell a processor's time-stamp counter.");
		vcpu->tsc_khz = clock_tsc_khz(vcpus[i]);
		if (msr(vcpus[i], KVM_GET_MSRS, MSR_TSC_DEADLINE, &vcpu->tsc_deadline) < 0)
			vcpu->tsc_deadline = 0;
	}
	return 0;
}

/* Sets the vCPU's TSC so that it is `tsc` at the host's `instant`. */
static int set_tsc(const struct kvm *kvm, int vcpu, const struct host_instant *instant, uint64_t tsc)
{
	uint64_t off, there;

	if (offset(vcpu, KVM_GET_DEVICE_ATTR, &off) < 0) {
		tsc += __rdtsc() - instant->tsc;
		return msr(vcpu, KVM_SET_MSRS, MSR_TSC, &tsc);
	}
	if (tsc_at(kvm, vcpu, instant, &there) < 0)
		return -EIO;
	off += tsc - there;
	return offset(vcpu, KVM_SET_DEVICE_ATTR, &off);
}

/* The others follow the first by their saved difference. */
static int set_tscs(const struct kvm *kvm, const int *vcpus, uint32_t count,
	const struct host_instant *instant, uint64_t passed, const struct vcpu_time *times)
{
	uint64_t first_offset, own;
	int r = set_tsc(kvm, vcpus[0], instant, times[0].tsc + ticks(passed, clock_tsc_khz(vcpus[0])));

	for (uint32_t i = 1; i < count && r == 0; i++) {
		if (offset(vcpus[0], KVM_GET_DEVICE_ATTR, &first_offset) == 0) {
			own = first_offset + (times[i].tsc - times[0].tsc);
			r = offset(vcpus[i], KVM_SET_DEVICE_ATTR, &own);
		} else {
			r = set_tsc(kvm, vcpus[i], instant,
				times[i].tsc + ticks(passed, clock_tsc_khz(vcpus[0])));
		}
	}
	return r;
}

int clock_set(const struct kvm *kvm, const int *vcpus, uint32_t count, const struct guest_time *time,
	uint64_t forward, struct error *error)
{
	struct kvm_clock_data data = {.clock = time->instant.kvmclock + forward};
	struct host_instant now = {0};
	int r;

	if (ioctl(kvm->vm, KVM_SET_CLOCK, &data) < 0)
		return error_set(error, errno, "KVM refuses to set the guest's clock: %s.", strerror(errno));
	r = read_host(kvm, &now, error);
	if (r < 0)
		return r;
	if (set_tscs(kvm, vcpus, count, &now, now.kvmclock - time->instant.kvmclock, time->vcpus) < 0)
		return error_set(error, EIO, "KVM refuses to set a processor's time-stamp counter.");
	for (uint32_t i = 0; i < count; i++) {
		uint64_t deadline = time->vcpus[i].tsc_deadline;

		if (deadline && msr(vcpus[i], KVM_SET_MSRS, MSR_TSC_DEADLINE, &deadline) < 0)
			return error_set(error, EIO, "KVM refuses to set a processor's timer.");
	}
	return 0;
}

void clock_forgive(const int *vcpus, uint32_t count)
{
	/* Refused where the guest has no kvmclock, and then there is nobody to tell. */
	for (uint32_t i = 0; i < count; i++)
		if (ioctl(vcpus[i], KVM_KVMCLOCK_CTRL, 0) < 0)
			continue;
}
