/* One hand-over between two carriers, recorded, and played again to either side: damaged at any byte, cut off
 * at any byte. */
#include "fake_guest.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "carry/peer.h"
#include "secured.h"

#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <cmocka.h>

#define UUID "cc0029f5-10a1-e6d0-3c92-19b0ea021f21"
#define TICKET "0123abcd-10a1-e6d0-3c92-19b0ea021f21"
#define MIB_PAGES 256u

#define RECORDING_MAX 65536
#define ANSWERS_MAX 1024

/* What a source said during one whole hand-over; `offered` and `copied` are where OFFER and END ended. */
struct recording {
	uint8_t bytes[RECORDING_MAX];
	size_t size, offered, copied;
	/* What the destination answered, each time after how much of the above. */
	uint8_t answers[ANSWERS_MAX];
	struct {
		size_t after, end;
	} answered[64];
	size_t answer_count;
};

/* Between source and destination: passes everything on, and keeps what the source said. */
struct middle {
	int source, dest;
	struct recording *recording;
	atomic_size_t size;
	pthread_t thread;
};

static void keep_answer(struct middle *middle, const uint8_t *bytes, size_t size)
{
	struct recording *recording = middle->recording;
	size_t at = recording->answer_count ? recording->answered[recording->answer_count - 1].end : 0;

	if (at + size > ANSWERS_MAX || recording->answer_count == ARRAY_SIZE(recording->answered))
		return;
	memcpy(recording->answers + at, bytes, size);
	recording->answered[recording->answer_count].after = middle->size;
	recording->answered[recording->answer_count++].end = at + size;
}

static void *pass_on(void *context)
{
	struct middle *middle = context;
	struct pollfd ready[2] = {
		{.fd = middle->source, .events = POLLIN}, {.fd = middle->dest, .events = POLLIN}};
	uint8_t bytes[4096];

	while (poll(ready, 2, 60000) > 0) {
		bool from_source = ready[0].revents;
		ssize_t n = read(from_source ? middle->source : middle->dest, bytes, sizeof(bytes));

		if (n <= 0)
			break;
		/* Kept before it is passed on: whoever has heard of it finds it counted. */
		if (!from_source)
			keep_answer(middle, bytes, (size_t)n);
		if (from_source && middle->size + (size_t)n <= RECORDING_MAX) {
			memcpy(middle->recording->bytes + middle->size, bytes, (size_t)n);
			middle->size += (size_t)n;
		}
		if (write(from_source ? middle->dest : middle->source, bytes, (size_t)n) != n)
			break;
	}
	close(middle->source);
	close(middle->dest);
	return NULL;
}

static void fill_small(struct fake_guest *guest)
{
	fake_guest_fill(guest, 10, 2, 1);
	memset(guest->ram + 20 * FAKE_PAGE, 0x5a, 3 * FAKE_PAGE); /* these travel compressed */
}

static void begin_source(struct carrier_thread *source, struct fake_guest *guest, int port)
{
	carrier_thread_begin(source, send_job);
	carrier_say(source,
		json_pack("{s:s, s:{s:i}, s:s, s:i, s:{s:s, s:s, s:I}, s:s, s:b, s:i, s:i, s:s}", "do",
			"send", "guest", "fd", 0, "host", "127.0.0.1", "port", port, "domain", "name",
			"TestGuest", "uuid", UUID, "memory_mib", (json_int_t)1, "ticket", TICKET, "live", 0,
			"rate_mbit", 0, "max_downtime_ms", 50, "compress", "yes"),
		&guest->carrier_end, 1);
}

static void begin_dest(struct carrier_thread *dest, int socket)
{
	carrier_thread_begin(dest, receive_job);
	carrier_say(dest, json_pack("{s:s, s:{s:i}}", "do", "receive", "socket", "fd", 0), &socket, 1);
	close(socket);
}

static void pass(struct carrier_thread *carrier, const char *event)
{
	struct message message = carrier_event(carrier, event);

	message_free(&message);
}

static void say(struct carrier_thread *carrier, const char *verb)
{
	carrier_say(carrier, json_pack("{s:s}", "do", verb), NULL, 0);
}

static void record_hand_over(struct recording *recording)
{
	struct middle middle = {.recording = recording};
	struct carrier_thread source, dest;
	struct fake_guest from, to;
	int pair[2], port, listener = listen_here(&port);

	fake_guest_begin(&from, MIB_PAGES);
	fake_guest_begin(&to, MIB_PAGES);
	fill_small(&from);
	begin_source(&source, &from, port);
	middle.source = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	middle.dest = pair[0];
	pthread_create(&middle.thread, NULL, pass_on, &middle);
	begin_dest(&dest, pair[1]);
	pass(&dest, "offer");
	recording->offered = middle.size;
	carrier_accept(&dest, &to);
	pass(&dest, "received");
	recording->copied = middle.size;
	say(&dest, "received");
	pass(&source, "received");
	say(&source, "commit");
	pass(&dest, "commit");
	carrier_say(&dest, json_pack("{s:s, s:i}", "do", "running", "id", 17), NULL, 0);
	pass(&dest, "done");
	pass(&source, "done");
	carrier_thread_end(&source);
	carrier_thread_end(&dest);
	fake_guest_end(&from);
	fake_guest_end(&to);
	pthread_join(middle.thread, NULL);
	recording->size = middle.size;
	close(listener);
}

/*
 * Plays the recording up to `size` to a destination. True where it took the guest over. Nothing follows the
 * part that byte `damaged` is in: it must be found by then.
 */
static bool play(
	const struct recording *recording, size_t size, size_t damaged, const struct fake_guest *original)
{
	const size_t ends[] = {recording->offered, recording->copied, recording->size};
	struct carrier_thread dest;
	struct fake_guest guest;
	bool committed = false, failed = false;
	size_t at = 0;
	int pair[2];

	fake_guest_begin(&guest, MIB_PAGES);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	begin_dest(&dest, pair[1]);
	for (unsigned part = 0; part < 3 && !failed; part++) {
		size_t end = ends[part] < size ? ends[part] : size;
		struct message event;
		const char *name;

		if (send(pair[0], recording->bytes + at, end - at, MSG_NOSIGNAL) < 0)
			assert_true(errno == EPIPE || errno == ECONNRESET);
		at = end;
		if (damaged < end)
			shutdown(pair[0], SHUT_WR);
		do {
			json_t *answer = NULL;

			assert_int_equal(channel_receive(dest.channel, &event, NULL), 0);
			name = json_string_value(json_object_get(event.body, "event"));
			failed = strcmp(name, "failed") == 0;
			committed = strcmp(name, "commit") == 0;
			if (strcmp(name, "offer") == 0)
				carrier_accept(&dest, &guest);
			else if (strcmp(name, "received") == 0)
				answer = json_pack("{s:s}", "do", "received");
			/* Where the stream is cut the carrier may have ended already. */
			if (answer)
				channel_send(dest.channel, answer, NULL, 0, NULL);
			json_decref(answer);
			at = carrier_event_is_aside(&dest, &event) ? SIZE_MAX : end;
			message_free(&event);
		} while (at == SIZE_MAX);
	}
	if (committed) {
		assert_int_equal(memcmp(guest.ram, original->ram, MIB_PAGES * FAKE_PAGE), 0);
		assert_true(guest.loaded);
	}
	close(pair[0]);
	carrier_thread_end(&dest);
	fake_guest_end(&guest);
	return committed;
}

static void a_damaged_stream_never_becomes_a_guest(void **state)
{
	struct recording *recording = calloc(1, sizeof(*recording));
	struct fake_guest original;

	(void)state;
	record_hand_over(recording);
	fake_guest_begin(&original, MIB_PAGES);
	fill_small(&original);
	assert_true(
		recording->offered > HELLO_SIZE && recording->copied > recording->offered + 2 * FAKE_PAGE);
	assert_true(play(recording, recording->size, SIZE_MAX, &original));
	for (size_t at = 0; at < recording->size; at++) {
		/* Of the pages' contents a sample; of everything else each byte. */
		bool contents = at > recording->offered + 64 && at < recording->offered + 2 * FAKE_PAGE;

		if (contents && at % 127 && !getenv("FERRY_EXHAUSTIVE"))
			continue;
		recording->bytes[at] ^= 0x10;
		assert_false(play(recording, recording->size, at, &original));
		recording->bytes[at] ^= 0x10;
		assert_false(play(recording, at, 0, &original));
	}
	fake_guest_end(&original);
	free(recording);
}

/* Reads what the source says until it has said so much, or leaves. */
static void hear_source(int line, size_t *heard, size_t until)
{
	uint8_t bytes[4096];

	while (*heard < until) {
		ssize_t n =
			read(line, bytes, until - *heard < sizeof(bytes) ? until - *heard : sizeof(bytes));

		if (n <= 0)
			return;
		*heard += (size_t)n;
	}
}

/* The next event but progress. */
static bool next_is(struct carrier_thread *carrier, const char *one, const char *other)
{
	for (;;) {
		struct message event;
		const char *name;
		bool is_one, is_other;

		assert_int_equal(channel_receive(carrier->channel, &event, NULL), 0);
		name = json_string_value(json_object_get(event.body, "event"));
		is_one = strcmp(name, one) == 0;
		is_other = strcmp(name, other) == 0;
		assert_true(is_one || is_other || strcmp(name, "progress") == 0);
		message_free(&event);
		if (is_one || is_other)
			return is_one;
	}
}

/* What a source makes of the answers it gets. */
enum outcome { NOT_COMMITTED, UNCERTAIN, DONE };

/*
 * Plays the answers up to `size` to a source, whose xend commits whenever it is asked. Nothing follows the
 * one that byte `damaged` is in.
 */
static enum outcome answer(const struct recording *recording, size_t size, size_t damaged)
{
	const size_t received = recording->answered[recording->answer_count - 2].end;
	int port, listener = listen_here(&port), line;
	struct carrier_thread source;
	struct fake_guest guest;
	enum outcome outcome = NOT_COMMITTED;
	size_t at = 0, heard = 0;
	bool failed = false;

	fake_guest_begin(&guest, MIB_PAGES);
	fill_small(&guest);
	begin_source(&source, &guest, port);
	line = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	for (size_t i = 0; i < recording->answer_count && at < size && at <= damaged && !failed; i++) {
		size_t end = recording->answered[i].end < size ? recording->answered[i].end : size;

		hear_source(line, &heard, recording->answered[i].after);
		if (send(line, recording->answers + at, end - at, MSG_NOSIGNAL) < 0)
			assert_true(errno == EPIPE || errno == ECONNRESET);
		at = end;
		if (at != received || damaged < at)
			continue;
		failed = next_is(&source, "failed", "received");
		outcome = failed ? NOT_COMMITTED : UNCERTAIN;
		if (!failed)
			say(&source, "commit");
	}
	shutdown(line, SHUT_WR);
	/* Before it has committed it fails; after it nothing but RUNNING settles it. */
	if (outcome == UNCERTAIN)
		outcome = next_is(&source, "done", "uncertain") ? DONE : UNCERTAIN;
	else if (!failed)
		assert_true(next_is(&source, "failed", "failed"));
	close(line);
	carrier_thread_end(&source);
	fake_guest_end(&guest);
	close(listener);
	return outcome;
}

static void damaged_answers_hand_no_guest_over(void **state)
{
	struct recording *recording = calloc(1, sizeof(*recording));
	unsigned bits = getenv("FERRY_EXHAUSTIVE") ? 1 : 5;
	size_t size, received;

	(void)state;
	record_hand_over(recording);
	assert_true(recording->answer_count > 4);
	size = recording->answered[recording->answer_count - 1].end;
	received = recording->answered[recording->answer_count - 2].end;
	assert_int_equal(size - received, RECORD_HEAD_SIZE); /* RUNNING alone */
	assert_int_equal(answer(recording, size, SIZE_MAX), DONE);
	for (size_t at = 0; at < size; at++) {
		const enum outcome expected = at < received ? NOT_COMMITTED : UNCERTAIN;

		for (unsigned bit = 0; bit < 8; bit += bits) {
			recording->answers[at] ^= (uint8_t)(1u << bit);
			assert_int_equal(answer(recording, size, at), expected);
			recording->answers[at] ^= (uint8_t)(1u << bit);
		}
		assert_int_equal(answer(recording, at, SIZE_MAX), expected);
	}
	free(recording);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_damaged_stream_never_becomes_a_guest),
		cmocka_unit_test(damaged_answers_hand_no_guest_over),
	};

	log_open("carry-recorded", LOG_WARNING_);
	signal(SIGPIPE, SIG_IGN); /* as the carrier does */
	return cmocka_run_group_tests(tests, NULL, NULL);
}
