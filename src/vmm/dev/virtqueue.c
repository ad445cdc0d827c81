#include "vmm/dev/virtqueue.h"
#include "vmm/dev/virtio.h"
#include "base/cleanup.h"

#include <errno.h>
#include <string.h>

static const struct field virtqueue_fields[] = {
	FIELD(struct virtqueue, size, FIELD_U16),
	FIELD(struct virtqueue, vector, FIELD_U16),
	FIELD(struct virtqueue, enabled, FIELD_BOOL),
	FIELD(struct virtqueue, descriptors, FIELD_U64),
	FIELD(struct virtqueue, driver, FIELD_U64),
	FIELD(struct virtqueue, device, FIELD_U64),
	FIELD(struct virtqueue, next_available, FIELD_U16),
	FIELD(struct virtqueue, next_used, FIELD_U16),
	FIELD(struct virtqueue, flushed, FIELD_U16),
};
const struct field_table virtqueue_state = FIELD_TABLE("virtqueue", 1, virtqueue_fields);

/*
 * Sizes of the two rings (2.7): flags, idx, the entries, and the event word, which the driver lays out
 * whether or not the event index is negotiated. The guest's memory may change under every read here: each
 * word is read once.
 */
static size_t available_size(unsigned entries)
{
	return sizeof(struct vring_avail) + entries * sizeof(uint16_t) + sizeof(uint16_t);
}

static size_t used_size(unsigned entries)
{
	return sizeof(struct vring_used) + entries * sizeof(struct vring_used_elem) + sizeof(uint16_t);
}

static const uint16_t *used_event(const struct virtqueue *queue)
{
	return &queue->available->ring[queue->size];
}

static uint16_t *available_event(const struct virtqueue *queue)
{
	return (uint16_t *)(void *)&queue->used->ring[queue->size];
}

int virtqueue_map(struct virtqueue *queue, bool event_index)
{
	unsigned size = queue->size;

	queue->table = NULL;
	/* Powers of two up to what the device offers (2.7), aligned as 2.7 says. */
	if (size == 0 || size > queue->size_max || size & (size - 1) ||
		queue->descriptors % VRING_DESC_ALIGN_SIZE || queue->driver % VRING_AVAIL_ALIGN_SIZE ||
		queue->device % VRING_USED_ALIGN_SIZE)
		return -EINVAL;
	queue->available = memory_at(queue->memory, queue->driver, available_size(size));
	queue->used = memory_at(queue->memory, queue->device, used_size(size));
	queue->event_index = event_index;
	if (!queue->available || !queue->used)
		return -EINVAL;
	queue->table = memory_at(queue->memory, queue->descriptors, size * sizeof(struct vring_desc));
	return queue->table ? 0 : -EINVAL;
}

void virtqueue_reset(struct virtqueue *queue)
{
	queue->size = queue->size_max;
	queue->vector = VIRTIO_NO_VECTOR;
	queue->enabled = queue->suppressed = false;
	queue->descriptors = queue->driver = queue->device = 0;
	queue->next_available = queue->next_used = queue->flushed = 0;
	queue->table = NULL;
}

static bool broken(struct virtqueue *queue, const char *why)
{
	queue->table = NULL;
	virtio_broken(queue->owner, queue, why);
	return false;
}

static bool add_piece(
	struct virtqueue *queue, struct virtio_chain *chain, const struct vring_desc *descriptor)
{
	unsigned pieces = chain->readable + chain->writable;
	bool writable = descriptor->flags & VRING_DESC_F_WRITE;
	void *host = memory_at(queue->memory, descriptor->addr, descriptor->len);

	if (!writable && chain->writable)
		return broken(queue, "has a buffer to read behind one to write"); /* 2.7.4.2 */
	if (descriptor->len == 0)
		return true;
	if (!host)
		return broken(queue, "has a buffer outside the guest's memory");
	chain->iov[pieces] = (struct iovec){host, descriptor->len};
	if (chain->gpa)
		chain->gpa[pieces] = descriptor->addr;
	if (writable) {
		chain->writable++;
		chain->writable_bytes += descriptor->len;
	} else {
		chain->readable++;
		chain->readable_bytes += descriptor->len;
	}
	return true;
}

/* Walks the chain from `head`; `left` bounds the descriptors, so that a loop ends too. */
static bool walk(struct virtqueue *queue, struct virtio_chain *chain, uint16_t head)
{
	const struct vring_desc *table = queue->table;
	unsigned entries = queue->size, left = VIRTQUEUE_SIZE_MAX;
	bool indirect = false;
	unsigned at = head;

	for (;;) {
		struct vring_desc descriptor;

		if (at >= entries)
			return broken(queue, "names a descriptor beyond its table");
		memcpy(&descriptor, (const void *)&table[at], sizeof(descriptor));
		__asm__ volatile(""
				 :
				 : "r"(&descriptor)
				 : "memory"); /* read once, whatever the guest writes meanwhile */
		if (descriptor.flags & VRING_DESC_F_INDIRECT) {
			/* 2.7.5.3.1: no second level, not together with NEXT, whole descriptors. */
			if (indirect || descriptor.flags & VRING_DESC_F_NEXT || descriptor.len == 0 ||
				descriptor.len % sizeof(struct vring_desc))
				return broken(queue, "has a malformed indirect descriptor");
			table = memory_at(queue->memory, descriptor.addr, descriptor.len);
			if (!table)
				return broken(queue, "has an indirect table outside the guest's memory");
			entries = descriptor.len / (unsigned)sizeof(struct vring_desc);
			indirect = true;
			at = 0;
			continue;
		}
		if (left-- == 0)
			return broken(queue, "has a chain that is too long or a loop");
		if (!add_piece(queue, chain, &descriptor))
			return false;
		if (!(descriptor.flags & VRING_DESC_F_NEXT))
			return true;
		at = descriptor.next;
	}
}

static uint16_t available_index(const struct virtqueue *queue)
{
	return __atomic_load_n(&queue->available->idx, __ATOMIC_ACQUIRE);
}

bool virtqueue_waiting(const struct virtqueue *queue)
{
	return queue->table && available_index(queue) != queue->next_available;
}

bool virtqueue_pop(struct virtqueue *queue, struct virtio_chain *chain)
{
	uint16_t waiting, head;

	if (!queue->table)
		return false;
	waiting = (uint16_t)(available_index(queue) - queue->next_available);
	if (waiting == 0)
		return false;
	if (waiting > queue->size)
		return broken(queue, "has more entries available than it is long");
	head = __atomic_load_n(
		&queue->available->ring[queue->next_available & (queue->size - 1)], __ATOMIC_RELAXED);
	if (head >= queue->size)
		return broken(queue, "names a descriptor beyond its table");
	chain->head = head;
	chain->readable = chain->writable = 0;
	chain->readable_bytes = chain->writable_bytes = 0;
	if (!walk(queue, chain, head))
		return false;
	queue->next_available++;
	return true;
}

void virtqueue_unpop(struct virtqueue *queue, unsigned count)
{
	queue->next_available = (uint16_t)(queue->next_available - count);
}

void virtqueue_return(struct virtqueue *queue, const uint16_t *heads, unsigned count)
{
	uint16_t waiting;

	if (!queue->table || !count)
		return;
	waiting = (uint16_t)(available_index(queue) - queue->next_available);
	/* Each takes at least one descriptor, so that there is room unless the driver breaks the rules. */
	if (waiting + count > queue->size) {
		broken(queue, "has more entries available than it is long");
		return;
	}
	virtqueue_unpop(queue, count);
	for (unsigned i = 0; i < count; i++) {
		unsigned at = (queue->next_available + i) & (queue->size - 1u);
		uint64_t place = offsetof(struct vring_avail, ring) + at * sizeof(uint16_t);
		uint16_t *entry = memory_at(queue->memory, queue->driver + place, sizeof(*entry));

		__atomic_store_n(entry, heads[i], __ATOMIC_RELAXED);
		memory_wrote(queue->memory, queue->driver + place, sizeof(*entry));
	}
}

void virtqueue_push(struct virtqueue *queue, uint16_t head, uint32_t written)
{
	unsigned at = queue->next_used & (queue->size - 1u);

	if (!queue->table)
		return;
	queue->used->ring[at] = (struct vring_used_elem){.id = head, .len = written};
	queue->next_used++;
}

/* Marks the used ring's words [flags, idx] and the entries published since. */
static void mark_used(struct virtqueue *queue, uint16_t from, uint16_t count)
{
	unsigned at = from & (queue->size - 1u), first = queue->size - at;
	uint64_t ring = queue->device + sizeof(struct vring_used);

	if (first > count)
		first = count;
	memory_wrote(queue->memory, queue->device, sizeof(struct vring_used));
	memory_wrote(queue->memory, ring + at * sizeof(struct vring_used_elem),
		first * sizeof(struct vring_used_elem));
	memory_wrote(queue->memory, ring, (count - first) * sizeof(struct vring_used_elem));
}

/* 2.7.7.2 and 2.7.8.2: whether the driver wants to hear of used entries up to next_used. */
static bool wants_interrupt(const struct virtqueue *queue, uint16_t before)
{
	if (!queue->event_index)
		return !(__atomic_load_n(&queue->available->flags, __ATOMIC_RELAXED) &
			 VRING_AVAIL_F_NO_INTERRUPT);
	return vring_need_event(
		__atomic_load_n(used_event(queue), __ATOMIC_RELAXED), queue->next_used, before);
}

void virtqueue_flush(struct virtqueue *queue)
{
	uint16_t before = queue->flushed;

	if (!queue->table || queue->next_used == before)
		return;
	__atomic_store_n(&queue->used->idx, queue->next_used, __ATOMIC_RELEASE);
	queue->flushed = queue->next_used;
	mark_used(queue, before, (uint16_t)(queue->next_used - before));
	__atomic_thread_fence(__ATOMIC_SEQ_CST); /* idx before the driver's wish is looked at */
	if (wants_interrupt(queue, before))
		virtio_interrupt(queue->owner, queue);
}

void virtqueue_interrupt(struct virtqueue *queue)
{
	virtqueue_flush(queue);
	if (queue->table)
		virtio_interrupt(queue->owner, queue);
}

void virtqueue_suppress(struct virtqueue *queue)
{
	if (!queue->table || queue->suppressed)
		return;
	queue->suppressed = true;
	if (queue->event_index)
		return; /* an event index that stays behind asks for nothing */
	__atomic_store_n(&queue->used->flags, VRING_USED_F_NO_NOTIFY, __ATOMIC_RELAXED);
	memory_wrote(queue->memory, queue->device, sizeof(struct vring_used));
}

bool virtqueue_listen(struct virtqueue *queue)
{
	if (!queue->table)
		return false;
	queue->suppressed = false;
	if (queue->event_index) {
		__atomic_store_n(available_event(queue), queue->next_available, __ATOMIC_RELAXED);
		memory_wrote(queue->memory, queue->device + used_size(queue->size) - sizeof(uint16_t),
			sizeof(uint16_t));
	} else if (__atomic_load_n(&queue->used->flags, __ATOMIC_RELAXED)) {
		__atomic_store_n(&queue->used->flags, 0, __ATOMIC_RELAXED);
		memory_wrote(queue->memory, queue->device, sizeof(struct vring_used));
	}
	__atomic_thread_fence(__ATOMIC_SEQ_CST); /* the wish before the ring is looked at again */
	return virtqueue_waiting(queue);
}

void virtqueue_again(struct virtqueue *queue)
{
	uint64_t one = 1;

	while (write(queue->notified.fd, &one, sizeof(one)) < 0 && errno == EINTR)
		;
}

void virtio_chain_wrote(struct memory *memory, const struct virtio_chain *chain, uint64_t bytes)
{
	for (unsigned i = chain->readable; bytes && i < chain->readable + chain->writable; i++) {
		uint64_t here = chain->iov[i].iov_len < bytes ? chain->iov[i].iov_len : bytes;

		memory_wrote(memory, chain->gpa[i], here);
		bytes -= here;
	}
}

static size_t iov_copy(
	const struct iovec *iov, unsigned count, size_t offset, void *buffer, size_t size, bool into)
{
	size_t done = 0;

	for (unsigned i = 0; i < count && done < size; i++) {
		size_t here = iov[i].iov_len;

		if (offset >= here) {
			offset -= here;
			continue;
		}
		here -= offset;
		if (here > size - done)
			here = size - done;
		if (into)
			memcpy((char *)iov[i].iov_base + offset, (const char *)buffer + done, here);
		else
			memcpy((char *)buffer + done, (const char *)iov[i].iov_base + offset, here);
		offset = 0;
		done += here;
	}
	return done;
}

size_t iov_read(const struct iovec *iov, unsigned count, size_t offset, void *to, size_t size)
{
	return iov_copy(iov, count, offset, to, size, false);
}

size_t iov_write(const struct iovec *iov, unsigned count, size_t offset, const void *from, size_t size)
{
	return iov_copy(iov, count, offset, (void *)(uintptr_t)from, size, true);
}
