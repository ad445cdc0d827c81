#include "rig.h"
#include "base/bitmap.h"
#include "base/cleanup.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/timerfd.h>
#include <time.h>
#include <cmocka.h>

#include <linux/pci_regs.h>

#define TIMEOUT_SECONDS 60

/* Interrupts: what interrupts.h says, without KVM. */

struct notify {
	uint64_t address;
	int fd;
};

struct interrupts {
	unsigned delivered[256]; /* by message data */
	struct notify notifies[64];
	unsigned notify_count;
};

/* A vector knows its interrupts by what the tests need: where to count. */
static struct interrupts *counting;

int message_vector_open(struct interrupts *interrupts, struct message_vector *vector, struct error *error)
{
	(void)error;
	counting = interrupts;
	*vector = (struct message_vector){.eventfd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
	return 0;
}

void message_vector_close(struct interrupts *interrupts, struct message_vector *vector)
{
	(void)interrupts;
	if (vector->eventfd >= 0)
		close(vector->eventfd);
	vector->eventfd = -1;
}

int message_vector_set(struct interrupts *interrupts, struct message_vector *vector, uint64_t address,
	uint32_t data, bool enabled, struct error *error)
{
	(void)interrupts;
	(void)error;
	vector->address = address;
	vector->data = data;
	vector->enabled = enabled;
	return 0;
}

void message_vector_trigger(struct message_vector *vector)
{
	assert_true(vector->enabled);
	counting->delivered[vector->data & 0xff]++;
}

int notify_add(struct interrupts *interrupts, uint64_t address, unsigned size, int fd, struct error *error)
{
	(void)size;
	(void)error;
	assert_true(interrupts->notify_count < ARRAY_SIZE(interrupts->notifies));
	interrupts->notifies[interrupts->notify_count++] = (struct notify){address, fd};
	return 0;
}

void notify_remove(struct interrupts *interrupts, uint64_t address, unsigned size, int fd)
{
	(void)size;
	for (unsigned i = 0; i < interrupts->notify_count; i++)
		if (interrupts->notifies[i].address == address && interrupts->notifies[i].fd == fd) {
			interrupts->notifies[i] = interrupts->notifies[--interrupts->notify_count];
			return;
		}
	fail_msg("a notification is removed that is not there");
}

void interrupts_line(struct interrupts *interrupts, unsigned gsi, bool high)
{
	(void)interrupts;
	(void)gsi;
	(void)high;
}

unsigned rig_messages(struct rig *rig, uint32_t data)
{
	return rig->interrupts->delivered[data & 0xff];
}

/* The machine */

static void settled(void *machine)
{
	((struct rig *)machine)->settled++;
}

struct rig *rig_new(void)
{
	struct rig *rig = calloc(1, sizeof(*rig));
	struct error error = {0};
	int fd = memfd_create("rig", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	assert_non_null(rig);
	assert_int_equal(ftruncate(fd, RIG_MEMORY), 0);
	assert_int_equal(memory_map(&rig->memory, fd, RIG_MEMORY, false, &error), 0);
	rig->loop = loop_new(&error);
	assert_non_null(rig->loop);
	assert_int_equal(disk_rings_make(&rig->disk_rings, 2, &error), 0);
	rig->interrupts = calloc(1, sizeof(*rig->interrupts));
	rig->free_memory = 0x10000;
	rig->platform = (struct platform){.memory = &rig->memory,
		.loop = rig->loop,
		.disk_rings = &rig->disk_rings,
		.ports = &rig->ports,
		.mmio = &rig->mmio,
		.interrupts = rig->interrupts,
		.settled = settled,
		.machine = rig};
	assert_non_null(pci_bus_new(&rig->platform, &error));
	return rig;
}

void rig_free(struct rig *rig)
{
	platform_free_devices(&rig->platform);
	assert_int_equal(rig->interrupts->notify_count, 0);
	assert_null(rig->ports.ranges);
	assert_null(rig->mmio.ranges);
	free(rig->memory.device_dirty);
	rig->memory.device_dirty = NULL;
	memory_unmap(&rig->memory);
	disk_rings_free(&rig->disk_rings);
	loop_free(rig->loop);
	free(rig->interrupts);
	free(rig);
}

uint64_t rig_allocate(struct rig *rig, uint64_t size)
{
	uint64_t gpa = rig->free_memory;

	rig->free_memory = ALIGN_UP(gpa + size, 4096);
	assert_true(rig->free_memory <= RIG_MEMORY);
	memset(rig->memory.base + gpa, 0, rig->free_memory - gpa);
	return gpa;
}

void *rig_at(struct rig *rig, uint64_t gpa)
{
	return rig->memory.base + gpa;
}

void rig_track(struct rig *rig)
{
	free(rig->memory.device_dirty);
	rig->memory.device_dirty = calloc(1, bitmap_bytes(RIG_MEMORY / 4096));
}

bool rig_is_dirty(struct rig *rig, uint64_t gpa)
{
	return bitmap_test(rig->memory.device_dirty, gpa / 4096);
}

struct run {
	struct rig *rig;
	struct watch tick;
	bool (*condition)(void *context);
	void *context;
	struct timespec end;
	bool late;
};

static void stop(void *context)
{
	loop_stop(context);
}

static void tick(void *context, uint32_t events)
{
	struct run *run = context;
	struct timespec now;
	uint64_t ignored;

	(void)events;
	assert_int_equal(read(run->tick.fd, &ignored, sizeof(ignored)), sizeof(ignored));
	clock_gettime(CLOCK_MONOTONIC, &now);
	run->late = now.tv_sec > run->end.tv_sec ||
		    (now.tv_sec == run->end.tv_sec && now.tv_nsec >= run->end.tv_nsec);
	if (run->late || (run->condition && run->condition(run->context)))
		loop_defer(run->rig->loop, stop, run->rig->loop); /* behind the events that are there */
}

static bool run_for(struct rig *rig, bool (*condition)(void *context), void *context, unsigned milliseconds)
{
	struct run run = {.rig = rig, .condition = condition, .context = context};
	const struct itimerspec every = {{0, 500000}, {0, 500000}};
	struct error error = {0};

	if (condition && condition(context))
		return true;
	clock_gettime(CLOCK_MONOTONIC, &run.end);
	run.end.tv_sec += milliseconds / 1000;
	run.end.tv_nsec += milliseconds % 1000 * 1000000l;
	if (run.end.tv_nsec >= 1000000000l) {
		run.end.tv_sec++;
		run.end.tv_nsec -= 1000000000l;
	}
	run.tick = (struct watch){
		.fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC), .handler = tick, .context = &run};
	assert_int_equal(timerfd_settime(run.tick.fd, 0, &every, NULL), 0);
	assert_int_equal(loop_add(rig->loop, &run.tick, EPOLLIN, &error), 0);
	assert_int_equal(loop_run(rig->loop, &error), 0);
	loop_remove(rig->loop, &run.tick);
	close(run.tick.fd);
	return !run.late || (condition && condition(context));
}

void rig_run_until(struct rig *rig, bool (*condition)(void *context), void *context)
{
	if (!run_for(rig, condition, context, TIMEOUT_SECONDS * 1000))
		fail_msg("nothing happened for %d s", TIMEOUT_SECONDS);
}

void rig_run(struct rig *rig, unsigned milliseconds)
{
	run_for(rig, NULL, NULL, milliseconds);
}

static void polled(void *context, uint32_t events)
{
	struct rig *rig = context;

	(void)events;
	loop_defer(rig->loop, stop, rig->loop);
}

void rig_poll(struct rig *rig)
{
	struct watch always = {.fd = eventfd(1, EFD_CLOEXEC), .handler = polled, .context = rig};
	struct error error = {0};

	assert_int_equal(loop_add(rig->loop, &always, EPOLLIN, &error), 0);
	assert_int_equal(loop_run(rig->loop, &error), 0);
	loop_remove(rig->loop, &always);
	close(always.fd);
}

static bool idle(void *context)
{
	struct rig *rig = context;

	for (struct device *d = rig->platform.devices; d; d = d->next)
		if (d->class->busy && d->class->busy(d))
			return false;
	return true;
}

void rig_pause(struct rig *rig)
{
	rig->platform.paused = true;
	for (struct device *d = rig->platform.devices; d; d = d->next)
		if (d->class->pause)
			d->class->pause(d);
	rig_run_until(rig, idle, rig);
	for (struct device *d = rig->platform.devices; d; d = d->next)
		if (d->class->quiet)
			d->class->quiet(d);
}

void rig_resume(struct rig *rig)
{
	rig->platform.paused = false;
	for (struct device *d = rig->platform.devices; d; d = d->next)
		if (d->class->resume)
			d->class->resume(d);
}

struct buffer rig_save(struct rig *rig)
{
	struct buffer state = {0};

	for (struct device *d = rig->platform.devices; d; d = d->next) {
		if (d->class->before_save)
			d->class->before_save(d);
		fields_save(&state, d->class->state, d->instance, d);
	}
	assert_false(state.failed);
	return state;
}

int rig_load(struct rig *rig, const struct buffer *state, struct error *error)
{
	struct cursor records = cursor_over(state->data, state->size);

	rig->platform.paused = true;
	for (struct device *d = rig->platform.devices; d; d = d->next) {
		int r = fields_load(&records, d->class->state, d->instance, d, error);

		if (r == 0 && d->class->after_load)
			r = d->class->after_load(d, error);
		if (r < 0)
			return r;
	}
	return 0;
}

/* The guest: accesses */

static void point(struct rig *rig, unsigned slot, unsigned at)
{
	uint32_t address = 0x80000000u | slot << 11 | (at & 0xfc);

	bus_write(&rig->ports, 0xcf8, &address, 4);
}

uint32_t config_read(struct rig *rig, unsigned slot, unsigned at, unsigned size)
{
	uint32_t value = 0;

	point(rig, slot, at);
	bus_read(&rig->ports, 0xcfc + at % 4, &value, size);
	return value;
}

void config_write(struct rig *rig, unsigned slot, unsigned at, uint32_t value, unsigned size)
{
	point(rig, slot, at);
	bus_write(&rig->ports, 0xcfc + at % 4, &value, size);
}

uint64_t mmio_read(struct rig *rig, uint64_t address, unsigned size)
{
	uint64_t value = 0;

	bus_read(&rig->mmio, address, &value, size);
	return value;
}

void mmio_write(struct rig *rig, uint64_t address, uint64_t value, unsigned size)
{
	uint64_t one = 1;

	for (unsigned i = 0; i < rig->interrupts->notify_count; i++)
		if (rig->interrupts->notifies[i].address == address) {
			assert_int_equal(
				write(rig->interrupts->notifies[i].fd, &one, sizeof(one)), sizeof(one));
			return;
		}
	bus_write(&rig->mmio, address, &value, size);
}

/* The guest: driver */

static void set_vector(struct driver *driver, uint64_t table, unsigned vector, uint32_t data)
{
	mmio_write(driver->rig, table + vector * 16, 0xfee00000, 4);
	mmio_write(driver->rig, table + vector * 16 + 4, 0, 4);
	mmio_write(driver->rig, table + vector * 16 + 8, data, 4);
	mmio_write(driver->rig, table + vector * 16 + 12, 0, 4);
}

static void probe_msix(struct driver *driver, unsigned capability)
{
	uint16_t control = (uint16_t)config_read(driver->rig, driver->slot, capability + PCI_MSIX_FLAGS, 2);
	uint64_t table = driver->bar + (config_read(driver->rig, driver->slot, capability + 4, 4) & ~7u);

	config_write(
		driver->rig, driver->slot, capability + PCI_MSIX_FLAGS, control | PCI_MSIX_FLAGS_ENABLE, 2);
	for (unsigned i = 0; i <= (control & PCI_MSIX_FLAGS_QSIZE); i++)
		set_vector(driver, table, i, MESSAGE_CONFIG + i);
}

static void probe_virtio(struct driver *driver, unsigned capability)
{
	struct rig *rig = driver->rig;
	uint64_t address = driver->bar + config_read(rig, driver->slot, capability + 8, 4);

	switch (config_read(rig, driver->slot, capability + 3, 1)) {
	case VIRTIO_PCI_CAP_COMMON_CFG:
		driver->common = address;
		break;
	case VIRTIO_PCI_CAP_ISR_CFG:
		driver->isr = address;
		break;
	case VIRTIO_PCI_CAP_DEVICE_CFG:
		driver->config = address;
		break;
	case VIRTIO_PCI_CAP_NOTIFY_CFG:
		driver->notify = address;
		driver->notify_step = config_read(rig, driver->slot, capability + 16, 4);
		break;
	}
}

void driver_probe(struct driver *driver, struct rig *rig, unsigned slot)
{
	unsigned msix = 0;

	*driver = (struct driver){.rig = rig, .slot = slot};
	assert_int_equal(config_read(rig, slot, PCI_VENDOR_ID, 2), 0x1af4);
	config_write(rig, slot, PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER, 2);
	driver->bar = config_read(rig, slot, PCI_BASE_ADDRESS_0, 4) & ~0xfu;
	for (unsigned at = config_read(rig, slot, PCI_CAPABILITY_LIST, 1), left = 32; at && left;
		at = config_read(rig, slot, at + 1, 1), left--) {
		if (config_read(rig, slot, at, 1) == PCI_CAP_ID_MSIX)
			msix = at;
		else if (config_read(rig, slot, at, 1) == PCI_CAP_ID_VNDR)
			probe_virtio(driver, at);
	}
	assert_true(driver->common && driver->isr && driver->notify && msix);
	probe_msix(driver, msix);
	driver->queues = (unsigned)mmio_read(rig, driver->common + common_offset(num_queues), 2);
}

uint8_t driver_status(struct driver *driver)
{
	return (uint8_t)mmio_read(driver->rig, driver->common + common_offset(device_status), 1);
}

static void add_status(struct driver *driver, uint8_t bit)
{
	mmio_write(
		driver->rig, driver->common + common_offset(device_status), driver_status(driver) | bit, 1);
}

uint64_t driver_offered(struct driver *driver)
{
	uint64_t common = driver->common, low;

	mmio_write(driver->rig, common + common_offset(device_feature_select), 0, 4);
	low = mmio_read(driver->rig, common + common_offset(device_feature), 4);
	mmio_write(driver->rig, common + common_offset(device_feature_select), 1, 4);
	return low | mmio_read(driver->rig, common + common_offset(device_feature), 4) << 32;
}

static void set_up_ring(struct driver *driver, unsigned queue, uint16_t size)
{
	struct rig *rig = driver->rig;
	struct ring *ring = &driver->rings[queue];
	uint64_t common = driver->common;

	*ring = (struct ring){.size = size,
		.table_gpa = rig_allocate(rig, size * 16u),
		.available_gpa = rig_allocate(rig, 6 + size * 2u),
		.used_gpa = rig_allocate(rig, 6 + size * 8u)};
	ring->table = rig_at(rig, ring->table_gpa);
	ring->available = rig_at(rig, ring->available_gpa);
	ring->used = rig_at(rig, ring->used_gpa);
	mmio_write(rig, common + common_offset(queue_select), queue, 2);
	mmio_write(rig, common + common_offset(queue_size), size, 2);
	mmio_write(rig, common + common_offset(queue_desc_lo), ring->table_gpa, 8);
	mmio_write(rig, common + common_offset(queue_avail_lo), ring->available_gpa, 4);
	mmio_write(rig, common + common_offset(queue_used_lo), ring->used_gpa, 4);
	mmio_write(rig, common + common_offset(queue_msix_vector), queue + 1, 2);
	mmio_write(rig, common + common_offset(queue_enable), 1, 2);
}

void driver_start(struct driver *driver, uint64_t features, uint16_t size)
{
	struct rig *rig = driver->rig;
	uint64_t common = driver->common;

	mmio_write(rig, common + common_offset(device_status), 0, 1);
	assert_int_equal(driver_status(driver), 0);
	add_status(driver, VIRTIO_CONFIG_S_ACKNOWLEDGE);
	add_status(driver, VIRTIO_CONFIG_S_DRIVER);
	driver->features = driver_offered(driver) & (features | 1ull << VIRTIO_F_VERSION_1);
	for (unsigned word = 0; word < 2; word++) {
		mmio_write(rig, common + common_offset(guest_feature_select), word, 4);
		mmio_write(rig, common + common_offset(guest_feature),
			(uint32_t)(driver->features >> 32 * word), 4);
	}
	add_status(driver, VIRTIO_CONFIG_S_FEATURES_OK);
	assert_true(driver_status(driver) & VIRTIO_CONFIG_S_FEATURES_OK);
	mmio_write(rig, common + common_offset(msix_config), 0, 2);
	for (unsigned i = 0; i < driver->queues; i++)
		set_up_ring(driver, i, size);
	add_status(driver, VIRTIO_CONFIG_S_DRIVER_OK);
}

static void fill_descriptor(
	struct vring_desc *descriptor, const struct piece *piece, bool more, uint16_t next)
{
	*descriptor = (struct vring_desc){.addr = piece->gpa,
		.len = piece->size,
		.flags = (uint16_t)((piece->write ? VRING_DESC_F_WRITE : 0) | (more ? VRING_DESC_F_NEXT : 0)),
		.next = next};
}

static void make_available(struct ring *ring, uint16_t head)
{
	ring->available->ring[ring->available->idx % ring->size] = head;
	__atomic_store_n(&ring->available->idx, (uint16_t)(ring->available->idx + 1), __ATOMIC_RELEASE);
}

uint16_t driver_add(
	struct driver *driver, unsigned queue, const struct piece *pieces, unsigned count, bool indirect)
{
	struct ring *ring = &driver->rings[queue];
	uint16_t head = ring->next_descriptor % ring->size;

	if (indirect) {
		uint64_t gpa = rig_allocate(driver->rig, count * 16u);
		struct vring_desc *table = rig_at(driver->rig, gpa);

		for (unsigned i = 0; i < count; i++)
			fill_descriptor(&table[i], &pieces[i], i + 1 < count, (uint16_t)(i + 1));
		ring->table[head] = (struct vring_desc){gpa, count * 16u, VRING_DESC_F_INDIRECT, 0};
		ring->next_descriptor++;
	} else {
		for (unsigned i = 0; i < count; i++) {
			uint16_t at = ring->next_descriptor++ % ring->size;

			fill_descriptor(&ring->table[at], &pieces[i], i + 1 < count,
				ring->next_descriptor % ring->size);
		}
	}
	make_available(ring, head);
	return head;
}

bool driver_kick(struct driver *driver, unsigned queue)
{
	struct ring *ring = &driver->rings[queue];
	bool wanted = !(ring->used->flags & VRING_USED_F_NO_NOTIFY);

	if (driver->features >> VIRTIO_RING_F_EVENT_IDX & 1) {
		uint16_t event;

		memcpy(&event, &ring->used->ring[ring->size], sizeof(event));
		wanted = vring_need_event(event, ring->available->idx, (uint16_t)(ring->available->idx - 1));
	}
	if (wanted)
		mmio_write(driver->rig, driver->notify + queue * driver->notify_step, queue, 2);
	return wanted;
}

struct waiting {
	struct driver *driver;
	unsigned queue;
};

bool driver_has_used(struct driver *driver, unsigned queue)
{
	struct ring *ring = &driver->rings[queue];

	return __atomic_load_n(&ring->used->idx, __ATOMIC_ACQUIRE) != ring->seen;
}

static bool is_used(void *context)
{
	struct waiting *waiting = context;

	return driver_has_used(waiting->driver, waiting->queue);
}

struct vring_used_elem driver_wait(struct driver *driver, unsigned queue)
{
	struct ring *ring = &driver->rings[queue];
	struct waiting waiting = {driver, queue};
	struct vring_used_elem element;

	rig_run_until(driver->rig, is_used, &waiting);
	element = ring->used->ring[ring->seen++ % ring->size];
	/* The event index asks for an interrupt with the next one. */
	memcpy(&ring->available->ring[ring->size], &ring->seen, sizeof(ring->seen));
	return element;
}

static bool is_broken(void *context)
{
	return driver_status(context) & VIRTIO_CONFIG_S_NEEDS_RESET;
}

void driver_wait_broken(struct driver *driver)
{
	rig_run_until(driver->rig, is_broken, driver);
}
