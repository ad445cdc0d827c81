#include "vmm/own_memory.h"
#include "base/status.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGES_AT_ONCE 512u

/* An entry of pagemap (Linux, Documentation/admin-guide/mm/pagemap.rst). */
#define ENTRY_PRESENT (1ull << 63)
#define ENTRY_SWAPPED (1ull << 62)

/* What is in the shared memory, in ascending order: the part that was found last. */
struct shared_part {
	int fd;
	off_t start, end, size;
};

static bool is_shared(struct shared_part *part, off_t at)
{
	while (at >= part->end && part->start < part->size) {
		part->start = lseek(part->fd, at, SEEK_DATA);
		if (part->start < 0) /* ENXIO: nothing more */
			part->start = part->size;
		part->end = part->start < part->size ? lseek(part->fd, part->start, SEEK_HOLE) : part->size;
	}
	return at >= part->start && at < part->end;
}

static bool is_zero(const uint8_t *page)
{
	return page[0] == 0 && memcmp(page, page + 1, GUEST_PAGE_SIZE - 1) == 0;
}

static int copy_run(const struct memory *memory, int ram, uint64_t at, uint64_t size, struct error *error)
{
	while (size) {
		ssize_t done = pwrite(ram, memory->base + at, size, (off_t)at);

		if (done < 0 && errno == EINTR)
			continue;
		if (done <= 0)
			return error_set(error, done < 0 ? errno : EIO,
				"Unable to give the guest memory of its own: %s.",
				strerror(done < 0 ? errno : EIO));
		at += (uint64_t)done;
		size -= (uint64_t)done;
	}
	return 0;
}

/* A page that is neither mapped here nor in the shared memory reads as zeros, and is not looked at. */
static int copy_pages(const struct memory *memory, int ram, uint64_t first, const uint64_t *entries,
	uint64_t count, struct shared_part *part, struct error *error)
{
	uint64_t run = 0;
	int r = 0;

	for (uint64_t i = 0; r == 0 && i <= count; i++) {
		uint64_t at = (first + i) * GUEST_PAGE_SIZE;
		bool there = i < count &&
			     (entries[i] & (ENTRY_PRESENT | ENTRY_SWAPPED) || is_shared(part, (off_t)at));

		if (there && !is_zero(memory->base + at)) {
			run += GUEST_PAGE_SIZE;
		} else if (run) {
			r = copy_run(memory, ram, at - run, run, error);
			run = 0;
		}
	}
	return r;
}

static int copy_all(const struct memory *memory, int ram, int pagemap, struct error *error)
{
	struct shared_part part = {.fd = memory->fd, .size = (off_t)memory->size};
	uint64_t pages = memory->size / GUEST_PAGE_SIZE, entries[PAGES_AT_ONCE];
	int r = 0;

	for (uint64_t page = 0, count; r == 0 && page < pages; page += count) {
		off_t at = (off_t)(((uintptr_t)memory->base / GUEST_PAGE_SIZE + page) * sizeof(entries[0]));

		count = pages - page < PAGES_AT_ONCE ? pages - page : PAGES_AT_ONCE;
		if (pread(pagemap, entries, count * sizeof(entries[0]), at) !=
			(ssize_t)(count * sizeof(entries[0])))
			return error_set(error, EIO, "The map of the guest's memory cannot be read.");
		r = copy_pages(memory, ram, page, entries, count, &part, error);
	}
	return r;
}

int memory_own(struct memory *memory, int ram, int pagemap, struct error *error)
{
	struct stat status;
	int r;

	if (status_of(ram, &status) < 0 || (uint64_t)status.st_size != memory->size)
		return error_set(error, EINVAL, "The guest's own memory has another size than the guest's.");
	r = copy_all(memory, ram, pagemap, error);
	if (r < 0)
		return r;
	if (mmap(memory->base, memory->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE | MAP_FIXED,
		    ram, 0) == MAP_FAILED)
		return error_set(error, errno, "Unable to map the guest's own memory: %s.", strerror(errno));
	memory_keep_private(memory->base, memory->size);
	close(memory->fd);
	memory->fd = ram;
	memory->shared = false;
	return 0;
}
