#include "vmm/dev/net.h"
#include "vmm/dev/net_window.h"
#include "vmm/dev/virtio.h"
#include "base/cleanup.h"
#include "base/log.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/virtio_ids.h>
#include <linux/virtio_net.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <netinet/if_ether.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/timerfd.h>

enum { RECEIVE, TRANSMIT, CONTROL, QUEUES }; /* 5.1.2 */

#define BATCH 64u /* frames until other events have their turn */
#define CONFIG_SIZE (offsetof(struct virtio_net_config, mtu) + 2)

#define BIT(number) (1ull << (number))
#define FEATURES                                                                                             \
	(BIT(VIRTIO_NET_F_CSUM) | BIT(VIRTIO_NET_F_HOST_TSO4) | BIT(VIRTIO_NET_F_HOST_TSO6) |                \
		BIT(VIRTIO_NET_F_HOST_ECN) | BIT(VIRTIO_NET_F_HOST_UFO) | BIT(VIRTIO_NET_F_MRG_RXBUF) |      \
		BIT(VIRTIO_NET_F_MAC) | BIT(VIRTIO_NET_F_STATUS) | BIT(VIRTIO_NET_F_CTRL_VQ) |               \
		BIT(VIRTIO_NET_F_GUEST_ANNOUNCE) | BIT(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS))

/* What the guest takes unfinished, in virtio's words (5.1.3) and in the tap's (linux/if_tun.h). */
static const struct {
	unsigned feature, tap;
} offloads[] = {
	{VIRTIO_NET_F_GUEST_CSUM, TUN_F_CSUM},
	{VIRTIO_NET_F_GUEST_TSO4, TUN_F_TSO4},
	{VIRTIO_NET_F_GUEST_TSO6, TUN_F_TSO6},
	{VIRTIO_NET_F_GUEST_ECN, TUN_F_TSO_ECN},
	{VIRTIO_NET_F_GUEST_UFO, TUN_F_UFO},
};

/* When frames that tell switches where the guest is are sent again: milliseconds after the one before. */
static const unsigned announce_delays[] = {50, 100, 200, 400, 800, 1600};

struct virtio_net {
	struct virtio_device virtio;
	uint8_t mac[ETH_ALEN];
	uint8_t known_mac[ETH_ALEN]; /* what the guest has for it: another one in a clone that has yet to
					notice */
	uint16_t status;             /* of the configuration (5.1.4) */
	uint64_t offload;            /* the offloads in use, as bits of features */
	struct watch tap;
	uint32_t tap_events; /* that the loop waits for; 0: none */
	bool tap_lost;
	bool transmit_full; /* the tap takes nothing more for now */
	struct watch timer;
	unsigned announced; /* frames sent of an announcement */
	struct receive_window window;
};

static const struct field net_fields[] = {
	FIELD_NESTED(struct virtio_net, virtio, 1, &virtio_state),
	FIELD(struct virtio_net, status, FIELD_U16),
	FIELD(struct virtio_net, offload, FIELD_U64),
	FIELD_OPTIONAL(struct virtio_net, known_mac, FIELD_BYTES, 2),
};
static const struct field_table net_state = FIELD_TABLE("virtio-net", 2, net_fields);

static void wait_for_tap(struct virtio_net *net, uint32_t events)
{
	struct error error = {0};

	if (net->transmit_full)
		events |= EPOLLOUT;
	if (events == net->tap_events || net->tap_lost)
		return;
	if (loop_modify(net->virtio.pci.platform->loop, &net->tap, events, &error) < 0)
		log_warning("Network device in slot %u: %s", net->virtio.pci.device.instance, error.text);
	net->tap_events = events;
}

/* Receiving and sending */

/*
 * A clone's guest goes on with the address of the guest that it is a clone of, until its driver is started
 * anew or somebody tells it the address that is its own. What it sends before would have switches take one
 * for the other, and what it hears is meant for the other: it is as if its cable were out.
 */
static bool is_connected(const struct virtio_net *net)
{
	return memcmp(net->known_mac, net->mac, ETH_ALEN) == 0;
}

/* It knows its address now. What has come meanwhile was not for it. */
static void connect_guest(struct virtio_net *net)
{
	uint8_t frame[NET_HEADER_SIZE];

	if (is_connected(net))
		return;
	memcpy(net->known_mac, net->mac, ETH_ALEN);
	while (!net->tap_lost && read(net->tap.fd, frame, sizeof(frame)) > 0)
		;
}

/*
 * Receives until the tap is empty, the driver's buffers are used up, or others shall have their turn. The tap
 * is watched only while there are buffers, the driver's notifications wanted only while there are none.
 */
static void receive(struct virtio_net *net)
{
	struct virtqueue *queue = &net->virtio.queues[RECEIVE];
	bool merge = virtio_has(&net->virtio, VIRTIO_NET_F_MRG_RXBUF);
	enum received last = RECEIVED;

	if (!is_connected(net)) {
		wait_for_tap(net, 0);
		return;
	}
	for (unsigned i = 0; i < BATCH && last == RECEIVED; i++)
		last = window_receive(&net->window, queue, merge, net->tap.fd);
	virtqueue_flush(queue);
	if (last == RECEIVED_NO_BUFFERS) {
		wait_for_tap(net, 0);
		if (virtqueue_listen(queue))
			virtqueue_again(queue);
	} else {
		virtqueue_suppress(queue);
		wait_for_tap(net, EPOLLIN);
	}
}

static bool may_send(struct virtio_net *net, const struct iovec *iov, unsigned count)
{
	uint8_t source[ETH_ALEN];

	if (is_connected(net))
		return true;
	if (iov_read(iov, count, NET_HEADER_SIZE + offsetof(struct ether_header, ether_shost), source,
		    ETH_ALEN) != ETH_ALEN ||
		memcmp(source, net->mac, ETH_ALEN) != 0)
		return false;
	connect_guest(net);
	wait_for_tap(net, EPOLLIN);
	return true;
}

static void transmit(struct virtio_net *net)
{
	struct virtqueue *queue = &net->virtio.queues[TRANSMIT];
	struct iovec iov[VIRTQUEUE_SIZE_MAX];
	struct virtio_chain chain = {.iov = iov};

	virtqueue_suppress(queue);
	for (unsigned i = 0; i < BATCH && !net->transmit_full && virtqueue_pop(queue, &chain); i++) {
		bool frame = chain.readable_bytes > NET_HEADER_SIZE &&
			     chain.readable_bytes <= NET_FRAME_MAX && may_send(net, iov, chain.readable);

		/* What else the tap refuses (a malformed header, an interface that is down) is lost, as on a
		 * wire. */
		if (frame && writev(net->tap.fd, iov, (int)chain.readable) < 0 && errno == EAGAIN) {
			virtqueue_unpop(queue, 1);
			net->transmit_full = true;
			wait_for_tap(net, net->tap_events);
			break;
		}
		virtqueue_push(queue, chain.head, 0);
	}
	virtqueue_flush(queue);
	if (!net->transmit_full && virtqueue_listen(queue))
		virtqueue_again(queue);
}

static void tap_ready(void *context, uint32_t events)
{
	struct virtio_net *net = context;
	struct loop *loop = net->virtio.pci.platform->loop;

	if (events & (EPOLLERR | EPOLLHUP)) { /* the interface was deleted on the host */
		log_warning("Network device in slot %u has lost its tap.", net->virtio.pci.device.instance);
		loop_remove(loop, &net->tap);
		net->tap_lost = true;
		return;
	}
	if (!virtio_running(&net->virtio)) {
		net->transmit_full = false;
		wait_for_tap(net, 0);
		return;
	}
	if (events & EPOLLOUT) {
		net->transmit_full = false;
		wait_for_tap(net, net->tap_events & ~(uint32_t)EPOLLOUT);
		transmit(net);
	}
	if (events & EPOLLIN)
		receive(net);
}

/* Control (5.1.6.5) */

static void set_offload(struct virtio_net *net, uint64_t offload)
{
	unsigned tap = 0;

	for (size_t i = 0; i < ARRAY_SIZE(offloads); i++)
		if (offload >> offloads[i].feature & 1)
			tap |= offloads[i].tap;
	if (!(tap & TUN_F_CSUM))
		tap = 0; /* segments need checksums (5.1.3.1) */
	net->offload = offload;
	if (ioctl(net->tap.fd, TUNSETOFFLOAD, (unsigned long)tap) < 0)
		log_warning("Network device in slot %u: the tap refuses offloads 0x%x: %s.",
			net->virtio.pci.device.instance, tap, strerror(errno));
}

static uint64_t offloads_of(uint64_t features)
{
	uint64_t mask = 0;

	for (size_t i = 0; i < ARRAY_SIZE(offloads); i++)
		mask |= BIT(offloads[i].feature);
	return features & mask;
}

static void set_status(struct virtio_net *net, uint16_t status)
{
	net->status = status;
	memcpy(net->virtio.config + offsetof(struct virtio_net_config, status), &status, sizeof(status));
}

static uint8_t command(struct virtio_net *net, const struct virtio_chain *chain)
{
	struct virtio_net_ctrl_hdr header;
	uint64_t wanted;

	if (iov_read(chain->iov, chain->readable, 0, &header, sizeof(header)) != sizeof(header))
		return VIRTIO_NET_ERR;
	if (header.class == VIRTIO_NET_CTRL_ANNOUNCE && header.cmd == VIRTIO_NET_CTRL_ANNOUNCE_ACK) {
		set_status(net, net->status & (uint16_t)~VIRTIO_NET_S_ANNOUNCE);
		return VIRTIO_NET_OK;
	}
	if (header.class == VIRTIO_NET_CTRL_GUEST_OFFLOADS &&
		header.cmd == VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET &&
		iov_read(chain->iov, chain->readable, sizeof(header), &wanted, sizeof(wanted)) ==
			sizeof(wanted) &&
		!(wanted & ~offloads_of(net->virtio.accepted))) {
		set_offload(net, wanted);
		return VIRTIO_NET_OK;
	}
	return VIRTIO_NET_ERR;
}

static void control(struct virtio_net *net)
{
	struct virtqueue *queue = &net->virtio.queues[CONTROL];
	struct iovec iov[VIRTQUEUE_SIZE_MAX];
	uint64_t gpa[VIRTQUEUE_SIZE_MAX];
	struct virtio_chain chain = {.iov = iov, .gpa = gpa};

	for (unsigned i = 0; i < queue->size && virtqueue_pop(queue, &chain); i++) {
		uint8_t answer = command(net, &chain);

		iov_write(iov + chain.readable, chain.writable, 0, &answer, sizeof(answer));
		virtio_chain_wrote(queue->memory, &chain, sizeof(answer));
		virtqueue_push(queue, chain.head, chain.writable ? sizeof(answer) : 0);
	}
	virtqueue_flush(queue);
	if (virtqueue_listen(queue))
		virtqueue_again(queue);
}

static void notified(struct virtio_device *virtio, unsigned queue)
{
	struct virtio_net *net = CONTAINER_OF(virtio, struct virtio_net, virtio);

	if (queue == RECEIVE)
		receive(net);
	else if (queue == TRANSMIT)
		transmit(net);
	else
		control(net);
}

/* Announcements */

/*
 * A RARP request of the guest about itself (RFC 903), to everybody: bridges and switches learn from it where
 * the guest's address is now. Sent as if the guest had.
 */
static void send_rarp(struct virtio_net *net)
{
	struct {
		struct virtio_net_hdr_v1 header;
		struct ether_header ethernet;
		struct ether_arp arp;
		uint8_t padding[ETH_ZLEN - sizeof(struct ether_header) - sizeof(struct ether_arp)];
	} __attribute__((packed)) frame = {
		.ethernet = {.ether_type = htons(ETHERTYPE_REVARP)},
		.arp.ea_hdr = {.ar_hrd = htons(ARPHRD_ETHER),
			.ar_pro = htons(ETHERTYPE_IP),
			.ar_hln = ETH_ALEN,
			.ar_pln = 4,
			.ar_op = htons(ARPOP_RREQUEST)},
	};

	memset(frame.ethernet.ether_dhost, 0xff, ETH_ALEN);
	memcpy(frame.ethernet.ether_shost, net->mac, ETH_ALEN);
	memcpy(frame.arp.arp_sha, net->mac, ETH_ALEN);
	memcpy(frame.arp.arp_tha, net->mac, ETH_ALEN);
	if (write(net->tap.fd, &frame, sizeof(frame)) < 0)
		log_debug("Network device in slot %u: no announcement: %s.", net->virtio.pci.device.instance,
			strerror(errno));
}

static void announce_next(struct virtio_net *net)
{
	struct itimerspec when = {0};

	send_rarp(net);
	if (net->announced < ARRAY_SIZE(announce_delays)) {
		unsigned delay = announce_delays[net->announced++];

		when.it_value = (struct timespec){delay / 1000, delay % 1000 * 1000000l};
	}
	timerfd_settime(net->timer.fd, 0, &when, NULL);
}

static void timer_ready(void *context, uint32_t events)
{
	struct virtio_net *net = context;
	uint64_t expirations;

	(void)events;
	if (read(net->timer.fd, &expirations, sizeof(expirations)) == sizeof(expirations) &&
		!net->virtio.pci.platform->paused)
		announce_next(net);
}

static void net_announce(struct device *device)
{
	struct virtio_net *net = CONTAINER_OF(virtio_of(device), struct virtio_net, virtio);

	net->announced = 0;
	announce_next(net);
	if (virtio_has(&net->virtio, VIRTIO_NET_F_GUEST_ANNOUNCE)) {
		set_status(net, net->status | VIRTIO_NET_S_ANNOUNCE);
		virtio_config_changed(&net->virtio);
	}
}

/* Life */

static void ready(struct virtio_device *virtio)
{
	struct virtio_net *net = CONTAINER_OF(virtio, struct virtio_net, virtio);

	set_offload(net, virtio->restored ? net->offload : offloads_of(virtio->accepted));
}

static void reset(struct virtio_device *virtio)
{
	struct virtio_net *net = CONTAINER_OF(virtio, struct virtio_net, virtio);

	window_reset(&net->window);
	net->transmit_full = false;
	wait_for_tap(net, 0);
	set_offload(net, 0);
	set_status(net, VIRTIO_NET_S_LINK_UP);
	connect_guest(net); /* its driver will read its address */
}

/* Buffers popped ahead go back, so that the ring alone says where the device stands. */
static void net_pause(struct device *device)
{
	struct virtio_net *net = CONTAINER_OF(virtio_of(device), struct virtio_net, virtio);

	window_give_back(&net->window, &net->virtio.queues[RECEIVE]);
	net->transmit_full = false;
	wait_for_tap(net, 0);
}

static int net_after_load(struct device *device, struct error *error)
{
	struct virtio_net *net = CONTAINER_OF(virtio_of(device), struct virtio_net, virtio);

	set_status(net, net->status & (VIRTIO_NET_S_LINK_UP | VIRTIO_NET_S_ANNOUNCE));
	net->offload &= offloads_of(net->virtio.accepted);
	return virtio_after_load(device, error);
}

static void release(struct virtio_net *net)
{
	struct loop *loop = net->virtio.pci.platform->loop;

	if (net->tap.handler && !net->tap_lost)
		loop_remove(loop, &net->tap);
	if (net->timer.handler) {
		loop_remove(loop, &net->timer);
		close(net->timer.fd);
	}
	virtio_end(&net->virtio);
}

static void net_free(struct device *device)
{
	struct virtio_net *net = CONTAINER_OF(virtio_of(device), struct virtio_net, virtio);

	release(net);
	close(net->tap.fd);
	free(net);
}

static const struct device_class device_class = {
	.state = &net_state,
	.after_load = net_after_load,
	.pause = net_pause,
	.resume = virtio_resume,
	.announce = net_announce,
	.free = net_free,
};

static const struct virtio_class net_class = {
	.device = &device_class,
	.name = "virtio-net",
	.type = VIRTIO_ID_NET,
	.class_code = 0x020000, /* Ethernet controller */
	.queue_count = QUEUES,
	.queue_size = VIRTQUEUE_SIZE_MAX,
	.notified = notified,
	.ready = ready,
	.reset = reset,
};

/* Sets the tap up: header as in the rings, all offloads that a guest may ask for. */
static int examine_tap(int fd, struct error *error)
{
	const short needed = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
	int header = NET_HEADER_SIZE, flags = fcntl(fd, F_GETFL);
	unsigned long most = 0;
	struct ifreq request = {0};

	for (size_t i = 0; i < ARRAY_SIZE(offloads); i++)
		most |= offloads[i].tap;
	if (flags < 0 || ioctl(fd, TUNGETIFF, &request) < 0)
		return error_set(
			error, errno, "The network device's descriptor is no tap: %s.", strerror(errno));
	if ((request.ifr_flags & needed) != needed)
		return error_set(error, EINVAL,
			"Tap %s was not opened as tap with headers and without packet information.",
			request.ifr_name);
	if (fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 || ioctl(fd, TUNSETVNETHDRSZ, &header) < 0 ||
		ioctl(fd, TUNSETOFFLOAD, most) < 0 || ioctl(fd, TUNSETOFFLOAD, 0ul) < 0)
		return error_set(error, errno, "Tap %s lacks what a guest's network needs: %s.",
			request.ifr_name, strerror(errno));
	return 0;
}

static int watch_descriptors(struct virtio_net *net, int tap_fd, struct error *error)
{
	struct loop *loop = net->virtio.pci.platform->loop;
	_cleanup_close_ int timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	struct watch watch = {.fd = timer, .handler = timer_ready, .context = net};
	int r;

	if (timer < 0)
		return error_set(
			error, errno, "Unable to make a timer for a network device: %s.", strerror(errno));
	net->timer = watch;
	r = loop_add(loop, &net->timer, EPOLLIN, error);
	if (r < 0) {
		net->timer.handler = NULL;
		return r;
	}
	take_fd(&timer);
	net->tap = (struct watch){.fd = tap_fd, .handler = tap_ready, .context = net};
	r = loop_add(loop, &net->tap, 0, error);
	if (r < 0)
		net->tap.handler = NULL;
	return r;
}

struct device *virtio_net_new(
	struct platform *platform, unsigned slot, int tap_fd, const uint8_t mac[6], struct error *error)
{
	_cleanup_free_ struct virtio_net *net = NULL;
	struct virtio_net_config config = {.status = VIRTIO_NET_S_LINK_UP};

	if (examine_tap(tap_fd, error) < 0)
		return NULL;
	net = calloc(1, sizeof(*net));
	if (!net) {
		error_set(error, ENOMEM, "Out of memory while making the network device in slot %u.", slot);
		return NULL;
	}
	memcpy(config.mac, mac, ETH_ALEN);
	memcpy(net->mac, mac, ETH_ALEN);
	memcpy(net->known_mac, mac, ETH_ALEN);
	net->status = config.status;
	if (virtio_init(&net->virtio, &net_class, platform, slot, FEATURES | offloads_of(UINT64_MAX), &config,
		    CONFIG_SIZE, error) < 0)
		return NULL;
	if (watch_descriptors(net, tap_fd, error) < 0) {
		release(net);
		return NULL;
	}
	platform_add(platform, &net->virtio.pci.device);
	return &take_pointer(net)->virtio.pci.device;
}
