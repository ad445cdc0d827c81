#include "vmm/dev/console.h"
#include "vmm/dev/virtio.h"
#include "vmm/console_hub.h"
#include "base/cleanup.h"

#include <errno.h>
#include <linux/virtio_console.h>
#include <linux/virtio_ids.h>
#include <stdlib.h>

#define OUTPUT_MAX                                                                                           \
	65536u /* of one chain: Linux sends 32 KiB at most; a hostile guest shall not hold up the loop */

enum { RECEIVE, TRANSMIT }; /* queues of port 0 (5.3.2) */

struct virtio_console {
	struct virtio_device virtio;
	struct console_port port;
};

static const struct field console_fields[] = {
	FIELD_NESTED(struct virtio_console, virtio, 1, &virtio_state),
};
static const struct field_table console_state = FIELD_TABLE("virtio-console", 1, console_fields);

static void transmit(struct virtio_console *console)
{
	struct virtqueue *queue = &console->virtio.queues[TRANSMIT];
	struct iovec iov[VIRTQUEUE_SIZE_MAX];
	struct virtio_chain chain = {.iov = iov};

	for (unsigned i = 0; i < queue->size && virtqueue_pop(queue, &chain); i++) {
		size_t left = OUTPUT_MAX;

		for (unsigned k = 0; k < chain.readable && left; k++) {
			size_t size = iov[k].iov_len < left ? iov[k].iov_len : left;

			console_output(&console->port, iov[k].iov_base, size);
			left -= size;
		}
		virtqueue_push(queue, chain.head, 0);
	}
	virtqueue_flush(queue);
	if (virtqueue_listen(queue))
		virtqueue_again(queue);
}

/* Input that finds no buffer stays with the hub; the driver's next notification brings us back. */
static void receive(void *context)
{
	struct virtio_console *console = context;
	struct virtqueue *queue = &console->virtio.queues[RECEIVE];
	struct iovec iov[VIRTQUEUE_SIZE_MAX];
	uint64_t gpa[VIRTQUEUE_SIZE_MAX];
	struct virtio_chain chain = {.iov = iov, .gpa = gpa};
	bool drained = false;

	if (!virtio_running(&console->virtio))
		return;
	for (unsigned i = 0; i < queue->size && virtqueue_pop(queue, &chain); i++) {
		size_t size = 0;

		if (chain.writable)
			size = console_input(
				&console->port, iov[chain.readable].iov_base, iov[chain.readable].iov_len);
		if (size == 0) {
			virtqueue_unpop(queue, 1);
			drained = true;
			break;
		}
		virtio_chain_wrote(queue->memory, &chain, size);
		virtqueue_push(queue, chain.head, (uint32_t)size);
	}
	virtqueue_flush(queue);
	if (virtqueue_listen(queue) && !drained)
		virtqueue_again(queue);
}

static void notified(struct virtio_device *virtio, unsigned queue)
{
	struct virtio_console *console = CONTAINER_OF(virtio, struct virtio_console, virtio);

	if (queue == TRANSMIT)
		transmit(console);
	else
		receive(console);
}

static void console_free(struct device *device)
{
	struct virtio_console *console = CONTAINER_OF(virtio_of(device), struct virtio_console, virtio);

	console_port_remove(&console->port);
	virtio_end(&console->virtio);
	free(console);
}

static const struct device_class device_class = {.state = &console_state,
	.after_load = virtio_after_load,
	.resume = virtio_resume,
	.free = console_free};

static const struct virtio_class console_class = {
	.device = &device_class,
	.name = "virtio-console",
	.type = VIRTIO_ID_CONSOLE,
	.class_code = 0x078000, /* communication controller, other */
	.queue_count = 2,
	.queue_size = 64,
	.notified = notified,
};

struct device *virtio_console_new(
	struct platform *platform, unsigned slot, struct console_hub *hub, struct error *error)
{
	_cleanup_free_ struct virtio_console *console = calloc(1, sizeof(*console));
	const struct virtio_console_config config = {0}; /* no feature that would give it a meaning (5.3.4) */

	if (!console) {
		error_set(error, ENOMEM, "Out of memory while making the console.");
		return NULL;
	}
	if (virtio_init(&console->virtio, &console_class, platform, slot, 0, &config, sizeof(config), error) <
		0)
		return NULL;
	console->port = (struct console_port){.input = receive, .context = console};
	console_port_add(hub, &console->port);
	platform_add(platform, &console->virtio.pci.device);
	return &take_pointer(console)->virtio.pci.device;
}
