/*
 * ferry-guest: runs one guest. Started by xend, steered over its control socket
 * (docs/internal/guest-control.md).
 */
#include "base/cleanup.h"
#include "base/log.h"
#include "base/turns.h"
#include "vmm/boot.h"
#include "vmm/control.h"
#include "vmm/cpuid.h"
#include "vmm/dev/disk_ring.h"
#include "vmm/loop.h"
#include "vmm/machine.h"
#include "vmm/sandbox.h"

#include <errno.h>
#include <getopt.h>
#include <malloc.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MMAP_THRESHOLD (64 << 10) /* larger pieces go back to the host as soon as they are free */

struct options {
	int control;
	int kvm;   /* only tell what guests see here: -1 */
	int check; /* only look whether a guest could boot: -1 */
	uid_t uid;
	gid_t gid;
	unsigned disks;   /* how many the guest will have */
	const char *root; /* an empty directory, NULL: none */
	const char *name;
};

static void usage(void)
{
	fprintf(stderr, "usage: ferry-guest --control FD [--user UID:GID] [--root DIRECTORY] [--disks N] "
			"[--name NAME]\n"
			"       ferry-guest --features FD [--user UID:GID] [--root DIRECTORY]\n"
			"       ferry-guest --check FD [--user UID:GID] [--root DIRECTORY]\n"
			"Runs one guest with N disks for xend, which hands it FD, a listening SOCK_SEQPACKET "
			"socket; or\n"
			"tells on standard output what a guest would see of the processor, given FD, "
			"/dev/kvm; or\n"
			"tells on FD, a SOCK_SEQPACKET socket, whether a guest that is described there could "
			"boot. It sees\n"
			"no file but those in DIRECTORY, which is empty.\n");
}

static bool parse_options(int argc, char **argv, struct options *options)
{
	static const struct option known[] = {{"control", required_argument, NULL, 'c'},
		{"features", required_argument, NULL, 'f'}, {"check", required_argument, NULL, 'k'},
		{"user", required_argument, NULL, 'u'}, {"name", required_argument, NULL, 'n'},
		{"disks", required_argument, NULL, 'd'}, {"root", required_argument, NULL, 'r'}, {0}};
	int option, end;

	*options = (struct options){.control = -1,
		.kvm = -1,
		.check = -1,
		.uid = (uid_t)-1,
		.gid = (gid_t)-1,
		.name = "ferry-guest"};
	while ((option = getopt_long(argc, argv, "", known, NULL)) != -1) {
		end = 0;
		if (option == 'n')
			options->name = optarg;
		else if (option == 'r')
			options->root = optarg;
		else if (option == 'd' && sscanf(optarg, "%u%n", &options->disks, &end) == 1 && !optarg[end])
			continue;
		else if (option == 'c' && sscanf(optarg, "%d%n", &options->control, &end) == 1 &&
			 !optarg[end])
			continue;
		else if (option == 'f' && sscanf(optarg, "%d%n", &options->kvm, &end) == 1 && !optarg[end])
			continue;
		else if (option == 'k' && sscanf(optarg, "%d%n", &options->check, &end) == 1 && !optarg[end])
			continue;
		else if (option == 'u' &&
			 sscanf(optarg, "%u:%u%n", &options->uid, &options->gid, &end) == 2 && !optarg[end])
			continue;
		else
			return false;
	}
	return optind == argc && (options->control >= 0) + (options->kvm >= 0) + (options->check >= 0) == 1;
}

static char failed_memory[256]; /* what memory_failed says, written beforehand */

/* A page of the guest's memory is broken (a machine check) or cannot be had any more: nobody can go on
 * without it. Says so and ends the process as the signal does. */
static void memory_failed(int signal)
{
	if (write(STDERR_FILENO, failed_memory, strlen(failed_memory)) < 0)
		_exit(128 + signal);
	raise(signal); /* the handler is gone: SA_RESETHAND */
}

static void set_signals(const char *name)
{
	struct sigaction kick = {.sa_handler = vcpus_kicked}, ignore = {.sa_handler = SIG_IGN};
	struct sigaction bus = {.sa_handler = memory_failed, .sa_flags = (int)SA_RESETHAND | SA_NODEFER};

	snprintf(failed_memory, sizeof(failed_memory),
		"%s[%d]: ERROR: A page of the guest's memory has failed (SIGBUS): the host's memory is "
		"broken or "
		"used up; the kernel's log may say which. The guest ends.\n",
		name, (int)getpid());
	sigaction(SIGBUS, &bus, NULL);

	sigaction(SIGUSR1, &kick, NULL);
	sigaction(SIGPIPE, &ignore, NULL);
	sigaction(SIGHUP, &ignore, NULL); /* the guest outlives whoever started it */
}

static int tell_features(int system, struct error *error)
{
	_cleanup_json_ json_t *told = NULL;
	struct processor_view host;
	struct kvm kvm;
	int r = kvm_open(&kvm, system, error);

	if (r < 0)
		return r;
	host = cpuid_host(&kvm);
	told = json_pack("{s:o, s:o, s:I, s:b}", "features", cpuid_features(&host), "needs",
		cpuid_needs(&host), "tsc_khz", (json_int_t)kvm.tsc_khz, "tsc_scaling", kvm.tsc_scaling);
	kvm_close(&kvm);
	if (!told || json_dumpfd(told, STDOUT_FILENO, JSON_COMPACT) < 0)
		return error_set(error, EIO, "Unable to tell what guests see of the processor.");
	return 0;
}

/* Loads what a guest would boot, as for `create`, into the memory that is given for that, and runs nothing.
 */
static int load(int socket, struct error *error)
{
	_cleanup_message_ struct message request = {0};
	_cleanup_machine_config_ struct machine_config config = MACHINE_CONFIG_NONE;
	struct memory memory = {0};
	struct boot_entry entry;
	int r = channel_receive(socket, &request, error);

	if (r >= 0)
		r = machine_config_parse(&config, &request, json_object_get(request.body, "machine"), error);
	if (r >= 0 && config.incoming)
		r = error_set(error, EINVAL, "A guest whose state is to come does not boot.");
	if (r >= 0)
		r = memory_map(&memory, config.ram, config.memory_size, false, error);
	if (r < 0)
		return r;
	config.ram = -1;
	r = boot_load(&memory, config.kernel, config.ramdisk, config.command_line, &entry, error);
	memory_unmap(&memory);
	return r;
}

static int check(int socket, struct error *error)
{
	_cleanup_json_ json_t *well = json_pack("{s:b}", "ok", true);
	struct error found;

	if (load(socket, &found) < 0)
		return channel_reply_error(socket, &found);
	return channel_send(socket, well, NULL, 0, error);
}

static int run(
	struct loop *loop, struct disk_rings *rings, const struct options *options, struct error *error)
{
	struct machine machine;
	struct control *control;
	int r;

	machine_init(&machine, loop, rings);
	control = control_new(&machine, options->control, error);
	if (!control)
		return -EIO;
	r = loop_run(loop, error);
	loop_lock(loop);
	control_free(control);
	machine.changed = NULL;
	machine.paused = NULL;
	machine_free(&machine);
	loop_unlock(loop);
	return r;
}

int main(int argc, char **argv)
{
	struct error error = {0};
	struct options options;
	struct disk_rings rings;
	struct loop *loop;
	int r;

	if (!parse_options(argc, argv, &options)) {
		usage();
		return 2;
	}
	mallopt(M_ARENA_MAX, 1);
	mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD);
	turns_short();
	tzset(); /* the sandbox has no /etc/localtime */
	log_open(options.name, LOG_INFO_);
	set_signals(options.name);
	r = disk_rings_make(&rings, options.disks, &error);
	if (r == 0)
		r = sandbox_enter(options.root, options.uid, options.gid, &error);
	if (r == 0 && options.kvm >= 0) {
		r = tell_features(options.kvm, &error);
	} else if (r == 0 && options.check >= 0) {
		r = check(options.check, &error);
	} else if (r == 0) {
		loop = loop_new(&error);
		r = loop ? run(loop, &rings, &options, &error) : -EIO;
		loop_free(loop);
	}
	if (r < 0)
		log_error("%s", error.text);
	return r < 0 ? 1 : 0;
}
