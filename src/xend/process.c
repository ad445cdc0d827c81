#include "xend/process.h"
#include "base/cleanup.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/resource.h>
#include <sys/wait.h>

/* A dying process that the kernel does not let go of (storage that does not answer) is left after this. */
#define DYING_MS 30000
#define LOOK_MS 100
#define DESCRIPTORS_MAX 1024 /* a child's, or what xend itself may have */

/* Everything from here to the exec runs in a copy of a threaded process: async-signal-safe calls only. */

/* Once it is recorded the next xend finds it. Whether that one has looked before, nobody knows: so where its
 * xend has died meanwhile it ends here. */
static int child_record(int file, pid_t parent)
{
	char line[1024];
	_cleanup_close_ int stat = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
	ssize_t size = stat < 0 ? -1 : read(stat, line, sizeof(line));

	if (size <= 0 || write(file, line, (size_t)size) != size)
		return -1;
	errno = ESRCH;
	return getppid() == parent ? 0 : -1;
}

/* xend is the last to be killed when the host is short of memory (its unit's OOMScoreAdjust); what it starts
 * is not. Where that cannot be written, nobody had made it different. */
static void child_be_like_others(void)
{
	_cleanup_close_ int file = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

	if (file >= 0 && write(file, "0", 1) < 0)
		return;
}

static int child_prepare(const struct spawn *spawn, int null, int record, pid_t parent)
{
	/* 1: not to a file, and (as no other number does) not to a program either (Linux, fs/coredump.c). */
	static const struct rlimit no_core = {1, 1};
	struct rlimit descriptors;
	struct sigaction standard = {.sa_handler = SIG_DFL};
	sigset_t none;

	child_be_like_others();
	sigemptyset(&none);
	sigaction(SIGPIPE, &standard, NULL);
	sigprocmask(SIG_SETMASK, &none, NULL);
	if (setsid() < 0 || (record >= 0 && child_record(record, parent) < 0) ||
		(spawn->own_network && unshare(CLONE_NEWNET) < 0))
		return -1;
	if (dup2(null, STDIN_FILENO) < 0)
		return -1;
	if (spawn->output >= 0 &&
		(dup2(spawn->output, STDOUT_FILENO) < 0 || dup2(spawn->output, STDERR_FILENO) < 0))
		return -1;
	if (spawn->output < 0 && dup2(STDERR_FILENO, STDOUT_FILENO) < 0)
		return -1;
	if (close_range(STDERR_FILENO + 1, ~0U, CLOSE_RANGE_CLOEXEC) < 0)
		return -1;
	if (spawn->pass == SPAWN_PASSED_FD && fcntl(SPAWN_PASSED_FD, F_SETFD, 0) < 0)
		return -1;
	if (spawn->pass >= 0 && spawn->pass != SPAWN_PASSED_FD && dup2(spawn->pass, SPAWN_PASSED_FD) < 0)
		return -1;
	if (getrlimit(RLIMIT_NOFILE, &descriptors) < 0)
		return -1;
	if (descriptors.rlim_max > DESCRIPTORS_MAX)
		descriptors.rlim_max = DESCRIPTORS_MAX;
	descriptors.rlim_cur = descriptors.rlim_max;
	return setrlimit(RLIMIT_CORE, &no_core) < 0 || setrlimit(RLIMIT_NOFILE, &descriptors) < 0 ? -1 : 0;
}

static void __attribute__((noreturn))
child(const struct spawn *spawn, int null, int record, int report, pid_t parent)
{
	static const char *const empty[] = {NULL};
	const char *const *environment = spawn->environment ? spawn->environment : empty;

	if (child_prepare(spawn, null, record, parent) == 0)
		execve(spawn->arguments[0], (char *const *)spawn->arguments, (char *const *)environment);
	if (write(report, &errno, sizeof(errno)) < 0)
		_exit(126);
	_exit(127);
}

int process_spawn(const struct spawn *spawn, pid_t *pid, struct error *error)
{
	const char *program = spawn->arguments[0];
	_cleanup_close_ int null = open("/dev/null", O_RDWR | O_CLOEXEC), record = -1, pidfd = -1;
	_cleanup_close_ int report_read = -1, report_write = -1;
	int report[2], failed = 0;
	pid_t self = getpid();
	ssize_t size;

	if (null < 0 || pipe2(report, O_CLOEXEC) < 0)
		return error_set(error, errno, "Unable to start %s: %s.", program, strerror(errno));
	report_read = report[0];
	/* Out of the way of number 3, which the child puts the passed descriptor on. */
	report_write = fcntl(report[1], F_DUPFD_CLOEXEC, 10);
	close(report[1]);
	if (spawn->record) {
		record = open(spawn->record, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
		if (record < 0)
			return error_set(
				error, errno, "Unable to create %s: %s.", spawn->record, strerror(errno));
	}
	*pid = fork();
	if (*pid == 0)
		child(spawn, null, record, report_write, self);
	if (*pid < 0)
		return error_set(error, errno, "Unable to start %s: %s.", program, strerror(errno));
	pidfd = pidfd_open(*pid, 0);
	close(take_fd(&report_write));
	do
		size = read(report_read, &failed, sizeof(failed));
	while (size < 0 && errno == EINTR);
	if (pidfd < 0 || size > 0) {
		failed = failed ? failed : ENOSYS;
		waitpid(*pid, NULL, 0);
		return error_set(error, failed, "Unable to start %s: %s.", program, strerror(failed));
	}
	return take_fd(&pidfd);
}

/* The start time is field 22 of /proc/pid/stat (proc(5)); the name in field 2 may hold anything but ends at
 * the last ')'. */
static int read_stat(const char *path, long *pid, unsigned long long *start)
{
	_cleanup_fclose_ FILE *file = fopen(path, "re");
	char line[1024], *rest;

	if (!file)
		return errno == ENOENT ? -ESRCH : -errno;
	if (!fgets(line, sizeof(line), file) || sscanf(line, "%ld", pid) != 1)
		return -ESRCH;
	rest = strrchr(line, ')');
	if (!rest ||
		sscanf(rest + 1,
			" %*c %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %llu",
			start) != 1)
		return -ESRCH;
	return 0;
}

int process_find(const char *record, pid_t *pid)
{
	unsigned long long start, start_now;
	long recorded, now;
	char path[64];
	_cleanup_close_ int pidfd = -1;
	int r = read_stat(record, &recorded, &start);

	if (r < 0 || recorded <= 1)
		return r < 0 ? r : -ESRCH;
	/* The descriptor first: should the pid be given to another process afterwards, the check below sees
	 * it. */
	pidfd = pidfd_open((pid_t)recorded, 0);
	if (pidfd < 0)
		return errno == EINVAL ? -ESRCH : -errno; /* EINVAL: the number is a thread's by now */
	snprintf(path, sizeof(path), "/proc/%ld/stat", recorded);
	r = read_stat(path, &now, &start_now);
	if (r < 0 || start_now != start)
		return r < 0 ? r : -ESRCH;
	*pid = (pid_t)recorded;
	return take_fd(&pidfd);
}

int process_wait(int pidfd, int timeout_ms, int *status)
{
	struct pollfd ended = {.fd = pidfd, .events = POLLIN};
	siginfo_t info = {0};
	int n;

	do
		n = poll(&ended, 1, timeout_ms);
	while (n < 0 && errno == EINTR);
	if (n == 0)
		return -ETIMEDOUT;
	if (waitid(P_PIDFD, (id_t)pidfd, &info, WEXITED | WNOHANG) == 0 && status)
		*status = info.si_code == CLD_EXITED ? info.si_status : 128 + info.si_status;
	return 0;
}

/* Fields 3, 9 and 31 of /proc/pid/stat (proc(5)): a zombie's threads may still be ending; PF_EXITING and the
 * signals that are pending as the kernel has them (include/linux/sched.h). */
static bool is_dying(pid_t pid)
{
	const unsigned long exiting = 4, killed = 1ul << (SIGKILL - 1);
	char path[64], line[1024], state, *rest;
	_cleanup_fclose_ FILE *file = NULL;
	unsigned long flags, pending;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	file = fopen(path, "re");
	if (!file || !fgets(line, sizeof(line), file) || !(rest = strrchr(line, ')')))
		return false;
	return sscanf(rest + 1,
		       " %c %*s %*s %*s %*s %*s %lu %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s "
		       "%*s "
		       "%*s %*s %*s %*s %*s %*s %lu",
		       &state, &flags, &pending) == 3 &&
	       (state == 'Z' || state == 'X' || flags & exiting || pending & killed);
}

int process_wait_while_dying(int pidfd, pid_t pid, long long most_ms, int *status)
{
	int r = process_wait(pidfd, 0, status);

	for (long long waited_ms = 0; r == -ETIMEDOUT && waited_ms < most_ms && is_dying(pid);
		waited_ms += LOOK_MS)
		r = process_wait(pidfd, LOOK_MS, status);
	return r;
}

int process_wait_if_dying(int pidfd, pid_t pid, int timeout_ms, int *status)
{
	int r = process_wait(pidfd, timeout_ms, status);

	return r == -ETIMEDOUT ? process_wait_while_dying(pidfd, pid, DYING_MS, status) : r;
}

int process_kill_within(int pidfd, int timeout_ms)
{
	pidfd_send_signal(pidfd, SIGKILL, NULL, 0);
	return process_wait(pidfd, timeout_ms, NULL);
}

void process_kill(int pidfd)
{
	process_kill_within(pidfd, -1);
}

void process_describe_end(int status, char *text, size_t size)
{
	if (status > 128)
		snprintf(text, size, "was killed by signal %d (%s)", status - 128, strsignal(status - 128));
	else
		snprintf(text, size, "ended with status %d", status);
}
