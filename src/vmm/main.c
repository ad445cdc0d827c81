/*
 * ferry-guest: runs one guest. Started by xend, steered over its control socket
 * (docs/internal/guest-control.md).
 */
#include "base/cleanup.h"
#include "base/log.h"
#include "base/turns.h"
#include "vmm/control.h"
#include "vmm/cpuid.h"
#include "vmm/loop.h"
#include "vmm/machine.h"
#include "vmm/sandbox.h"

#include <errno.h>
#include <getopt.h>
#include <malloc.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#define MMAP_THRESHOLD (64 << 10) /* larger pieces go back to the host as soon as they are free */

struct options {
	int control;
	int kvm; /* only tell what guests see here: -1 */
	uid_t uid;
	gid_t gid;
	const char *name;
};

static void usage(void)
{
	fprintf(stderr,
		"usage: ferry-guest --control FD [--user UID:GID] [--name NAME]\n"
		"       ferry-guest --features FD [--user UID:GID]\n"
		"Runs one guest for xend, which hands it FD, a listening SOCK_SEQPACKET socket; or tells on\n"
		"standard output what a guest would see of the processor, given FD, /dev/kvm.\n");
}

static bool parse_options(int argc, char **argv, struct options *options)
{
	static const struct option known[] = {{"control", required_argument, NULL, 'c'},
		{"features", required_argument, NULL, 'f'}, {"user", required_argument, NULL, 'u'},
		{"name", required_argument, NULL, 'n'}, {0}};
	int option, end;

	*options = (struct options){
		.control = -1, .kvm = -1, .uid = (uid_t)-1, .gid = (gid_t)-1, .name = "ferry-guest"};
	while ((option = getopt_long(argc, argv, "", known, NULL)) != -1) {
		end = 0;
		if (option == 'n')
			options->name = optarg;
		else if (option == 'c' && sscanf(optarg, "%d%n", &options->control, &end) == 1 &&
			 !optarg[end])
			continue;
		else if (option == 'f' && sscanf(optarg, "%d%n", &options->kvm, &end) == 1 && !optarg[end])
			continue;
		else if (option == 'u' &&
			 sscanf(optarg, "%u:%u%n", &options->uid, &options->gid, &end) == 2 && !optarg[end])
			continue;
		else
			return false;
	}
	return optind == argc && (options->control >= 0) != (options->kvm >= 0);
}

/* Its only effect is that KVM_RUN returns (vcpu.c). */
static void kicked(int signal)
{
	(void)signal;
}

static void set_signals(void)
{
	struct sigaction kick = {.sa_handler = kicked}, ignore = {.sa_handler = SIG_IGN};

	sigaction(SIGUSR1, &kick, NULL);
	sigaction(SIGPIPE, &ignore, NULL);
	sigaction(SIGHUP, &ignore, NULL); /* the guest outlives whoever started it */
}

static int tell_features(int system, struct error *error)
{
	struct kvm_cpuid_entry2 entries[CPUID_ENTRIES_MAX];
	_cleanup_json_ json_t *told = NULL;
	struct kvm kvm;
	int r = kvm_open(&kvm, system, error);

	if (r < 0)
		return r;
	told = json_pack(
		"{s:o}", "features", cpuid_features(entries, cpuid_make(&kvm, 0, VCPUS_MAX, entries)));
	kvm_close(&kvm);
	if (!told || json_dumpfd(told, STDOUT_FILENO, JSON_COMPACT) < 0)
		return error_set(error, EIO, "Unable to tell what guests see of the processor.");
	return 0;
}

static int run(struct loop *loop, const struct options *options, struct error *error)
{
	struct machine machine;
	struct control *control;
	int r;

	machine_init(&machine, loop);
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
	struct loop *loop;
	int r;

	if (!parse_options(argc, argv, &options)) {
		usage();
		return 2;
	}
	mallopt(M_ARENA_MAX, 1);
	mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD);
	turns_short();
	log_open(options.name, LOG_INFO_);
	set_signals();
	r = sandbox_enter(options.uid, options.gid, &error);
	if (r == 0 && options.kvm >= 0) {
		r = tell_features(options.kvm, &error);
	} else if (r == 0) {
		loop = loop_new(&error);
		r = loop ? run(loop, &options, &error) : -EIO;
		loop_free(loop);
	}
	if (r < 0)
		log_error("%s", error.text);
	return r < 0 ? 1 : 0;
}
