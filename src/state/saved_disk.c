#include "state/saved_disk.h"
#include "base/cleanup.h"
#include "base/raw_bytes.h"
#include "state/disk_content.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#define LINE_MAX_BYTES 256
/* The kernel's clock of files goes in steps of at most 10 ms, some file systems' of a second. A later write
 * may have the time of one that is not older than that. */
#define STEP_NS 20000000ll
#define COARSE_STEP_NS 2000000000ll

struct disk {
	int fd; /* owned */
	struct stat info;
	uint64_t size, used;
	unsigned block_size;
};

static void close_disk(struct disk *disk)
{
	cleanup_close(&disk->fd);
}

static int open_disk(struct disk *disk, const char *path, const char *device, struct error *error)
{
	char place[HOST_PATH_MAX];
	int block_size = 512;

	disk->fd = open(host_path(path, place), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_DIRECT);
	if (disk->fd < 0 && errno == EINVAL) /* no direct I/O in this file system (open(2)) */
		disk->fd = open(place, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (disk->fd < 0 || fstat(disk->fd, &disk->info) < 0)
		return error_set(
			error, errno, "Unable to open disk %s (%s): %s.", path, device, strerror(errno));
	if (S_ISREG(disk->info.st_mode)) {
		disk->size = (uint64_t)disk->info.st_size;
		disk->used = (uint64_t)disk->info.st_blocks * 512;
	} else if (S_ISBLK(disk->info.st_mode) && ioctl(disk->fd, BLKGETSIZE64, &disk->size) == 0 &&
		   ioctl(disk->fd, BLKSSZGET, &block_size) == 0) {
		disk->used = disk->size;
	} else {
		return error_set(
			error, EINVAL, "Disk %s (%s) is neither a block device nor a file.", path, device);
	}
	disk->block_size = block_size < 512 ? 512 : (unsigned)block_size;
	return 0;
}

static json_int_t in_ns(struct timespec time)
{
	return (json_int_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static json_t *portray_file(const struct disk *disk)
{
	return json_pack("{s:I, s:I, s:I, s:I}", "device", (json_int_t)disk->info.st_dev, "inode",
		(json_int_t)disk->info.st_ino, "written_ns", in_ns(disk->info.st_mtim), "changed_ns",
		in_ns(disk->info.st_ctim));
}

static bool read_line(const char *path, char line[LINE_MAX_BYTES])
{
	_cleanup_fclose_ FILE *file = fopen(path, "re");

	if (!file || !fgets(line, LINE_MAX_BYTES, file))
		return false;
	line[strcspn(line, "\n")] = 0;
	return true;
}

/*
 * What was written to a block device and discarded of it since this host was started, whoever did that here
 * (Documentation/ABI/stable/sysfs-block: stat, diskseq). NULL where the kernel does not tell.
 */
static json_t *portray_writes(const struct disk *disk)
{
	unsigned major_number = major(disk->info.st_rdev), minor_number = minor(disk->info.st_rdev);
	char path[96], line[LINE_MAX_BYTES], boot[LINE_MAX_BYTES], name[LINE_MAX_BYTES + 32],
		sequence[LINE_MAX_BYTES] = "";
	unsigned long long written, discarded = 0;

	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/stat", major_number, minor_number);
	if (!read_line("/proc/sys/kernel/random/boot_id", boot) || !read_line(path, line) ||
		sscanf(line, "%*u %*u %*u %*u %*u %*u %llu %*u %*u %*u %*u %*u %*u %llu", &written,
			&discarded) < 1)
		return NULL;
	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/diskseq", major_number, minor_number);
	read_line(path, sequence);
	snprintf(name, sizeof(name), "%u:%u %s", major_number, minor_number, sequence);
	return json_pack(
		"{s:s, s:s, s:I}", "boot", boot, "disk", name, "sectors", (json_int_t)(written + discarded));
}

json_t *saved_disk_portray(
	const char *path, const char *device, const char *mode, bool hurry, struct error *error)
{
	_cleanup_(close_disk) struct disk disk = {.fd = -1};
	struct timespec now;
	json_t *portrait, *content;

	if (open_disk(&disk, path, device, error) < 0)
		return NULL;
	clock_gettime(CLOCK_REALTIME, &now);
	portrait = json_pack("{s:s, s:s, s:I, s:I, s:I}", "device", device, "mode", mode, "size",
		(json_int_t)disk.size, "block_size", (json_int_t)disk.block_size, "taken_ns", in_ns(now));
	if (strcmp(mode, "w!") == 0) /* whoever else writes may do so at any time */
		return portrait;
	if (S_ISREG(disk.info.st_mode))
		json_object_set_new(portrait, "file", portray_file(&disk));
	else
		json_object_set_new(portrait, "written", portray_writes(&disk));
	content = disk_content(disk.fd, disk.size, disk.used, hurry, error);
	if (!content) {
		error_prefix(error, "Disk %s (%s): ", path, device);
		json_decref(portrait);
		return NULL;
	}
	json_object_set_new(portrait, "content", content);
	return portrait;
}

static json_int_t number(const json_t *object, const char *key)
{
	return json_integer_value(json_object_get(object, key));
}

/* The same file, wherever it is mounted: what is there now has the number that it had. */
static bool is_same_file(const json_t *then, const json_t *now)
{
	return number(then, "inode") == number(now, "inode");
}

/* Nobody has written to it: its times are those of then, and older than the step in which they are counted.
 */
static bool is_untouched(const json_t *then, const json_t *now, json_int_t taken)
{
	json_int_t written = number(then, "written_ns");
	json_int_t step = written % 1000000 ? STEP_NS : COARSE_STEP_NS;

	return is_same_file(then, now) && number(then, "device") == number(now, "device") &&
	       written == number(now, "written_ns") &&
	       number(then, "changed_ns") == number(now, "changed_ns") && written + step < taken;
}

/* Somebody has: for a disk of which only samples are known, that decides. */
static bool is_touched(const struct disk *disk, const json_t *portrait)
{
	const json_t *then = json_object_get(portrait, S_ISREG(disk->info.st_mode) ? "file" : "written");
	_cleanup_json_ json_t *now = S_ISREG(disk->info.st_mode) ? portray_file(disk) : portray_writes(disk);

	if (!then || !now)
		return false;
	if (S_ISREG(disk->info.st_mode))
		return is_same_file(then, now) && number(then, "device") == number(now, "device") &&
		       number(then, "written_ns") != number(now, "written_ns");
	return json_equal(json_object_get(then, "boot"), json_object_get(now, "boot")) &&
	       json_equal(json_object_get(then, "disk"), json_object_get(now, "disk")) &&
	       number(then, "sectors") != number(now, "sectors");
}

static int changed(const char *path, const char *device, const json_t *portrait,
	enum saved_disk_verdict *verdict, struct error *error)
{
	const char *mode = json_string_value(json_object_get(portrait, "mode"));

	*verdict = mode && strcmp(mode, "r") == 0 ? SAVED_DISK_ODD : SAVED_DISK_CHANGED;
	if (*verdict == SAVED_DISK_ODD) {
		error_set(error, EXDEV,
			"Disk %s (%s), which the guest only reads, was written after the checkpoint was "
			"taken: what the "
			"guest remembers of it may not fit.",
			path, device);
		return 0;
	}
	error_set(error, EXDEV,
		"Disk %s (%s) was written after the checkpoint was taken: the guest's memory no longer fits "
		"what is on "
		"it, and the guest would damage its file systems. Put the disk back as it was then, or start "
		"the guest "
		"anew with xm create; --accept=disks restores it all the same.",
		path, device);
	return 0;
}

/* 1: differs, with the sentence. */
static int compare_shape(const struct disk *disk, const char *path, const char *device,
	const json_t *portrait, struct error *error)
{
	json_int_t size = number(portrait, "size"), block_size = number(portrait, "block_size");

	if ((uint64_t)size != disk->size)
		return error_set(error, EXDEV,
			       "Disk %s (%s) has %" PRIu64
			       " bytes, and had %lld when the checkpoint was taken: it is not the "
			       "same disk. Give the guest the one that it had, or a copy; --accept=disks "
			       "restores it all the "
			       "same, unless the disk is smaller now.",
			       path, device, disk->size, (long long)size) < 0;
	if (block_size && (json_int_t)disk->block_size > block_size)
		return error_set(error, EXDEV,
			       "Disk %s (%s) is written in blocks of %u bytes, and was in blocks of %lld "
			       "when the checkpoint was "
			       "taken, as its guest goes on doing: put it on storage that takes those.",
			       path, device, disk->block_size, (long long)block_size) < 0;
	return 0;
}

int saved_disk_compare(const char *path, const char *device, const json_t *portrait,
	enum saved_disk_verdict *verdict, struct error *error)
{
	_cleanup_(close_disk) struct disk disk = {.fd = -1};
	const json_t *file = json_object_get(portrait, "file"),
		     *content = json_object_get(portrait, "content");
	enum content_verdict found;
	int r;

	*verdict = SAVED_DISK_UNKNOWN;
	if (!json_is_object(portrait) || !json_is_integer(json_object_get(portrait, "size")))
		return 0;
	r = open_disk(&disk, path, device, error);
	if (r < 0)
		return r;
	if (compare_shape(&disk, path, device, portrait, error)) {
		*verdict = SAVED_DISK_CHANGED;
		return 0;
	}
	if (!content)
		return 0;
	if (file && S_ISREG(disk.info.st_mode)) {
		_cleanup_json_ json_t *now = portray_file(&disk);

		if (is_untouched(file, now, number(portrait, "taken_ns"))) {
			*verdict = SAVED_DISK_SAME;
			return 0;
		}
	}
	r = disk_content_compare(disk.fd, disk.size, disk.used, content, &found, error);
	if (r < 0)
		return error_prefix(error, "Disk %s (%s): ", path, device);
	if (found == CONTENT_CHANGED || (found == CONTENT_ALIKE && is_touched(&disk, portrait)))
		return changed(path, device, portrait, verdict, error);
	*verdict = found == CONTENT_UNKNOWN ? SAVED_DISK_UNKNOWN : SAVED_DISK_SAME;
	return 0;
}
