#include "vmm/faults.h"
#include "base/cleanup.h"
#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <string.h>
#include <sys/ioctl.h>

/* Linux 6.1; Debian 12's headers of user space may be older than its kernel. */
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

static struct uffdio_range whole(const struct memory *memory)
{
	return (struct uffdio_range){.start = (uintptr_t)memory->base, .len = memory->size};
}

int faults_catch(int *device, const struct memory *memory)
{
	_cleanup_close_ int from = take_fd(device);
	_cleanup_close_ int faults = from < 0 ? -1 : ioctl(from, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_MISSING_SHMEM};
	struct uffdio_register catch = {.range = whole(memory), .mode = UFFDIO_REGISTER_MODE_MISSING};

	if (from < 0)
		return -1;
	if (faults < 0 || ioctl(faults, UFFDIO_API, &api) < 0 || ioctl(faults, UFFDIO_REGISTER, &catch) < 0) {
		log_info("The guest waits for all of its memory: this kernel cannot bring it later: %s.",
			strerror(errno));
		return -1;
	}
	return take_fd(&faults);
}

void faults_end(int *faults, const struct memory *memory)
{
	struct uffdio_range range = whole(memory);

	if (*faults >= 0 && ioctl(*faults, UFFDIO_UNREGISTER, &range) < 0)
		log_error(
			"The guest's memory is still watched for pages that are there: %s.", strerror(errno));
	cleanup_close(faults);
	*faults = -1;
}
