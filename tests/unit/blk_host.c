/* The block device when the host's storage is full, can do less or is another than before. */
#include "host_disk.h"
#include "base/cleanup.h"
#include "vmm/dev/blk.h"
#include "vmm/dev/blk_device.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/virtio_blk.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <cmocka.h>

#define SMALL "/tmp" /* in a name space of this test's own: a file system of 1 MiB */

#define RAMFS "/srv"

static bool has_small_storage, has_ramfs;

/* ---- storage that is full ---- */

#define WRITES 14u /* of 64 KiB: more than there is room for */

static bool is_quiet(void *context)
{
	struct fixture *f = context;

	return f->holds > 0 && !f->disk->class->busy(f->disk);
}

/* Writes until the guest has to wait. Returns how many were answered; `filler` keeps the room. */
static unsigned fill(struct fixture *f, char filler[64])
{
	static const uint8_t zeros[65536];
	unsigned answered = 0;
	int fd;

	snprintf(filler, 64, "%s/filler", SMALL);
	fd = open(filler, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	for (unsigned i = 0; i < 8; i++)
		assert_int_equal(write(fd, zeros, sizeof(zeros)), sizeof(zeros));
	close(fd);
	for (unsigned i = 0; i < WRITES; i++) {
		memset(rig_at(f->rig, f->data + i * 65536), (int)(i + 1), 65536);
		ask(f, i, VIRTIO_BLK_T_OUT, i * 128, 65536);
	}
	rig_run_until(f->rig, is_quiet, f);
	while (driver_has_used(&f->driver, 0)) {
		unsigned head = driver_wait(&f->driver, 0).id;

		assert_true(head < 256);
		answered++;
	}
	assert_true(answered > 0 && answered < WRITES);
	for (unsigned i = 0; i < WRITES; i++)
		assert_true(*status_of(f, i) == VIRTIO_BLK_S_OK || *status_of(f, i) == 0xee);
	return answered;
}

static void assert_all_written(struct fixture *f, unsigned answered)
{
	_cleanup_close_ int fd = open(f->path, O_RDONLY | O_CLOEXEC);
	uint8_t first[WRITES];

	for (; answered < WRITES; answered++)
		driver_wait(&f->driver, 0);
	rig_run(f->rig, 3);
	assert_false(driver_has_used(&f->driver, 0));
	for (unsigned i = 0; i < WRITES; i++) {
		assert_int_equal(*status_of(f, i), VIRTIO_BLK_S_OK);
		assert_int_equal(pread(fd, &first[i], 1, i * 65536 + 65535), 1);
		assert_int_equal(first[i], i + 1);
	}
}

static void the_guest_waits_for_room(void **state)
{
	struct fixture f;
	char filler[64];
	unsigned answered;

	(void)state;
	if (!has_small_storage)
		skip();
	set_up(&f, SMALL, false, false);
	answered = fill(&f, filler);
	assert_non_null(strstr(f.why, "disk xvda is full (No space left on device)"));
	/* Tried again in vain, then with success: each request is answered once. */
	for (unsigned i = 0; i < 3; i++) {
		rig_pause(f.rig);
		f.holds = 0;
		rig_resume(f.rig);
		rig_run_until(f.rig, is_quiet, &f);
	}
	assert_false(driver_has_used(&f.driver, 0));
	rig_pause(f.rig);
	unlink(filler);
	rig_resume(f.rig);
	assert_all_written(&f, answered);
	tear_down(&f);
}

static void a_guest_that_waits_for_room_moves(void **state)
{
	const struct virtio_blk_options options = {.serial = "xvda"};
	struct fixture f;
	struct rig *other;
	_cleanup_buffer_ struct buffer saved = {0};
	struct error error = {0};
	char filler[64];
	unsigned answered;

	(void)state;
	if (!has_small_storage)
		skip();
	set_up(&f, SMALL, false, false);
	answered = fill(&f, filler);
	rig_track(f.rig);
	rig_pause(f.rig);
	assert_true(rig_is_dirty(f.rig, f.driver.rings[0].available_gpa));
	saved = rig_save(f.rig);
	other = rig_new();
	other->free_memory = f.rig->free_memory;
	memcpy(other->memory.base, f.rig->memory.base, RIG_MEMORY);
	rig_free(f.rig);
	open_disk(&f, other, &options);
	assert_int_equal(rig_load(other, &saved, &error), 0);
	f.rig = f.driver.rig = other;
	f.driver.rings[0].available = rig_at(other, f.driver.rings[0].available_gpa);
	f.driver.rings[0].used = rig_at(other, f.driver.rings[0].used_gpa);
	unlink(filler);
	rig_resume(other);
	assert_all_written(&f, answered);
	tear_down(&f);
}

static void a_reset_forgets_what_waits(void **state)
{
	struct fixture f;
	char filler[64];

	(void)state;
	if (!has_small_storage)
		skip();
	set_up(&f, SMALL, false, false);
	fill(&f, filler);
	mmio_write(f.rig, f.driver.common + common_offset(device_status), 0, 1);
	assert_int_equal(driver_status(&f.driver), 0);
	driver_start(&f.driver, ALL, 256);
	unlink(filler);
	assert_int_equal(answer(&f, 0, VIRTIO_BLK_T_OUT, 0, 512), VIRTIO_BLK_S_OK);
	rig_pause(f.rig);
	rig_resume(f.rig);
	rig_run(f.rig, 3);
	assert_false(driver_has_used(&f.driver, 0));
	tear_down(&f);
}

static void full_storage_is_an_error_where_that_is_wanted(void **state)
{
	struct fixture f;
	unsigned failed = 0;

	(void)state;
	if (!has_small_storage)
		skip();
	set_up(&f, SMALL, true, false);
	for (unsigned i = 0; i < 24; i++)
		failed += answer(&f, i, VIRTIO_BLK_T_OUT, i * 128, 65536) == VIRTIO_BLK_S_IOERR;
	assert_true(failed > 0);
	assert_int_equal(f.holds, 0);
	tear_down(&f);
}

/* ---- another disk than before ---- */

static void the_driver_is_told_of_a_disk_that_grew_and_a_smaller_one_is_refused(void **state)
{
	const struct virtio_blk_options options = {.serial = "xvda"};
	_cleanup_buffer_ struct buffer saved = {0};
	struct fixture f;

	(void)state;
	set_up(&f, "/var/tmp", false, false);
	rig_pause(f.rig);
	saved = rig_save(f.rig);
	for (int grows = 0; grows < 2; grows++) {
		struct rig *other = rig_new();
		struct error error = {0};
		uint8_t generation;

		memcpy(other->memory.base, f.rig->memory.base, RIG_MEMORY);
		rig_free(f.rig);
		f.rig = f.driver.rig = other;
		assert_int_equal(truncate(f.path, grows ? IMAGE_SIZE * 2 : IMAGE_SIZE / 2), 0);
		open_disk(&f, other, &options);
		if (!grows) {
			assert_int_equal(rig_load(other, &saved, &error), -EXDEV);
			assert_string_equal(error.text, "Disk xvda has 1048576 bytes here, and the guest "
							"knows it with 2097152: it is not "
							"the same disk.");
			continue;
		}
		assert_int_equal(rig_load(other, &saved, &error), 0);
		generation = virtio_of(f.disk)->generation;
		rig_resume(other);
		assert_int_equal(virtio_of(f.disk)->generation, (uint8_t)(generation + 1));
	}
	tear_down(&f);
}

/* The driver of a guest that comes with a medium which is not here is told that there is none. */
static void a_drive_without_a_medium_is_empty(void **state)
{
	const struct virtio_blk_options options = {.serial = "xvdb", .read_only = true};
	_cleanup_buffer_ struct buffer saved = {0};
	struct error error = {0};
	struct fixture f;
	struct rig *other;
	uint8_t generation;

	(void)state;
	set_up(&f, "/var/tmp", false, false);
	rig_pause(f.rig);
	saved = rig_save(f.rig);
	rig_free(f.rig);
	unlink(f.path);
	other = rig_new();
	f.disk = virtio_blk_new(&other->platform, SLOT, -1, &options, &error);
	assert_non_null(f.disk);
	virtio_of(f.disk)->offered |= 1ull << VIRTIO_BLK_F_DISCARD | 1ull << VIRTIO_BLK_F_WRITE_ZEROES;
	assert_int_equal(rig_load(other, &saved, &error), 0);
	generation = virtio_of(f.disk)->generation;
	rig_resume(other);
	assert_int_equal(virtio_of(f.disk)->generation, (uint8_t)(generation + 1));
	assert_int_equal(flush(&f, &error), 0);
	rig_free(other);

	f.rig = rig_new();
	f.disk = virtio_blk_new(&f.rig->platform, SLOT, -1, &options, &error);
	driver_probe(&f.driver, f.rig, SLOT);
	assert_int_equal(mmio_read(f.rig, f.driver.config, 8), 0);
	driver_start(&f.driver, ALL, 256);
	f.headers = rig_allocate(f.rig, 4096);
	f.statuses = rig_allocate(f.rig, 4096);
	f.data = rig_allocate(f.rig, 4 << 20);
	assert_int_equal(answer(&f, 0, VIRTIO_BLK_T_IN, 0, 512), VIRTIO_BLK_S_IOERR);
	assert_int_equal(answer(&f, 0, VIRTIO_BLK_T_FLUSH, 0, 0), VIRTIO_BLK_S_OK);
	rig_free(f.rig);
}

/* How many pages of the image this host's cache has. */
static unsigned cached_pages(struct fixture *f)
{
	_cleanup_close_ int fd = open(f->path, O_RDWR | O_CLOEXEC);
	unsigned char here[IMAGE_SIZE / 4096];
	unsigned count = 0;
	void *map = mmap(NULL, IMAGE_SIZE, PROT_READ, MAP_SHARED, fd, 0);

	assert_true(map != MAP_FAILED);
	assert_int_equal(mincore(map, IMAGE_SIZE, here), 0);
	munmap(map, IMAGE_SIZE);
	for (unsigned i = 0; i < sizeof(here); i++)
		count += here[i] & 1;
	return count;
}

/* Another host may have written to it since: where there is no O_DIRECT, what was read before (by whoever
 * compares disks, or when the guest was here the last time) is not what the guest gets. */
static void what_this_host_had_in_its_cache_is_not_read(void **state)
{
	struct fixture f;
	char bytes[65536];
	int fd;

	(void)state;
	set_up(&f, "/var/tmp", false, false);
	fd = open(f.path, O_RDWR | O_CLOEXEC);
	for (unsigned at = 0; at < IMAGE_SIZE; at += sizeof(bytes)) {
		memset(bytes, (int)at, sizeof(bytes));
		assert_int_equal(pwrite(fd, bytes, sizeof(bytes), at), sizeof(bytes));
	}
	assert_int_equal(fdatasync(fd), 0); /* the flush before a guest moves */
	close(fd);
	if (cached_pages(&f) == 0) { /* what is there is never told, or kept */
		tear_down(&f);
		skip();
	}
	f.rig->platform.paused = true;
	rig_resume(f.rig);
	assert_int_equal(cached_pages(&f), 0);
	/* Once: a guest that was paused here finds its own. */
	assert_int_equal(answer(&f, 0, VIRTIO_BLK_T_IN, 0, 65536), VIRTIO_BLK_S_OK);
	rig_pause(f.rig);
	rig_resume(f.rig);
	assert_true(cached_pages(&f) >= 16);
	tear_down(&f);
}

static void nothing_is_discarded_where_that_is_not_wanted(void **state)
{
	struct virtio_blk_discard_write_zeroes *range;
	struct fixture f;

	(void)state;
	set_up(&f, "/var/tmp", false, true);
	assert_false(f.driver.features >> VIRTIO_BLK_F_DISCARD & 1);
	assert_false(f.driver.features >> VIRTIO_BLK_F_WRITE_ZEROES & 1);
	range = rig_at(f.rig, f.data);
	*range = (struct virtio_blk_discard_write_zeroes){.num_sectors = 8};
	assert_int_equal(answer(&f, 0, VIRTIO_BLK_T_DISCARD, 0, sizeof(*range)), VIRTIO_BLK_S_UNSUPP);
	assert_int_equal(answer(&f, 0, VIRTIO_BLK_T_WRITE_ZEROES, 0, sizeof(*range)), VIRTIO_BLK_S_UNSUPP);
	tear_down(&f);
}

static void what_is_discarded_is_given_back_to_the_host(void **state)
{
	struct virtio_blk_discard_write_zeroes *range;
	struct fixture f;
	struct stat before, after;

	(void)state;
	set_up(&f, "/var/tmp", false, false);
	for (unsigned i = 1; i < 5; i++) {
		memset(rig_at(f.rig, f.data + i * 65536), 0xa5, 65536);
		assert_int_equal(answer(&f, i, VIRTIO_BLK_T_OUT, i * 128, 65536), VIRTIO_BLK_S_OK);
	}
	assert_int_equal(stat(f.path, &before), 0);
	range = rig_at(f.rig, f.data);
	*range = (struct virtio_blk_discard_write_zeroes){.sector = 128, .num_sectors = 256};
	assert_int_equal(answer(&f, 0, VIRTIO_BLK_T_DISCARD, 0, sizeof(*range)), VIRTIO_BLK_S_OK);
	assert_int_equal(stat(f.path, &after), 0);
	assert_true(after.st_blocks <= before.st_blocks - 256);
	*range = (struct virtio_blk_discard_write_zeroes){.sector = 384, .num_sectors = 128, .flags = 1};
	assert_int_equal(answer(&f, 0, VIRTIO_BLK_T_WRITE_ZEROES, 0, sizeof(*range)), VIRTIO_BLK_S_OK);
	assert_int_equal(stat(f.path, &before), 0);
	assert_true(before.st_blocks <= after.st_blocks - 128);
	tear_down(&f);
}

/* A device that can discard but not make holes, as thin volumes are: ramfs has no fallocate, and the call is
 * watched. */

static uint64_t discarded[4][2];
static atomic_uint discards;

int __real_ioctl(int fd, unsigned long request, ...);
int __wrap_ioctl(int fd, unsigned long request, ...);

int __wrap_ioctl(int fd, unsigned long request, ...)
{
	va_list arguments;
	void *argument;

	va_start(arguments, request);
	argument = va_arg(arguments, void *);
	va_end(arguments);
	if (request != BLKDISCARD)
		return __real_ioctl(fd, request, argument);
	usleep(20000);
	memcpy(discarded[discards], argument, sizeof(discarded[0]));
	discards++;
	return 0;
}

static bool is_busy(void *context)
{
	struct fixture *f = context;

	return ((struct virtio_blk *)f->disk)->in_flight == 3 &&
	       ((struct virtio_blk *)f->disk)->discarder.started;
}

static void a_device_discards_by_its_own_call(void **state)
{
	struct virtio_blk_discard_write_zeroes *range;
	struct fixture f;

	(void)state;
	if (!has_ramfs)
		skip();
	set_up(&f, RAMFS, false, false);
	((struct virtio_blk *)f.disk)->image.is_device = true;
	discards = 0;
	for (unsigned i = 0; i < 3; i++) {
		range = rig_at(f.rig, f.data + i * 65536);
		*range = (struct virtio_blk_discard_write_zeroes){.sector = 8 + i * 128, .num_sectors = 64};
		ask(&f, i, VIRTIO_BLK_T_DISCARD, 0, sizeof(*range));
	}
	rig_run_until(f.rig, is_busy, &f);
	/* A pause waits for them. */
	rig_pause(f.rig);
	assert_int_equal(discards, 3);
	for (unsigned i = 0; i < 3; i++) {
		driver_wait(&f.driver, 0);
		assert_int_equal(*status_of(&f, i), VIRTIO_BLK_S_OK);
		assert_int_equal(discarded[i][0] % 65536, 4096);
		assert_int_equal(discarded[i][1], 32768);
	}
	rig_resume(f.rig);
	assert_int_equal(answer(&f, 0, VIRTIO_BLK_T_OUT, 0, 512), VIRTIO_BLK_S_OK);
	/* The disk may go while there is more to be done than one call. */
	for (unsigned i = 0; i < 2; i++) {
		range = rig_at(f.rig, f.data + i * 65536);
		*range = (struct virtio_blk_discard_write_zeroes){.sector = 8, .num_sectors = 64};
		ask(&f, i, VIRTIO_BLK_T_DISCARD, 0, sizeof(*range));
	}
	discards = 0;
	rig_run(f.rig, 5);
	tear_down(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_guest_waits_for_room),
		cmocka_unit_test(a_guest_that_waits_for_room_moves),
		cmocka_unit_test(a_reset_forgets_what_waits),
		cmocka_unit_test(full_storage_is_an_error_where_that_is_wanted),
		cmocka_unit_test(the_driver_is_told_of_a_disk_that_grew_and_a_smaller_one_is_refused),
		cmocka_unit_test(a_drive_without_a_medium_is_empty),
		cmocka_unit_test(what_this_host_had_in_its_cache_is_not_read),
		cmocka_unit_test(nothing_is_discarded_where_that_is_not_wanted),
		cmocka_unit_test(what_is_discarded_is_given_back_to_the_host),
		cmocka_unit_test(a_device_discards_by_its_own_call),
	};

	has_small_storage = (unshare(CLONE_NEWNS) == 0 || unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0) &&
			    mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0 &&
			    mount("none", SMALL, "tmpfs", 0, "size=1m") == 0;
	has_ramfs = has_small_storage && mount("none", RAMFS, "ramfs", 0, NULL) == 0;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
