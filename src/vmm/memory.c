#include "vmm/memory.h"
#include "base/bitmap.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "base/status.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>

void memory_keep_private(void *base, uint64_t size)
{
	if (madvise(base, size, MADV_DONTDUMP) < 0)
		log_warning("The guest's memory would be in a core file: %s.", strerror(errno));
}

int memory_map(struct memory *memory, int fd, uint64_t size, bool shared, struct error *error)
{
	uint64_t low = size < MEMORY_BELOW_4G ? size : MEMORY_BELOW_4G;
	struct stat status;
	void *base;

	if (size == 0 || size % GUEST_PAGE_SIZE)
		return error_set(error, EINVAL, "Guest memory of %llu bytes is not a whole number of pages.",
			(unsigned long long)size);
	if (status_of(fd, &status) < 0)
		return error_set(error, errno, "Unable to look at the guest's memory: %s.", strerror(errno));
	if ((uint64_t)status.st_size < size)
		return error_set(error, EINVAL,
			"The guest's memory file has %llu bytes where %llu are needed.",
			(unsigned long long)status.st_size, (unsigned long long)size);
	/* So that nobody who holds it too can cut memory off under us; a file that cannot be sealed is
	 * trusted. */
	fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK);
	base = mmap(NULL, size, PROT_READ | PROT_WRITE, (shared ? MAP_PRIVATE : MAP_SHARED) | MAP_NORESERVE,
		fd, 0);
	if (base == MAP_FAILED)
		return error_set(error, errno, "Unable to map %llu MiB of guest memory: %s.",
			(unsigned long long)(size >> 20), strerror(errno));
	memory_keep_private(base, size);
	*memory = (struct memory){.fd = fd, .base = base, .size = size, .region_count = 1, .shared = shared};
	memory->regions[0] = (struct memory_region){.gpa = 0, .size = low, .offset = 0};
	if (size > low)
		memory->regions[memory->region_count++] =
			(struct memory_region){.gpa = MEMORY_ABOVE_4G, .size = size - low, .offset = low};
	return 0;
}

void memory_unmap(struct memory *memory)
{
	if (!memory->base)
		return;
	munmap(memory->base, memory->size);
	close(memory->fd);
	*memory = (struct memory){.fd = -1};
}

/* Offset in the memfd of [gpa, gpa + size), or -1 where that is not RAM of one region. */
static int64_t find(const struct memory *memory, uint64_t gpa, uint64_t size)
{
	for (unsigned i = 0; i < memory->region_count; i++) {
		const struct memory_region *region = &memory->regions[i];

		if (gpa >= region->gpa && size <= region->size && gpa - region->gpa <= region->size - size)
			return (int64_t)(region->offset + (gpa - region->gpa));
	}
	return -1;
}

void *memory_at(const struct memory *memory, uint64_t gpa, uint64_t size)
{
	int64_t offset = find(memory, gpa, size);

	return offset < 0 ? NULL : memory->base + offset;
}

void memory_wrote(struct memory *memory, uint64_t gpa, uint64_t size)
{
	int64_t offset;

	if (!memory->device_dirty || size == 0)
		return;
	offset = find(memory, gpa, size);
	if (offset < 0)
		return;
	for (uint64_t page = (uint64_t)offset / GUEST_PAGE_SIZE;
		page <= ((uint64_t)offset + size - 1) / GUEST_PAGE_SIZE; page++)
		bitmap_set(memory->device_dirty, page);
}

int memory_read(const struct memory *memory, uint64_t gpa, void *to, uint64_t size)
{
	const void *from = memory_at(memory, gpa, size);

	if (!from)
		return -EFAULT;
	memcpy(to, from, size);
	return 0;
}

int memory_write(struct memory *memory, uint64_t gpa, const void *from, uint64_t size)
{
	void *to = memory_at(memory, gpa, size);

	if (!to)
		return -EFAULT;
	memcpy(to, from, size);
	memory_wrote(memory, gpa, size);
	return 0;
}
