#include "vmm/console_hub.h"
#include "base/cleanup.h"
#include "vmm/device.h"
#include "vmm/loop.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define INPUT_MAX 4096u
#define STREAMS_MAX 384u /* well below the descriptors that the process may have */
#define LIMIT_LEAST 1024u
#define LIMIT_MOST (16u << 20) /* what a FIELD_BUFFER holds */

/*
 * Positions count the bytes printed since the hub was made. The ring holds the positions end - ring.size to
 * end - 1; while it is not full `head` is 0.
 */
struct stream {
	struct watch watch;
	struct console_hub *hub;
	uint64_t position; /* the next byte to send */
	uint32_t events;
	bool from_start; /* asked for the history */
	bool ended;      /* it sends no more input */
	struct stream *next;
};

struct console_hub {
	struct device device;
	struct platform *platform;
	size_t limit;
	struct buffer ring;
	size_t head; /* index of the oldest byte */
	uint64_t end;
	struct buffer waiting; /* input that no port has taken yet */
	struct console_port *ports, *active;
	uint32_t active_place; /* of the active port among the ports, for the saved state */
	struct stream *streams;
	unsigned stream_count;
	bool flush_deferred;
};

static const struct field hub_fields[] = {
	FIELD(struct console_hub, ring, FIELD_BUFFER),
	FIELD(struct console_hub, waiting, FIELD_BUFFER),
	FIELD_SINCE(struct console_hub, active_place, FIELD_U32, 2),
};
static const struct field_table hub_state = FIELD_TABLE("console", 2, hub_fields);

static uint64_t oldest(const struct console_hub *hub)
{
	return hub->end - hub->ring.size;
}

static void ring_append(struct console_hub *hub, const uint8_t *data, size_t size)
{
	hub->end += size;
	if (size > hub->limit) {
		data += size - hub->limit;
		size = hub->limit;
	}
	if (hub->ring.size < hub->limit) {
		size_t part = size < hub->limit - hub->ring.size ? size : hub->limit - hub->ring.size;

		buffer_append(&hub->ring, data, part);
		if (hub->ring.failed) { /* no memory for more: forget what was, keep going */
			buffer_clear(&hub->ring);
			return;
		}
		data += part;
		size -= part;
	}
	while (size) {
		size_t part = size < hub->limit - hub->head ? size : hub->limit - hub->head;

		memcpy(hub->ring.data + hub->head, data, part);
		hub->head = (hub->head + part) % hub->limit;
		data += part;
		size -= part;
	}
}

static void stream_free(struct stream *stream)
{
	for (struct stream **at = &stream->hub->streams; *at; at = &(*at)->next)
		if (*at == stream) {
			*at = stream->next;
			stream->hub->stream_count--;
			break;
		}
	loop_remove(stream->hub->platform->loop, &stream->watch);
	close(stream->watch.fd);
	free(stream);
}

/* Listens for what the stream can now do. */
static void stream_listen(struct stream *stream)
{
	struct console_hub *hub = stream->hub;
	bool readable = !stream->ended && hub->waiting.size < INPUT_MAX;
	uint32_t events = (readable ? EPOLLIN : 0u) | (stream->position < hub->end ? EPOLLOUT : 0u);

	if (events == stream->events)
		return;
	if (loop_modify(hub->platform->loop, &stream->watch, events, NULL) == 0)
		stream->events = events;
}

/* Sends what the socket takes; false when the stream has gone. */
static bool stream_send(struct stream *stream)
{
	struct console_hub *hub = stream->hub;

	if (stream->position < oldest(hub))
		stream->position = oldest(hub); /* too slow: that output is lost to it */
	while (stream->position < hub->end) {
		size_t at = (hub->head + (size_t)(stream->position - oldest(hub))) % hub->ring.size;
		size_t left = (size_t)(hub->end - stream->position);
		size_t part = left < hub->ring.size - at ? left : hub->ring.size - at;
		ssize_t sent = send(stream->watch.fd, hub->ring.data + at, part, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (sent < 0 && (errno == EAGAIN || errno == EINTR))
			break;
		if (sent < 0) {
			stream_free(stream);
			return false;
		}
		stream->position += (uint64_t)sent;
	}
	stream_listen(stream);
	return true;
}

static void flush(void *context)
{
	struct console_hub *hub = context;

	hub->flush_deferred = false;
	for (struct stream *stream = hub->streams, *next; stream; stream = next) {
		next = stream->next;
		if (!(stream->events & EPOLLOUT))
			stream_send(stream);
	}
}

static void offer_input(struct console_hub *hub)
{
	if (hub->waiting.size && hub->active && !hub->platform->paused)
		hub->active->input(hub->active->context);
}

static void stream_receive(struct stream *stream)
{
	struct console_hub *hub = stream->hub;
	uint8_t bytes[INPUT_MAX];
	ssize_t size;

	if (hub->waiting.size >= INPUT_MAX) {
		stream_listen(stream);
		return;
	}
	size = recv(stream->watch.fd, bytes, INPUT_MAX - hub->waiting.size, MSG_DONTWAIT);
	if (size < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (size <= 0)
		stream->ended =
			true; /* it may still want output; when it closes, sending or EPOLLHUP says so */
	else
		buffer_append(&hub->waiting, bytes, (size_t)size);
	stream_listen(stream);
	offer_input(hub);
}

static void stream_ready(void *context, uint32_t events)
{
	struct stream *stream = context;

	if (events & EPOLLOUT && !stream_send(stream))
		return;
	if (events & EPOLLIN)
		stream_receive(stream);
	else if (events & (EPOLLHUP | EPOLLERR))
		stream_free(stream);
}

int console_attach(struct console_hub *hub, int fd, bool history, struct error *error)
{
	struct stream *stream = hub->stream_count < STREAMS_MAX ? calloc(1, sizeof(*stream)) : NULL;
	int r;

	if (hub->stream_count >= STREAMS_MAX)
		return error_set(
			error, EBUSY, "%u clients look at the guest's console already.", STREAMS_MAX);
	if (!stream)
		return error_set(error, ENOMEM, "Out of memory while attaching to the console.");
	*stream = (struct stream){.watch = {.fd = fd, .handler = stream_ready, .context = stream},
		.hub = hub,
		.position = history ? oldest(hub) : hub->end,
		.from_start = history,
		.events = EPOLLIN};
	r = loop_add(hub->platform->loop, &stream->watch, EPOLLIN, error);
	if (r < 0) {
		free(stream);
		return r;
	}
	stream->next = hub->streams;
	hub->streams = stream;
	hub->stream_count++;
	stream_send(stream);
	return 0;
}

void console_port_add(struct console_hub *hub, struct console_port *port)
{
	struct console_port **end = &hub->ports;

	while (*end)
		end = &(*end)->next;
	*end = port;
	port->next = NULL;
	port->hub = hub;
	if (!hub->active)
		hub->active = port;
}

void console_port_remove(struct console_port *port)
{
	struct console_hub *hub = port->hub;

	if (!hub)
		return;
	for (struct console_port **at = &hub->ports; *at; at = &(*at)->next)
		if (*at == port) {
			*at = port->next;
			break;
		}
	port->hub = NULL;
	if (hub->active == port)
		hub->active = hub->ports;
}

void console_output(struct console_port *port, const void *data, size_t size)
{
	struct console_hub *hub = port->hub;

	if (!hub || size == 0)
		return;
	hub->active = port;
	ring_append(hub, data, size);
	if (hub->streams && !hub->flush_deferred) {
		hub->flush_deferred = true;
		loop_defer(hub->platform->loop, flush, hub);
	}
}

size_t console_input(struct console_port *port, void *data, size_t size)
{
	struct console_hub *hub = port->hub;
	bool was_full;

	if (!hub || hub->active != port || hub->waiting.size == 0)
		return 0;
	was_full = hub->waiting.size >= INPUT_MAX;
	if (size > hub->waiting.size)
		size = hub->waiting.size;
	memcpy(data, hub->waiting.data, size);
	memmove(hub->waiting.data, hub->waiting.data + size, hub->waiting.size - size);
	hub->waiting.size -= size;
	if (was_full)
		for (struct stream *stream = hub->streams; stream; stream = stream->next)
			stream_listen(stream);
	return size;
}

/* Turns the ring so that the oldest byte comes first. */
static void hub_before_save(struct device *device)
{
	struct console_hub *hub = CONTAINER_OF(device, struct console_hub, device);
	_cleanup_free_ uint8_t *front = NULL;

	hub->active_place = 0;
	for (const struct console_port *port = hub->ports; port && port != hub->active; port = port->next)
		hub->active_place++;
	if (hub->head == 0)
		return;
	front = malloc(hub->head);
	if (!front)
		return; /* the history then begins in its middle; nothing else depends on it */
	memcpy(front, hub->ring.data, hub->head);
	memmove(hub->ring.data, hub->ring.data + hub->head, hub->ring.size - hub->head);
	memcpy(hub->ring.data + hub->ring.size - hub->head, front, hub->head);
	hub->head = 0;
}

static int hub_after_load(struct device *device, struct error *error)
{
	struct console_hub *hub = CONTAINER_OF(device, struct console_hub, device);
	struct console_port *port = hub->ports;

	(void)error;
	/* Input goes on where it went, whether or not that console prints first. */
	for (uint32_t i = 0; port && i < hub->active_place; i++)
		port = port->next;
	if (port)
		hub->active = port;
	if (hub->ring.size > hub->limit) {
		memmove(hub->ring.data, hub->ring.data + hub->ring.size - hub->limit, hub->limit);
		hub->ring.size = hub->limit;
	}
	if (hub->waiting.size > INPUT_MAX)
		hub->waiting.size = INPUT_MAX;
	hub->head = 0;
	hub->end += hub->ring.size;
	for (struct stream *stream = hub->streams, *next; stream; stream = next) {
		next = stream->next;
		stream->position = stream->from_start ? oldest(hub) : hub->end;
		stream_send(stream);
	}
	return 0;
}

static void hub_resume(struct device *device)
{
	offer_input(CONTAINER_OF(device, struct console_hub, device));
}

static void hub_free(struct device *device)
{
	struct console_hub *hub = CONTAINER_OF(device, struct console_hub, device);

	while (hub->streams)
		stream_free(hub->streams);
	while (hub->ports)
		console_port_remove(hub->ports);
	buffer_free(&hub->ring);
	buffer_free(&hub->waiting);
	free(hub);
}

static const struct device_class hub_class = {
	.state = &hub_state,
	.before_save = hub_before_save,
	.after_load = hub_after_load,
	.resume = hub_resume,
	.free = hub_free,
};

struct console_hub *console_hub_new(struct platform *platform, unsigned limit_kib, struct error *error)
{
	struct console_hub *hub = calloc(1, sizeof(*hub));
	size_t limit = (size_t)limit_kib << 10;

	if (!hub) {
		error_set(error, ENOMEM, "Out of memory while making the console.");
		return NULL;
	}
	hub->device.class = &hub_class;
	hub->platform = platform;
	hub->limit = limit < LIMIT_LEAST ? LIMIT_LEAST : limit > LIMIT_MOST ? LIMIT_MOST : limit;
	platform_add(platform, &hub->device);
	return hub;
}
