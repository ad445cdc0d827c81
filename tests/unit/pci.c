/* The PCI bus as a guest sees it: enumeration, BAR sizing and moving, MSI-X masks and pending bits, restore.
 */
#include "rig.h"
#include "base/cleanup.h"
#include "vmm/dev/rng.h"

#include <errno.h>
#include <linux/pci_regs.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#define SLOT 2

static struct pci_device *add_device(struct rig *rig, unsigned slot)
{
	struct error error = {0};
	struct device *device = virtio_rng_new(&rig->platform, slot, &error);

	assert_non_null(device);
	return &virtio_of(device)->pci;
}

static void the_bus_shows_bridge_and_devices(void **state)
{
	struct rig *rig = rig_new();

	(void)state;
	add_device(rig, SLOT);
	assert_int_equal(config_read(rig, 0, PCI_CLASS_DEVICE, 2), 0x0600);
	assert_int_equal(config_read(rig, SLOT, PCI_DEVICE_ID, 2), 0x1044);
	assert_int_equal(config_read(rig, 3, PCI_VENDOR_ID, 4), 0xffffffff);
	/* No second bus, no second function. */
	bus_write(&rig->ports, 0xcf8, &(uint32_t){0x80010000u | SLOT << 11}, 4);
	uint32_t value = 0;
	bus_read(&rig->ports, 0xcfc, &value, 4);
	assert_int_equal(value, 0xffffffff);
	bus_write(&rig->ports, 0xcf8, &(uint32_t){0x80000100u | SLOT << 11}, 4);
	bus_read(&rig->ports, 0xcfc, &value, 4);
	assert_int_equal(value, 0xffffffff);
	/* The address reads back, and bytes of it are not written one by one. */
	bus_write(&rig->ports, 0xcfb, &(uint8_t){1}, 1);
	bus_read(&rig->ports, 0xcf8, &value, 4);
	assert_int_equal(value, 0x80000100u | SLOT << 11);
	rig_free(rig);
}

static void a_slot_has_one_device(void **state)
{
	struct rig *rig = rig_new();
	struct error error = {0};

	(void)state;
	add_device(rig, SLOT);
	assert_null(virtio_rng_new(&rig->platform, SLOT, &error));
	assert_int_equal(error.code, EBUSY);
	assert_null(virtio_rng_new(&rig->platform, 32, &error));
	assert_null(virtio_rng_new(&rig->platform, 0, &error));
	rig_free(rig);
}

static void identity_is_not_writable(void **state)
{
	struct rig *rig = rig_new();
	uint8_t before[256], after[256];

	(void)state;
	add_device(rig, SLOT);
	for (unsigned i = 0; i < 256; i++)
		before[i] = (uint8_t)config_read(rig, SLOT, i, 1);
	for (unsigned i = 0; i < 256; i += 2)
		config_write(rig, SLOT, i, 0xffff, 2);
	for (unsigned i = 0; i < 256; i++)
		after[i] = (uint8_t)config_read(rig, SLOT, i, 1);
	assert_memory_equal(before, after, 4);
	assert_memory_equal(before + PCI_STATUS, after + PCI_STATUS, 2);
	assert_memory_equal(before + PCI_CLASS_REVISION, after + PCI_CLASS_REVISION, 4);
	assert_memory_equal(
		before + PCI_BASE_ADDRESS_1, after + PCI_BASE_ADDRESS_1, 0x40 - PCI_BASE_ADDRESS_1 - 4);
	rig_free(rig);
}

static void the_bar_is_sized_and_moved(void **state)
{
	struct rig *rig = rig_new();
	struct driver driver;
	uint32_t bar;

	(void)state;
	add_device(rig, SLOT);
	bar = config_read(rig, SLOT, PCI_BASE_ADDRESS_0, 4);
	assert_int_equal(bar, PCI_BAR_BASE + SLOT * 2 * PCI_BAR_SIZE);
	/* Nobody answers before memory decoding is on. */
	assert_int_equal(mmio_read(rig, bar, 4), 0xffffffff);
	config_write(rig, SLOT, PCI_BASE_ADDRESS_0, 0xffffffff, 4);
	assert_int_equal(config_read(rig, SLOT, PCI_BASE_ADDRESS_0, 4), ~(PCI_BAR_SIZE - 1));
	config_write(rig, SLOT, PCI_BASE_ADDRESS_0, 0xd0000000, 4);
	driver_probe(&driver, rig, SLOT);
	assert_int_equal(driver.bar, 0xd0000000);
	assert_int_equal(driver.queues, 1);
	/* Moved while it is on. */
	config_write(rig, SLOT, PCI_BASE_ADDRESS_0, 0xd1000000, 4);
	assert_int_equal(mmio_read(rig, 0xd0000000 + common_offset(num_queues), 2), 0xffff);
	assert_int_equal(mmio_read(rig, 0xd1000000 + common_offset(num_queues), 2), 1);
	config_write(rig, SLOT, PCI_COMMAND, 0, 2);
	assert_int_equal(mmio_read(rig, 0xd1000000 + common_offset(num_queues), 2), 0xffff);
	rig_free(rig);
}

static void two_bars_in_one_place_do_no_harm(void **state)
{
	struct rig *rig = rig_new();

	(void)state;
	add_device(rig, SLOT);
	add_device(rig, SLOT + 1);
	for (unsigned slot = SLOT; slot <= SLOT + 1; slot++) {
		config_write(rig, slot, PCI_BASE_ADDRESS_0, 0xd0000000, 4);
		config_write(rig, slot, PCI_COMMAND, PCI_COMMAND_MEMORY, 2);
	}
	assert_int_equal(mmio_read(rig, 0xd0000000 + common_offset(num_queues), 2), 1);
	config_write(rig, SLOT + 1, PCI_BASE_ADDRESS_0, 0xd1000000, 4);
	assert_int_equal(mmio_read(rig, 0xd1000000 + common_offset(num_queues), 2), 1);
	rig_free(rig);
}

static void masked_messages_wait(void **state)
{
	struct rig *rig = rig_new();
	struct pci_device *device = add_device(rig, SLOT);
	struct driver driver;
	uint64_t entry, pending;
	unsigned control;

	(void)state;
	driver_probe(&driver, rig, SLOT);
	entry = driver.bar + PCI_BAR_MSIX_TABLE + 16;
	pending = driver.bar + PCI_BAR_MSIX_PENDING;
	control = device->msix_capability + PCI_MSIX_FLAGS;
	pci_trigger(device, 1);
	assert_int_equal(rig_messages(rig, MESSAGE_QUEUE(0)), 1);
	mmio_write(rig, entry + 12, 1, 4);
	pci_trigger(device, 1);
	pci_trigger(device, 1);
	assert_int_equal(rig_messages(rig, MESSAGE_QUEUE(0)), 1);
	assert_int_equal(mmio_read(rig, pending, 8), 2);
	mmio_write(rig, entry + 12, 0, 4);
	assert_int_equal(rig_messages(rig, MESSAGE_QUEUE(0)), 2);
	assert_int_equal(mmio_read(rig, pending, 4), 0);
	/* The same with the mask of the whole function. */
	config_write(rig, SLOT, control, PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL, 2);
	pci_trigger(device, 1);
	assert_int_equal(mmio_read(rig, pending, 4), 2);
	config_write(rig, SLOT, control, PCI_MSIX_FLAGS_ENABLE, 2);
	assert_int_equal(rig_messages(rig, MESSAGE_QUEUE(0)), 3);
	/* Switched off: nothing, and nothing left over. */
	config_write(rig, SLOT, control, 0, 2);
	pci_trigger(device, 1);
	config_write(rig, SLOT, control, PCI_MSIX_FLAGS_ENABLE, 2);
	assert_int_equal(rig_messages(rig, MESSAGE_QUEUE(0)), 3);
	pci_trigger(device, 99);
	/* The table reads back; its end is closed. */
	assert_int_equal(mmio_read(rig, entry + 8, 4), MESSAGE_QUEUE(0));
	assert_int_equal(mmio_read(rig, entry + 16, 4), 0);
	mmio_write(rig, entry + 16, 1, 4);
	mmio_write(rig, pending, 0xff, 4);
	rig_free(rig);
}

static void who_is_no_bus_master_sends_no_message(void **state)
{
	struct rig *rig = rig_new();
	struct pci_device *device = add_device(rig, SLOT);
	struct driver driver;

	(void)state;
	driver_probe(&driver, rig, SLOT);
	config_write(rig, SLOT, PCI_COMMAND, PCI_COMMAND_MEMORY, 2);
	pci_trigger(device, 1);
	assert_int_equal(rig_messages(rig, MESSAGE_QUEUE(0)), 0);
	assert_int_equal(mmio_read(rig, driver.bar + PCI_BAR_MSIX_PENDING, 8), 2);
	config_write(rig, SLOT, PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER, 2);
	assert_int_equal(rig_messages(rig, MESSAGE_QUEUE(0)), 1);
	rig_free(rig);
}

static bool under_way;

static bool is_busy(struct device *device)
{
	(void)device;
	return under_way;
}

struct writer {
	struct rig *rig;
	bool over;
};

static void *take_the_bus_away(void *argument)
{
	struct writer *writer = argument;

	loop_lock(writer->rig->loop);
	config_write(writer->rig, SLOT, PCI_COMMAND, PCI_COMMAND_MEMORY, 2);
	writer->over = true;
	loop_unlock(writer->rig->loop);
	return NULL;
}

static void the_bus_is_given_up_when_nothing_is_under_way(void **state)
{
	struct rig *rig = rig_new();
	struct pci_device *device = add_device(rig, SLOT);
	struct device_class class = *device->device.class;
	const struct device_class *real = device->device.class;
	struct writer writer = {.rig = rig};
	pthread_t thread;

	(void)state;
	class.busy = is_busy;
	device->device.class = &class;
	under_way = true;
	assert_int_equal(pthread_create(&thread, NULL, take_the_bus_away, &writer), 0);
	usleep(50000);
	loop_lock(rig->loop);
	assert_false(writer.over);
	under_way = false;
	virtio_settled(virtio_of(&device->device));
	loop_unlock(rig->loop);
	pthread_join(thread, NULL);
	assert_true(writer.over);
	device->device.class = real;
	rig_free(rig);
}

static void everything_is_restored(void **state)
{
	struct rig *rig = rig_new(), *other = rig_new();
	struct pci_device *device = add_device(rig, SLOT), *twin = add_device(other, SLOT);
	_cleanup_buffer_ struct buffer saved = {0};
	struct error error = {0};
	struct driver driver;

	(void)state;
	config_write(rig, SLOT, PCI_BASE_ADDRESS_0, 0xd0000000, 4);
	driver_probe(&driver, rig, SLOT);
	mmio_write(rig, driver.bar + PCI_BAR_MSIX_TABLE + 12, 1, 4);
	pci_trigger(device, 0);
	rig_pause(rig);
	saved = rig_save(rig);
	assert_int_equal(rig_load(other, &saved, &error), 0);
	assert_memory_equal(twin->config, device->config, sizeof(device->config));
	assert_int_equal(mmio_read(other, 0xd0000000 + common_offset(num_queues), 2), 1);
	pci_trigger(twin, 1);
	assert_int_equal(rig_messages(other, MESSAGE_QUEUE(0)), 1);
	assert_int_equal(rig_messages(other, MESSAGE_CONFIG), 0);
	mmio_write(other, driver.bar + PCI_BAR_MSIX_TABLE + 12, 0, 4);
	assert_int_equal(rig_messages(other, MESSAGE_CONFIG), 1);
	rig_free(rig);
	rig_free(other);
}

static void a_foreign_identity_is_not_restored(void **state)
{
	struct rig *rig = rig_new(), *other = rig_new();
	struct pci_device *device = add_device(rig, SLOT), *twin = add_device(other, SLOT);
	_cleanup_buffer_ struct buffer saved = {0};
	struct error error = {0};

	(void)state;
	memset(device->config, 0xff, sizeof(device->config));
	rig->platform.paused = true;
	saved = rig_save(rig);
	assert_int_equal(rig_load(other, &saved, &error), 0);
	assert_int_equal(config_read(other, SLOT, PCI_VENDOR_ID, 2), 0x1af4);
	assert_int_equal(twin->config[PCI_CAPABILITY_LIST], twin->fixed[PCI_CAPABILITY_LIST]);
	device->saved_vector_count = 1;
	buffer_clear(&saved);
	buffer_free(&saved);
	saved = rig_save(rig);
	assert_int_equal(rig_load(other, &saved, &error), -EINVAL);
	assert_non_null(strstr(error.text, "interrupt vectors"));
	rig_free(rig);
	rig_free(other);
}

/* KVM cuts an access where a page ends: of eight bytes five may be left. */
static void accesses_of_odd_lengths_do_nothing(void **state)
{
	static const unsigned lengths[] = {3, 5, 6, 7};
	static const uint64_t places[] = {VIRTIO_BAR_COMMON, PCI_BAR_MSIX_TABLE};
	struct rig *rig = rig_new();
	struct driver driver;
	uint8_t bytes[8];

	(void)state;
	add_device(rig, SLOT);
	driver_probe(&driver, rig, SLOT);
	memset(bytes, 0xff, sizeof(bytes));
	for (size_t i = 0; i < ARRAY_SIZE(places); i++)
		for (uint64_t at = places[i]; at < places[i] + 0x40; at += 4) {
			uint64_t before = mmio_read(rig, driver.bar + at, 8);

			for (size_t k = 0; k < ARRAY_SIZE(lengths); k++)
				bus_write(&rig->mmio, driver.bar + at, bytes, lengths[k]);
			assert_int_equal(mmio_read(rig, driver.bar + at, 8), before);
		}
	rig_free(rig);
}

static void registers_are_reached_through_configuration_space(void **state)
{
	struct rig *rig = rig_new();
	struct virtio_device *device;
	unsigned at;

	(void)state;
	device = CONTAINER_OF(add_device(rig, SLOT), struct virtio_device, pci);
	at = device->pci_access;
	config_write(rig, SLOT, PCI_COMMAND, PCI_COMMAND_MEMORY, 2);
	config_write(rig, SLOT, at + 4, 0, 1);
	config_write(rig, SLOT, at + 8, common_offset(num_queues), 4);
	config_write(rig, SLOT, at + 12, 2, 4);
	assert_int_equal(config_read(rig, SLOT, at + 16, 4) & 0xffff, 1);
	config_write(rig, SLOT, at + 8, common_offset(device_status), 4);
	config_write(rig, SLOT, at + 12, 1, 4);
	config_write(rig, SLOT, at + 16, VIRTIO_CONFIG_S_ACKNOWLEDGE, 1);
	assert_int_equal(device->status, VIRTIO_CONFIG_S_ACKNOWLEDGE);
	/* Outside, misaligned, another BAR: nothing happens. */
	config_write(rig, SLOT, at + 8, 0xffffffff, 4);
	config_read(rig, SLOT, at + 16, 4);
	config_write(rig, SLOT, at + 16, 3, 4);
	config_write(rig, SLOT, at + 8, common_offset(device_status), 4);
	config_write(rig, SLOT, at + 4, 1, 1);
	config_write(rig, SLOT, at + 16, 3, 1);
	assert_int_equal(device->status, VIRTIO_CONFIG_S_ACKNOWLEDGE);
	rig_free(rig);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_bus_shows_bridge_and_devices),
		cmocka_unit_test(a_slot_has_one_device),
		cmocka_unit_test(identity_is_not_writable),
		cmocka_unit_test(the_bar_is_sized_and_moved),
		cmocka_unit_test(two_bars_in_one_place_do_no_harm),
		cmocka_unit_test(masked_messages_wait),
		cmocka_unit_test(who_is_no_bus_master_sends_no_message),
		cmocka_unit_test(the_bus_is_given_up_when_nothing_is_under_way),
		cmocka_unit_test(everything_is_restored),
		cmocka_unit_test(a_foreign_identity_is_not_restored),
		cmocka_unit_test(accesses_of_odd_lengths_do_nothing),
		cmocka_unit_test(registers_are_reached_through_configuration_space),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
