/*
 * The receiving half of the virtio network device: receive buffers popped ahead
 * of frames, first in first out. A frame is read right into as many of them as
 * frames lately needed; what is longer goes into `overflow` and is copied from there.
 */
#pragma once

#include "vmm/dev/virtqueue.h"

#include <linux/virtio_net.h>

#define NET_HEADER_SIZE                                                                                      \
	sizeof(struct virtio_net_hdr_v1) /* virtio 1.2, 5.1.6; the tap reads and writes the same */
#define NET_FRAME_MAX (68u << 10)        /* header, 64 KiB of a segmented packet, Ethernet and VLAN headers */
#define WINDOW_PIECES (3 * VIRTQUEUE_SIZE_MAX) /* less than readv(2) takes */

/* A chain in the window: `count` pieces, `size` bytes. */
struct receive_chain {
	uint16_t head;
	unsigned count;
	uint64_t size;
};

struct receive_window {
	struct iovec pieces[WINDOW_PIECES + 1]; /* the last for overflow */
	uint64_t gpa[WINDOW_PIECES];
	unsigned piece_first, piece_end;
	struct receive_chain chains[VIRTQUEUE_SIZE_MAX];
	unsigned chain_first, chain_end;
	uint64_t size;     /* bytes of all chains */
	uint64_t expected; /* bytes to have room for */
	uint8_t overflow[NET_FRAME_MAX];
	size_t held;   /* a frame in overflow that waits for buffers; 0: none */
	bool last_try; /* the driver has had its chance to provide them */
};

enum received { RECEIVED, RECEIVED_NO_FRAME, RECEIVED_NO_BUFFERS };

/*
 * Reads one frame from the tap and gives it to the driver, who sees it after virtqueue_flush; `merge`: it
 * takes frames in several buffers (5.1.6.4). RECEIVED_NO_FRAME: the tap has none. RECEIVED_NO_BUFFERS: the
 * driver has to provide some first.
 */
enum received window_receive(struct receive_window *window, struct virtqueue *queue, bool merge, int tap);

/* Gives all buffers back to the ring, so that it alone says where the device stands. */
void window_give_back(struct receive_window *window, struct virtqueue *queue);
/* Forgets everything: the driver has reset the device. */
void window_reset(struct receive_window *window);
