/*
 * The console hub: between the guest's console devices (16550, virtio console)
 * and whoever looks at the guest's console.
 *
 * Output of every device goes into one history ring and to all attached streams;
 * input from any stream goes to the device that printed last. The ring is part of
 * the guest's saved state. A slow stream loses output, it never stalls the guest.
 *
 * A device embeds a port:
 *
 *	device->port = (struct console_port){.input = look_for_input, .context = device};
 *	console_port_add(hub, &device->port);
 *	...
 *	console_output(&device->port, data, size);		// the guest printed
 *	size = console_input(&device->port, data, sizeof(data));	// 0: nothing for this port now
 */
#pragma once

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>

struct platform;
struct console_hub;

struct console_port {
	void (*input)(void *context); /* input waits for this port; take as much as there is room for */
	void *context;
	struct console_hub *hub;   /* set by console_port_add, NULL outside a hub */
	struct console_port *next; /* the hub's */
};

/*
 * The hub is a device of the platform (its state is the ring), which frees it. The ring keeps the last
 * limit_kib KiB of output; memory for it is allocated as it fills. NULL with a sentence on failure.
 */
struct console_hub *console_hub_new(struct platform *platform, unsigned limit_kib, struct error *error);

/* The first port that is added gets input until another one prints. */
void console_port_add(struct console_hub *hub, struct console_port *port);
void console_port_remove(struct console_port *port);

/* The guest printed `size` bytes on the port. */
void console_output(struct console_port *port, const void *data, size_t size);

/*
 * Takes up to `size` bytes of input meant for this port; 0 where there is none. Input that a port leaves
 * waits: the hub then stops reading its streams, and the port asks again when it has room.
 */
size_t console_input(struct console_port *port, void *data, size_t size);

/* Attaches a stream socket (taken over in case of success), with the history first where asked. */
int console_attach(struct console_hub *hub, int stream, bool history, struct error *error);
