#include "carry/shared.h"
#include "base/cleanup.h"
#include "base/status.h"
#include "carry/guest.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

/* Linux 6.1; Debian 12's headers of user space may be older than its kernel. */
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

static int watch(struct shared *shared, int device, struct error *error)
{
	struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_MISSING_SHMEM};
	struct uffdio_register whole = {.range = {.start = (uintptr_t)shared->map, .len = shared->size},
		.mode = UFFDIO_REGISTER_MODE_MISSING};

	shared->faults = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	if (shared->faults < 0 || ioctl(shared->faults, UFFDIO_API, &api) < 0 ||
		ioctl(shared->faults, UFFDIO_REGISTER, &whole) < 0)
		return error_set(
			error, errno, "Unable to fill the memory that clones share: %s.", strerror(errno));
	return 0;
}

int shared_open(struct shared *shared, int ram, int device, uint64_t size, struct error *error)
{
	_cleanup_close_ int from = device;
	struct stat status;
	void *map;

	*shared = (struct shared){.ram = ram, .faults = -1, .size = size};
	if (status_of(ram, &status) < 0 || (uint64_t)status.st_size != size)
		return error_set(error, EPROTO, "xend gave shared memory of another size than the guest's.");
	map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, ram, 0);
	if (map == MAP_FAILED)
		return error_set(
			error, errno, "Unable to map the memory that clones share: %s.", strerror(errno));
	shared->map = map;
	return watch(shared, from, error);
}

void shared_close(struct shared *shared)
{
	if (shared->map)
		munmap(shared->map, shared->size);
	cleanup_close(&shared->faults);
	cleanup_close(&shared->ram);
	*shared = SHARED_NONE;
}

bool shared_has(const struct shared *shared, uint64_t page, uint64_t count)
{
	off_t start = (off_t)(page * PAGE_SIZE), hole = lseek(shared->ram, start, SEEK_HOLE);

	return hole >= start + (off_t)(count * PAGE_SIZE);
}

int shared_place(
	struct shared *shared, uint64_t page, uint64_t count, const uint8_t *content, struct error *error)
{
	for (uint64_t done = 0, size = count * PAGE_SIZE; done < size;) {
		struct uffdio_copy copy = {.dst = (uintptr_t)shared->map + page * PAGE_SIZE + done,
			.src = (uintptr_t)content + done,
			.len = size - done};

		if (ioctl(shared->faults, UFFDIO_COPY, &copy) == 0)
			return 0;
		if (errno == EAGAIN)
			done += copy.copy > 0 ? (uint64_t)copy.copy : 0;
		else if (errno == EEXIST)
			done += PAGE_SIZE;
		else
			return error_set(error, errno, "Unable to fill the memory that clones share: %s.",
				strerror(errno));
	}
	return 0;
}

bool shared_lead(struct shared *shared)
{
	struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

	if (!shared->leads)
		shared->leads = fcntl(shared->ram, F_OFD_SETLK, &lock) == 0;
	return shared->leads;
}
