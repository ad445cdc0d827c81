/*
 * Interrupts and notifications between devices and KVM.
 *
 * The irqchip is KVM's: PIC and IOAPIC lines by number (GSI 0 to 23), messages
 * (MSI) through irqfd and the GSI routing table, queue notifications through
 * ioeventfd. So neither an interrupt nor a notification leaves the kernel's
 * fast path.
 */
#pragma once

#include "base/error.h"

#include <stdbool.h>
#include <stdint.h>

struct interrupts;

struct interrupts *interrupts_new(int vm_fd, struct error *error);
void interrupts_free(struct interrupts *interrupts);

/* Level of an IOAPIC/PIC line. An edge is a rise followed by a fall. */
void interrupts_line(struct interrupts *interrupts, unsigned gsi, bool high);

/* One message vector: an eventfd that KVM turns into the message when written. */
struct message_vector {
	int eventfd;  /* -1 while not in use */
	uint32_t gsi; /* its place in the routing table, from 24 */
	uint64_t address;
	uint32_t data;
	bool enabled;
};

/* Takes a routing entry and an eventfd; nothing is delivered until it is enabled. */
int message_vector_open(struct interrupts *interrupts, struct message_vector *vector, struct error *error);
void message_vector_close(struct interrupts *interrupts, struct message_vector *vector);

/* (Re)routes the vector: message, and whether it is delivered (unmasked). A trigger while disabled is kept by
 * the caller (MSI-X pending bits). */
int message_vector_set(struct interrupts *interrupts, struct message_vector *vector, uint64_t address,
	uint32_t data, bool enabled, struct error *error);
void message_vector_trigger(struct message_vector *vector);

/* Guest writes of `size` bytes (0: any) to an MMIO address signal eventfd instead of an exit. */
int notify_add(
	struct interrupts *interrupts, uint64_t address, unsigned size, int eventfd, struct error *error);
void notify_remove(struct interrupts *interrupts, uint64_t address, unsigned size, int eventfd);
