/*
 * The network device. The tap is a socket pair that keeps message boundaries, so the test is the
 * network; ioctl(2) on it says what a tap would (linked with --wrap=ioctl).
 */
#include "rig.h"
#include "base/cleanup.h"
#include "vmm/dev/net.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/pci_regs.h>
#include <linux/virtio_net.h>
#include <net/if.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <cmocka.h>

#define SLOT 20
#define ALL UINT64_MAX
#define HEADER sizeof(struct virtio_net_hdr_v1)
#define MERGE (1ull << VIRTIO_NET_F_MRG_RXBUF)

enum { RECEIVE, TRANSMIT, CONTROL };

static const uint8_t mac[6] = {0x00, 0x16, 0x3e, 0x55, 0x9d, 0xb0};
static unsigned long tap_offload; /* as last set */
static bool tap_is_none;

int __wrap_ioctl(int fd, unsigned long request, ...);
int __wrap_ioctl(int fd, unsigned long request, ...)
{
	va_list arguments;
	void *argument;

	(void)fd;
	va_start(arguments, request);
	argument = va_arg(arguments, void *);
	va_end(arguments);
	if (tap_is_none) {
		errno = ENOTTY;
		return -1;
	}
	switch (request) {
	case TUNGETIFF:
		((struct ifreq *)argument)->ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
		return 0;
	case TUNSETVNETHDRSZ:
		assert_int_equal(*(int *)argument, HEADER);
		return 0;
	case TUNSETOFFLOAD:
		tap_offload = (unsigned long)argument;
		return 0;
	}
	fail_msg("ioctl 0x%lx", request);
	return -1;
}

struct fixture {
	struct rig *rig;
	struct driver driver;
	int network; /* the other end of the tap */
	uint64_t buffers, frame;
};

static void add_net(struct fixture *f, struct rig *rig, const uint8_t address[6])
{
	struct error error = {0};
	const int size = 4 << 20;
	int ends[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, ends), 0);
	setsockopt(ends[1], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
	fcntl(ends[1], F_SETFL, O_NONBLOCK);
	f->network = ends[1];
	if (!virtio_net_new(&rig->platform, SLOT, ends[0], address, &error))
		fail_msg("%s", error.text);
}

static void set_up(struct fixture *f, uint64_t features)
{
	f->rig = rig_new();
	add_net(f, f->rig, mac);
	driver_probe(&f->driver, f->rig, SLOT);
	driver_start(&f->driver, features, 64);
	f->buffers = rig_allocate(f->rig, 64 * 4096);
	f->frame = rig_allocate(f->rig, 80 << 10);
}

static void tear_down(struct fixture *f)
{
	rig_free(f->rig);
	close(f->network);
}

static void provide(struct fixture *f, unsigned count, uint32_t size)
{
	for (unsigned i = 0; i < count; i++) {
		unsigned at = f->driver.rings[RECEIVE].next_descriptor % 64;

		driver_add(
			&f->driver, RECEIVE, &(struct piece){f->buffers + at * 4096, size, true}, 1, false);
		driver_kick(&f->driver, RECEIVE);
	}
}

static uint8_t pattern(size_t i, unsigned seed)
{
	return (uint8_t)(i * 5 + i / 256 + seed);
}

/* A frame of `size` bytes behind its header, from the network. */
static bool send_frame(struct fixture *f, size_t size, unsigned seed)
{
	uint8_t *frame = calloc(1, HEADER + size);
	bool sent;

	for (size_t i = 0; i < size; i++)
		frame[HEADER + i] = pattern(i, seed);
	sent = send(f->network, frame, HEADER + size, MSG_DONTWAIT) == (ssize_t)(HEADER + size);
	free(frame);
	return sent;
}

/* Takes one received frame out of its buffers, checks it, returns how many buffers it has. */
static unsigned assert_received(struct fixture *f, size_t size, unsigned seed)
{
	size_t at = 0;
	unsigned buffers = 1;

	for (unsigned i = 0; i < buffers; i++) {
		struct vring_used_elem used = driver_wait(&f->driver, RECEIVE);
		const uint8_t *data = rig_at(f->rig, f->driver.rings[RECEIVE].table[used.id].addr);

		if (i == 0)
			buffers = ((const struct virtio_net_hdr_v1 *)(const void *)data)->num_buffers;
		for (size_t k = 0; k < used.len; k++, at++)
			if (at >= HEADER && data[k] != pattern(at - HEADER, seed))
				fail_msg("byte %zu of a frame of %zu is wrong", at - HEADER, size);
	}
	assert_int_equal(at, HEADER + size);
	return buffers;
}

static ssize_t from_guest(struct fixture *f, uint8_t *frame, size_t size)
{
	for (unsigned i = 0; i < 60000; i++) {
		ssize_t r = recv(f->network, frame, size, MSG_DONTWAIT);

		if (r >= 0)
			return r;
		rig_run(f->rig, 1);
	}
	return -1;
}

static void the_configuration_tells_address_and_link(void **state)
{
	struct fixture f;
	uint64_t config;

	(void)state;
	set_up(&f, ALL);
	config = mmio_read(f.rig, f.driver.config, 8);
	assert_memory_equal(&config, mac, 6);
	assert_int_equal(config >> 48, VIRTIO_NET_S_LINK_UP);
	assert_int_equal(tap_offload, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN | TUN_F_UFO);
	mmio_write(f.rig, f.driver.common + common_offset(device_status), 0, 1);
	assert_int_equal(tap_offload, 0);
	driver_start(&f.driver, 1ull << VIRTIO_NET_F_GUEST_TSO4, 64);
	assert_int_equal(tap_offload, 0); /* segments without checksums there are none */
	driver_start(&f.driver, 1ull << VIRTIO_NET_F_GUEST_TSO4 | 1ull << VIRTIO_NET_F_GUEST_CSUM, 64);
	assert_int_equal(tap_offload, TUN_F_CSUM | TUN_F_TSO4);
	tear_down(&f);
}

static void frames_come_in(void **state)
{
	const uint64_t features[] = {0, MERGE, ALL, ALL & ~MERGE};

	(void)state;
	for (unsigned k = 0; k < ARRAY_SIZE(features); k++) {
		struct fixture f;

		set_up(&f, features[k]);
		provide(&f, 60, 1536);
		for (unsigned i = 0; i < 300; i++) {
			size_t size = 60 + i * 37 % 1400;

			assert_true(send_frame(&f, size, i));
			assert_int_equal(assert_received(&f, size, i), 1);
			provide(&f, 1, 1536);
		}
		tear_down(&f);
	}
}

static void large_frames_take_several_buffers(void **state)
{
	struct fixture f;

	(void)state;
	set_up(&f, ALL);
	provide(&f, 60, 2048);
	for (unsigned i = 0; i < 60; i++) {
		/* Large ones after small ones go by way of the overflow, further large ones straight. */
		size_t size = i % 7 < 3 ? 65000 : 100;
		unsigned buffers;

		assert_true(send_frame(&f, size, i));
		buffers = assert_received(&f, size, i);
		assert_int_equal(buffers, (size + HEADER + 2047) / 2048);
		provide(&f, buffers, 2048);
	}
	tear_down(&f);
}

static void a_frame_waits_for_buffers(void **state)
{
	struct fixture f;

	(void)state;
	set_up(&f, ALL);
	/* None at all: the frame stays in the tap, and nothing spins. */
	assert_true(send_frame(&f, 100, 1));
	rig_run(f.rig, 5);
	assert_false(driver_has_used(&f.driver, RECEIVE));
	provide(&f, 1, 2048);
	assert_received(&f, 100, 1);
	/* Too few: it waits in the device. */
	provide(&f, 3, 2048);
	assert_true(send_frame(&f, 20000, 2));
	rig_run(f.rig, 5);
	assert_false(driver_has_used(&f.driver, RECEIVE));
	for (unsigned i = 0; i < 10; i++)
		driver_add(&f.driver, RECEIVE, &(struct piece){f.buffers + (10 + i) * 4096, 2048, true}, 1,
			false);
	mmio_write(f.rig, f.driver.notify, RECEIVE, 2);
	assert_int_equal(assert_received(&f, 20000, 2), 10);
	/* The driver's chance over, it is lost, and the next comes. */
	assert_true(send_frame(&f, 60000, 3));
	rig_run(f.rig, 5);
	provide(&f, 1, 2048);
	rig_run(f.rig, 5);
	assert_true(send_frame(&f, 200, 4));
	assert_received(&f, 200, 4);
	tear_down(&f);
}

static void a_frame_longer_than_a_chain_is_lost_without_merging(void **state)
{
	struct fixture f;

	(void)state;
	set_up(&f, 0);
	provide(&f, 4, 512);
	assert_true(send_frame(&f, 1000, 1));
	assert_true(send_frame(&f, 300, 2));
	assert_received(&f, 300, 2);
	tear_down(&f);
}

static void received_frames_are_marked(void **state)
{
	struct fixture f;

	(void)state;
	set_up(&f, ALL);
	provide(&f, 20, 4096);
	rig_track(f.rig);
	assert_true(send_frame(&f, 4096 + 100, 0));
	assert_int_equal(assert_received(&f, 4096 + 100, 0), 2);
	assert_true(rig_is_dirty(f.rig, f.buffers));
	assert_true(rig_is_dirty(f.rig, f.buffers + 4096));
	assert_false(rig_is_dirty(f.rig, f.buffers + 8192));
	assert_true(rig_is_dirty(f.rig, f.driver.rings[RECEIVE].used_gpa));
	tear_down(&f);
}

static void frames_go_out(void **state)
{
	struct fixture f;
	uint8_t frame[4096];

	(void)state;
	set_up(&f, ALL);
	for (unsigned i = 0; i < 200; i++) {
		uint8_t *data = rig_at(f.rig, f.frame);
		const struct piece pieces[] = {{f.frame, HEADER, false}, {f.frame + HEADER, 700, false},
			{f.frame + 1000, 100, false}};

		for (unsigned k = 0; k < 800; k++)
			data[k < 700 ? HEADER + k : 1000 + k - 700] = pattern(k, i);
		driver_add(&f.driver, TRANSMIT, pieces, 3, i % 2);
		f.rig->free_memory -= i % 2 ? 4096 : 0;
		driver_kick(&f.driver, TRANSMIT);
		assert_int_equal(driver_wait(&f.driver, TRANSMIT).len, 0);
		assert_int_equal(from_guest(&f, frame, sizeof(frame)), HEADER + 800);
		for (unsigned k = 0; k < 800; k++)
			assert_int_equal(frame[HEADER + k], pattern(k, i));
	}
	/* No frame at all, and one that is longer than frames are: swallowed. */
	driver_add(&f.driver, TRANSMIT, &(struct piece){f.frame, 5, false}, 1, false);
	driver_kick(&f.driver, TRANSMIT);
	driver_wait(&f.driver, TRANSMIT);
	driver_add(&f.driver, TRANSMIT, &(struct piece){f.frame, 79 << 10, false}, 1, false);
	driver_kick(&f.driver, TRANSMIT);
	driver_wait(&f.driver, TRANSMIT);
	assert_int_equal(recv(f.network, frame, sizeof(frame), MSG_DONTWAIT), -1);
	tear_down(&f);
}

static void a_full_tap_holds_frames_back(void **state)
{
	struct fixture f;
	unsigned sent = 60, received = 0;
	uint8_t frame[66000];

	(void)state;
	set_up(&f, ALL);
	for (unsigned i = 0; i < sent; i++)
		driver_add(&f.driver, TRANSMIT, &(struct piece){f.frame, 60000, false}, 1, false);
	mmio_write(f.rig, f.driver.notify + f.driver.notify_step * TRANSMIT, TRANSMIT, 2);
	rig_run(f.rig, 5);
	assert_true(f.driver.rings[TRANSMIT].used->idx < sent); /* a socket does not hold that much */
	while (received < sent) {
		assert_int_equal(from_guest(&f, frame, sizeof(frame)), 60000);
		received++;
	}
	for (unsigned i = 0; i < sent; i++)
		driver_wait(&f.driver, TRANSMIT);
	tear_down(&f);
}

static uint8_t control(struct fixture *f, uint8_t class, uint8_t command, uint64_t data, uint32_t size)
{
	uint8_t *at = rig_at(f->rig, f->frame);
	const struct piece pieces[] = {
		{f->frame, 2, false}, {f->frame + 16, size, false}, {f->frame + 32, 1, true}};

	at[0] = class;
	at[1] = command;
	memcpy(at + 16, &data, sizeof(data));
	at[32] = 0xee;
	driver_add(&f->driver, CONTROL, pieces, 3, false);
	driver_kick(&f->driver, CONTROL);
	assert_int_equal(driver_wait(&f->driver, CONTROL).len, 1);
	return at[32];
}

static void commands_are_obeyed_or_refused(void **state)
{
	struct fixture f;

	(void)state;
	set_up(&f, ALL);
	assert_int_equal(control(&f, VIRTIO_NET_CTRL_GUEST_OFFLOADS, 0, 1ull << VIRTIO_NET_F_GUEST_CSUM, 8),
		VIRTIO_NET_OK);
	assert_int_equal(tap_offload, TUN_F_CSUM);
	assert_int_equal(control(&f, VIRTIO_NET_CTRL_GUEST_OFFLOADS, 0, 1ull << 63, 8), VIRTIO_NET_ERR);
	assert_int_equal(control(&f, VIRTIO_NET_CTRL_GUEST_OFFLOADS, 0, 0, 7), VIRTIO_NET_ERR);
	assert_int_equal(control(&f, VIRTIO_NET_CTRL_RX, 0, 1, 1), VIRTIO_NET_ERR);
	assert_int_equal(tap_offload, TUN_F_CSUM);
	tear_down(&f);
}

static void the_guest_is_announced(void **state)
{
	static const uint8_t rarp_head[] = {0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3};
	struct fixture f;
	struct device *device;
	uint8_t frame[256];
	unsigned messages;

	(void)state;
	set_up(&f, ALL);
	device = f.rig->platform.devices;
	messages = rig_messages(f.rig, MESSAGE_CONFIG);
	device->class->announce(device);
	assert_int_equal(rig_messages(f.rig, MESSAGE_CONFIG), messages + 1);
	assert_int_equal(
		mmio_read(f.rig, f.driver.config + 6, 2), VIRTIO_NET_S_LINK_UP | VIRTIO_NET_S_ANNOUNCE);
	assert_int_equal(
		control(&f, VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK, 0, 0), VIRTIO_NET_OK);
	assert_int_equal(mmio_read(f.rig, f.driver.config + 6, 2), VIRTIO_NET_S_LINK_UP);
	for (unsigned i = 0; i < 7; i++) { /* within three seconds */
		assert_int_equal(from_guest(&f, frame, sizeof(frame)), HEADER + 60);
		assert_memory_equal(frame + HEADER, "\xff\xff\xff\xff\xff\xff", 6);
		assert_memory_equal(frame + HEADER + 6, mac, 6);
		assert_memory_equal(frame + HEADER + 12, rarp_head, sizeof(rarp_head));
		assert_memory_equal(frame + HEADER + 22, mac, 6);
		assert_memory_equal(frame + HEADER + 32, mac, 6);
	}
	rig_run(f.rig, 500);
	assert_int_equal(recv(f.network, frame, sizeof(frame), MSG_DONTWAIT), -1);
	tear_down(&f);
}

static void no_frame_is_taken_while_paused(void **state)
{
	struct fixture f;

	(void)state;
	set_up(&f, ALL);
	provide(&f, 30, 2048);
	assert_true(send_frame(&f, 100, 1));
	assert_received(&f, 100, 1);
	rig_pause(f.rig);
	assert_true(send_frame(&f, 100, 2));
	rig_run(f.rig, 5);
	assert_false(driver_has_used(&f.driver, RECEIVE));
	rig_resume(f.rig);
	assert_received(&f, 100, 2);
	tear_down(&f);
}

/* A kernel that gives way to another one (kexec) has left its buffers with the device. */
static void no_frame_is_taken_by_who_is_no_bus_master(void **state)
{
	struct fixture f;

	(void)state;
	set_up(&f, ALL);
	provide(&f, 30, 2048);
	assert_true(send_frame(&f, 100, 1));
	assert_received(&f, 100, 1);
	config_write(f.rig, SLOT, PCI_COMMAND, PCI_COMMAND_MEMORY, 2);
	assert_true(send_frame(&f, 100, 2));
	rig_run(f.rig, 5);
	assert_false(driver_has_used(&f.driver, RECEIVE));
	config_write(f.rig, SLOT, PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER, 2);
	assert_received(&f, 100, 2);
	tear_down(&f);
}

/* The machine goes on in `other`, its network device with an address of that machine's. */
static void move_to(
	struct fixture *f, struct rig *other, const struct buffer *saved, const uint8_t address[6])
{
	struct error error = {0};

	other->free_memory = f->rig->free_memory;
	memcpy(other->memory.base, f->rig->memory.base, RIG_MEMORY);
	rig_free(f->rig);
	close(f->network);
	f->rig = f->driver.rig = other;
	add_net(f, other, address);
	assert_int_equal(rig_load(other, saved, &error), 0);
	for (unsigned i = 0; i < 3; i++) {
		struct ring *ring = &f->driver.rings[i];

		ring->table = rig_at(other, ring->table_gpa);
		ring->available = rig_at(other, ring->available_gpa);
		ring->used = rig_at(other, ring->used_gpa);
	}
}

/* Whether a frame of the guest's with this source address leaves. */
static bool leaves(struct fixture *f, const uint8_t source[6])
{
	uint8_t frame[256];

	memcpy((uint8_t *)rig_at(f->rig, f->frame) + HEADER + 6, source, 6);
	driver_add(&f->driver, TRANSMIT, &(struct piece){f->frame, HEADER + 60, false}, 1, false);
	driver_kick(&f->driver, TRANSMIT);
	driver_wait(&f->driver, TRANSMIT);
	return recv(f->network, frame, sizeof(frame), MSG_DONTWAIT) == (ssize_t)HEADER + 60;
}

/* A clone is silent until its guest has the address that is its own; a clone of that silent one, too. */
static void a_clone_sends_as_itself(void **state)
{
	static const uint8_t second[6] = {0, 0x16, 0x3e, 0, 0, 2}, third[6] = {0, 0x16, 0x3e, 0, 0, 3};
	static const uint8_t *const own[] = {second, third};
	struct fixture f;
	uint64_t config;

	(void)state;
	set_up(&f, ALL);
	provide(&f, 20, 2048);
	assert_true(leaves(&f, mac) && leaves(&f, second)); /* a bridge in the guest may */
	for (unsigned i = 0; i < ARRAY_SIZE(own); i++) {
		_cleanup_buffer_ struct buffer saved = {0};

		rig_pause(f.rig);
		saved = rig_save(f.rig);
		move_to(&f, rig_new(), &saved, own[i]);
		rig_resume(f.rig);
		config = mmio_read(f.rig, f.driver.config, 8);
		assert_memory_equal(&config, own[i], 6);
		assert_false(leaves(&f, mac));
		assert_false(leaves(&f, own[1 - i]));
		assert_true(send_frame(&f, 100, 7)); /* meant for the other one */
		rig_run(f.rig, 3);
		assert_false(driver_has_used(&f.driver, RECEIVE));
	}
	assert_true(leaves(&f, third) && leaves(&f, mac));
	assert_true(send_frame(&f, 200, 8));
	assert_received(&f, 200, 8);
	tear_down(&f);
}

/* Saved with buffers popped ahead and frames on both sides: the restored device goes on with the next buffer.
 */
static void a_busy_device_moves(void **state)
{
	struct fixture f;
	struct rig *other;
	_cleanup_buffer_ struct buffer saved = {0};
	uint8_t frame[256];

	(void)state;
	set_up(&f, ALL);
	provide(&f, 60, 2048);
	for (unsigned i = 0; i < 3; i++) {
		assert_true(send_frame(&f, 30000, i));
		assert_received(&f, 30000, i);
	}
	assert_int_equal(control(&f, VIRTIO_NET_CTRL_GUEST_OFFLOADS, 0, 1ull << VIRTIO_NET_F_GUEST_CSUM, 8),
		VIRTIO_NET_OK);
	rig_pause(f.rig);
	driver_add(&f.driver, TRANSMIT, &(struct piece){f.frame, 100, false}, 1, false);
	driver_kick(&f.driver, TRANSMIT);
	saved = rig_save(f.rig);
	other = rig_new();
	tap_offload = 99;
	move_to(&f, other, &saved, mac);
	assert_int_equal(tap_offload, TUN_F_CSUM);
	assert_true(send_frame(&f, 500, 9));
	rig_run(other, 3);
	assert_false(driver_has_used(&f.driver, RECEIVE));
	rig_resume(other);
	assert_int_equal(from_guest(&f, frame, sizeof(frame)), 100);
	assert_received(&f, 500, 9);
	assert_int_equal(f.driver.rings[RECEIVE].used->idx, 3 * 15 + 1);
	tear_down(&f);
}

static void bad_receive_buffers_break(void **state)
{
	static const struct piece bad[] = {{0x1000, 4, true}, {0x1000, 2048, false}};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		struct fixture f;

		set_up(&f, ALL);
		driver_add(&f.driver, RECEIVE, &bad[i], 1, false);
		driver_kick(&f.driver, RECEIVE);
		driver_wait_broken(&f.driver);
		driver_start(&f.driver, ALL, 64);
		f.driver.rings[RECEIVE].next_descriptor = 0;
		provide(&f, 4, 2048);
		assert_true(send_frame(&f, 100, 1));
		assert_received(&f, 100, 1);
		tear_down(&f);
	}
}

static void no_tap_no_device(void **state)
{
	struct rig *rig = rig_new();
	struct error error = {0};
	_cleanup_close_ int fd = open("/dev/null", O_RDWR | O_CLOEXEC);

	(void)state;
	tap_is_none = true;
	assert_null(virtio_net_new(&rig->platform, SLOT, fd, mac, &error));
	assert_non_null(strstr(error.text, "is no tap"));
	tap_is_none = false;
	rig_free(rig);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_configuration_tells_address_and_link),
		cmocka_unit_test(frames_come_in),
		cmocka_unit_test(large_frames_take_several_buffers),
		cmocka_unit_test(a_frame_waits_for_buffers),
		cmocka_unit_test(a_frame_longer_than_a_chain_is_lost_without_merging),
		cmocka_unit_test(received_frames_are_marked),
		cmocka_unit_test(frames_go_out),
		cmocka_unit_test(a_full_tap_holds_frames_back),
		cmocka_unit_test(commands_are_obeyed_or_refused),
		cmocka_unit_test(the_guest_is_announced),
		cmocka_unit_test(no_frame_is_taken_while_paused),
		cmocka_unit_test(no_frame_is_taken_by_who_is_no_bus_master),
		cmocka_unit_test(a_busy_device_moves),
		cmocka_unit_test(a_clone_sends_as_itself),
		cmocka_unit_test(bad_receive_buffers_break),
		cmocka_unit_test(no_tap_no_device),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
