#include "vmm/dev/rng.h"
#include "vmm/dev/virtio.h"
#include "base/cleanup.h"

#include <errno.h>
#include <linux/virtio_ids.h>
#include <stdlib.h>
#include <sys/random.h>

#define REQUEST_MAX                                                                                          \
	4096u /* bytes for one buffer: less than asked for is allowed (5.4.6.1), and keeps the loop free */

struct virtio_rng {
	struct virtio_device virtio;
};

static const struct field rng_fields[] = {
	FIELD_NESTED(struct virtio_rng, virtio, 1, &virtio_state),
};
static const struct field_table rng_state = FIELD_TABLE("virtio-rng", 1, rng_fields);

static uint32_t fill(struct memory *memory, const struct virtio_chain *chain)
{
	uint32_t filled = 0;

	for (unsigned i = chain->readable; i < chain->readable + chain->writable && filled < REQUEST_MAX;
		i++) {
		size_t size = chain->iov[i].iov_len;
		ssize_t r;

		if (size > REQUEST_MAX - filled)
			size = REQUEST_MAX - filled;
		r = getrandom(chain->iov[i].iov_base, size, 0);
		if (r > 0)
			filled += (uint32_t)r;
		if (r < 0 || (size_t)r < size)
			break;
	}
	virtio_chain_wrote(memory, chain, filled);
	return filled;
}

static void notified(struct virtio_device *virtio, unsigned index)
{
	struct virtqueue *queue = &virtio->queues[index];
	struct iovec iov[VIRTQUEUE_SIZE_MAX];
	uint64_t gpa[VIRTQUEUE_SIZE_MAX];
	struct virtio_chain chain = {.iov = iov, .gpa = gpa};

	for (unsigned i = 0; i < queue->size && virtqueue_pop(queue, &chain); i++)
		virtqueue_push(queue, chain.head, fill(queue->memory, &chain));
	virtqueue_flush(queue);
	if (virtqueue_listen(queue))
		virtqueue_again(queue);
}

static void rng_free(struct device *device)
{
	virtio_end(virtio_of(device));
	free(device);
}

static const struct device_class device_class = {
	.state = &rng_state, .after_load = virtio_after_load, .resume = virtio_resume, .free = rng_free};

static const struct virtio_class rng_class = {
	.device = &device_class,
	.name = "virtio-rng",
	.type = VIRTIO_ID_RNG,
	.class_code = 0x00ff00, /* no class that PCI knows */
	.queue_count = 1,
	.queue_size = 64,
	.notified = notified,
};

struct device *virtio_rng_new(struct platform *platform, unsigned slot, struct error *error)
{
	_cleanup_free_ struct virtio_rng *rng = calloc(1, sizeof(*rng));

	if (!rng) {
		error_set(error, ENOMEM, "Out of memory while making the entropy device.");
		return NULL;
	}
	if (virtio_init(&rng->virtio, &rng_class, platform, slot, 0, NULL, 0, error) < 0)
		return NULL;
	platform_add(platform, &rng->virtio.pci.device);
	return &take_pointer(rng)->virtio.pci.device;
}
