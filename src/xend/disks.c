#include "xend/disks.h"
#include "base/cleanup.h"
#include "base/raw_bytes.h"
#include "xend/errand.h"

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
	return errno == EAGAIN || errno == EACCES ? -EBUSY : -ENOLCK;
}

void disk_unlock(int fd)
{
	struct flock lock = {.l_type = F_UNLCK, .l_whence = SEEK_SET};

	fcntl(fd, F_OFD_SETLK, &lock);
}

static int open_as(const char *path, int flags)
{
	char place[HOST_PATH_MAX];
	int fd = open(host_path(path, place), flags | O_DIRECT);

	/* EINVAL: this file system has no direct I/O (tmpfs, open(2)). */
	return fd < 0 && errno == EINVAL ? open(place, flags) : fd;
}

static int open_once(const struct guest_disk *disk, enum disk_lock lock)
{
	bool writes = disk->mode != DISK_READ_ONLY;
	int flags = (writes ? O_RDWR : O_RDONLY) | O_CLOEXEC;
	_cleanup_close_ int fd = -1;
	char place[HOST_PATH_MAX];
	struct stat info;

	if (!*disk->target)
		return -ENOMEDIUM;
	if (stat(host_path(disk->target, place), &info) < 0)
		return -errno;
	if (!S_ISREG(info.st_mode) && !S_ISBLK(info.st_mode))
		return -ENOTBLK;
	if (S_ISBLK(info.st_mode) && disk->mode == DISK_WRITE && lock != DISK_LOCK_HELD)
		flags |= O_EXCL;
	fd = open_as(disk->target, flags);
	if (fd < 0)
		return -errno;
	if (lock == DISK_LOCK_NOW && disk_lock(fd, disk) == -EBUSY)
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

struct looking {
	size_t count;
	struct guest_disk *disks; /* only target and place */
};

static void forget_looking(void *context)
{
	struct looking *looking = context;

	for (size_t i = 0; i < looking->count; i++)
		free(looking->disks[i].target);
	free(looking->disks);
	free(looking);
}

static struct looking *looking_new(const struct guest_config *config)
{
	struct looking *looking = calloc(1, sizeof(*looking));

	if (!looking || !(looking->disks = calloc(config->disk_count, sizeof(*looking->disks)))) {
		free(looking);
		return NULL;
	}
	for (; looking->count < config->disk_count; looking->count++)
		if (!(looking->disks[looking->count].target = strdup(config->disks[looking->count].target))) {
			forget_looking(looking);
			return NULL;
		}
	return looking;
}

static int look(void *context, struct error *error)
{
	struct looking *looking = context;

	(void)error;
	for (size_t i = 0; i < looking->count; i++) {
		struct guest_disk *disk = &looking->disks[i];
		char place[HOST_PATH_MAX];
		struct stat info;

		if (stat(host_path(disk->target, place), &info) == 0)
			disk->place = (struct disk_place){.known = true,
				.block = S_ISBLK(info.st_mode),
				.device = S_ISBLK(info.st_mode) ? info.st_rdev : info.st_dev,
				.inode = S_ISBLK(info.st_mode) ? 0 : info.st_ino};
	}
	return 0;
}

int disks_look(
	struct xend *xend, struct guest_config *config, unsigned patience_ms, int cancel, struct error *error)
{
	const struct errand errand = {.run = look, .late = forget_looking, .patience_ms = patience_ms};
	struct looking *looking;
	int r;

	if (config->disk_count == 0)
		return 0;
	looking = looking_new(config);
	if (!looking)
		return error_set(error, ENOMEM, "Out of memory.");
	r = errand_run(xend, &errand, &looking, cancel, error);
	if (!looking)
		return r == -ETIMEDOUT ? error_prefix(error, "Unable to look at disk %s%s of domain '%s': ",
						 config->disks[0].target,
						 config->disk_count > 1 ? " and others" : "", config->name)
				       : r;
	for (size_t i = 0; r >= 0 && i < config->disk_count; i++)
		config->disks[i].place = looking->disks[i].place;
	forget_looking(looking);
	return r;
}

json_t *disks_places(const struct guest_config *config)
{
	json_t *places = json_array();

	for (size_t i = 0; i < config->disk_count; i++) {
		const struct disk_place *place = &config->disks[i].place;

		json_array_append_new(places,
			place->known ? json_pack("{s:s, s:b, s:I, s:I}", "path", config->disks[i].target,
					       "block", place->block, "device", (json_int_t)place->device,
					       "inode", (json_int_t)place->inode)
				     : json_null());
	}
	return places;
}

void disks_set_places(struct guest_config *config, const json_t *places)
{
	for (size_t i = 0; i < config->disk_count; i++) {
		json_int_t device, inode;
		const char *path;
		int block;

		if (json_unpack(json_array_get(places, i), "{s:s, s:b, s:I, s:I}", "path", &path, "block",
			    &block, "device", &device, "inode", &inode) == 0 &&
			config->disks[i].target && strcmp(path, config->disks[i].target) == 0)
			config->disks[i].place = (struct disk_place){.known = true,
				.block = block,
				.device = (uint64_t)device,
				.inode = (uint64_t)inode};
	}
}

bool disk_same(const struct guest_disk *one, const struct guest_disk *other)
{
	const struct disk_place *a = &one->place, *b = &other->place;

	return strcmp(one->target, other->target) == 0 ||
	       (a->known && b->known && a->block == b->block && a->device == b->device &&
		       a->inode == b->inode);
}

static bool contend(const struct guest_disk *mine, const struct guest_disk *other)
{
	bool reads = mine->mode == DISK_READ_ONLY, other_reads = other->mode == DISK_READ_ONLY;

	if (other->mode == DISK_WRITE_SHARED || (reads && other_reads) || !disk_same(mine, other))
		return false;
	/* A block device that is written may be read beside that. */
	return !(mine->place.known && mine->place.block && (reads || other_reads));
}

int disks_check_twin(const struct guest_config *config, size_t index, struct error *error)
{
	const struct guest_disk *disk = &config->disks[index];

	for (size_t i = 0; i < index; i++)
		if (contend(disk, &config->disks[i]))
			return error_set(error, EINVAL,
				"Disk %s (%s) of domain '%s' is its disk %s as well: a disk cannot be two "
				"that are "
				"written. Take one out of disk=, or give it a disk of its own.",
				disk->target, disk->device, config->name, config->disks[i].device);
	return 0;
}
