#include "vmm/throttle.h"

#include <errno.h>
#include <string.h>
#include <sys/timerfd.h>
#include <unistd.h>

static void take_out(void *context, uint32_t events)
{
	struct throttle *throttle = context;
	uint64_t expirations;

	(void)events;
	if (read(throttle->timer.fd, &expirations, sizeof(expirations)) == sizeof(expirations))
		vcpus_charge(throttle->vcpus);
}

static int start(struct throttle *throttle, struct error *error)
{
	const struct itimerspec every = {.it_value.tv_nsec = 1, .it_interval.tv_nsec = VCPU_PERIOD_NS};
	int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK), r;

	if (fd < 0)
		return error_set(
			error, errno, "Unable to make the timer that slows the guest: %s.", strerror(errno));
	throttle->timer = (struct watch){.fd = fd, .handler = take_out, .context = throttle};
	r = timerfd_settime(fd, 0, &every, NULL) < 0
		    ? error_set(error, errno, "Unable to set the timer that slows the guest: %s.",
			      strerror(errno))
		    : loop_add(throttle->loop, &throttle->timer, EPOLLIN, error);
	if (r < 0)
		close(fd);
	return r;
}

int throttle_set(struct throttle *throttle, struct loop *loop, struct vcpus *vcpus, unsigned percent,
	struct error *error)
{
	int r = 0;

	throttle->loop = loop;
	throttle->vcpus = vcpus;
	if (percent > THROTTLE_MOST)
		return error_set(error, EINVAL, "A guest can be slowed by 0 to %u percent.", THROTTLE_MOST);
	if (percent == 0) {
		throttle_end(throttle);
		return 0;
	}
	if (throttle->percent == 0)
		r = start(throttle, error);
	if (r < 0)
		return r;
	throttle->percent = percent;
	vcpus_slow(vcpus, percent);
	return 0;
}

void throttle_end(struct throttle *throttle)
{
	if (throttle->percent == 0)
		return;
	throttle->percent = 0;
	loop_remove(throttle->loop, &throttle->timer);
	close(throttle->timer.fd);
	vcpus_slow(throttle->vcpus, 0);
}
