/* The block device on temporary files: reads, writes, misaligned buffers, flush, errors, pause and restore.
 */
#include "rig.h"
#include "base/cleanup.h"
#include "vmm/dev/blk.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/pci_regs.h>
#include <linux/virtio_blk.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>
#include <sys/stat.h>
#include <cmocka.h>

#define SLOT 4
#define SECTORS 2048u
#define IMAGE_SIZE (SECTORS * 512u)
#define ALL UINT64_MAX

struct fixture {
	struct rig *rig;
	struct driver driver;
	int image; /* the test's own descriptor */
	char path[64];
	uint64_t header, status, data;
};

static uint8_t pattern(size_t i)
{
	return (uint8_t)(i * 7 + i / 512 * 13 + 1);
}

/* Where O_DIRECT works on this machine's file system, else without. */
static int open_image(const char *path, int flags)
{
	int fd = open(path, flags | O_DIRECT | O_CLOEXEC);

	return fd >= 0 ? fd : open(path, flags | O_CLOEXEC);
}

static void make_image(struct fixture *f)
{
	uint8_t *content = malloc(IMAGE_SIZE);

	strcpy(f->path, "/var/tmp/ferry-blk-XXXXXX");
	f->image = mkstemp(f->path);
	assert_true(f->image >= 0);
	for (size_t i = 0; i < IMAGE_SIZE; i++)
		content[i] = pattern(i);
	assert_int_equal(write(f->image, content, IMAGE_SIZE), IMAGE_SIZE);
	free(content);
}

static void add_disk(struct fixture *f, struct rig *rig, bool read_only)
{
	struct error error = {0};
	int fd = open_image(f->path, read_only ? O_RDONLY : O_RDWR);

	if (!virtio_blk_new(&rig->platform, SLOT, fd,
		    &(struct virtio_blk_options){
			    .read_only = read_only, .serial = "a serial number of a disk"},
		    &error))
		fail_msg("%s", error.text);
}

static void set_up_with(struct fixture *f, bool read_only, uint64_t features)
{
	make_image(f);
	f->rig = rig_new();
	add_disk(f, f->rig, read_only);
	driver_probe(&f->driver, f->rig, SLOT);
	driver_start(&f->driver, features, 256);
	f->header = rig_allocate(f->rig, 4096);
	f->status = rig_allocate(f->rig, 4096);
	f->data = rig_allocate(f->rig, 1 << 20);
}

static void set_up(struct fixture *f)
{
	set_up_with(f, false, ALL);
}

static void tear_down(struct fixture *f)
{
	rig_free(f->rig);
	close(f->image);
	unlink(f->path);
}

static void put_header(struct fixture *f, uint32_t type, uint64_t sector)
{
	*(struct virtio_blk_outhdr *)rig_at(f->rig, f->header) =
		(struct virtio_blk_outhdr){.type = type, .sector = sector};
	*(uint8_t *)rig_at(f->rig, f->status) = 0xee;
}

/* One request with its data in `count` pieces; the status. *written: as the device says. */
static uint8_t request(struct fixture *f, uint32_t type, uint64_t sector, const struct piece *data,
	unsigned count, uint32_t *written)
{
	struct piece pieces[16] = {{f->header, sizeof(struct virtio_blk_outhdr), false}};
	struct vring_used_elem used;

	put_header(f, type, sector);
	if (count)
		memcpy(pieces + 1, data, count * sizeof(*data));
	pieces[count + 1] = (struct piece){f->status, 1, true};
	driver_add(&f->driver, 0, pieces, count + 2, false);
	driver_kick(&f->driver, 0);
	used = driver_wait(&f->driver, 0);
	if (written)
		*written = used.len;
	return *(uint8_t *)rig_at(f->rig, f->status);
}

static void assert_pattern(struct fixture *f, uint64_t gpa, size_t position, size_t size)
{
	const uint8_t *data = rig_at(f->rig, gpa);

	for (size_t i = 0; i < size; i++)
		if (data[i] != pattern(position + i))
			fail_msg("byte %zu is 0x%x where 0x%x was written", position + i, data[i],
				pattern(position + i));
}

static void the_configuration_tells_the_disk(void **state)
{
	struct fixture f;

	(void)state;
	set_up(&f);
	assert_int_equal(mmio_read(f.rig, f.driver.config, 8), SECTORS);
	assert_int_equal(mmio_read(f.rig, f.driver.config + 12, 4), 254);
	assert_int_equal(mmio_read(f.rig, f.driver.config + 20, 4), 512);
	assert_false(driver_offered(&f.driver) >> VIRTIO_BLK_F_RO & 1);
	tear_down(&f);
}

static void sectors_are_read(void **state)
{
	struct fixture f;
	uint32_t written;

	(void)state;
	set_up(&f);
	for (unsigned i = 0; i < 20; i++) {
		const struct piece pieces[] = {{f.data, 4096, true}, {f.data + 8192, 1024, true}};

		assert_int_equal(request(&f, VIRTIO_BLK_T_IN, i * 16, pieces, 2, &written), VIRTIO_BLK_S_OK);
		assert_int_equal(written, 5121);
		assert_pattern(&f, f.data, i * 16 * 512, 4096);
		assert_pattern(&f, f.data + 8192, i * 16 * 512 + 4096, 1024);
	}
	tear_down(&f);
}

static void misaligned_buffers_are_read_and_written(void **state)
{
	struct fixture f;
	const struct piece odd[] = {{0, 100, true}, {0, 700, true}, {0, 224, true}};
	struct piece pieces[3];
	uint8_t back[1024];

	(void)state;
	set_up(&f);
	for (unsigned i = 0; i < 3; i++)
		pieces[i] = (struct piece){f.data + i * 4096 + 13, odd[i].size, true};
	assert_int_equal(request(&f, VIRTIO_BLK_T_IN, 8, pieces, 3, NULL), VIRTIO_BLK_S_OK);
	assert_pattern(&f, f.data + 13, 4096, 100);
	assert_pattern(&f, f.data + 4096 + 13, 4096 + 100, 700);
	assert_pattern(&f, f.data + 8192 + 13, 4096 + 800, 224);
	for (unsigned i = 0; i < 3; i++)
		pieces[i].write = false;
	assert_int_equal(request(&f, VIRTIO_BLK_T_OUT, 100, pieces, 3, NULL), VIRTIO_BLK_S_OK);
	assert_int_equal(pread(f.image, back, sizeof(back), 100 * 512), sizeof(back));
	for (unsigned i = 0; i < sizeof(back); i++)
		assert_int_equal(back[i], pattern(4096 + i));
	/* More than the bounce buffer holds. */
	pieces[0] = (struct piece){f.data + 1, 900 * 1024, true};
	assert_int_equal(request(&f, VIRTIO_BLK_T_IN, 200, pieces, 1, NULL), VIRTIO_BLK_S_OK);
	assert_pattern(&f, f.data + 1, 200 * 512, 900 * 1024);
	tear_down(&f);
}

static void header_and_status_may_share_pieces_with_data(void **state)
{
	struct fixture f;
	struct vring_used_elem used;
	uint8_t back[512];

	(void)state;
	set_up(&f);
	/* Header in two pieces, the second with the data in it (2.7.4.1 lets the driver frame as it likes).
	 */
	put_header(&f, VIRTIO_BLK_T_OUT, 3);
	memcpy(rig_at(f.rig, f.data), (uint8_t *)rig_at(f.rig, f.header) + 10, 6);
	memset((uint8_t *)rig_at(f.rig, f.data) + 6, 0x5a, 512);
	const struct piece out[] = {{f.header, 10, false}, {f.data, 518, false}, {f.status, 1, true}};
	driver_add(&f.driver, 0, out, 3, true);
	driver_kick(&f.driver, 0);
	driver_wait(&f.driver, 0);
	assert_int_equal(*(uint8_t *)rig_at(f.rig, f.status), VIRTIO_BLK_S_OK);
	assert_int_equal(pread(f.image, back, 512, 3 * 512), 512);
	for (unsigned i = 0; i < 512; i++)
		assert_int_equal(back[i], 0x5a);
	/* Data and status in one piece. */
	put_header(&f, VIRTIO_BLK_T_IN, 5);
	const struct piece in[] = {{f.header, 16, false}, {f.data, 513, true}};
	driver_add(&f.driver, 0, in, 2, false);
	driver_kick(&f.driver, 0);
	used = driver_wait(&f.driver, 0);
	assert_int_equal(used.len, 513);
	assert_pattern(&f, f.data, 5 * 512, 512);
	assert_int_equal(((uint8_t *)rig_at(f.rig, f.data))[512], VIRTIO_BLK_S_OK);
	tear_down(&f);
}

static void many_requests_are_in_flight_at_once(void **state)
{
	struct fixture f;

	(void)state;
	set_up(&f);
	for (unsigned i = 0; i < 80; i++) {
		struct virtio_blk_outhdr *header = (struct virtio_blk_outhdr *)rig_at(f.rig, f.header) + i;
		const struct piece pieces[] = {{f.header + i * sizeof(*header), sizeof(*header), false},
			{f.data + i * 4096, 4096, true}, {f.status + i, 1, true}};

		*header = (struct virtio_blk_outhdr){.type = VIRTIO_BLK_T_IN, .sector = i * 8};
		driver_add(&f.driver, 0, pieces, 3, i % 2);
	}
	mmio_write(f.rig, f.driver.notify, 0, 2);
	for (unsigned i = 0; i < 80; i++)
		assert_int_equal(driver_wait(&f.driver, 0).len, 4097);
	for (unsigned i = 0; i < 80; i++)
		assert_int_equal(((uint8_t *)rig_at(f.rig, f.status))[i], VIRTIO_BLK_S_OK);
	assert_pattern(&f, f.data, 0, 80 * 4096);
	tear_down(&f);
}

static void what_is_read_is_marked(void **state)
{
	struct fixture f;
	const struct piece piece = {0, 8192, true};
	struct piece pieces[1] = {piece};

	(void)state;
	set_up(&f);
	pieces[0].gpa = f.data;
	rig_track(f.rig);
	assert_int_equal(request(&f, VIRTIO_BLK_T_IN, 0, pieces, 1, NULL), VIRTIO_BLK_S_OK);
	assert_true(rig_is_dirty(f.rig, f.data));
	assert_true(rig_is_dirty(f.rig, f.data + 4096));
	assert_false(rig_is_dirty(f.rig, f.data + 8192));
	assert_true(rig_is_dirty(f.rig, f.status));
	assert_true(rig_is_dirty(f.rig, f.driver.rings[0].used_gpa));
	rig_track(f.rig);
	pieces[0].write = false;
	assert_int_equal(request(&f, VIRTIO_BLK_T_OUT, 0, pieces, 1, NULL), VIRTIO_BLK_S_OK);
	assert_false(rig_is_dirty(f.rig, f.data));
	assert_true(rig_is_dirty(f.rig, f.status));
	tear_down(&f);
}

static void small_requests_are_answered(void **state)
{
	struct fixture f;
	struct piece piece;
	uint32_t written;

	(void)state;
	set_up(&f);
	piece = (struct piece){f.data, VIRTIO_BLK_ID_BYTES, true};
	assert_int_equal(request(&f, VIRTIO_BLK_T_GET_ID, 0, &piece, 1, &written), VIRTIO_BLK_S_OK);
	assert_int_equal(written, VIRTIO_BLK_ID_BYTES + 1);
	assert_memory_equal(rig_at(f.rig, f.data), "a serial number of a", VIRTIO_BLK_ID_BYTES);
	assert_int_equal(request(&f, VIRTIO_BLK_T_FLUSH, 0, NULL, 0, NULL), VIRTIO_BLK_S_OK);
	assert_int_equal(request(&f, 12345, 0, NULL, 0, &written), VIRTIO_BLK_S_UNSUPP);
	assert_int_equal(written, 1);
	assert_int_equal(request(&f, VIRTIO_BLK_T_IN, 0, NULL, 0, NULL), VIRTIO_BLK_S_OK);
	tear_down(&f);
}

static void a_driver_without_flush_writes_through(void **state)
{
	struct fixture f;
	struct piece piece;

	(void)state;
	set_up_with(&f, false, 0);
	piece = (struct piece){f.data, 4096, false};
	assert_int_equal(request(&f, VIRTIO_BLK_T_OUT, 0, &piece, 1, NULL), VIRTIO_BLK_S_OK);
	tear_down(&f);
}

static void requests_beyond_the_end_fail(void **state)
{
	static const struct {
		uint64_t sector;
		uint32_t size;
	} bad[] = {{SECTORS, 512}, {SECTORS - 1, 1024}, {UINT64_MAX, 512}, {UINT64_MAX / 512, 512}, {0, 100},
		{1ull << 55, 512}};
	struct fixture f;

	(void)state;
	set_up(&f);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		struct piece piece = {f.data, bad[i].size, true};

		assert_int_equal(
			request(&f, VIRTIO_BLK_T_IN, bad[i].sector, &piece, 1, NULL), VIRTIO_BLK_S_IOERR);
		piece.write = false;
		assert_int_equal(
			request(&f, VIRTIO_BLK_T_OUT, bad[i].sector, &piece, 1, NULL), VIRTIO_BLK_S_IOERR);
	}
	tear_down(&f);
}

static void an_image_that_shrinks_gives_errors(void **state)
{
	struct fixture f;
	struct piece piece;

	(void)state;
	set_up(&f);
	piece = (struct piece){f.data, 8192, true};
	assert_int_equal(ftruncate(f.image, 4096), 0);
	assert_int_equal(request(&f, VIRTIO_BLK_T_IN, 0, &piece, 1, NULL), VIRTIO_BLK_S_IOERR);
	piece.size = 4096;
	assert_int_equal(request(&f, VIRTIO_BLK_T_IN, 0, &piece, 1, NULL), VIRTIO_BLK_S_OK);
	tear_down(&f);
}

static void a_read_only_disk_is_not_written(void **state)
{
	struct fixture f;
	struct piece piece;
	uint8_t back[512];

	(void)state;
	set_up_with(&f, true, ALL);
	assert_true(f.driver.features >> VIRTIO_BLK_F_RO & 1);
	assert_false(f.driver.features >> VIRTIO_BLK_F_DISCARD & 1);
	piece = (struct piece){f.data, 512, false};
	assert_int_equal(request(&f, VIRTIO_BLK_T_OUT, 0, &piece, 1, NULL), VIRTIO_BLK_S_IOERR);
	piece.size = sizeof(struct virtio_blk_discard_write_zeroes);
	assert_int_equal(request(&f, VIRTIO_BLK_T_DISCARD, 0, &piece, 1, NULL), VIRTIO_BLK_S_IOERR);
	assert_int_equal(pread(f.image, back, 512, 0), 512);
	assert_int_equal(back[0], pattern(0));
	piece = (struct piece){f.data, 512, true};
	assert_int_equal(request(&f, VIRTIO_BLK_T_IN, 0, &piece, 1, NULL), VIRTIO_BLK_S_OK);
	tear_down(&f);
}

static uint8_t range_request(
	struct fixture *f, uint32_t type, uint64_t sector, uint32_t sectors, uint32_t flags)
{
	struct piece piece = {f->data, sizeof(struct virtio_blk_discard_write_zeroes), false};

	*(struct virtio_blk_discard_write_zeroes *)rig_at(f->rig, f->data) =
		(struct virtio_blk_discard_write_zeroes){sector, sectors, flags};
	return request(f, type, 0, &piece, 1, NULL);
}

static void ranges_are_zeroed_and_discarded(void **state)
{
	struct fixture f;
	uint8_t back[4096], zero[4096] = {0};

	(void)state;
	set_up(&f);
	for (uint32_t unmap = 0; unmap < 2; unmap++) {
		uint64_t sector = 16 + unmap * 64;

		assert_int_equal(
			range_request(&f, VIRTIO_BLK_T_WRITE_ZEROES, sector, 8, unmap), VIRTIO_BLK_S_OK);
		assert_int_equal(pread(f.image, back, 4096, (off_t)sector * 512), 4096);
		assert_memory_equal(back, zero, 4096);
		assert_int_equal(pread(f.image, back, 1, (off_t)sector * 512 - 1), 1);
		assert_int_equal(back[0], pattern(sector * 512 - 1));
	}
	assert_int_equal(range_request(&f, VIRTIO_BLK_T_DISCARD, 256, 64, 0), VIRTIO_BLK_S_OK);
	assert_int_equal(range_request(&f, VIRTIO_BLK_T_DISCARD, 256, 64, 1), VIRTIO_BLK_S_UNSUPP);
	assert_int_equal(range_request(&f, VIRTIO_BLK_T_WRITE_ZEROES, 256, 64, 2), VIRTIO_BLK_S_UNSUPP);
	assert_int_equal(range_request(&f, VIRTIO_BLK_T_WRITE_ZEROES, SECTORS, 1, 0), VIRTIO_BLK_S_IOERR);
	assert_int_equal(
		range_request(&f, VIRTIO_BLK_T_DISCARD, UINT64_MAX, UINT32_MAX, 0), VIRTIO_BLK_S_IOERR);
	tear_down(&f);
}

static void requests_without_header_or_status_break(void **state)
{
	struct fixture f;
	const struct piece nothing_to_write[] = {{0x1000, 16, false}};
	const struct piece short_header[] = {{0x1000, 15, false}, {0x1000, 1, true}};

	(void)state;
	for (unsigned i = 0; i < 2; i++) {
		set_up(&f);
		driver_add(&f.driver, 0, i ? short_header : nothing_to_write, i + 1, false);
		driver_kick(&f.driver, 0);
		driver_wait_broken(&f.driver);
		tear_down(&f);
	}
}

static void descriptors_that_are_no_disks_are_refused(void **state)
{
	const struct virtio_blk_options plain = {.serial = ""};
	struct rig *rig = rig_new();
	struct error error = {0};
	_cleanup_close_ int null = open("/dev/null", O_RDWR | O_CLOEXEC),
			    reading = open("/etc/passwd", O_RDONLY | O_CLOEXEC);

	(void)state;
	assert_null(virtio_blk_new(&rig->platform, SLOT, null, &plain, &error));
	assert_non_null(strstr(error.text, "regular file or a block device"));
	assert_null(virtio_blk_new(&rig->platform, SLOT, reading, &plain, &error));
	assert_non_null(strstr(error.text, "reading only"));
	rig_free(rig);
}

/* Pause in the middle of traffic, restore into another machine, and the driver sees every request answered
 * once. */
static void a_busy_disk_moves(void **state)
{
	struct fixture f;
	struct rig *other;
	_cleanup_buffer_ struct buffer saved = {0};
	struct error error = {0};
	bool answered[240] = {false};

	(void)state;
	set_up(&f);
	for (unsigned i = 0; i < 80; i++) {
		struct virtio_blk_outhdr *header = (struct virtio_blk_outhdr *)rig_at(f.rig, f.header) + i;
		const struct piece pieces[] = {{f.header + i * sizeof(*header), sizeof(*header), false},
			{f.data + i * 4096, 4096, true}, {f.status + i, 1, true}};

		*header = (struct virtio_blk_outhdr){.type = VIRTIO_BLK_T_IN, .sector = i * 8};
		driver_add(&f.driver, 0, pieces, 3, false);
		if (i == 50) { /* half of it under way when the pause comes, the rest notified during it */
			mmio_write(f.rig, f.driver.notify, 0, 2);
			while (!driver_has_used(&f.driver, 0))
				rig_run(f.rig, 1);
			rig_pause(f.rig);
		}
	}
	mmio_write(f.rig, f.driver.notify, 0, 2);
	rig_run(f.rig, 3);
	saved = rig_save(f.rig);
	other = rig_new();
	other->free_memory = f.rig->free_memory;
	memcpy(other->memory.base, f.rig->memory.base, RIG_MEMORY);
	add_disk(&f, other, false);
	assert_int_equal(rig_load(other, &saved, &error), 0);
	rig_free(f.rig);
	f.rig = f.driver.rig = other;
	f.driver.rings[0].available = rig_at(other, f.driver.rings[0].available_gpa);
	f.driver.rings[0].used = rig_at(other, f.driver.rings[0].used_gpa);
	rig_resume(other);
	for (unsigned i = 0; i < 80; i++) {
		uint32_t id = driver_wait(&f.driver, 0).id;

		assert_true(id % 3 == 0 && id < 240 && !answered[id]);
		answered[id] = true;
	}
	rig_run(other, 3);
	assert_false(driver_has_used(&f.driver, 0));
	assert_pattern(&f, f.data, 0, 80 * 4096);
	tear_down(&f);
}

static bool is_reset(void *context)
{
	return !driver_status(context);
}

static void a_reset_waits_for_requests(void **state)
{
	struct fixture f;
	struct piece piece;

	(void)state;
	set_up(&f);
	for (unsigned round = 0; round < 10; round++) {
		for (unsigned i = 0; i < 40; i++) {
			const struct piece pieces[] = {
				{f.header, 16, false}, {f.data + i * 4096, 4096, true}, {f.status, 1, true}};

			put_header(&f, VIRTIO_BLK_T_IN, i);
			driver_add(&f.driver, 0, pieces, 3, false);
		}
		mmio_write(f.rig, f.driver.notify, 0, 2);
		rig_run(f.rig, 1);
		mmio_write(f.rig, f.driver.common + common_offset(device_status), 0, 1);
		rig_run_until(f.rig, is_reset, &f.driver);
		driver_start(&f.driver, ALL, 256);
		f.rig->free_memory = f.data + (1 << 20) + 3 * 4096;
	}
	piece = (struct piece){f.data, 4096, true};
	assert_int_equal(request(&f, VIRTIO_BLK_T_IN, 0, &piece, 1, NULL), VIRTIO_BLK_S_OK);
	assert_pattern(&f, f.data, 0, 4096);
	tear_down(&f);
}

struct other_kernel {
	struct fixture *f;
	atomic_bool over, busy_afterwards;
};

/* As a vCPU's thread: what the device was asked to read is there when the write is over, and nothing comes
 * later. */
static void *take_the_bus_away(void *argument)
{
	struct other_kernel *other = argument;
	struct rig *rig = other->f->rig;
	struct device *disk = rig->platform.devices;

	while (!disk->class->busy)
		disk = disk->next;
	loop_lock(rig->loop);
	config_write(rig, SLOT, PCI_COMMAND, PCI_COMMAND_MEMORY, 2);
	other->busy_afterwards = disk->class->busy(disk);
	other->over = true;
	loop_unlock(rig->loop);
	return NULL;
}

static bool bus_is_taken(void *context)
{
	return ((struct other_kernel *)context)->over;
}

static void who_is_no_bus_master_does_nothing(void **state)
{
	struct fixture f;
	struct other_kernel other = {.f = &f};
	pthread_t thread;

	(void)state;
	set_up(&f);
	for (unsigned i = 0; i < 40; i++) {
		const struct piece pieces[] = {
			{f.header, 16, false}, {f.data + i * 4096, 4096, true}, {f.status, 1, true}};

		put_header(&f, VIRTIO_BLK_T_IN, i);
		driver_add(&f.driver, 0, pieces, 3, false);
		if (i == 30) {
			mmio_write(f.rig, f.driver.notify, 0, 2);
			while (!driver_has_used(&f.driver, 0))
				rig_run(f.rig, 1);
			assert_int_equal(pthread_create(&thread, NULL, take_the_bus_away, &other), 0);
			rig_run_until(f.rig, bus_is_taken, &other);
			pthread_join(thread, NULL);
			assert_false(other.busy_afterwards);
			for (unsigned done = 0; done < 31; done++)
				driver_wait(&f.driver, 0);
		}
	}
	mmio_write(f.rig, f.driver.notify, 0, 2);
	rig_run(f.rig, 3);
	assert_false(driver_has_used(&f.driver, 0));
	config_write(f.rig, SLOT, PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER, 2);
	for (unsigned done = 0; done < 9; done++)
		driver_wait(&f.driver, 0);
	tear_down(&f);
}

/* A driver that offers the same chain again and again before it is answered gets its answers and does no
 * harm. */
static void one_chain_offered_many_times(void **state)
{
	struct fixture f;
	struct ring *ring;

	(void)state;
	set_up(&f);
	ring = &f.driver.rings[0];
	put_header(&f, VIRTIO_BLK_T_IN, 0);
	const struct piece pieces[] = {{f.header, 16, false}, {f.data, 4096, true}, {f.status, 1, true}};
	driver_add(&f.driver, 0, pieces, 3, false);
	for (unsigned i = 1; i < 200; i++)
		ring->available->ring[i] = 0;
	ring->available->idx = 200;
	mmio_write(f.rig, f.driver.notify, 0, 2);
	for (unsigned i = 0; i < 200; i++)
		assert_int_equal(driver_wait(&f.driver, 0).id, 0);
	tear_down(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_configuration_tells_the_disk),
		cmocka_unit_test(sectors_are_read),
		cmocka_unit_test(misaligned_buffers_are_read_and_written),
		cmocka_unit_test(header_and_status_may_share_pieces_with_data),
		cmocka_unit_test(many_requests_are_in_flight_at_once),
		cmocka_unit_test(what_is_read_is_marked),
		cmocka_unit_test(small_requests_are_answered),
		cmocka_unit_test(a_driver_without_flush_writes_through),
		cmocka_unit_test(requests_beyond_the_end_fail),
		cmocka_unit_test(an_image_that_shrinks_gives_errors),
		cmocka_unit_test(a_read_only_disk_is_not_written),
		cmocka_unit_test(ranges_are_zeroed_and_discarded),
		cmocka_unit_test(requests_without_header_or_status_break),
		cmocka_unit_test(descriptors_that_are_no_disks_are_refused),
		cmocka_unit_test(a_busy_disk_moves),
		cmocka_unit_test(a_reset_waits_for_requests),
		cmocka_unit_test(who_is_no_bus_master_does_nothing),
		cmocka_unit_test(one_chain_offered_many_times),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
