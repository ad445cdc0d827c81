#include "vmm/dirty_log.h"
#include "base/bitmap.h"
#include "base/cleanup.h"
#include "vmm/loop.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

void dirty_log_close(struct machine *machine)
{
	if (machine->bitmap)
		munmap(machine->bitmap, bitmap_bytes(machine->memory.size / GUEST_PAGE_SIZE));
	machine->bitmap = NULL;
	cleanup_close(&machine->bitmap_fd);
	machine->bitmap_fd = -1;
	free(machine->memory.device_dirty);
	machine->memory.device_dirty = NULL;
}

static int open_bitmap(struct machine *machine, struct error *error)
{
	uint64_t pages = machine->memory.size / GUEST_PAGE_SIZE;
	size_t size = bitmap_bytes(pages);

	machine->memory.device_dirty = calloc(1, size);
	machine->bitmap_fd = memfd_create("dirty-bitmap", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (!machine->memory.device_dirty || machine->bitmap_fd < 0 ||
		ftruncate(machine->bitmap_fd, (off_t)size) < 0 ||
		fcntl(machine->bitmap_fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
		return error_set(
			error, errno, "Unable to make the bitmap of written pages: %s.", strerror(errno));
	machine->bitmap = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, machine->bitmap_fd, 0);
	if (machine->bitmap == MAP_FAILED) {
		machine->bitmap = NULL;
		return error_set(
			error, errno, "Unable to map the bitmap of written pages: %s.", strerror(errno));
	}
	return 0;
}

/* KVM takes a while over all memory, and what of it is ours is the main thread's alone: a vCPU that wants the
 * lock has it meanwhile. */
static int switch_log(struct machine *machine, bool on, struct error *error)
{
	int r;

	loop_unlock(machine->loop);
	r = kvm_set_memory(&machine->kvm, &machine->memory, on, error);
	loop_lock(machine->loop);
	return r;
}

static int take_log(struct machine *machine, struct error *error)
{
	int r;

	loop_unlock(machine->loop);
	r = kvm_take_dirty(&machine->kvm, &machine->memory, machine->bitmap, error);
	loop_lock(machine->loop);
	return r;
}

int dirty_log_set(struct machine *machine, bool on, struct error *error)
{
	int r;

	if (machine->state == MACHINE_EMPTY)
		return error_set(error, EBUSY, "The guest cannot be watched: it has no memory yet.");
	if (on && machine->faults >= 0)
		return error_set(error, EBUSY, "The guest cannot be watched: its memory is still coming.");
	/* Off first, also where it is on: a new log begins with all pages clean. */
	dirty_log_close(machine);
	r = switch_log(machine, false, error);
	if (r < 0 || !on)
		return r;
	r = open_bitmap(machine, error);
	if (r == 0)
		r = switch_log(machine, true, error);
	if (r < 0) {
		dirty_log_close(machine);
		switch_log(machine, false, NULL);
	}
	return r;
}

int dirty_log_take(struct machine *machine, uint64_t *pages, struct error *error)
{
	uint64_t total = machine->memory.size / GUEST_PAGE_SIZE;
	int r;

	if (!machine->bitmap)
		return error_set(error, EINVAL, "The guest's written pages are not being tracked.");
	r = take_log(machine, error);
	if (r < 0)
		return r;
	for (size_t i = 0; i < bitmap_words(total); i++)
		machine->bitmap[i] |= machine->memory.device_dirty[i];
	memset(machine->memory.device_dirty, 0, bitmap_bytes(total));
	*pages = bitmap_count(machine->bitmap, total);
	return 0;
}
