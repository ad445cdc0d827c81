#include "xend/memory.h"
#include "base/cleanup.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

int host_memory_read(struct host_memory *memory, struct error *error)
{
	_cleanup_fclose_ FILE *file = fopen("/proc/meminfo", "re");
	char line[128];

	*memory = (struct host_memory){0};
	while (file && fgets(line, sizeof(line), file)) {
		sscanf(line, "MemTotal: %" SCNu64, &memory->total_kib);
		sscanf(line, "MemAvailable: %" SCNu64, &memory->available_kib);
	}
	if (!memory->total_kib)
		return error_set(error, EIO, "Unable to read the host's memory from /proc/meminfo.");
	return 0;
}

static uint64_t less(uint64_t from, uint64_t amount)
{
	return from > amount ? from - amount : 0;
}

uint64_t memory_free_mib(
	const struct host_memory *memory, uint64_t promised_mib, uint64_t taken_kib, uint64_t dom0_min_mib)
{
	uint64_t promised_kib = promised_mib * 1024;
	uint64_t untaken_kib = less(promised_kib, taken_kib);
	uint64_t available = less(memory->available_kib, untaken_kib);
	uint64_t beside_host = less(memory->total_kib, promised_kib + dom0_min_mib * 1024);

	return (available < beside_host ? available : beside_host) / 1024;
}

int memory_create(uint64_t mib, struct error *error)
{
	_cleanup_close_ int ram = memfd_create("guest-ram", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	/* Sealed, so that nobody can shrink it under those who have it mapped. */
	if (ram < 0 || ftruncate(ram, (off_t)(mib << 20)) < 0 ||
		fcntl(ram, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
		return error_set(error, errno, "Unable to reserve %" PRIu64 " MiB of memory: %s.", mib,
			strerror(errno));
	return take_fd(&ram);
}

uint64_t memory_taken_kib(int ram)
{
	struct stat info;

	return ram >= 0 && fstat(ram, &info) == 0 ? (uint64_t)info.st_blocks / 2 : 0;
}
