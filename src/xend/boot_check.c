#include "xend/boot_check.h"
#include "base/channel.h"
#include "base/cleanup.h"
#include "xend/boot_files.h"
#include "xend/guest.h"
#include "xend/machine.h"
#include "xend/memory.h"
#include "xend/process.h"
#include "xend/process_log.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#define CHECK_MS 60000
#define END_MS 2000 /* of one that storage holds no more is waited for */

struct checker {
	int channel, process;
	struct process_log *log;
};

/* With the lock. */
static int start(struct checker *checker, struct xend *xend, struct error *error)
{
	char program[320], user[32], root[PATHS_EMPTY_MAX];
	const char *const arguments[] = {program, "--check", "3", "--user", user, "--root", root, NULL};
	struct spawn spawn = {.arguments = arguments, .own_network = true};
	_cleanup_close_ int output = -1, theirs = -1;
	int pair[2], r;
	pid_t pid;

	*checker = (struct checker){.channel = -1, .process = -1};
	snprintf(program, sizeof(program), "%s/ferry-guest", xend->paths.libexec);
	snprintf(user, sizeof(user), "%u:%u", GUEST_UID_BASE, GUEST_UID_BASE);
	paths_empty(&xend->paths, root);
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return error_set(error, errno, "Unable to make a channel: %s.", strerror(errno));
	checker->channel = pair[0];
	theirs = pair[1];
	r = process_log_make(&checker->log, xend, NULL, "ferry-guest", &output, error);
	if (r < 0)
		return r;
	spawn.pass = theirs;
	spawn.output = output;
	xend_unlock(xend);
	checker->process = process_spawn(&spawn, &pid, error);
	xend_lock(xend);
	if (checker->process < 0)
		return checker->process;
	process_log_listen(checker->log, pid);
	return 0;
}

/* Without the lock. */
static int ask(struct checker *checker, const struct guest_config *config, const struct machine_files *files,
	struct error *error)
{
	struct message_fds list = {0};
	_cleanup_json_ json_t *request = NULL;
	struct guest_config bare = *config; /* borrowed: its devices are not looked at */
	int r;

	bare.disk_count = bare.vif_count = 0;
	request = json_pack(
		"{s:s, s:o}", "do", "check", "machine", machine_describe(&bare, files, false, 0, &list));
	if (!request)
		return error_set(error, ENOMEM, "Out of memory.");
	r = channel_call(checker->channel, request, list.fds, list.count, NULL, CHECK_MS, error);
	if (r == -EPIPE || r == -ECONNRESET)
		error_set(
			error, EIO, "The process that looks whether it boots has ended; xm log may say why.");
	return r < 0 ? boot_files_explain(config, error) : 0;
}

static int open_files(const struct guest_config *config, struct machine_files *files, struct error *error)
{
	files->kvm = guest_open_kvm(error);
	if (files->kvm < 0)
		return files->kvm;
	files->ram = memory_create(config->memory, error);
	return files->ram < 0 ? files->ram : boot_files_open(config, &files->kernel, &files->ramdisk, error);
}

int boot_check(struct xend *xend, const struct guest_config *config, struct error *error)
{
	_cleanup_machine_files_ struct machine_files files;
	struct checker checker;
	int r;

	machine_files_init(&files);
	if (!config->kernel)
		return 0;
	r = start(&checker, xend, error);
	xend_unlock(xend);
	if (r >= 0)
		r = open_files(config, &files, error);
	if (r >= 0)
		r = ask(&checker, config, &files, error);
	cleanup_close(&checker.channel);
	if (checker.process >= 0)
		process_kill_within(checker.process, END_MS);
	cleanup_close(&checker.process);
	xend_lock(xend);
	process_log_end(checker.log);
	return r;
}
