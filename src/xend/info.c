/* What is known of the host: `xm info`, its names, CPUs and memory, with Xen's keys in Xen's order
 * (reference: xm(1)), and `xm log`. */
#include "xend/api.h"
#include "base/cleanup.h"
#include "base/printable.h"
#include "xend/domain.h"
#include "xend/host_network.h"
#include "xend/memory.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/utsname.h>

#define LOG_TAIL 1048576 /* bytes that xm log shows */

struct cpus {
	unsigned count, sockets, cores_per_socket, siblings;
	double mhz;
};

/* proc(5), /proc/cpuinfo: one paragraph a CPU. */
static void read_cpus(struct cpus *cpus)
{
	_cleanup_fclose_ FILE *file = fopen("/proc/cpuinfo", "re");
	char line[8192];
	unsigned value;

	*cpus = (struct cpus){.sockets = 1, .cores_per_socket = 1, .siblings = 1};
	while (file && fgets(line, sizeof(line), file)) {
		if (strncmp(line, "processor", 9) == 0)
			cpus->count++;
		if (sscanf(line, "physical id : %u", &value) == 1 && value + 1 > cpus->sockets)
			cpus->sockets = value + 1;
		if (sscanf(line, "cpu cores : %u", &value) == 1 && value)
			cpus->cores_per_socket = value;
		if (sscanf(line, "siblings : %u", &value) == 1 && value)
			cpus->siblings = value;
		sscanf(line, "cpu MHz : %lf", &cpus->mhz);
	}
}

static unsigned count_nodes(void)
{
	DIR *directory = opendir("/sys/devices/system/node");
	struct dirent *entry;
	unsigned count = 0, number;

	while (directory && (entry = readdir(directory)))
		count += sscanf(entry->d_name, "node%u", &number) == 1;
	if (directory)
		closedir(directory);
	return count ? count : 1;
}

/* CPUID's feature words, as Xen printed them: leaf 1 EDX, leaf 0x80000001 EDX, leaf 1 ECX, leaf 0x80000001
 * ECX. */
static void describe_capabilities(char *text, size_t size)
{
	uint32_t eax = 1, ebx, ecx = 0, edx = 0, extended = 0x80000001, extended_ecx = 0, extended_edx = 0;

	__asm__ volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
	__asm__ volatile("cpuid" : "+a"(extended), "=b"(ebx), "+c"(extended_ecx), "=d"(extended_edx));
	snprintf(text, size, "%08" PRIx32 ":%08" PRIx32 ":%08" PRIx32 ":%08" PRIx32, edx, extended_edx, ecx,
		extended_ecx);
}

void info_show(struct call *call)
{
	const char *network = host_network_failure(call->xend);
	struct host_memory memory = {0};
	struct utsname names = {0};
	uint64_t free_mib = 0;
	struct cpus cpus;
	struct error error;
	char capabilities[64];

	if (host_memory_read(&memory, &error) < 0 || domain_memory_free(call->xend, &free_mib, &error) < 0) {
		reply_error(call->reply, &error);
		return;
	}
	uname(&names);
	read_cpus(&cpus);
	describe_capabilities(capabilities, sizeof(capabilities));
	reply_json(call->reply, 200,
		json_pack("{s:s, s:s, s:s, s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:s, s:I, s:I, s:i, s:i, s:s, "
			  "s:s, s:i, s:s, s:s, "
			  "s:s, s:i, s:o*}",
			"host", names.nodename, "release", names.release, "version", names.version, "machine",
			names.machine, "nr_cpus", (int)cpus.count, "nr_nodes", (int)count_nodes(),
			"sockets_per_node",
			(int)(cpus.sockets / count_nodes() ? cpus.sockets / count_nodes() : 1),
			"cores_per_socket", (int)cpus.cores_per_socket, "threads_per_core",
			(int)(cpus.siblings > cpus.cores_per_socket ? cpus.siblings / cpus.cores_per_socket
								    : 1),
			"cpu_mhz", (int)cpus.mhz, "hw_caps", capabilities, "total_memory",
			(json_int_t)(memory.total_kib / 1024), "free_memory", (json_int_t)free_mib,
			"xen_major", 0, "xen_minor", 1, "xen_extra", ".0-ferry", "xen_caps", "hvm-3.0-x86_64",
			"xen_pagesize", (int)sysconf(_SC_PAGESIZE), "platform_params", "kvm", "xen_changeset",
			"ferry-" FERRY_VERSION, "cc_compiler", __VERSION__, "xend_config_format", 4,
			"network_trouble", network ? printable_sentence(network) : NULL));
}

void log_show(struct call *call)
{
	const char *path = call->xend->config.logfile;
	_cleanup_close_ int file = open(path, O_RDONLY | O_CLOEXEC);
	_cleanup_free_ char *text = malloc(LOG_TAIL);
	struct error error;
	struct stat info;
	ssize_t size;

	if (file < 0 || !text || fstat(file, &info) < 0) {
		error_set(&error, errno, "Unable to read the log %s: %s.", path, strerror(errno));
		reply_error(call->reply, &error);
		return;
	}
	size = pread(file, text, LOG_TAIL, info.st_size > LOG_TAIL ? info.st_size - LOG_TAIL : 0);
	reply_stream(call->reply, "text/plain");
	reply_bytes(call->reply, text, size > 0 ? (size_t)size : 0);
	reply_end(call->reply);
}
