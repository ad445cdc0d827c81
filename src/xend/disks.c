#include "xend/disks.h"
#include "base/cleanup.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

/* The kernel finishes closing a dead process's disks (io_uring) a moment after its end. */
#define BUSY_RETRIES 20
#define BUSY_PAUSE_NS 10000000

int disk_lock(int fd, const struct guest_disk *disk)
{
	struct flock lock = {
		.l_type = disk->mode == DISK_READ_ONLY ? F_RDLCK : F_WRLCK, .l_whence = SEEK_SET};
	struct stat info;

	if (disk->mode == DISK_WRITE_SHARED || fstat(fd, &info) < 0 || !S_ISREG(info.st_mode))
		return 0;
	if (fcntl(fd, F_OFD_SETLK, &lock) == 0)
		return 0;
	/* A file system without locks cannot say; xend's own table of disks still does for this host. */
	return errno == EAGAIN || errno == EACCES ? -EBUSY : 0;
}

static int open_as(const char *path, int flags)
{
	int fd = open(path, flags | O_DIRECT);

	/* EINVAL: this file system has no direct I/O (tmpfs, open(2)). */
	return fd < 0 && errno == EINVAL ? open(path, flags) : fd;
}

static int open_once(const struct guest_disk *disk, enum disk_lock lock)
{
	bool writes = disk->mode != DISK_READ_ONLY;
	int flags = (writes ? O_RDWR : O_RDONLY) | O_CLOEXEC;
	_cleanup_close_ int fd = -1;
	struct stat info;

	if (stat(disk->target, &info) < 0)
		return -errno;
	if (!S_ISREG(info.st_mode) && !S_ISBLK(info.st_mode))
		return -ENOTBLK;
	if (S_ISBLK(info.st_mode) && disk->mode == DISK_WRITE)
		flags |= O_EXCL;
	fd = open_as(disk->target, flags);
	if (fd < 0)
		return -errno;
	if (lock == DISK_LOCK_NOW && disk_lock(fd, disk) < 0)
		return -EBUSY;
	return take_fd(&fd);
}

int disk_open(const struct guest_disk *disk, const char *domain, enum disk_lock lock, struct error *error)
{
	const struct timespec pause = {.tv_nsec = BUSY_PAUSE_NS};
	int r = open_once(disk, lock);

	for (unsigned i = 0; r == -EBUSY && i < BUSY_RETRIES; i++) {
		nanosleep(&pause, NULL);
		r = open_once(disk, lock);
	}
	if (r == -EBUSY)
		return error_set(error, EBUSY,
			"Disk %s (%s) of domain '%s' is in use: it is mounted, or another guest has it. "
			"Unmount it or end that "
			"guest first.",
			disk->target, disk->device, domain);
	if (r == -ENOTBLK)
		return error_set(error, EINVAL,
			"Disk %s (%s) of domain '%s' is neither a block device nor a file; correct disk=.",
			disk->target, disk->device, domain);
	if (r < 0)
		return error_set(error, r, "Unable to open disk %s (%s) of domain '%s': %s.", disk->target,
			disk->device, domain, strerror(-r));
	return r;
}

bool disk_same(const char *one, const char *other)
{
	struct stat a, b;

	if (strcmp(one, other) == 0)
		return true;
	if (stat(one, &a) < 0 || stat(other, &b) < 0 || (a.st_mode & S_IFMT) != (b.st_mode & S_IFMT))
		return false;
	return S_ISBLK(a.st_mode) ? a.st_rdev == b.st_rdev : a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}
