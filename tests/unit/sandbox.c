/*
 * Plays a ferry-guest that its guest has taken over: tries each way out of the sandbox, by every means that
 * the process has left. And the second wall, Landlock, alone.
 */
#include "base/cleanup.h"
#include "base/no_files.h"
#include "vmm/dev/disk_ring.h"
#include "vmm/memory.h"
#include "vmm/sandbox.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/close_range.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define USER 0x70001234u

struct prison {
	char root[64];
	int image;
	struct disk_rings rings;
	pid_t outside; /* a process of the same user, out there */
};

/* Each returns true where the way is open. */

static bool opens(struct prison *prison)
{
	(void)prison;
	return open("/etc/passwd", O_RDONLY) >= 0 || open(".", O_RDONLY) >= 0 || open("/", O_PATH) >= 0 ||
	       syscall(SYS_open, "/proc/self/status", O_RDONLY) >= 0 ||
	       syscall(SYS_openat2, AT_FDCWD, "/etc/passwd", NULL, 0) >= 0 ||
	       creat("/tmp/escaped", 0600) >= 0 ||
	       syscall(SYS_open_by_handle_at, AT_FDCWD, NULL, O_RDONLY) >= 0;
}

static bool looks_at_names(struct prison *prison)
{
	struct statx extended;
	struct stat status;
	char text[64];

	(void)prison;
	return syscall(SYS_newfstatat, AT_FDCWD, "/etc/passwd", &status, AT_EMPTY_PATH) == 0 ||
	       syscall(SYS_stat, "/etc/passwd", &status) == 0 || access("/etc/passwd", F_OK) == 0 ||
	       statx(AT_FDCWD, "/etc/passwd", AT_EMPTY_PATH, STATX_SIZE, &extended) == 0 ||
	       statx(AT_FDCWD, "/proc/1", AT_EMPTY_PATH, STATX_SIZE, &extended) == 0 ||
	       readlink("/proc/self/exe", text, sizeof(text)) >= 0 || chdir("/tmp") == 0;
}

static int through(struct io_uring *ring, struct io_uring_sqe *entry)
{
	struct io_uring_cqe *done;

	(void)entry;
	if (io_uring_submit_and_wait(ring, 1) < 0 || io_uring_peek_cqe(ring, &done) < 0)
		return -EIO;
	io_uring_cqe_seen(ring, done);
	return done->res;
}

static int by_ring_open(struct io_uring *ring)
{
	struct io_uring_sqe *entry = io_uring_get_sqe(ring);

	io_uring_prep_openat(entry, AT_FDCWD, "/etc/passwd", O_RDONLY, 0);
	return through(ring, entry);
}

static bool uses_its_ring_for_more(struct prison *prison)
{
	struct io_uring *ring = &prison->rings.free[0].ring;
	struct io_uring_sqe *entry;
	struct statx status;
	int r = by_ring_open(ring);

	if (r >= 0)
		return true;
	entry = io_uring_get_sqe(ring);
	io_uring_prep_rw(45 /* IORING_OP_SOCKET, Linux 5.19 */, entry, AF_INET, NULL, 0, SOCK_STREAM);
	if (through(ring, entry) >= 0)
		return true;
	entry = io_uring_get_sqe(ring);
	io_uring_prep_statx(entry, AT_FDCWD, "/etc/passwd", 0, STATX_SIZE, &status);
	return through(ring, entry) >= 0;
}

static bool makes_rings(struct prison *prison)
{
	struct io_uring_params parameters = {0};
	struct io_uring_probe probe = {0};

	return syscall(SYS_io_uring_setup, 8, &parameters) >= 0 ||
	       syscall(SYS_io_uring_register, prison->rings.free[0].ring.ring_fd, IORING_REGISTER_PROBE,
		       &probe, 0) >= 0;
}

static bool uses_sockets(struct prison *prison)
{
	int pair[2];

	(void)prison;
	return socket(AF_INET, SOCK_STREAM, 0) >= 0 || socket(AF_UNIX, SOCK_STREAM, 0) >= 0 ||
	       socket(AF_NETLINK, SOCK_RAW, 0) >= 0 || socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0;
}

static bool reaches_processes(struct prison *prison)
{
	char byte;
	struct iovec here = {&byte, 1}, there = {&byte, 1};

	return kill(prison->outside, 0) == 0 ||
	       syscall(SYS_tgkill, prison->outside, prison->outside, 0) == 0 ||
	       syscall(SYS_tkill, prison->outside, 0) == 0 || pidfd_open(prison->outside, 0) >= 0 ||
	       ptrace(PTRACE_ATTACH, prison->outside, NULL, NULL) == 0 ||
	       process_vm_readv(prison->outside, &here, 1, &there, 1, 0) > 0 ||
	       syscall(SYS_sched_getattr, prison->outside, &byte, 56, 0) == 0 ||
	       getpriority(PRIO_PROCESS, (id_t)prison->outside) != -1 ||
	       prlimit(prison->outside, RLIMIT_CORE, NULL, &(struct rlimit){0}) == 0;
}

static bool signals_through_a_descriptor(struct prison *prison)
{
	return fcntl(prison->image, F_SETOWN, prison->outside) == 0 ||
	       fcntl(prison->image, F_SETSIG, SIGUSR1) == 0;
}

static bool makes_processes(struct prison *prison)
{
	struct {
		uint64_t flags, other[10];
	} three = {0};
	pid_t child = fork();

	(void)prison;
	if (child == 0)
		_exit(0);
	return child > 0 || vfork() > 0 || syscall(SYS_clone3, &three, sizeof(three)) >= 0;
}

static bool makes_name_spaces(struct prison *prison)
{
	(void)prison;
	return syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, NULL, NULL, NULL, NULL) >= 0 ||
	       unshare(CLONE_NEWUSER) == 0 || unshare(CLONE_NEWNS) == 0 || setns(0, 0) == 0 ||
	       mount("none", "/", "tmpfs", 0, NULL) == 0 || chroot("..") == 0 || setuid(0) == 0;
}

static bool executes(struct prison *prison)
{
	char *const none[] = {NULL};
	int memory = memfd_create("program", 0);
	void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	(void)prison;
	execve("/bin/false", none, none); /* whose status says "open" */
	syscall(SYS_execveat, memory, "", none, none, AT_EMPTY_PATH);
	return mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED ||
	       mprotect(page, 4096, PROT_READ | PROT_EXEC) == 0;
}

static bool undoes_what_protects_it(struct prison *prison)
{
	(void)prison;
	return prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) == 0 ||
	       prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0) == 0 ||
	       setrlimit(RLIMIT_NPROC, &(struct rlimit){1 << 20, 1 << 20}) == 0;
}

static bool types_into_a_terminal(struct prison *prison)
{
	char letter = 'x';
	int before = ioctl(prison->image, TIOCSTI, &letter) < 0 ? errno : 0;

	return before != EPERM; /* of the filter; the file itself would say ENOTTY */
}

static const struct {
	const char *name;
	bool (*open)(struct prison *prison);
} ways[] = {
	{"opening files", opens},
	{"looking at names", looks_at_names},
	{"more through its rings", uses_its_ring_for_more},
	{"new rings", makes_rings},
	{"sockets", uses_sockets},
	{"other processes", reaches_processes},
	{"signals through descriptors", signals_through_a_descriptor},
	{"new processes", makes_processes},
	{"name spaces", makes_name_spaces},
	{"executing", executes},
	{"undoing the sandbox", undoes_what_protects_it},
	{"foreign ioctls", types_into_a_terminal},
};

static void *thread(void *argument)
{
	*(bool *)argument = true;
	return NULL;
}

/* What ferry-guest lives on must go on working. */
static bool works(struct prison *prison)
{
	struct io_uring *ring = &prison->rings.free[0].ring;
	struct io_uring_sqe *entry = io_uring_get_sqe(ring);
	char text[4] = "";
	bool ran = false;
	pthread_t id;

	io_uring_prep_read(entry, prison->image, text, 3, 0);
	if (through(ring, entry) != 3 || memcmp(text, "abc", 3) != 0)
		return false;
	entry = io_uring_get_sqe(ring);
	io_uring_prep_fsync(entry, prison->image, IORING_FSYNC_DATASYNC);
	if (through(ring, entry) != 0)
		return false;
	return pthread_create(&id, NULL, thread, &ran) == 0 && pthread_join(id, NULL) == 0 && ran &&
	       prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) != 1 && malloc(1 << 20);
}

static void make_prison(struct prison *prison)
{
	struct error error = {0};

	memset(prison, 0, sizeof(*prison));
	snprintf(prison->root, sizeof(prison->root), "/tmp/ferry-test-XXXXXX");
	assert_non_null(mkdtemp(prison->root));
	prison->image = memfd_create("image", MFD_CLOEXEC);
	assert_int_equal(write(prison->image, "abc", 3), 3);
	prison->outside = fork();
	if (prison->outside == 0) {
		if (setgroups(0, NULL) < 0 || setresgid(USER, USER, USER) < 0 ||
			setresuid(USER, USER, USER) < 0)
			_exit(1);
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
		pause();
		_exit(0);
	}
	assert_int_equal(disk_rings_make(&prison->rings, 1, &error), 0);
}

static void end_prison(struct prison *prison)
{
	disk_rings_free(&prison->rings);
	kill(prison->outside, SIGKILL);
	waitpid(prison->outside, NULL, 0);
	close(prison->image);
	rmdir(prison->root);
}

/* The prisoner tries one way; the exit status of its process says what came of it. */
enum outcome { CLOSED, OPEN, NO_PRISON };

static int in_the_sandbox(bool (*try)(struct prison *))
{
	struct error error = {0};
	struct prison prison;
	int status = 0;
	pid_t prisoner = fork();

	if (prisoner == 0) {
		/* Rings are of the thread that made them. */
		make_prison(&prison);
		prisoner = fork();
		if (prisoner == 0) {
			disk_rings_free(&prison.rings);
			if (disk_rings_make(&prison.rings, 1, &error) < 0 ||
				sandbox_enter(prison.root, USER, USER, &error) < 0) {
				dprintf(STDERR_FILENO, "%s\n", error.text);
				_exit(NO_PRISON);
			}
			_exit(try(&prison) ? OPEN : CLOSED);
		}
		waitpid(prisoner, &status, 0);
		end_prison(&prison);
		_exit(WIFEXITED(status) ? WEXITSTATUS(status) : NO_PRISON);
	}
	waitpid(prisoner, &status, 0);
	return WIFEXITED(status) ? WEXITSTATUS(status) : NO_PRISON;
}

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define THREAD_SANITIZER 1
#endif
#endif
#ifndef THREAD_SANITIZER
#define THREAD_SANITIZER 0
#endif

static bool cannot_be_tried(void)
{
	if (THREAD_SANITIZER) {
		print_message("# the thread sanitizer itself needs what the sandbox takes away: nothing was "
			      "tried\n");
		return true;
	}
	if (geteuid() == 0)
		return false;
	print_message("# only root can give up being root: nothing was tried\n");
	return true;
}

static void the_guest_can_do_its_work(void **state)
{
	(void)state;
	if (cannot_be_tried())
		return; /* cmocka's skip() is "not ok" to meson */
	assert_int_equal(in_the_sandbox(works), OPEN);
}

static void no_way_leads_out(void **state)
{
	unsigned found = 0;

	(void)state;
	if (cannot_be_tried())
		return; /* cmocka's skip() is "not ok" to meson */
	for (size_t i = 0; i < ARRAY_SIZE(ways); i++) {
		int outcome = in_the_sandbox(ways[i].open);

		if (outcome != CLOSED) {
			print_message("# %s: %s\n", ways[i].name,
				outcome == OPEN ? "a way out" : "could not be tried");
			found++;
		}
	}
	assert_int_equal(found, 0);
}

/* Without the filter, as where a way around it was found. */
static void the_second_wall_stands_alone(void **state)
{
	struct error error = {0};
	struct io_uring ring;
	int status = 0;
	pid_t child = fork();

	(void)state;
	if (child == 0) {
		int inside = open("/dev/null", O_RDONLY | O_CLOEXEC), r;
		char byte;

		if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || no_files(&error) < 0)
			_exit(2);
		if (syscall(SYS_landlock_create_ruleset, NULL, 0, 1) < 1)
			_exit(3);
		if (open("/etc/passwd", O_RDONLY) >= 0 || creat("/tmp/escaped", 0600) >= 0 ||
			execl("/bin/false", "false", NULL) == 0)
			_exit(1);
		if (io_uring_queue_init(8, &ring, 0) == 0 && (r = by_ring_open(&ring)) >= 0)
			_exit(1);
		_exit(read(inside, &byte, 1) == 0 ? 0 : 4);
	}
	waitpid(child, &status, 0);
	assert_true(WIFEXITED(status));
	if (WEXITSTATUS(status) == 3) {
		print_message("# this kernel has no Landlock: nothing was tried\n");
		return; /* cmocka's skip() is "not ok" to meson */
	}
	assert_int_equal(WEXITSTATUS(status), 0);
}

/* The flags of the mapping at `base`, as /proc/self/smaps has them (proc(5)): " dd" is "not in core files".
 */
static bool is_dumped(const void *base)
{
	_cleanup_fclose_ FILE *maps = fopen("/proc/self/smaps", "re");
	unsigned long start;
	char line[512];
	bool here = false;

	assert_non_null(maps);
	while (fgets(line, sizeof(line), maps)) {
		if (sscanf(line, "%lx-", &start) == 1 && strchr(line, '-') && strstr(line, " rw-"))
			here = start == (uintptr_t)base;
		if (here && strncmp(line, "VmFlags:", 8) == 0)
			return !strstr(line, " dd");
	}
	fail_msg("the mapping is not there");
	return true;
}

static void no_core_file_has_the_guests_memory(void **state)
{
	int fd = memfd_create("ram", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	struct memory memory;
	struct error error;

	(void)state;
	assert_int_equal(ftruncate(fd, 1 << 20), 0);
	assert_int_equal(memory_map(&memory, fd, 1 << 20, false, &error), 0);
	assert_false(is_dumped(memory.base));
	memory_unmap(&memory);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_guest_can_do_its_work),
		cmocka_unit_test(no_way_leads_out),
		cmocka_unit_test(the_second_wall_stands_alone),
		cmocka_unit_test(no_core_file_has_the_guests_memory),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
