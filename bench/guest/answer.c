/*
 * The answering guest: replies to ARP and to pings, as fast as its processor can, through the first virtio
 * network device it finds (virtio 1.2, sections 2.7 split virtqueues, 4.1 PCI, 5.1 network device).
 *
 * Command line (numbers): touch=MIB memory touched at the start; ip=ADDRESS its IPv4 address as one number.
 * Output on port 0x3f8: 'R' once it listens, 'N' where there is no network device.
 */
#include "guest.h"

#define FIRST (16ull << 20) /* memory below is the guest's own */
#define QUEUE_SIZE 64
#define BUFFER 2048
#define HEADER 12 /* struct virtio_net_hdr (5.1.6) */
#define SLOTS 32
#define NETWORK_CARD 0x10411af4u /* device and vendor (4.1.2) */
#define NOTIFY 0x3000            /* docs/internal/vmm.md */

enum { COMMAND = 0x04, BAR0 = 0x10, DECODE_AND_MASTER = 6 };
enum { ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8 };
enum { RECEIVE, TRANSMIT };

/* 4.1.4.3 */
struct common {
	uint32_t device_feature_select, device_feature, driver_feature_select, driver_feature;
	uint16_t config_msix_vector, num_queues;
	uint8_t device_status, config_generation;
	uint16_t queue_select, queue_size, queue_msix_vector, queue_enable, queue_notify_off;
	uint32_t queue_desc[2], queue_driver[2], queue_device[2];
};

/* 2.7 */
struct queue {
	struct {
		uint64_t address;
		uint32_t length;
		uint16_t flags, next;
	} descriptors[QUEUE_SIZE];
	struct {
		uint16_t flags, index, ring[QUEUE_SIZE];
	} available;
	struct {
		uint16_t flags, index;
		struct {
			uint32_t id, length;
		} ring[QUEUE_SIZE];
	} used __attribute__((aligned(4)));
	uint16_t seen; /* of what was used */
	uint8_t buffers[QUEUE_SIZE][BUFFER];
} __attribute__((aligned(4096)));

static volatile struct queue queues[2];
static volatile uint8_t *device;
static uint8_t mac[6];
static uint32_t address;

static uint32_t pci(unsigned slot, unsigned at)
{
	uint32_t value;

	__asm__ volatile("outl %0, %1" : : "a"(0x80000000u | slot << 11 | at), "d"((uint16_t)0xcf8));
	__asm__ volatile("inl %1, %0" : "=a"(value) : "d"((uint16_t)0xcfc));
	return value;
}

static void pci_set(unsigned slot, unsigned at, uint32_t value)
{
	pci(slot, at);
	__asm__ volatile("outl %0, %1" : : "a"(value), "d"((uint16_t)0xcfc));
}

static bool find_device(void)
{
	for (unsigned slot = 0; slot < SLOTS; slot++) {
		if (pci(slot, 0) != NETWORK_CARD)
			continue;
		pci_set(slot, COMMAND, DECODE_AND_MASTER);
		device = (volatile uint8_t *)(uint64_t)(pci(slot, BAR0) & ~0xfu);
		return true;
	}
	return false;
}

static void notify(unsigned number)
{
	__asm__ volatile("mfence" : : : "memory");
	*(volatile uint16_t *)(device + NOTIFY + 4 * number) = (uint16_t)number;
}

static void offer(unsigned number, uint16_t buffer, uint32_t length)
{
	volatile struct queue *queue = &queues[number];

	queue->descriptors[buffer].length = length;
	queue->available.ring[queue->available.index % QUEUE_SIZE] = buffer;
	__asm__ volatile("" : : : "memory");
	queue->available.index++;
}

static void set_up_queue(volatile struct common *common, unsigned number)
{
	volatile struct queue *queue = &queues[number];

	common->queue_select = (uint16_t)number;
	common->queue_size = QUEUE_SIZE;
	common->queue_desc[0] = (uint32_t)(uint64_t)queue->descriptors;
	common->queue_driver[0] = (uint32_t)(uint64_t)&queue->available;
	common->queue_device[0] = (uint32_t)(uint64_t)&queue->used;
	common->queue_enable = 1;
	queue->available.flags = 1; /* no interrupts: it looks */
	for (unsigned i = 0; i < QUEUE_SIZE; i++) {
		queue->descriptors[i].address = (uint64_t)queue->buffers[i];
		queue->descriptors[i].flags = number == RECEIVE ? 2 : 0; /* the device writes */
	}
}

/* 3.1.1, with VIRTIO_F_VERSION_1 and VIRTIO_NET_F_MAC. */
static void set_up_device(void)
{
	volatile struct common *common = (volatile struct common *)device;

	common->device_status = 0;
	common->device_status = ACKNOWLEDGE | DRIVER;
	common->driver_feature_select = 0;
	common->driver_feature = 1 << 5;
	common->driver_feature_select = 1;
	common->driver_feature = 1;
	common->device_status = ACKNOWLEDGE | DRIVER | FEATURES_OK;
	for (unsigned i = 0; i < sizeof(mac); i++)
		mac[i] = device[0x2000 + i];
	set_up_queue(common, RECEIVE);
	set_up_queue(common, TRANSMIT);
	common->device_status = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
	for (uint16_t i = 0; i < QUEUE_SIZE; i++)
		offer(RECEIVE, i, BUFFER);
	notify(RECEIVE);
}

static uint32_t big_endian(const volatile uint8_t *at)
{
	return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

static void copy(volatile uint8_t *to, const volatile uint8_t *from, uint32_t length)
{
	while (length--)
		*to++ = *from++;
}

/* The frame becomes its answer, in place. False: none is due. */
static bool answer(volatile uint8_t *frame, uint32_t length)
{
	uint8_t asker[4];
	uint32_t sum;

	copy(frame, frame + 6, 6);
	copy(frame + 6, mac, 6);
	if (length >= 42 && frame[12] == 8 && frame[13] == 6 && frame[21] == 1 &&
		big_endian(frame + 38) == address) { /* RFC 826 */
		frame[21] = 2;
		copy(frame + 32, frame + 22, 10);
		copy(frame + 22, mac, 6);
		for (unsigned i = 0; i < 4; i++)
			frame[28 + i] = (uint8_t)(address >> (24 - 8 * i));
		return true;
	}
	if (length < 42 || frame[12] != 8 || frame[13] != 0 || frame[14] != 0x45 || frame[23] != 1 ||
		frame[34] != 8 || big_endian(frame + 30) != address)
		return false;
	copy(asker, frame + 26, 4);
	copy(frame + 26, frame + 30, 4);
	copy(frame + 30, asker, 4);
	frame[34] = 0; /* RFC 792: the checksum's first byte grows by as much */
	sum = (uint32_t)(frame[36] << 8 | frame[37]) + 0x800;
	sum += sum >> 16;
	frame[36] = (uint8_t)(sum >> 8);
	frame[37] = (uint8_t)sum;
	return true;
}

static void serve(void)
{
	volatile struct queue *in = &queues[RECEIVE], *out = &queues[TRANSMIT];

	while (in->seen != in->used.index) {
		uint32_t id = in->used.ring[in->seen % QUEUE_SIZE].id % QUEUE_SIZE,
			 length = in->used.ring[in->seen % QUEUE_SIZE].length;
		bool room = (uint16_t)(out->available.index - out->used.index) < QUEUE_SIZE;
		uint16_t reply = out->available.index % QUEUE_SIZE;

		if (room && length > HEADER && length <= BUFFER &&
			answer(in->buffers[id] + HEADER, length - HEADER)) {
			copy(out->buffers[reply] + HEADER, in->buffers[id] + HEADER, length - HEADER);
			offer(TRANSMIT, reply, length);
			notify(TRANSMIT);
		}
		in->seen++;
		offer(RECEIVE, (uint16_t)id, BUFFER);
		notify(RECEIVE);
	}
	__asm__ volatile("pause");
}

void main(const struct start_info *info)
{
	const char *line = (const char *)info->command_line;
	uint64_t pages = option(line, "touch=", 16) << 8;

	address = (uint32_t)option(line, "ip=", 0);
	for (uint64_t i = 0; i < pages; i++)
		*(volatile uint64_t *)(FIRST + (i << 12)) = i;
	if (!find_device()) {
		put('N');
		for (;;)
			__asm__ volatile("pause");
	}
	set_up_device();
	put('R');
	for (;;)
		serve();
}
