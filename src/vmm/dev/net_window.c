#include "vmm/dev/net_window.h"
#include "vmm/dev/virtio.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

static void empty(struct receive_window *window)
{
	window->piece_first = window->piece_end = 0;
	window->chain_first = window->chain_end = 0;
	window->size = 0;
}

static void compact(struct receive_window *window)
{
	unsigned pieces = window->piece_end - window->piece_first,
		 chains = window->chain_end - window->chain_first;

	memmove(window->pieces, window->pieces + window->piece_first, pieces * sizeof(window->pieces[0]));
	memmove(window->gpa, window->gpa + window->piece_first, pieces * sizeof(window->gpa[0]));
	memmove(window->chains, window->chains + window->chain_first, chains * sizeof(window->chains[0]));
	window->piece_first = window->chain_first = 0;
	window->piece_end = pieces;
	window->chain_end = chains;
}

/* Room for one more chain of any length. */
static bool has_room(struct receive_window *window)
{
	if (window->piece_end + VIRTQUEUE_SIZE_MAX > WINDOW_PIECES || window->chain_end == VIRTQUEUE_SIZE_MAX)
		compact(window);
	return window->piece_end + VIRTQUEUE_SIZE_MAX <= WINDOW_PIECES &&
	       window->chain_end < VIRTQUEUE_SIZE_MAX;
}

/* Pops buffers until there is room for `size` bytes; without mergeable buffers (5.1.6.4) a frame has one
 * chain. */
static bool fill(struct receive_window *window, struct virtqueue *queue, bool merge, uint64_t size)
{
	while (window->chain_first == window->chain_end || (merge && window->size < size)) {
		struct virtio_chain chain;

		if (!has_room(window))
			break;
		chain.iov = window->pieces + window->piece_end;
		chain.gpa = window->gpa + window->piece_end;
		if (!virtqueue_pop(queue, &chain))
			break;
		if (chain.readable || chain.writable_bytes < NET_HEADER_SIZE) {
			virtio_broken(queue->owner, queue, "has a receive buffer without room for a header");
			empty(window);
			return false;
		}
		window->chains[window->chain_end++] =
			(struct receive_chain){chain.head, chain.writable, chain.writable_bytes};
		window->piece_end += chain.writable;
		window->size += chain.writable_bytes;
	}
	return window->chain_first != window->chain_end;
}

/* Gives the driver the chains at the window's front, which hold a frame of `size` bytes. */
static void hand_over(struct receive_window *window, struct virtqueue *queue, uint64_t size)
{
	uint64_t covered = 0;
	uint16_t buffers = 0;

	while (covered < size)
		covered += window->chains[window->chain_first + buffers++].size;
	iov_write(window->pieces + window->piece_first, window->piece_end - window->piece_first,
		offsetof(struct virtio_net_hdr_v1, num_buffers), &buffers, sizeof(buffers));
	for (unsigned i = 0; i < buffers; i++) {
		struct receive_chain *chain = &window->chains[window->chain_first++];
		uint64_t here = size < chain->size ? size : chain->size;
		const struct virtio_chain written = {.writable = chain->count,
			.iov = window->pieces + window->piece_first,
			.gpa = window->gpa + window->piece_first};

		virtio_chain_wrote(queue->memory, &written, here);
		virtqueue_push(queue, chain->head, (uint32_t)here);
		window->piece_first += chain->count;
		window->size -= chain->size;
		size -= here;
	}
}

/*
 * Delivers the frame that overflowed; false where it waits for the driver to provide more buffers. It is
 * dropped where it will never fit: a chain is too short without mergeable buffers, the ring is too short, or
 * the driver provided too little.
 */
static bool deliver_held(struct receive_window *window, struct virtqueue *queue, bool merge)
{
	size_t size = window->held;

	if (!fill(window, queue, merge, size))
		return false;
	if (window->size < size && merge && !window->last_try &&
		window->chain_end - window->chain_first < queue->size) {
		window->last_try = true;
		return false;
	}
	window->held = 0;
	window->last_try = false;
	if (window->size >= size) {
		iov_write(window->pieces + window->piece_first, window->piece_end - window->piece_first, 0,
			window->overflow, size);
		hand_over(window, queue, size);
	}
	return true;
}

/* Puts a frame together in overflow of which `direct` bytes were read into buffers and the rest there. */
static void gather(struct receive_window *window, struct memory *memory, size_t direct, size_t size)
{
	const struct virtio_chain all = {.writable = window->piece_end - window->piece_first,
		.iov = window->pieces + window->piece_first,
		.gpa = window->gpa + window->piece_first};

	virtio_chain_wrote(memory, &all, direct);
	memmove(window->overflow + direct, window->overflow, size - direct);
	iov_read(all.iov, all.writable, 0, window->overflow, direct);
	window->held = size;
}

/* How much room to have for the next frame, after one of this size: as much as for the largest, less and
 * less. */
static void expect(struct receive_window *window, uint64_t size)
{
	if (size > window->expected)
		window->expected = size;
	else
		window->expected -= (window->expected - size) / 8;
}

enum received window_receive(struct receive_window *window, struct virtqueue *queue, bool merge, int tap)
{
	unsigned pieces;
	size_t direct;
	ssize_t size;

	if (window->held)
		return deliver_held(window, queue, merge) ? RECEIVED : RECEIVED_NO_BUFFERS;
	if (!fill(window, queue, merge, window->expected))
		return RECEIVED_NO_BUFFERS;
	pieces = window->piece_end - window->piece_first;
	direct = window->size;
	if (direct < NET_FRAME_MAX)
		window->pieces[window->piece_first + pieces++] =
			(struct iovec){window->overflow, NET_FRAME_MAX - direct};
	size = readv(tap, window->pieces + window->piece_first, (int)pieces);
	if (size < 0)
		return errno == EINTR ? RECEIVED : RECEIVED_NO_FRAME;
	if ((size_t)size < NET_HEADER_SIZE)
		return RECEIVED; /* not a frame of a tap with headers */
	expect(window, (uint64_t)size);
	if ((size_t)size <= direct) {
		hand_over(window, queue, (uint64_t)size);
		return RECEIVED;
	}
	gather(window, queue->memory, direct, (size_t)size);
	return deliver_held(window, queue, merge) ? RECEIVED : RECEIVED_NO_BUFFERS;
}

void window_give_back(struct receive_window *window, struct virtqueue *queue)
{
	virtqueue_unpop(queue, window->chain_end - window->chain_first);
	empty(window);
}

void window_reset(struct receive_window *window)
{
	empty(window);
	window->held = 0;
	window->last_try = false;
	window->expected = 0;
}
