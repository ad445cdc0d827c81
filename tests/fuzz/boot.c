/* Kernel files: hostile ones are refused with a sentence, or land inside the guest's memory. */
#include "vmm/boot.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MEMORY_SIZE (24u << 20)

static struct memory memory;
static int kernel = -1;

static void set_up(void)
{
	int ram = memfd_create("ram", MFD_CLOEXEC);

	kernel = memfd_create("kernel", MFD_CLOEXEC);
	if (ram < 0 || kernel < 0 || ftruncate(ram, MEMORY_SIZE) < 0 ||
		memory_map(&memory, ram, MEMORY_SIZE, false, NULL) < 0)
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct error error = {0};
	struct boot_entry entry;
	int r;

	if (kernel < 0)
		set_up();
	if (ftruncate(kernel, 0) < 0 || pwrite(kernel, data, size, 0) != (ssize_t)size)
		abort();
	r = boot_load(&memory, kernel, -1, "console=ttyS0", &entry, &error);
	if (r < 0 ? !error.text[0] : entry.rip >= MEMORY_SIZE)
		abort();
	return 0;
}
