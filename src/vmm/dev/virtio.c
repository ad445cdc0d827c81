#include "vmm/dev/virtio.h"
#include "base/cleanup.h"
#include "base/log.h"

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>

#define VIRTIO_VENDOR 0x1af4u
#define VIRTIO_DEVICE_BASE 0x1040u /* 4.1.2: PCI device ID of a non-transitional device, plus its type */
#define COMPLAINTS_MAX 10u         /* a hostile guest shall not fill the host's logs */
#define NS 1000000000ll
#define MASTER_LEAVES_NS (10 * NS) /* storage that takes longer may hold up a pause as long */
#define EVERY_DEVICE                                                                                         \
	(1ull << VIRTIO_F_VERSION_1 | 1ull << VIRTIO_RING_F_INDIRECT_DESC | 1ull << VIRTIO_RING_F_EVENT_IDX)

static const struct field virtio_fields[] = {
	FIELD_NESTED(struct virtio_device, pci, 1, &pci_state),
	FIELD(struct virtio_device, accepted, FIELD_U64),
	FIELD(struct virtio_device, offered_select, FIELD_U32),
	FIELD(struct virtio_device, accepted_select, FIELD_U32),
	FIELD(struct virtio_device, config_vector, FIELD_U16),
	FIELD(struct virtio_device, queue_select, FIELD_U16),
	FIELD(struct virtio_device, status, FIELD_U8),
	FIELD(struct virtio_device, generation, FIELD_U8),
	FIELD(struct virtio_device, isr, FIELD_U8),
	FIELD_VARYING(struct virtio_device, queues, queue_count, VIRTIO_QUEUES_MAX, &virtqueue_state),
};
const struct field_table virtio_state = FIELD_TABLE("virtio", 1, virtio_fields);

bool virtio_running(const struct virtio_device *device)
{
	return device->status & VIRTIO_CONFIG_S_DRIVER_OK && pci_may_master(&device->pci) &&
	       !(device->status & VIRTIO_CONFIG_S_NEEDS_RESET) && !device->resetting &&
	       !device->pci.platform->paused;
}

static unsigned index_of(const struct virtio_device *device, const struct virtqueue *queue)
{
	return (unsigned)(queue - device->queues);
}

static void queue_notified(void *context, uint32_t events)
{
	struct virtqueue *queue = context;

	(void)events;
	if (virtio_running(queue->owner) && virtqueue_ready(queue))
		queue->owner->class->notified(queue->owner, index_of(queue->owner, queue));
}

static void look_at_queues(struct virtio_device *device)
{
	for (unsigned i = 0; i < device->class->queue_count; i++)
		if (virtqueue_ready(&device->queues[i]))
			virtqueue_again(&device->queues[i]);
}

static void reset(struct virtio_device *device)
{
	device->resetting = false;
	if (device->class->reset)
		device->class->reset(device);
	device->accepted = 0;
	device->offered_select = device->accepted_select = 0;
	device->config_vector = VIRTIO_NO_VECTOR;
	device->queue_select = 0;
	device->status = device->isr = 0;
	for (unsigned i = 0; i < device->class->queue_count; i++)
		virtqueue_reset(&device->queues[i]);
}

static bool busy(struct virtio_device *device)
{
	const struct device_class *class = device->pci.device.class;

	return class->busy && class->busy(&device->pci.device);
}

void virtio_settled(struct virtio_device *device)
{
	struct platform *platform = device->pci.platform;

	if (device->resetting)
		reset(device);
	pthread_cond_broadcast(&device->settled);
	if (platform->paused && platform->settled)
		platform->settled(platform->machine);
}

/*
 * A device that is no master any more has nothing under way when the driver goes on; else what it was asked
 * to read would come into memory that has become somebody else's. Called on a vCPU's thread: the loop goes
 * on.
 */
void virtio_command_written(struct virtio_device *device)
{
	struct timespec now;
	int64_t until;

	if (virtio_running(device))
		look_at_queues(device);
	if (pci_may_master(&device->pci))
		return;
	clock_gettime(CLOCK_MONOTONIC, &now);
	until = now.tv_sec * NS + now.tv_nsec + MASTER_LEAVES_NS;
	while (busy(device) && now.tv_sec * NS + now.tv_nsec < until) {
		loop_wait_until(device->pci.platform->loop, &device->settled, until);
		clock_gettime(CLOCK_MONOTONIC, &now);
	}
	if (busy(device))
		log_warning("%s in slot %u still has requests under way after the guest took the bus away.",
			device->class->name, device->pci.device.instance);
}

/* 3.1.1: the device agrees by leaving FEATURES_OK set. */
static bool features_acceptable(const struct virtio_device *device)
{
	return !(device->accepted & ~device->offered) && virtio_has(device, VIRTIO_F_VERSION_1);
}

void virtio_set_status(struct virtio_device *device, uint8_t status)
{
	uint8_t added = status & (uint8_t)~device->status;

	if (device->resetting)
		return;
	if (status == 0) {
		device->resetting = true; /* reads as before until it is done (4.1.4.3.1) */
		if (!busy(device))
			reset(device);
		return;
	}
	/* Only the device says NEEDS_RESET, and only a reset takes bits away (2.1.1). */
	added &= (uint8_t)~VIRTIO_CONFIG_S_NEEDS_RESET;
	if (added & VIRTIO_CONFIG_S_FEATURES_OK && !features_acceptable(device))
		added &= (uint8_t)~VIRTIO_CONFIG_S_FEATURES_OK;
	if (added & VIRTIO_CONFIG_S_DRIVER_OK && !((device->status | added) & VIRTIO_CONFIG_S_FEATURES_OK))
		added &= (uint8_t)~VIRTIO_CONFIG_S_DRIVER_OK;
	device->status |= added;
	if (added & VIRTIO_CONFIG_S_DRIVER_OK) {
		if (device->class->ready)
			device->class->ready(device);
		look_at_queues(device);
	}
}

void virtio_enable_queue(struct virtio_device *device, struct virtqueue *queue)
{
	if (queue->enabled)
		return;
	queue->enabled = true;
	if (virtqueue_map(queue, virtio_has(device, VIRTIO_RING_F_EVENT_IDX)) < 0)
		virtio_broken(device, queue, "does not lie in the guest's memory as it must");
}

void virtio_interrupt(struct virtio_device *device, const struct virtqueue *queue)
{
	if (!pci_msix_enabled(&device->pci))
		device->isr |= 1; /* 4.1.4.5 */
	else if (queue->vector != VIRTIO_NO_VECTOR)
		pci_trigger(&device->pci, queue->vector);
}

void virtio_config_changed(struct virtio_device *device)
{
	device->generation++;
	if (!(device->status & VIRTIO_CONFIG_S_DRIVER_OK))
		return;
	if (!pci_msix_enabled(&device->pci))
		device->isr |= 2; /* 4.1.4.5 */
	else if (device->config_vector != VIRTIO_NO_VECTOR)
		pci_trigger(&device->pci, device->config_vector);
}

void virtio_broken(struct virtio_device *device, const struct virtqueue *queue, const char *why)
{
	if (device->status & VIRTIO_CONFIG_S_NEEDS_RESET)
		return;
	if (device->complaints++ < COMPLAINTS_MAX)
		log_warning("The guest's driver of %s in slot %u broke the rules: queue %u %s. "
			    "The device stops until the guest resets it.",
			device->class->name, device->pci.device.instance, index_of(device, queue), why);
	device->status |= VIRTIO_CONFIG_S_NEEDS_RESET;
	virtio_config_changed(device);
}

void virtio_resume(struct device *base)
{
	struct virtio_device *device = virtio_of(base);
	bool restored = device->restored;

	device->restored = false;
	if (!virtio_running(device))
		return;
	/* An interrupt may have been on its way into the guest when its state was taken; one too many does no
	 * harm. */
	for (unsigned i = 0; restored && i < device->class->queue_count; i++)
		virtqueue_interrupt(&device->queues[i]);
	look_at_queues(device);
}

int virtio_after_load(struct device *base, struct error *error)
{
	struct virtio_device *device = virtio_of(base);
	int r = pci_after_load(&device->pci, error);

	if (r < 0)
		return r;
	if (device->queue_count != device->class->queue_count)
		return error_set(error, EINVAL,
			"The state of %s in slot %u has %u queues, this Ferry's has %u.", device->class->name,
			base->instance, device->queue_count, device->class->queue_count);
	if (device->status & VIRTIO_CONFIG_S_FEATURES_OK && !features_acceptable(device))
		return error_set(error, ENOTSUP,
			"The guest uses features 0x%llx of %s in slot %u, of which this host has only "
			"0x%llx.",
			(unsigned long long)device->accepted, device->class->name, base->instance,
			(unsigned long long)device->offered);
	device->restored = true;
	for (unsigned i = 0; i < device->queue_count; i++) {
		struct virtqueue *queue = &device->queues[i];

		queue->table = NULL;
		if (queue->enabled && !(device->status & VIRTIO_CONFIG_S_NEEDS_RESET) &&
			virtqueue_map(queue, virtio_has(device, VIRTIO_RING_F_EVENT_IDX)) < 0)
			return error_set(error, EINVAL,
				"The state of %s in slot %u has a queue outside the guest's memory.",
				device->class->name, base->instance);
	}
	if (device->status & VIRTIO_CONFIG_S_DRIVER_OK && device->class->ready)
		device->class->ready(device);
	return 0;
}

static int add_queue(struct virtio_device *device, struct virtqueue *queue, struct error *error)
{
	_cleanup_close_ int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	int r;

	if (fd < 0)
		return error_set(error, errno, "Unable to make an eventfd for %s: %s.", device->class->name,
			strerror(errno));
	queue->notified = (struct watch){.fd = fd, .handler = queue_notified, .context = queue};
	/* An edge for each notification: the eventfd is never read. */
	r = loop_add(device->pci.platform->loop, &queue->notified, EPOLLIN | EPOLLET, error);
	if (r < 0)
		return r;
	take_fd(&fd);
	queue->owner = device;
	queue->memory = device->pci.platform->memory;
	queue->size_max = device->class->queue_size;
	virtqueue_reset(queue);
	return 0;
}

int virtio_init(struct virtio_device *device, const struct virtio_class *class, struct platform *platform,
	unsigned slot, uint64_t features, const void *config, size_t config_size, struct error *error)
{
	const struct pci_identity identity = {.vendor = VIRTIO_VENDOR,
		.device = (uint16_t)(VIRTIO_DEVICE_BASE + class->type),
		.subsystem_vendor = VIRTIO_VENDOR,
		.subsystem = class->type,
		.revision = 1,
		.class_code = class->class_code};
	int r;

	device->pci.device.class = class->device;
	device->pci.class = &virtio_pci_class;
	device->class = class;
	device->offered = features | EVERY_DEVICE;
	pthread_cond_init(&device->settled, NULL);
	device->config_size = (unsigned)config_size;
	if (config_size)
		memcpy(device->config, config, config_size);
	r = pci_add(&device->pci, platform, slot, &identity, class->queue_count + 1, error);
	if (r < 0)
		return r;
	virtio_pci_capabilities(device);
	device->config_vector = VIRTIO_NO_VECTOR;
	for (unsigned i = 0; i < class->queue_count; i++) {
		r = add_queue(device, &device->queues[i], error);
		if (r < 0) {
			virtio_end(device);
			return r;
		}
		device->queue_count = i + 1;
	}
	return 0;
}

void virtio_end(struct virtio_device *device)
{
	pthread_cond_destroy(&device->settled);
	pci_remove(&device->pci);
	for (unsigned i = 0; i < device->class->queue_count; i++) {
		struct watch *notified = &device->queues[i].notified;

		if (!notified->handler)
			continue;
		loop_remove(device->pci.platform->loop, notified);
		close(notified->fd);
		notified->handler = NULL;
	}
}
