/* Rings: what an honest driver does works, what a hostile one does stops the device and nothing else. */
#include "rig.h"
#include "vmm/dev/rng.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <cmocka.h>

#define SLOT 2
#define ALL UINT64_MAX

struct fixture {
	struct rig *rig;
	struct driver driver;
	uint64_t buffer;
};

static void set_up(struct fixture *f, uint64_t features, uint16_t size)
{
	struct error error = {0};

	f->rig = rig_new();
	assert_non_null(virtio_rng_new(&f->rig->platform, SLOT, &error));
	driver_probe(&f->driver, f->rig, SLOT);
	driver_start(&f->driver, features, size);
	f->buffer = rig_allocate(f->rig, 8192);
}

static bool is_zero(const uint8_t *data, size_t size)
{
	while (size--)
		if (data[size])
			return false;
	return true;
}

/* The device has said NEEDS_RESET and interrupted; after a reset it works again. */
static void assert_broken_and_mendable(struct fixture *f)
{
	struct piece piece = {f->buffer, 16, true};

	mmio_write(f->rig, f->driver.notify, 0, 2);
	driver_wait_broken(&f->driver);
	assert_true(rig_messages(f->rig, MESSAGE_CONFIG) >= 1);
	driver_start(&f->driver, ALL, 8);
	driver_add(&f->driver, 0, &piece, 1, false);
	driver_kick(&f->driver, 0);
	assert_int_equal(driver_wait(&f->driver, 0).len, 16);
	rig_free(f->rig);
}

static void chains_of_all_kinds_are_filled(void **state)
{
	(void)state;
	for (unsigned event_index = 0; event_index < 2; event_index++) {
		struct fixture f;
		uint8_t *data;

		set_up(&f, event_index ? ALL : 0, 8);
		data = rig_at(f.rig, f.buffer);
		for (unsigned round = 0; round < 50; round++) {
			const struct piece pieces[] = {
				{f.buffer, 100, true}, {f.buffer + 200, 0, true}, {f.buffer + 300, 28, true}};
			struct vring_used_elem used;
			uint16_t head;

			memset(data, 0, 8192);
			head = driver_add(&f.driver, 0, pieces, 3, round % 2);
			driver_kick(&f.driver, 0);
			used = driver_wait(&f.driver, 0);
			assert_int_equal(used.id, head);
			assert_int_equal(used.len, 128);
			assert_false(is_zero(data, 100));
			assert_true(is_zero(data + 100, 200));
			assert_false(is_zero(data + 300, 28));
			assert_true(is_zero(data + 328, 4096));
			/* Memory for indirect tables is not given back by the rig. */
			f.rig->free_memory -= round % 2 ? 4096 : 0;
		}
		assert_int_equal(rig_messages(f.rig, MESSAGE_QUEUE(0)), 50);
		rig_free(f.rig);
	}
}

static void one_interrupt_serves_a_batch(void **state)
{
	struct fixture f;

	(void)state;
	set_up(&f, ALL, 64);
	for (unsigned i = 0; i < 32; i++)
		driver_add(&f.driver, 0, &(struct piece){f.buffer + i * 16, 16, true}, 1, false);
	mmio_write(f.rig, f.driver.notify, 0, 2);
	for (unsigned i = 0; i < 32; i++)
		driver_wait(&f.driver, 0);
	assert_int_equal(rig_messages(f.rig, MESSAGE_QUEUE(0)), 1);
	rig_free(f.rig);
}

static void a_driver_that_wants_no_interrupt_gets_none(void **state)
{
	struct fixture f;

	(void)state;
	set_up(&f, 0, 8);
	f.driver.rings[0].available->flags = VRING_AVAIL_F_NO_INTERRUPT;
	driver_add(&f.driver, 0, &(struct piece){f.buffer, 16, true}, 1, false);
	driver_kick(&f.driver, 0);
	driver_wait(&f.driver, 0);
	assert_int_equal(rig_messages(f.rig, MESSAGE_QUEUE(0)), 0);
	rig_free(f.rig);
}

static void what_the_device_writes_is_marked(void **state)
{
	struct fixture f;

	(void)state;
	set_up(&f, ALL, 8);
	rig_track(f.rig);
	driver_add(&f.driver, 0, &(struct piece){f.buffer + 4000, 200, true}, 1, false);
	driver_kick(&f.driver, 0);
	driver_wait(&f.driver, 0);
	assert_true(rig_is_dirty(f.rig, f.buffer));
	assert_true(rig_is_dirty(f.rig, f.buffer + 4096));
	assert_true(rig_is_dirty(f.rig, f.driver.rings[0].used_gpa));
	assert_false(rig_is_dirty(f.rig, f.driver.rings[0].available_gpa));
	assert_false(rig_is_dirty(f.rig, f.driver.rings[0].table_gpa));
	rig_free(f.rig);
}

static void a_ring_across_a_page_is_marked_on_both(void **state)
{
	struct fixture f;
	uint64_t used;

	(void)state;
	set_up(&f, ALL, 64);
	/* The used ring moved to straddle a page: entry 2 is the first on the second one. */
	used = rig_allocate(f.rig, 8192) + 4096 - 20;
	mmio_write(f.rig, f.driver.common + common_offset(device_status), 0, 1);
	driver_start(&f.driver, ALL, 64);
	struct virtio_device *device = virtio_of(f.rig->platform.devices);
	device->queues[0].device = used;
	assert_int_equal(virtqueue_map(&device->queues[0], true), 0);
	f.driver.rings[0].used = rig_at(f.rig, used);
	rig_track(f.rig);
	for (unsigned i = 0; i < 2; i++)
		driver_add(&f.driver, 0, &(struct piece){f.buffer, 16, true}, 1, false);
	mmio_write(f.rig, f.driver.notify, 0, 2);
	for (unsigned i = 0; i < 2; i++)
		driver_wait(&f.driver, 0);
	assert_true(rig_is_dirty(f.rig, used));
	rig_track(f.rig);
	driver_add(&f.driver, 0, &(struct piece){f.buffer, 16, true}, 1, false);
	mmio_write(f.rig, f.driver.notify, 0, 2);
	driver_wait(&f.driver, 0);
	assert_true(rig_is_dirty(f.rig, used));
	assert_true(rig_is_dirty(f.rig, used + 4096));
	rig_free(f.rig);
}

static void hostile(struct fixture *f)
{
	set_up(f, ALL, 8);
}

static void make_available(struct fixture *f, uint16_t head)
{
	struct ring *ring = &f->driver.rings[0];

	ring->available->ring[ring->available->idx % ring->size] = head;
	ring->available->idx++;
}

static void a_loop_ends(void **state)
{
	struct fixture f;

	(void)state;
	hostile(&f);
	for (uint16_t i = 0; i < 8; i++)
		f.driver.rings[0].table[i] = (struct vring_desc){
			f.buffer, 16, VRING_DESC_F_WRITE | VRING_DESC_F_NEXT, (uint16_t)((i + 1) % 8)};
	make_available(&f, 0);
	assert_broken_and_mendable(&f);
}

static void a_head_beyond_the_table_breaks(void **state)
{
	struct fixture f;

	(void)state;
	hostile(&f);
	make_available(&f, 8);
	assert_broken_and_mendable(&f);
}

static void a_next_beyond_the_table_breaks(void **state)
{
	struct fixture f;

	(void)state;
	hostile(&f);
	f.driver.rings[0].table[0] =
		(struct vring_desc){f.buffer, 16, VRING_DESC_F_WRITE | VRING_DESC_F_NEXT, 0xffff};
	make_available(&f, 0);
	assert_broken_and_mendable(&f);
}

static void an_index_that_runs_ahead_breaks(void **state)
{
	struct fixture f;

	(void)state;
	hostile(&f);
	f.driver.rings[0].available->idx = 9;
	assert_broken_and_mendable(&f);
}

static void buffers_outside_memory_break(void **state)
{
	static const struct vring_desc bad[] = {
		{RIG_MEMORY, 16, VRING_DESC_F_WRITE, 0},
		{RIG_MEMORY - 8, 16, VRING_DESC_F_WRITE, 0},
		{UINT64_MAX - 3, 16, VRING_DESC_F_WRITE, 0},
		{0xe0000000, 16, VRING_DESC_F_WRITE, 0},
		{0, UINT32_MAX, VRING_DESC_F_WRITE, 0},
		{RIG_MEMORY - 16, 32, VRING_DESC_F_INDIRECT, 0},
		{0x1000, 0, VRING_DESC_F_INDIRECT, 0},
		{0x1000, 17, VRING_DESC_F_INDIRECT, 0},
		{0x1000, 16, VRING_DESC_F_INDIRECT | VRING_DESC_F_NEXT, 1},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct fixture f;

		hostile(&f);
		f.driver.rings[0].table[0] = bad[i];
		make_available(&f, 0);
		assert_broken_and_mendable(&f);
	}
}

static void indirect_tables_do_not_nest(void **state)
{
	struct fixture f;
	struct vring_desc *table;

	(void)state;
	hostile(&f);
	table = rig_at(f.rig, f.buffer);
	table[0] = (struct vring_desc){f.buffer, 16, VRING_DESC_F_INDIRECT, 0};
	f.driver.rings[0].table[0] = table[0];
	make_available(&f, 0);
	assert_broken_and_mendable(&f);
}

static void a_long_indirect_table_breaks(void **state)
{
	struct fixture f;
	uint64_t gpa;
	struct vring_desc *table;

	(void)state;
	hostile(&f);
	gpa = rig_allocate(f.rig, 300 * 16);
	table = rig_at(f.rig, gpa);
	for (unsigned i = 0; i < 300; i++)
		table[i] = (struct vring_desc){
			f.buffer, 16, VRING_DESC_F_WRITE | VRING_DESC_F_NEXT, (uint16_t)(i + 1)};
	f.driver.rings[0].table[0] = (struct vring_desc){gpa, 300 * 16, VRING_DESC_F_INDIRECT, 0};
	make_available(&f, 0);
	assert_broken_and_mendable(&f);
}

static void readable_behind_writable_breaks(void **state)
{
	struct fixture f;

	(void)state;
	hostile(&f);
	f.driver.rings[0].table[0] =
		(struct vring_desc){f.buffer, 16, VRING_DESC_F_WRITE | VRING_DESC_F_NEXT, 1};
	f.driver.rings[0].table[1] = (struct vring_desc){f.buffer, 16, 0, 0};
	make_available(&f, 0);
	assert_broken_and_mendable(&f);
}

static void queues_outside_memory_break(void **state)
{
	static const uint64_t places[][3] = {
		{RIG_MEMORY, 0x1000, 0x2000},
		{0x1000, RIG_MEMORY - 4, 0x2000},
		{0x1000, 0x2000, UINT64_MAX & ~3ull},
		{0x1008, 0x2000, 0x3000},
		{0x1000, 0x2001, 0x3000},
		{0x1000, 0x2000, 0x3002},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
		struct fixture f;
		uint64_t common;

		hostile(&f);
		common = f.driver.common;
		mmio_write(f.rig, common + common_offset(device_status), 0, 1);
		mmio_write(f.rig, common + common_offset(queue_desc_lo), places[i][0], 8);
		mmio_write(f.rig, common + common_offset(queue_avail_lo), places[i][1], 8);
		mmio_write(f.rig, common + common_offset(queue_used_lo), places[i][2], 8);
		mmio_write(f.rig, common + common_offset(queue_enable), 1, 2);
		assert_true(driver_status(&f.driver) & VIRTIO_CONFIG_S_NEEDS_RESET);
		rig_free(f.rig);
	}
}

static void odd_sizes_break(void **state)
{
	static const uint16_t sizes[] = {0, 3, 128, 0xffff};

	(void)state;
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		struct fixture f;
		uint64_t common;

		hostile(&f);
		common = f.driver.common;
		mmio_write(f.rig, common + common_offset(device_status), 0, 1);
		mmio_write(f.rig, common + common_offset(queue_size), sizes[i], 2);
		mmio_write(f.rig, common + common_offset(queue_enable), 1, 2);
		assert_true(driver_status(&f.driver) & VIRTIO_CONFIG_S_NEEDS_RESET);
		rig_free(f.rig);
	}
}

static void features_are_agreed_upon(void **state)
{
	struct fixture f;
	uint64_t common;

	(void)state;
	hostile(&f);
	common = f.driver.common;
	mmio_write(f.rig, common + common_offset(device_status), 0, 1);
	/* Without VERSION_1, and with what was not offered. */
	mmio_write(f.rig, common + common_offset(device_status), 3, 1);
	mmio_write(f.rig, common + common_offset(device_status), 11, 1);
	assert_int_equal(driver_status(&f.driver), 3);
	for (unsigned word = 0; word < 2; word++) {
		mmio_write(f.rig, common + common_offset(guest_feature_select), word, 4);
		mmio_write(f.rig, common + common_offset(guest_feature), 0xffffffff, 4);
	}
	mmio_write(f.rig, common + common_offset(device_status), 11, 1);
	assert_int_equal(driver_status(&f.driver), 3);
	mmio_write(f.rig, common + common_offset(device_status), 7, 1);
	assert_int_equal(driver_status(&f.driver), 3);
	mmio_write(f.rig, common + common_offset(guest_feature_select), 2, 4);
	mmio_write(f.rig, common + common_offset(guest_feature), 0xffffffff, 4);
	mmio_write(f.rig, common + common_offset(device_feature_select), 2, 4);
	assert_int_equal(mmio_read(f.rig, common + common_offset(device_feature), 4), 0);
	mmio_write(f.rig, common + common_offset(queue_select), 99, 2);
	assert_int_equal(mmio_read(f.rig, common + common_offset(queue_size), 2), 0);
	mmio_write(f.rig, common + common_offset(queue_enable), 1, 2);
	rig_free(f.rig);
}

static void a_restored_ring_goes_on_where_it_was(void **state)
{
	struct fixture f;
	struct rig *other = rig_new();
	_cleanup_buffer_ struct buffer saved = {0};
	struct error error = {0};
	struct vring_used_elem used;
	unsigned messages;

	(void)state;
	set_up(&f, ALL, 8);
	for (unsigned i = 0; i < 5; i++) {
		driver_add(&f.driver, 0, &(struct piece){f.buffer, 16, true}, 1, false);
		driver_kick(&f.driver, 0);
		driver_wait(&f.driver, 0);
	}
	rig_pause(f.rig);
	/* Made available and notified while paused: not looked at before the restored device runs. */
	driver_add(&f.driver, 0, &(struct piece){f.buffer, 32, true}, 1, false);
	driver_kick(&f.driver, 0);
	rig_run(f.rig, 3);
	assert_false(driver_has_used(&f.driver, 0));
	saved = rig_save(f.rig);
	memcpy(other->memory.base, f.rig->memory.base, RIG_MEMORY);
	assert_non_null(virtio_rng_new(&other->platform, SLOT, &error));
	assert_int_equal(rig_load(other, &saved, &error), 0);
	rig_free(f.rig);
	f.driver.rig = other;
	f.driver.rings[0].available = rig_at(other, f.driver.rings[0].available_gpa);
	f.driver.rings[0].used = rig_at(other, f.driver.rings[0].used_gpa);
	f.driver.rings[0].table = rig_at(other, f.driver.rings[0].table_gpa);
	rig_run(other, 3);
	assert_false(driver_has_used(&f.driver, 0));
	rig_resume(other);
	/* An interrupt may have been lost on the way: one comes whatever happened. */
	messages = rig_messages(other, MESSAGE_QUEUE(0));
	assert_true(messages >= 1);
	used = driver_wait(&f.driver, 0);
	assert_int_equal(used.len, 32);
	assert_int_equal(f.driver.rings[0].used->idx, 6);
	rig_free(other);
}

static void a_state_with_a_ring_outside_memory_is_refused(void **state)
{
	struct fixture f;
	_cleanup_buffer_ struct buffer saved = {0};
	struct error error = {0};

	(void)state;
	set_up(&f, ALL, 8);
	rig_pause(f.rig);
	virtio_of(f.rig->platform.devices)->queues[0].descriptors = RIG_MEMORY;
	saved = rig_save(f.rig);
	assert_int_equal(rig_load(f.rig, &saved, &error), -EINVAL);
	assert_non_null(strstr(error.text, "outside the guest's memory"));
	virtio_of(f.rig->platform.devices)->accepted |= 1ull << 50;
	buffer_free(&saved);
	saved = rig_save(f.rig);
	assert_int_equal(rig_load(f.rig, &saved, &error), -ENOTSUP);
	rig_free(f.rig);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(chains_of_all_kinds_are_filled),
		cmocka_unit_test(one_interrupt_serves_a_batch),
		cmocka_unit_test(a_driver_that_wants_no_interrupt_gets_none),
		cmocka_unit_test(what_the_device_writes_is_marked),
		cmocka_unit_test(a_ring_across_a_page_is_marked_on_both),
		cmocka_unit_test(a_loop_ends),
		cmocka_unit_test(a_head_beyond_the_table_breaks),
		cmocka_unit_test(a_next_beyond_the_table_breaks),
		cmocka_unit_test(an_index_that_runs_ahead_breaks),
		cmocka_unit_test(buffers_outside_memory_break),
		cmocka_unit_test(indirect_tables_do_not_nest),
		cmocka_unit_test(a_long_indirect_table_breaks),
		cmocka_unit_test(readable_behind_writable_breaks),
		cmocka_unit_test(queues_outside_memory_break),
		cmocka_unit_test(odd_sizes_break),
		cmocka_unit_test(features_are_agreed_upon),
		cmocka_unit_test(a_restored_ring_goes_on_where_it_was),
		cmocka_unit_test(a_state_with_a_ring_outside_memory_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
