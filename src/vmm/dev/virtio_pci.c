/* The virtio-pci transport (virtio 1.2, 4.1): registers in BAR 0 and the capabilities that say where they
 * are. */
#include "vmm/dev/virtio.h"
#include "base/cleanup.h"
#include "base/log.h"

#include <linux/pci_regs.h>
#include <linux/virtio_pci.h>
#include <stddef.h>
#include <string.h>

#define COMMON_SIZE sizeof(struct virtio_pci_common_cfg)

static struct virtqueue *selected(struct virtio_device *device)
{
	return device->queue_select < device->class->queue_count ? &device->queues[device->queue_select]
								 : NULL;
}

static uint32_t feature_word(uint64_t features, uint32_t select)
{
	return select < 2 ? (uint32_t)(features >> 32 * select) : 0;
}

/* All of 4.1.4.3 as the driver would read it now, so that accesses of any width are right. */
static struct virtio_pci_common_cfg common_registers(struct virtio_device *device)
{
	const struct virtqueue *queue = selected(device);
	struct virtio_pci_common_cfg registers = {
		.device_feature_select = device->offered_select,
		.device_feature = feature_word(device->offered, device->offered_select),
		.guest_feature_select = device->accepted_select,
		.guest_feature = feature_word(device->accepted, device->accepted_select),
		.msix_config = device->config_vector,
		.num_queues = (uint16_t)device->class->queue_count,
		.device_status = device->status,
		.config_generation = device->generation,
		.queue_select = device->queue_select,
		.queue_msix_vector = VIRTIO_NO_VECTOR,
	};

	if (queue) {
		registers.queue_size = queue->size;
		registers.queue_msix_vector = queue->vector;
		registers.queue_enable = queue->enabled;
		registers.queue_notify_off = device->queue_select;
		registers.queue_desc_lo = (uint32_t)queue->descriptors;
		registers.queue_desc_hi = (uint32_t)(queue->descriptors >> 32);
		registers.queue_avail_lo = (uint32_t)queue->driver;
		registers.queue_avail_hi = (uint32_t)(queue->driver >> 32);
		registers.queue_used_lo = (uint32_t)queue->device;
		registers.queue_used_hi = (uint32_t)(queue->device >> 32);
	}
	return registers;
}

static void set_half(uint64_t *value, uint32_t half, bool high)
{
	*value = high ? (*value & 0xffffffffu) | (uint64_t)half << 32 : (*value & ~0xffffffffull) | half;
}

static uint16_t valid_vector(const struct virtio_device *device, uint32_t vector)
{
	return vector < device->pci.vector_count ? (uint16_t)vector : VIRTIO_NO_VECTOR;
}

static void set_accepted(struct virtio_device *device, uint32_t word)
{
	if (device->accepted_select < 2 && !(device->status & VIRTIO_CONFIG_S_FEATURES_OK))
		set_half(&device->accepted, word, device->accepted_select);
}

static void queue_write(struct virtio_device *device, struct virtqueue *queue, size_t offset, uint32_t value)
{
	if (offset == offsetof(struct virtio_pci_common_cfg, queue_msix_vector))
		queue->vector = valid_vector(device, value);
	if (queue->enabled)
		return; /* in use: where it is and how long it is stays (4.1.4.3.2) */
	switch (offset) {
	case offsetof(struct virtio_pci_common_cfg, queue_size):
		queue->size = (uint16_t)value;
		break;
	case offsetof(struct virtio_pci_common_cfg, queue_enable):
		if (value == 1)
			virtio_enable_queue(device, queue);
		break;
	case offsetof(struct virtio_pci_common_cfg, queue_desc_lo):
	case offsetof(struct virtio_pci_common_cfg, queue_desc_hi):
		set_half(&queue->descriptors, value, offset & 4);
		break;
	case offsetof(struct virtio_pci_common_cfg, queue_avail_lo):
	case offsetof(struct virtio_pci_common_cfg, queue_avail_hi):
		set_half(&queue->driver, value, offset & 4);
		break;
	case offsetof(struct virtio_pci_common_cfg, queue_used_lo):
	case offsetof(struct virtio_pci_common_cfg, queue_used_hi):
		set_half(&queue->device, value, offset & 4);
		break;
	}
}

static void common_write(struct virtio_device *device, size_t offset, uint32_t value)
{
	struct virtqueue *queue = selected(device);

	if (device->resetting)
		return;
	switch (offset) {
	case offsetof(struct virtio_pci_common_cfg, device_feature_select):
		device->offered_select = value;
		break;
	case offsetof(struct virtio_pci_common_cfg, guest_feature_select):
		device->accepted_select = value;
		break;
	case offsetof(struct virtio_pci_common_cfg, guest_feature):
		set_accepted(device, value);
		break;
	case offsetof(struct virtio_pci_common_cfg, msix_config):
		device->config_vector = valid_vector(device, value);
		break;
	case offsetof(struct virtio_pci_common_cfg, device_status):
		virtio_set_status(device, (uint8_t)value);
		break;
	case offsetof(struct virtio_pci_common_cfg, queue_select):
		device->queue_select = (uint16_t)value;
		break;
	default:
		if (queue)
			queue_write(device, queue, offset, value);
	}
}

static const struct {
	uint8_t offset, size;
} common_fields[] = {
#define REGISTER(member)                                                                                     \
	{                                                                                                    \
		offsetof(struct virtio_pci_common_cfg, member),                                              \
			sizeof(((struct virtio_pci_common_cfg *)0)->member)                                  \
	}
	REGISTER(device_feature_select),
	REGISTER(guest_feature_select),
	REGISTER(guest_feature),
	REGISTER(msix_config),
	REGISTER(device_status),
	REGISTER(queue_select),
	REGISTER(queue_size),
	REGISTER(queue_msix_vector),
	REGISTER(queue_enable),
	REGISTER(queue_desc_lo),
	REGISTER(queue_desc_hi),
	REGISTER(queue_avail_lo),
	REGISTER(queue_avail_hi),
	REGISTER(queue_used_lo),
	REGISTER(queue_used_hi),
#undef REGISTER
};

/* Drivers write whole fields (4.1.3.1), 64-bit ones in one or two accesses; anything else is ignored. */
static void common_write_access(
	struct virtio_device *device, uint64_t offset, const void *data, unsigned size)
{
	uint32_t value = 0;

	if (size == 8) {
		common_write_access(device, offset, data, 4);
		common_write_access(device, offset + 4, (const char *)data + 4, 4);
		return;
	}
	memcpy(&value, data, size);
	for (size_t i = 0; i < ARRAY_SIZE(common_fields); i++)
		if (common_fields[i].offset == offset && common_fields[i].size == size)
			common_write(device, offset, value);
}

static void copy_within(const void *from, size_t from_size, uint64_t offset, void *data, unsigned size)
{
	memset(data, 0, size);
	if (offset < from_size)
		memcpy(data, (const char *)from + offset,
			size < from_size - offset ? size : from_size - offset);
}

static void bar_read(struct pci_device *pci, uint64_t offset, void *data, unsigned size)
{
	struct virtio_device *device = CONTAINER_OF(pci, struct virtio_device, pci);
	struct virtio_pci_common_cfg registers;

	switch (offset & ~0xfffull) {
	case VIRTIO_BAR_COMMON:
		registers = common_registers(device);
		copy_within(&registers, COMMON_SIZE, offset - VIRTIO_BAR_COMMON, data, size);
		break;
	case VIRTIO_BAR_ISR:
		copy_within(&device->isr, sizeof(device->isr), offset - VIRTIO_BAR_ISR, data, size);
		if (offset == VIRTIO_BAR_ISR)
			device->isr = 0; /* 4.1.4.5.1 */
		break;
	case VIRTIO_BAR_CONFIG:
		copy_within(device->config, device->config_size, offset - VIRTIO_BAR_CONFIG, data, size);
		break;
	default:
		memset(data, 0, size);
	}
}

static void bar_write(struct pci_device *pci, uint64_t offset, const void *data, unsigned size)
{
	struct virtio_device *device = CONTAINER_OF(pci, struct virtio_device, pci);
	uint64_t queue = (offset - VIRTIO_BAR_NOTIFY) / VIRTIO_BAR_NOTIFY_STEP;

	if (offset < COMMON_SIZE)
		common_write_access(device, offset - VIRTIO_BAR_COMMON, data, size);
	else if (offset >= VIRTIO_BAR_NOTIFY && queue < device->class->queue_count)
		virtqueue_again(&device->queues[queue]); /* where no ioeventfd took it */
}

/* Notifications go through ioeventfds; where KVM has no more of them, through exits, which is slower and
 * works. */
static void bar_moved(struct pci_device *pci, uint64_t from, uint64_t to)
{
	struct virtio_device *device = CONTAINER_OF(pci, struct virtio_device, pci);
	struct interrupts *interrupts = pci->platform->interrupts;
	struct error error = {0};

	for (unsigned i = 0; i < device->queue_count; i++) {
		uint64_t offset = VIRTIO_BAR_NOTIFY + i * VIRTIO_BAR_NOTIFY_STEP;
		int fd = device->queues[i].notified.fd;

		if (from != PCI_BAR_NOWHERE)
			notify_remove(interrupts, from + offset, 0, fd);
		if (to != PCI_BAR_NOWHERE && notify_add(interrupts, to + offset, 0, fd, &error) < 0)
			log_warning("Notifications of %s in slot %u will be slow: %s", device->class->name,
				pci->device.instance, error.text);
	}
}

/* 4.1.4.9: access to BAR 0 through configuration space, for those who cannot reach the BAR. */
static bool config_access(
	struct virtio_device *device, unsigned offset, unsigned size, struct virtio_pci_cfg_cap *access)
{
	unsigned data = device->pci_access + (unsigned)offsetof(struct virtio_pci_cfg_cap, pci_cfg_data);

	if (!device->pci_access || offset >= data + 4 || offset + size <= data)
		return false;
	memcpy(access, device->pci.config + device->pci_access, sizeof(*access));
	return access->cap.bar == 0 &&
	       (access->cap.length == 1 || access->cap.length == 2 || access->cap.length == 4) &&
	       access->cap.offset % access->cap.length == 0 && access->cap.offset < PCI_BAR_MSIX_TABLE;
}

static void config_read(struct pci_device *pci, unsigned offset, unsigned size)
{
	struct virtio_device *device = CONTAINER_OF(pci, struct virtio_device, pci);
	struct virtio_pci_cfg_cap access;

	if (!config_access(device, offset, size, &access))
		return;
	bar_read(pci, access.cap.offset, access.pci_cfg_data, access.cap.length);
	memcpy(pci->config + device->pci_access, &access, sizeof(access));
}

static void config_written(struct pci_device *pci, unsigned offset, unsigned size)
{
	struct virtio_device *device = CONTAINER_OF(pci, struct virtio_device, pci);
	struct virtio_pci_cfg_cap access;

	if (config_access(device, offset, size, &access))
		bar_write(pci, access.cap.offset, access.pci_cfg_data, access.cap.length);
}

static void command_written(struct pci_device *pci)
{
	virtio_command_written(CONTAINER_OF(pci, struct virtio_device, pci));
}

const struct pci_class virtio_pci_class = {
	.bar_read = bar_read,
	.bar_write = bar_write,
	.bar_moved = bar_moved,
	.config_read = config_read,
	.config_written = config_written,
	.command_written = command_written,
};

/* The capability's body: what follows id and next pointer. */
static unsigned add_capability(
	struct virtio_device *device, void *capability, const void *writable, size_t size)
{
	((struct virtio_pci_cap *)capability)->cap_len = (uint8_t)size;
	return pci_capability(&device->pci, PCI_CAP_ID_VNDR, (char *)capability + 2,
		writable ? (const char *)writable + 2 : NULL, (unsigned)size - 2);
}

void virtio_pci_capabilities(struct virtio_device *device)
{
	struct virtio_pci_cap common = {
		.cfg_type = VIRTIO_PCI_CAP_COMMON_CFG, .offset = VIRTIO_BAR_COMMON, .length = COMMON_SIZE};
	struct virtio_pci_cap isr = {
		.cfg_type = VIRTIO_PCI_CAP_ISR_CFG, .offset = VIRTIO_BAR_ISR, .length = 1};
	struct virtio_pci_cap config = {.cfg_type = VIRTIO_PCI_CAP_DEVICE_CFG,
		.offset = VIRTIO_BAR_CONFIG,
		.length = device->config_size};
	struct virtio_pci_notify_cap notify = {
		.cap = {.cfg_type = VIRTIO_PCI_CAP_NOTIFY_CFG,
			.offset = VIRTIO_BAR_NOTIFY,
			.length = device->class->queue_count * VIRTIO_BAR_NOTIFY_STEP},
		.notify_off_multiplier = VIRTIO_BAR_NOTIFY_STEP};
	struct virtio_pci_cfg_cap access = {.cap = {.cfg_type = VIRTIO_PCI_CAP_PCI_CFG}};
	struct virtio_pci_cfg_cap writable = {
		.cap = {.bar = 0xff, .offset = 0xffffffff, .length = 0xffffffff},
		.pci_cfg_data = {0xff, 0xff, 0xff, 0xff}};

	add_capability(device, &common, NULL, sizeof(common));
	add_capability(device, &isr, NULL, sizeof(isr));
	if (device->config_size)
		add_capability(device, &config, NULL, sizeof(config));
	add_capability(device, &notify, NULL, sizeof(notify));
	device->pci_access = add_capability(device, &access, &writable, sizeof(access));
}
