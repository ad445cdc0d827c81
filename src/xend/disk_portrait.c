#include "xend/disk_portrait.h"
#include "base/cleanup.h"
#include "base/raw_bytes.h"
#include "state/digest.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <time.h>

#define BLOCK 4096u
#define BLOCKS_MAX 40u
#define SPREAD 12u
#define SETTLE_NS 20000000
#define IDENTITY_MAX 256

/* linux/magic.h has it not */
#define XFS_MAGIC 0x58465342
#define ZFS_MAGIC 0x2fc12fc1

struct identity {
	const char *kind; /* "": none */
	bool strong;      /* equal means the same disk; otherwise only unequal means something */
	char text[IDENTITY_MAX];
};

static const struct {
	const char *kind;
	bool strong;
} kinds[] = {
	{"lvm", true},   /* uuid of volume group and volume: in the volume group's own metadata */
	{"wwid", true},  /* of the registered kinds: NAA, EUI-64, UUID */
	{"local", true}, /* a file of this host's own; the boot says which host */
	{"aoe", false},  /* shelf.slot, of one Ethernet */
	{"nfs", false},  /* number of the file, of one server */
};

static void set_identity(struct identity *identity, const char *kind, const char *text)
{
	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++)
		if (strcmp(kinds[i].kind, kind) == 0) {
			identity->kind = kinds[i].kind;
			identity->strong = kinds[i].strong;
		}
	snprintf(identity->text, sizeof(identity->text), "%.*s", IDENTITY_MAX - 1, text);
}

/* The first line of a small file; "" where there is none. */
static void read_line(const char *path, char line[IDENTITY_MAX])
{
	_cleanup_fclose_ FILE *file = fopen(path, "re");

	if (!file || !fgets(line, IDENTITY_MAX, file))
		*line = 0;
	line[strcspn(line, "\n")] = 0;
}

static void device_line(dev_t device, const char *name, char line[IDENTITY_MAX])
{
	char path[96];

	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/%s", major(device), minor(device), name);
	read_line(path, line);
}

/* File systems that one host alone can have mounted. */
static bool is_local(__fsword_t type)
{
	static const __fsword_t types[] = {EXT4_SUPER_MAGIC, XFS_MAGIC, BTRFS_SUPER_MAGIC, TMPFS_MAGIC,
		RAMFS_MAGIC, OVERLAYFS_SUPER_MAGIC, F2FS_SUPER_MAGIC, ZFS_MAGIC};

	for (size_t i = 0; i < ARRAY_SIZE(types); i++)
		if (types[i] == type)
			return true;
	return false;
}

static void identify_file(const char *path, struct identity *identity)
{
	char boot[IDENTITY_MAX], text[IDENTITY_MAX];
	struct statfs system;
	struct stat info;

	if (stat(path, &info) < 0 || statfs(path, &system) < 0)
		return;
	if (system.f_type == NFS_SUPER_MAGIC) {
		snprintf(text, sizeof(text), "%" PRIu64, (uint64_t)info.st_ino);
		set_identity(identity, "nfs", text);
	} else if (is_local(system.f_type)) {
		read_line("/proc/sys/kernel/random/boot_id", boot);
		snprintf(text, sizeof(text), "%.36s:%" PRIx64 ":%" PRIu64, boot, (uint64_t)info.st_dev,
			(uint64_t)info.st_ino);
		set_identity(identity, "local", text);
	}
}

/* What sysfs knows of a block device (Documentation/ABI: sysfs-block, sysfs-block-dm, sysfs-block-loop). */
static void identify_device(dev_t device, struct identity *identity)
{
	static const char *const registered[] = {"naa.", "eui.", "uuid."};
	char line[IDENTITY_MAX], part[IDENTITY_MAX], name[96], text[2 * IDENTITY_MAX], *base;
	char link[IDENTITY_MAX] = "";

	device_line(device, "dm/uuid", line);
	if (strncmp(line, "LVM-", 4) == 0) {
		set_identity(identity, "lvm", line);
		return;
	}
	device_line(device, "loop/backing_file", line);
	if (*line) {
		identify_file(line, identity);
		return;
	}
	snprintf(name, sizeof(name), "/sys/dev/block/%u:%u", major(device), minor(device));
	if (readlink(name, link, sizeof(link) - 1) > 0 && (base = strrchr(link, '/')) &&
		strncmp(base, "/etherd!", 8) == 0) {
		set_identity(identity, "aoe", base + 8);
		return;
	}
	device_line(device, "partition", part);
	device_line(device, *part ? "../device/wwid" : "device/wwid", line);
	if (!*line)
		device_line(device, *part ? "../wwid" : "wwid", line); /* NVMe */
	for (size_t i = 0; i < ARRAY_SIZE(registered); i++)
		if (strncmp(line, registered[i], strlen(registered[i])) == 0) {
			snprintf(text, sizeof(text), "%s/%s", line, part);
			set_identity(identity, "wwid", text);
		}
}

static int open_disk(const struct guest_disk *disk, uint64_t *size, unsigned *block_size,
	struct identity *identity, struct error *error)
{
	int sector = 512;

	char place[HOST_PATH_MAX];
	_cleanup_close_ int fd =
		open(host_path(disk->target, place), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_DIRECT);
	struct stat info;

	*identity = (struct identity){.kind = ""};
	*block_size = 512;
	if (fd < 0 && errno == EINVAL) /* no direct I/O in this file system (open(2)) */
		fd = open(place, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0 || fstat(fd, &info) < 0)
		return error_set(error, errno, "Unable to open disk %s (%s): %s.", disk->target, disk->device,
			strerror(errno));
	if (S_ISREG(info.st_mode)) {
		*size = (uint64_t)info.st_size;
		identify_file(place, identity);
	} else if (S_ISBLK(info.st_mode) && ioctl(fd, BLKGETSIZE64, size) == 0 &&
		   ioctl(fd, BLKSSZGET, &sector) == 0) {
		*block_size = sector > 512 ? (unsigned)sector : 512;
		identify_device(info.st_rdev, identity);
	} else {
		return error_set(error, EINVAL, "Disk %s (%s) is neither a block device nor a file.",
			disk->target, disk->device);
	}
	return take_fd(&fd);
}

/* 0 stands for zeros; false: there is no such block, or it cannot be read. */
static bool block_digest(int fd, uint64_t at, uint64_t *digest)
{
	static _Alignas(BLOCK) const uint8_t zeros[BLOCK];
	_Alignas(BLOCK) uint8_t block[BLOCK];

	if (pread(fd, block, BLOCK, (off_t)at) != BLOCK)
		return false;
	*digest = memcmp(block, zeros, BLOCK) == 0 ? 0 : digest_of(block, BLOCK);
	return true;
}

/*
 * Where file systems and partition tables say who they are (ext and XFS in the first block, btrfs at 64 KiB,
 * the usual first partition at 1 MiB, GPT's copy at the end), what lies near that and rarely changes, and
 * some evenly spread.
 */
static unsigned choose_blocks(uint64_t size, uint64_t at[BLOCKS_MAX])
{
	static const uint64_t known_kib[] = {
		0, 4, 8, 12, 16, 20, 24, 28, 64, 128, 256, 512, 1024, 1028, 1088, 2048};
	uint64_t blocks = size / BLOCK;
	unsigned count = 0;

	for (size_t i = 0; i < ARRAY_SIZE(known_kib); i++)
		if (known_kib[i] * 1024 / BLOCK < blocks)
			at[count++] = known_kib[i] * 1024;
	if (blocks > 2 * BLOCKS_MAX) {
		at[count++] = (blocks - 1) * BLOCK;
		for (unsigned i = 1; i <= SPREAD; i++)
			at[count++] = blocks / (SPREAD + 1) * i * BLOCK;
	}
	return count;
}

static json_t *portray_blocks(int fd, uint64_t size)
{
	const struct timespec settle = {.tv_nsec = SETTLE_NS};
	uint64_t at[BLOCKS_MAX], first[BLOCKS_MAX], second;
	bool there[BLOCKS_MAX];
	unsigned count = choose_blocks(size, at);
	json_t *blocks = json_array();
	char text[17];

	for (unsigned i = 0; i < count; i++)
		there[i] = block_digest(fd, at[i], &first[i]);
	nanosleep(&settle, NULL);
	for (unsigned i = 0; i < count; i++) {
		if (!there[i] || !block_digest(fd, at[i], &second) || first[i] != second)
			continue;
		snprintf(text, sizeof(text), "%016" PRIx64, second);
		json_array_append_new(blocks, json_pack("[I, s]", (json_int_t)at[i], text));
	}
	return blocks;
}

json_t *disk_portrait(const struct guest_disk *disk)
{
	struct identity identity;
	unsigned block_size;
	uint64_t size;
	_cleanup_close_ int fd = open_disk(disk, &size, &block_size, &identity, NULL);

	if (fd < 0)
		return NULL;
	return json_pack("{s:I, s:i, s:s, s:s, s:o}", "size", (json_int_t)size, "block_size", (int)block_size,
		"kind", identity.kind, "identity", identity.text, "blocks", portray_blocks(fd, size));
}

static enum disk_identity compare_identity(const struct identity *mine, const char *kind, const char *text)
{
	if (!*mine->kind || strcmp(mine->kind, kind) != 0)
		return IDENTITY_UNKNOWN;
	if (strcmp(mine->text, text) != 0)
		return IDENTITY_DIFFERENT;
	return mine->strong ? IDENTITY_SAME : IDENTITY_UNKNOWN;
}

static void compare_block(int fd, uint64_t size, const json_t *block, struct disk_likeness *likeness)
{
	json_int_t at = json_integer_value(json_array_get(block, 0));
	const char *text = json_string_value(json_array_get(block, 1));
	uint64_t theirs, mine;

	if (!text || at < 0 || at % BLOCK || (uint64_t)at > size || !block_digest(fd, (uint64_t)at, &mine))
		return;
	theirs = strtoull(text, NULL, 16);
	if (!mine && !theirs)
		return;
	if (mine == theirs)
		likeness->equal++;
	else
		likeness->unequal++;
}

int disk_compare(const struct guest_disk *disk, const json_t *portrait, bool content,
	struct disk_likeness *likeness, struct error *error)
{
	const char *kind = json_string_value(json_object_get(portrait, "kind")),
		   *text = json_string_value(json_object_get(portrait, "identity"));
	const json_t *size = json_object_get(portrait, "size"), *blocks = json_object_get(portrait, "blocks");
	struct identity identity;
	_cleanup_close_ int fd = -1;

	*likeness = (struct disk_likeness){0};
	if (!kind || !text || !json_is_integer(size) || json_array_size(blocks) > BLOCKS_MAX)
		return error_set(error, EPROTO, "What the other host says of its disk is not understood.");
	fd = open_disk(disk, &likeness->size, &likeness->block_size, &identity, error);
	if (fd < 0)
		return fd;
	likeness->other_size = (uint64_t)json_integer_value(size);
	likeness->other_block_size = (unsigned)json_integer_value(json_object_get(portrait, "block_size"));
	likeness->identity = compare_identity(&identity, kind, text);
	if (!content || likeness->identity == IDENTITY_SAME || likeness->size != likeness->other_size)
		return 0;
	for (size_t i = 0; i < json_array_size(blocks); i++)
		compare_block(fd, likeness->size, json_array_get(blocks, i), likeness);
	return 0;
}

bool disk_likely_same(const struct disk_likeness *likeness, bool same_path, bool same_name)
{
	if (likeness->identity != IDENTITY_UNKNOWN)
		return likeness->identity == IDENTITY_SAME;
	if (!same_path || likeness->size != likeness->other_size)
		return false;
	return same_name ? likeness->unequal <= likeness->equal : likeness->equal && !likeness->unequal;
}
