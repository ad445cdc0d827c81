/*
 * A data connection, from its first byte: the HELLO that comes before TLS and finds the carrier, then, with a
 * token that is right or not, JOIN, and the records of memory. The input is
 *	u8 how (1: the HELLO's digest is made to fit, 2: its magic as well, 4: the token is the right one, 8:
 *all join), 64 bytes of HELLO, u8 SPREAD's argument, then for both connections in turn u8 type (0x80 set:
 *head not checked right), u8 argument, u8 payload length, payload where heads are made to fit, so that what
 *lies behind the checks is reached.
 */
#include "base/channel.h"
#include "base/cleanup.h"
#include "carry/peer.h"
#include "carry/streams_in.h"
#include "state/digest.h"

#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define STREAMS 2u
#define PAGES 1024u
#define PAGE 4096u
#define TOKEN_BYTE 0x5a

enum how { SEALED = 1, MAGIC = 2, TOKEN = 4, JOINED = 8 };

/* What a stranger says first, as a carrier at the door hears it. */
static void greet(uint8_t hello[HELLO_SIZE], uint8_t how)
{
	struct job nobody = {.channel = -1};
	struct hello heard;
	struct wire wire;
	uint64_t digest;
	int pair[2];

	if (how & MAGIC)
		memcpy(hello, "FERRYREL", 8);
	digest = digest_of(hello, HELLO_SIZE - 8);
	if (how & SEALED)
		memcpy(hello + HELLO_SIZE - 8, &digest, 8);
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
		return;
	send(pair[0], hello, HELLO_SIZE, MSG_DONTWAIT | MSG_NOSIGNAL);
	shutdown(pair[0], SHUT_WR);
	if (wire_adopt(&wire, &nobody, pair[1], "peer", NULL) == 0 &&
		peer_welcome(&wire, &heard, &(struct error){0}) == 0 && heard.purpose == PURPOSE_PAGES &&
		(heard.stream < 1 || heard.stream > PEER_STREAMS_MAX))
		__builtin_trap();
	wire_close(&wire);
	close(pair[0]);
}

static void put_head(struct buffer *out, const struct record *record, bool damaged)
{
	if (!buffer_extend(out, RECORD_HEAD_SIZE))
		return;
	record_encode(record, out->data + out->size - RECORD_HEAD_SIZE);
	if (damaged)
		out->data[out->size - RECORD_HEAD_SIZE + 5] ^= 0x40;
}

static void put_record(struct buffer *out, struct cursor *in)
{
	uint8_t type = cursor_u8(in), argument = cursor_u8(in), length = cursor_u8(in);
	const void *payload = length <= cursor_left(in) ? cursor_take(in, length) : NULL;

	put_head(out,
		&(struct record){.type = type & 0x1f, .argument = argument, .length = payload ? length : 0},
		type & 0x80);
	buffer_append(out, payload, payload ? length : 0);
}

struct source {
	int control, streams[STREAMS];
	uint8_t spread;
	bool waits;
};

/* Says SPREAD once those that join have been answered. */
static void *say_spread(void *context)
{
	struct source *source = context;
	struct buffer out = {0};
	uint8_t answer[RECORD_HEAD_SIZE];

	for (unsigned i = 0; source->waits && i < STREAMS; i++) {
		struct pollfd ready = {.fd = source->streams[i], .events = POLLIN};

		if (poll(&ready, 1, 20) > 0 && recv(source->streams[i], answer, sizeof(answer), 0) < 0)
			break;
	}
	put_head(&out, &(struct record){.type = RECORD_SPREAD, .argument = source->spread}, false);
	send(source->control, out.data, out.size, MSG_DONTWAIT | MSG_NOSIGNAL);
	shutdown(source->control, SHUT_WR);
	buffer_free(&out);
	return NULL;
}

/* One data connection with JOIN and what comes after it; its other end is handed over as xend does. */
static int open_stream(unsigned number, uint8_t how, struct cursor *in, int joins)
{
	_cleanup_buffer_ struct buffer out = {0};
	_cleanup_json_ json_t *message =
		json_pack("{s:s, s:i, s:{s:i}}", "do", "join", "stream", (int)number, "socket", "fd", 0);
	uint8_t token[PEER_TOKEN_SIZE];
	int pair[2];

	memset(token, how & TOKEN ? TOKEN_BYTE : cursor_u8(in), sizeof(token));
	if (how & JOINED) {
		put_head(&out,
			&(struct record){.type = RECORD_JOIN, .argument = number, .length = sizeof(token)},
			false);
		buffer_append(&out, token, sizeof(token));
	}
	for (unsigned i = 0; i < 8 && cursor_left(in); i++)
		put_record(&out, in);
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
		return -1;
	send(pair[0], out.data, out.size, MSG_DONTWAIT | MSG_NOSIGNAL);
	shutdown(pair[0], SHUT_WR);
	channel_send(joins, message, &pair[1], 1, NULL);
	close(pair[1]);
	return pair[0];
}

static void receive(struct streams_in *streams, struct wire *control, int ram_fd, const struct source *source)
{
	struct page_receiver pattern = {
		.wire = control, .ram_fd = ram_fd, .pages = PAGES, .compressed = true};
	struct error error = {0};
	uint64_t sum = 0;
	pthread_t thread;

	if (!page_digests_begin(&pattern.digests, PAGES))
		return;
	memset(streams->token, TOKEN_BYTE, sizeof(streams->token));
	if (crew_begin(&streams->crew, STREAMS, &error) == 0 &&
		pthread_create(&thread, NULL, say_spread, (void *)(uintptr_t)source) == 0) {
		if (streams_in_open(streams, STREAMS, control, &pattern, &error) == 0 && streams->count &&
			streams_in_round(streams, 1, &error) == 0)
			streams_in_finish(streams, &sum, &error);
		pthread_join(thread, NULL);
	}
	streams_in_end(streams);
	page_receiver_end(&pattern);
	page_digests_free(&pattern.digests);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	_cleanup_close_ int ram_fd = memfd_create("ram", MFD_CLOEXEC);
	struct cursor in = cursor_over(data, size);
	uint8_t how = cursor_u8(&in), hello[HELLO_SIZE] = {0};
	const void *given = cursor_left(&in) >= HELLO_SIZE ? cursor_take(&in, HELLO_SIZE) : NULL;
	struct job nobody = {.channel = -1};
	struct source source = {.waits = how & JOINED && how & TOKEN};
	struct streams_in *streams = calloc(1, sizeof(*streams));
	struct wire control;
	int line[2], joins[2];

	if (given)
		memcpy(hello, given, HELLO_SIZE);
	greet(hello, how);
	source.spread = cursor_u8(&in) % (PEER_STREAMS_MAX + 1);
	if (!streams || ftruncate(ram_fd, PAGES * PAGE) < 0 ||
		socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, line) < 0 ||
		socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, joins) < 0)
		abort();
	streams->joins = joins[1];
	streams->most = STREAMS;
	source.control = line[0];
	for (unsigned i = 0; i < STREAMS; i++)
		source.streams[i] = open_stream(i + 1, how, &in, joins[0]);
	if (wire_adopt(&control, &nobody, line[1], "peer", NULL) == 0)
		receive(streams, &control, ram_fd, &source);
	wire_close(&control);
	for (unsigned i = 0; i < STREAMS; i++)
		cleanup_close(&source.streams[i]);
	close(line[0]);
	close(joins[0]);
	free(streams);
	return 0;
}
