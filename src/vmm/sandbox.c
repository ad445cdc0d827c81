#include "vmm/sandbox.h"
#include "base/cleanup.h"
#include "base/no_files.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/fs.h>
#include <linux/if_tun.h>
#include <linux/kvm.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <seccomp.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

/* A guest's threads and those that its disks' rings start: some hundred at most. */
#define THREADS_MAX 4096u

/*
 * Nothing that names a file, a process or a network address. A call outside the tables fails with EPERM: what
 * a library then does without is not worth a guest's life.
 */
static const int allowed[] = {
	/* descriptors that are open */
	SCMP_SYS(read),
	SCMP_SYS(write),
	SCMP_SYS(readv),
	SCMP_SYS(writev),
	SCMP_SYS(pread64),
	SCMP_SYS(pwrite64),
	SCMP_SYS(preadv),
	SCMP_SYS(pwritev),
	SCMP_SYS(preadv2),
	SCMP_SYS(pwritev2),
	SCMP_SYS(close),
	SCMP_SYS(fstat),
	SCMP_SYS(lseek),
	SCMP_SYS(fallocate),
	SCMP_SYS(ftruncate),
	SCMP_SYS(fsync),
	SCMP_SYS(fdatasync),
	SCMP_SYS(fadvise64),
	SCMP_SYS(dup),
	/* the control socket and console streams */
	SCMP_SYS(accept4),
	SCMP_SYS(recvmsg),
	SCMP_SYS(sendmsg),
	SCMP_SYS(recvfrom),
	SCMP_SYS(sendto),
	SCMP_SYS(getsockopt),
	SCMP_SYS(shutdown),
	/* the loop */
	SCMP_SYS(epoll_create1),
	SCMP_SYS(epoll_ctl),
	SCMP_SYS(epoll_wait),
	SCMP_SYS(epoll_pwait),
	SCMP_SYS(poll),
	SCMP_SYS(ppoll),
	SCMP_SYS(eventfd2),
	SCMP_SYS(timerfd_create),
	SCMP_SYS(timerfd_settime),
	SCMP_SYS(timerfd_gettime),
	/* a processor's own timer (vcpu.c) */
	SCMP_SYS(timer_create),
	SCMP_SYS(timer_settime),
	SCMP_SYS(timer_delete),
	SCMP_SYS(memfd_create),
	/* disks, random numbers, time */
	SCMP_SYS(io_uring_enter), /* of rings that are there already and can do no more than a disk needs */
	SCMP_SYS(getrandom),
	SCMP_SYS(clock_gettime),
	SCMP_SYS(clock_nanosleep),
	SCMP_SYS(nanosleep),
	SCMP_SYS(gettimeofday),
	/* memory (mmap and mprotect: below) */
	SCMP_SYS(munmap),
	SCMP_SYS(mremap),
	SCMP_SYS(madvise),
	SCMP_SYS(brk),
	/* threads and signals */
	SCMP_SYS(futex),
	SCMP_SYS(set_robust_list),
	SCMP_SYS(rseq),
	SCMP_SYS(set_tid_address),
	SCMP_SYS(gettid),
	SCMP_SYS(getpid),
	SCMP_SYS(sched_yield),
	SCMP_SYS(membarrier),
	SCMP_SYS(rt_sigaction),
	SCMP_SYS(rt_sigprocmask),
	SCMP_SYS(rt_sigreturn),
	SCMP_SYS(sigaltstack),
	SCMP_SYS(restart_syscall),
	SCMP_SYS(exit),
	SCMP_SYS(exit_group),
};

/* Linux 6.1; Debian 12's headers of user space may be older than its kernel. */
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

#define NAMESPACES                                                                                           \
	(CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID |        \
		CLONE_NEWNET)

/*
 * Calls that are allowed with some arguments only: where argument number `argument`, of it the bits `mask`,
 * is `value`. What the kernel has as 32 bits is compared as 32 bits.
 */
static const struct {
	int call;
	unsigned argument;
	uint32_t mask, value;
} allowed_so[] = {
	/* memory, but none that can be executed */
	{SCMP_SYS(mmap), 2, PROT_EXEC, 0},
	{SCMP_SYS(mprotect), 2, PROT_EXEC, 0},
	/* threads, but no process and no name space */
	{SCMP_SYS(clone), 0, CLONE_THREAD | NAMESPACES, CLONE_THREAD},
	/* of this thread only */
	{SCMP_SYS(sched_getaffinity), 0, UINT32_MAX, 0},
	{SCMP_SYS(sched_getattr), 0, UINT32_MAX, 0},
	{SCMP_SYS(sched_setattr), 0, UINT32_MAX, 0},
	{SCMP_SYS(prctl), 0, UINT32_MAX, PR_SET_NAME},
	{SCMP_SYS(fcntl), 1, UINT32_MAX, F_GETFD},
	{SCMP_SYS(fcntl), 1, UINT32_MAX, F_SETFD},
	{SCMP_SYS(fcntl), 1, UINT32_MAX, F_GETFL},
	{SCMP_SYS(fcntl), 1, UINT32_MAX, F_SETFL},
	{SCMP_SYS(fcntl), 1, UINT32_MAX, F_ADD_SEALS},
	/* What O_DIRECT wants of a disk's image. A path may be given all the same: there is none
	   (enter_root). */
	{SCMP_SYS(statx), 2, AT_EMPTY_PATH, AT_EMPTY_PATH},
	/* KVM: everything, by its number as a driver */
	{SCMP_SYS(ioctl), 1, 0xff00, KVMIO << 8},
	{SCMP_SYS(ioctl), 1, UINT32_MAX, TUNGETIFF},
	{SCMP_SYS(ioctl), 1, UINT32_MAX, TUNSETOFFLOAD},
	{SCMP_SYS(ioctl), 1, UINT32_MAX, TUNSETVNETHDRSZ},
	{SCMP_SYS(ioctl), 1, UINT32_MAX, BLKGETSIZE64},
	{SCMP_SYS(ioctl), 1, UINT32_MAX, BLKSSZGET},
	{SCMP_SYS(ioctl), 1, UINT32_MAX, BLKDISCARD},
	{SCMP_SYS(ioctl), 1, UINT32_MAX, USERFAULTFD_IOC_NEW},
	{SCMP_SYS(ioctl), 1, UINT32_MAX, (uint32_t)UFFDIO_API},
	{SCMP_SYS(ioctl), 1, UINT32_MAX, (uint32_t)UFFDIO_REGISTER},
	{SCMP_SYS(ioctl), 1, UINT32_MAX, (uint32_t)UFFDIO_UNREGISTER},
};

static void release(scmp_filter_ctx *filter)
{
	if (*filter)
		seccomp_release(*filter);
}

/* Before the user is given up: who is not root cannot. */
static int enter_root(const char *root, struct error *error)
{
	if (root && (chroot(root) < 0 || chdir("/") < 0))
		return error_set(
			error, errno, "Unable to make %s the root of all paths: %s.", root, strerror(errno));
	return 0;
}

static int drop_user(uid_t uid, gid_t gid, struct error *error)
{
	const struct rlimit threads = {THREADS_MAX, THREADS_MAX};

	if (uid == (uid_t)-1)
		return 0;
	if (setgroups(0, NULL) < 0 || setresgid(gid, gid, gid) < 0 || setresuid(uid, uid, uid) < 0)
		return error_set(
			error, errno, "Unable to become user %u, group %u: %s.", uid, gid, strerror(errno));
	return setrlimit(RLIMIT_NPROC, &threads) < 0
		       ? error_set(
				 error, errno, "Unable to limit the number of threads: %s.", strerror(errno))
		       : 0;
}

static int add_rules(scmp_filter_ctx filter)
{
	int r = 0;

	for (size_t i = 0; i < ARRAY_SIZE(allowed) && r == 0; i++)
		r = seccomp_rule_add(filter, SCMP_ACT_ALLOW, allowed[i], 0);
	for (size_t i = 0; i < ARRAY_SIZE(allowed_so) && r == 0; i++)
		r = seccomp_rule_add(filter, SCMP_ACT_ALLOW, allowed_so[i].call, 1,
			SCMP_CMP(allowed_so[i].argument, SCMP_CMP_MASKED_EQ, allowed_so[i].mask,
				allowed_so[i].value));
	if (r == 0) /* pthread_kill, abort */
		r = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(tgkill), 1,
			SCMP_A0(SCMP_CMP_EQ, (scmp_datum_t)getpid()));
	/* Its flags cannot be looked at: glibc takes clone where there is no clone3. */
	if (r == 0)
		r = seccomp_rule_add(filter, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);
	return r;
}

int sandbox_enter(const char *root, uid_t uid, gid_t gid, struct error *error)
{
	_cleanup_(release) scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ERRNO(EPERM));
	int r = enter_root(root, error);

	if (r == 0)
		r = drop_user(uid, gid, error);
	if (r < 0)
		return r;
	/* No core file: the guest's memory, and what its devices hold of it, are its own. */
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0)
		return error_set(error, errno, "Unable to give up privileges: %s.", strerror(errno));
	r = no_files(error);
	if (r < 0)
		return r;
	if (!filter)
		return error_set(error, ENOMEM, "Out of memory for the filter of system calls.");
	r = add_rules(filter);
	if (r == 0)
		r = seccomp_load(filter);
	return r < 0 ? error_set(error, -r, "Unable to install the filter of system calls: %s.", strerror(-r))
		     : 0;
}
