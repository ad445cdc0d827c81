#include "vmm/interrupts.h"
#include "base/cleanup.h"

#include <errno.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>

#define LINES 24u /* of KVM's IOAPIC (Linux arch/x86/kvm/ioapic.h, IOAPIC_NUM_PINS) */
#define PIC_LINES 16u
#define MESSAGES_MAX 1024u /* 31 slots of PCI_MSIX_VECTORS_MAX fit */

struct interrupts {
	int vm;                                       /* borrowed */
	struct message_vector *vectors[MESSAGES_MAX]; /* by gsi - LINES */
};

/* The whole table is given to KVM at once: lines go to PIC and IOAPIC pins of the same number, messages as
 * enabled. */
static int set_routes(struct interrupts *interrupts, struct error *error)
{
	size_t most = PIC_LINES + LINES + MESSAGES_MAX;
	_cleanup_free_ struct kvm_irq_routing *table = NULL;
	struct kvm_irq_routing_entry *entry;

	table = calloc(1, sizeof(*table) + most * sizeof(table->entries[0]));
	if (!table)
		return error_set(error, ENOMEM, "Out of memory while routing interrupts.");
	entry = table->entries;
	for (uint32_t line = 0; line < PIC_LINES; line++)
		*entry++ = (struct kvm_irq_routing_entry){.gsi = line,
			.type = KVM_IRQ_ROUTING_IRQCHIP,
			.u.irqchip = {.irqchip = line < 8 ? KVM_IRQCHIP_PIC_MASTER : KVM_IRQCHIP_PIC_SLAVE,
				.pin = line % 8}};
	for (uint32_t line = 0; line < LINES; line++)
		*entry++ = (struct kvm_irq_routing_entry){.gsi = line,
			.type = KVM_IRQ_ROUTING_IRQCHIP,
			.u.irqchip = {.irqchip = KVM_IRQCHIP_IOAPIC, .pin = line}};
	for (size_t i = 0; i < MESSAGES_MAX; i++) {
		const struct message_vector *vector = interrupts->vectors[i];

		if (vector && vector->enabled)
			*entry++ = (struct kvm_irq_routing_entry){.gsi = vector->gsi,
				.type = KVM_IRQ_ROUTING_MSI,
				.u.msi = {.address_lo = (uint32_t)vector->address,
					.address_hi = (uint32_t)(vector->address >> 32),
					.data = vector->data}};
	}
	table->nr = (uint32_t)(entry - table->entries);
	if (ioctl(interrupts->vm, KVM_SET_GSI_ROUTING, table) < 0)
		return error_set(error, errno, "KVM refuses the routing of interrupts: %s.", strerror(errno));
	return 0;
}

struct interrupts *interrupts_new(int vm_fd, struct error *error)
{
	struct interrupts *interrupts = calloc(1, sizeof(*interrupts));

	if (!interrupts) {
		error_set(error, ENOMEM, "Out of memory while making the interrupt controllers.");
		return NULL;
	}
	interrupts->vm = vm_fd;
	if (set_routes(interrupts, error) < 0) {
		free(interrupts);
		return NULL;
	}
	return interrupts;
}

void interrupts_free(struct interrupts *interrupts)
{
	free(interrupts);
}

void interrupts_line(struct interrupts *interrupts, unsigned gsi, bool high)
{
	struct kvm_irq_level level = {.irq = gsi, .level = high};

	/* Fails only for a VM without an irqchip, and every machine has one. */
	if (ioctl(interrupts->vm, KVM_IRQ_LINE, &level) < 0)
		return;
}

static int set_irqfd(struct interrupts *interrupts, const struct message_vector *vector, uint32_t flags,
	struct error *error)
{
	struct kvm_irqfd request = {.fd = (uint32_t)vector->eventfd, .gsi = vector->gsi, .flags = flags};

	if (ioctl(interrupts->vm, KVM_IRQFD, &request) < 0)
		return error_set(
			error, errno, "KVM refuses an interrupt's descriptor (irqfd): %s.", strerror(errno));
	return 0;
}

int message_vector_open(struct interrupts *interrupts, struct message_vector *vector, struct error *error)
{
	size_t place = 0;
	int r;

	while (place < MESSAGES_MAX && interrupts->vectors[place])
		place++;
	if (place == MESSAGES_MAX)
		return error_set(
			error, ENOSPC, "The machine has no more than %u message interrupts.", MESSAGES_MAX);
	*vector = (struct message_vector){
		.eventfd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), .gsi = LINES + (uint32_t)place};
	if (vector->eventfd < 0)
		return error_set(
			error, errno, "Unable to make an interrupt's descriptor: %s.", strerror(errno));
	r = set_irqfd(interrupts, vector, 0, error);
	if (r < 0) {
		close(vector->eventfd);
		vector->eventfd = -1;
		return r;
	}
	interrupts->vectors[place] = vector;
	return 0;
}

void message_vector_close(struct interrupts *interrupts, struct message_vector *vector)
{
	bool routed = vector->enabled;

	if (vector->eventfd < 0)
		return;
	set_irqfd(interrupts, vector, KVM_IRQFD_FLAG_DEASSIGN, NULL);
	interrupts->vectors[vector->gsi - LINES] = NULL;
	vector->enabled = false;
	if (routed)
		set_routes(interrupts, NULL);
	close(vector->eventfd);
	vector->eventfd = -1;
}

int message_vector_set(struct interrupts *interrupts, struct message_vector *vector, uint64_t address,
	uint32_t data, bool enabled, struct error *error)
{
	bool same = vector->enabled == enabled &&
		    (!enabled || (vector->address == address && vector->data == data));

	vector->address = address;
	vector->data = data;
	vector->enabled = enabled;
	return same ? 0 : set_routes(interrupts, error);
}

void message_vector_trigger(struct message_vector *vector)
{
	uint64_t one = 1;

	/* A full counter has the interrupt pending already. */
	if (write(vector->eventfd, &one, sizeof(one)) < 0)
		return;
}

static int set_ioeventfd(
	struct interrupts *interrupts, uint64_t address, unsigned size, int eventfd, uint32_t flags)
{
	struct kvm_ioeventfd request = {.addr = address, .len = size, .fd = eventfd, .flags = flags};

	return ioctl(interrupts->vm, KVM_IOEVENTFD, &request) < 0 ? -errno : 0;
}

int notify_add(
	struct interrupts *interrupts, uint64_t address, unsigned size, int eventfd, struct error *error)
{
	int r = set_ioeventfd(interrupts, address, size, eventfd, 0);

	if (r < 0)
		return error_set(
			error, -r, "KVM refuses a queue's descriptor (ioeventfd): %s.", strerror(-r));
	return 0;
}

void notify_remove(struct interrupts *interrupts, uint64_t address, unsigned size, int eventfd)
{
	set_ioeventfd(interrupts, address, size, eventfd, KVM_IOEVENTFD_FLAG_DEASSIGN);
}
