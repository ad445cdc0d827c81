/*
 * A hostile guest before all PCI and virtio devices: the input is a program of accesses to configuration
 * space, BARs and memory, of notifications, frames from the network, pauses and restores. Whatever it does,
 * no device may touch memory that is not the guest's, hang, or lose an invariant that the rig asserts.
 */
#include "../unit/rig.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "vmm/console_hub.h"
#include "vmm/dev/blk.h"
#include "vmm/dev/console.h"
#include "vmm/dev/net.h"
#include "vmm/dev/rng.h"

#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>

#define IMAGE_SIZE (64u << 10)
#define OPERATIONS_MAX 400u

enum slot { CONSOLE = 1, RNG = 2, DISK = 4, NET = 20 };

static const uint8_t slots[] = {CONSOLE, RNG, DISK, NET};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int __wrap_ioctl(int fd, unsigned long request, ...);

int __wrap_ioctl(int fd, unsigned long request, ...)
{
	va_list arguments;
	struct ifreq *interface;

	(void)fd;
	va_start(arguments, request);
	interface = va_arg(arguments, void *);
	va_end(arguments);
	if (request == TUNGETIFF)
		interface->ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
	return 0;
}

struct fuzz {
	struct rig *rig;
	struct cursor input;
	int network;
};

static void add_devices(struct fuzz *fuzz)
{
	static const uint8_t mac[6] = {2};
	struct platform *platform = &fuzz->rig->platform;
	struct console_hub *hub = console_hub_new(platform, 4, NULL);
	int image = memfd_create("image", MFD_CLOEXEC), ends[2];

	if (ftruncate(image, IMAGE_SIZE) < 0 || socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, ends) < 0)
		abort();
	fcntl(ends[1], F_SETFL, O_NONBLOCK);
	fuzz->network = ends[1];
	if (!virtio_console_new(platform, CONSOLE, hub, NULL) || !virtio_rng_new(platform, RNG, NULL) ||
		!virtio_blk_new(
			platform, DISK, image, &(struct virtio_blk_options){.serial = "serial"}, NULL) ||
		!virtio_net_new(platform, NET, ends[0], mac, NULL))
		abort();
}

static unsigned take_slot(struct fuzz *fuzz)
{
	return slots[cursor_u8(&fuzz->input) % sizeof(slots)];
}

static unsigned take_size(struct fuzz *fuzz)
{
	return 1u << cursor_u8(&fuzz->input) % 4;
}

static uint64_t bar_of(unsigned slot)
{
	return PCI_BAR_BASE + slot * 2ull * PCI_BAR_SIZE;
}

/* Where the queues of a slot are after `start`: a page each for the three parts. */
static uint64_t ring_of(unsigned slot, unsigned queue)
{
	return 0x100000 + slot * 0x10000ull + queue * 0x3000ull;
}

static void access_config(struct fuzz *fuzz)
{
	unsigned slot = take_slot(fuzz), at = cursor_u8(&fuzz->input), size = take_size(fuzz);

	size = size > 4 ? 4 : size;
	at -= at % size;
	if (cursor_u8(&fuzz->input) & 1) {
		config_read(fuzz->rig, slot, at, size);
		return;
	}
	/* Whoever takes the bus away waits for what is under way, and nobody else is here to end that. */
	rig_pause(fuzz->rig);
	rig_resume(fuzz->rig);
	config_write(fuzz->rig, slot, at, cursor_u32(&fuzz->input), size);
}

static void access_bar(struct fuzz *fuzz)
{
	uint64_t address = bar_of(take_slot(fuzz)) + cursor_u16(&fuzz->input) % PCI_BAR_SIZE;
	unsigned size = 1 + cursor_u8(&fuzz->input) % 8; /* KVM cuts accesses where a page ends */

	if (cursor_u8(&fuzz->input) & 1)
		mmio_read(fuzz->rig, address, size);
	else
		mmio_write(fuzz->rig, address, cursor_u64(&fuzz->input), size);
}

static void write_memory(struct fuzz *fuzz)
{
	uint64_t gpa = ring_of(take_slot(fuzz), cursor_u8(&fuzz->input) % VIRTIO_QUEUES_MAX) +
		       cursor_u16(&fuzz->input) % 0x3000;
	uint8_t size = cursor_u8(&fuzz->input) % 64;
	const void *data = cursor_take(&fuzz->input, size);

	if (data)
		memcpy(rig_at(fuzz->rig, gpa), data, size);
}

/* What a driver does until DRIVER_OK, so that the fuzzer need not find it out. */
static void start(struct fuzz *fuzz)
{
	struct rig *rig = fuzz->rig;
	unsigned slot = take_slot(fuzz);
	uint64_t features = cursor_u64(&fuzz->input), common = bar_of(slot) + VIRTIO_BAR_COMMON;
	uint16_t size = (uint16_t)(1u << cursor_u8(&fuzz->input) % 9);
	struct driver driver = {.rig = rig, .common = common};

	config_write(rig, slot, 4, 6, 2);
	mmio_write(rig, common + common_offset(device_status), 0, 1);
	for (unsigned i = 0; i < 100 && mmio_read(rig, common + common_offset(device_status), 1); i++)
		rig_poll(rig);
	features = driver_offered(&driver) & (features | 1ull << VIRTIO_F_VERSION_1);
	for (unsigned word = 0; word < 2; word++) {
		mmio_write(rig, common + common_offset(guest_feature_select), word, 4);
		mmio_write(rig, common + common_offset(guest_feature), (uint32_t)(features >> 32 * word), 4);
	}
	mmio_write(rig, common + common_offset(device_status), 11, 1);
	for (unsigned queue = 0; queue < VIRTIO_QUEUES_MAX; queue++) {
		mmio_write(rig, common + common_offset(queue_select), queue, 2);
		mmio_write(rig, common + common_offset(queue_size), size, 2);
		mmio_write(rig, common + common_offset(queue_desc_lo), ring_of(slot, queue), 8);
		mmio_write(rig, common + common_offset(queue_avail_lo), ring_of(slot, queue) + 0x1000, 8);
		mmio_write(rig, common + common_offset(queue_used_lo), ring_of(slot, queue) + 0x2000, 8);
		mmio_write(rig, common + common_offset(queue_enable), 1, 2);
		memset(rig_at(rig, ring_of(slot, queue)), 0, 0x3000);
	}
	mmio_write(rig, common + common_offset(device_status), 15, 1);
}

static void notify(struct fuzz *fuzz, unsigned slot, unsigned queue)
{
	mmio_write(fuzz->rig, bar_of(slot) + VIRTIO_BAR_NOTIFY + queue * VIRTIO_BAR_NOTIFY_STEP, queue, 2);
	rig_poll(fuzz->rig);
}

/* Descriptors from the input, one chain of them made available and notified. */
static void offer(struct fuzz *fuzz)
{
	unsigned slot = take_slot(fuzz), queue = cursor_u8(&fuzz->input) % VIRTIO_QUEUES_MAX;
	struct vring_desc *table = rig_at(fuzz->rig, ring_of(slot, queue));
	struct vring_avail *available = rig_at(fuzz->rig, ring_of(slot, queue) + 0x1000);
	uint64_t buffer = 0x800000;
	uint8_t count = cursor_u8(&fuzz->input) % 8;

	for (unsigned i = 0; i < count; i++) {
		uint8_t kind = cursor_u8(&fuzz->input);

		table[i] = (struct vring_desc){.addr = kind & 0x80 ? cursor_u64(&fuzz->input) : buffer,
			.len = cursor_u16(&fuzz->input),
			.flags = (uint16_t)((kind & 7) | (i + 1 < count && !(kind & 0x40))),
			.next = (uint16_t)(kind & 0x20 ? cursor_u8(&fuzz->input) : i + 1)};
		buffer += 0x10000;
	}
	/* A block request's header, where the first buffer is. */
	*(uint64_t *)rig_at(fuzz->rig, 0x800000) = cursor_u8(&fuzz->input);
	*(uint64_t *)rig_at(fuzz->rig, 0x800008) = cursor_u8(&fuzz->input);
	available->ring[available->idx % 256] = 0;
	available->idx++;
	notify(fuzz, slot, queue);
}

static void send_frame(struct fuzz *fuzz)
{
	static uint8_t frame[66000];

	/* Where the device takes none, it is lost. */
	if (send(fuzz->network, frame, cursor_u16(&fuzz->input), MSG_DONTWAIT) >= 0)
		rig_poll(fuzz->rig);
}

/* Saved and restored into itself. */
static void move(struct fuzz *fuzz)
{
	_cleanup_buffer_ struct buffer state = {0};

	rig_pause(fuzz->rig);
	state = rig_save(fuzz->rig);
	if (rig_load(fuzz->rig, &state, NULL) < 0)
		abort(); /* a state that a device saved must load, whatever the guest had done */
	rig_resume(fuzz->rig);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fuzz fuzz = {.rig = rig_new(), .input = cursor_over(data, size)};

	log_open("fuzz", LOG_ERROR_);
	add_devices(&fuzz);
	for (unsigned i = 0; i < OPERATIONS_MAX && cursor_left(&fuzz.input); i++) {
		switch (cursor_u8(&fuzz.input) % 8) {
		case 0:
			access_config(&fuzz);
			break;
		case 1:
			access_bar(&fuzz);
			break;
		case 2:
			write_memory(&fuzz);
			break;
		case 3:
			start(&fuzz);
			break;
		case 4:
			offer(&fuzz);
			break;
		case 5: {
			unsigned slot = take_slot(&fuzz);

			notify(&fuzz, slot, cursor_u8(&fuzz.input) % VIRTIO_QUEUES_MAX);
			break;
		}
		case 6:
			send_frame(&fuzz);
			break;
		case 7:
			move(&fuzz);
			break;
		}
	}
	rig_free(fuzz.rig);
	close(fuzz.network);
	return 0;
}
