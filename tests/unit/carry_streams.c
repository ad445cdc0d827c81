/* Hand-overs whose memory goes over several data connections, which the test makes and hands over as xend
 * does. */
#include "hand_over.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "carry/peer.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/socket.h>
#include <cmocka.h>

struct move {
	int listener, port, joins;
	struct fake_guest from, to;
	struct carrier_thread source, dest, *gone; /* one of the two has been ended; NULL: none */
	int lines[PEER_STREAMS_MAX]; /* the source's ends of the data connections, to cut them */
	unsigned line_count;
};

static void begin_source(struct move *move, bool live, int connections, int rate_mbit, const char *compress)
{
	int fds[2] = {move->from.carrier_end};

	carrier_thread_begin(&move->source, send_job);
	say_job(&move->source,
		json_pack("{s:s, s:{s:i}, s:s, s:i, s:{s:s, s:s, s:I}, s:s, s:b, s:i, s:i, s:i, s:s}", "do",
			"send", "guest", "fd", 0, "host", "127.0.0.1", "port", move->port, "domain", "name",
			"TestGuest", "uuid", UUID, "memory_mib", (json_int_t)(move->from.pages / MIB_PAGES),
			"ticket", TICKET, "live", live, "rate_mbit", rate_mbit, "max_downtime_ms", 50,
			"connections", connections, "compress", compress),
		fds, 1, true);
}

static void begin_dest(struct move *move, int connections)
{
	int pair[2], fds[3] = {accept_from(move->listener)};

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	move->joins = pair[0];
	fds[1] = pair[1];
	carrier_thread_begin(&move->dest, receive_job);
	say_job(&move->dest,
		json_pack("{s:s, s:{s:i}, s:{s:i}, s:i}", "do", "receive", "socket", "fd", 0, "joins", "fd",
			1, "connections", connections),
		fds, 2, false);
	close(fds[0]);
	close(fds[1]);
}

static void move_begin(
	struct move *move, uint64_t pages, bool live, int connections, int rate_mbit, const char *compress)
{
	*move = (struct move){.port = 0};
	move->listener = listen_here(&move->port);
	fake_guest_begin(&move->from, pages);
	fake_guest_begin(&move->to, pages);
	fake_guest_fill(&move->from, 3, pages / 2, 1);
	fake_guest_fill(&move->from, pages - 2, 2, 2);
	if (live)
		fake_guest_run(&move->from, pages / 4);
	begin_source(move, live, connections, rate_mbit, compress);
	begin_dest(move, PEER_STREAMS_MAX);
	pass(&move->dest, "offer");
	carrier_accept(&move->dest, &move->to);
}

static void move_end(struct move *move)
{
	if (move->gone != &move->source)
		carrier_thread_end(&move->source);
	if (move->gone != &move->dest)
		carrier_thread_end(&move->dest);
	fake_guest_end(&move->from);
	fake_guest_end(&move->to);
	while (move->line_count)
		cleanup_close(&move->lines[--move->line_count]);
	close(move->joins);
	close(move->listener);
}

/* Somebody on the first data connection, who changes a byte of what the source says. */
struct middle {
	int source, dest;
	size_t at, passed;
	pthread_t thread;
};

static bool pass_some(struct middle *middle, bool from_source)
{
	uint8_t bytes[4096];
	ssize_t n = read(from_source ? middle->source : middle->dest, bytes, sizeof(bytes));

	if (n <= 0)
		return false;
	if (from_source) {
		if (middle->at >= middle->passed && middle->at < middle->passed + (size_t)n)
			bytes[middle->at - middle->passed] ^= 0x10;
		middle->passed += (size_t)n;
	}
	return send(from_source ? middle->dest : middle->source, bytes, (size_t)n, MSG_NOSIGNAL) == n;
}

static void *pass_on(void *context)
{
	struct middle *middle = context;
	struct pollfd ready[2] = {
		{.fd = middle->source, .events = POLLIN}, {.fd = middle->dest, .events = POLLIN}};

	while (poll(ready, 2, -1) > 0 && pass_some(middle, ready[0].revents))
		;
	close(middle->source);
	close(middle->dest);
	return NULL;
}

/* Gives the source's end of a connection to `line` through somebody in the middle. */
static int put_between(struct middle *middle, int line)
{
	int pair[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	middle->source = pair[1];
	middle->dest = line;
	pthread_create(&middle->thread, NULL, pass_on, middle);
	return pair[0];
}

/* The source's xend: makes the connections that are asked for. `middle` (may be NULL) gets between the first.
 */
static void connect_lines(struct move *move, unsigned expected, struct middle *middle)
{
	struct sockaddr_in address = {.sin_family = AF_INET,
		.sin_port = htons((uint16_t)move->port),
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	struct message wish = carrier_event(&move->source, "connect");
	json_t *sockets = json_array();

	assert_int_equal(json_integer_value(json_object_get(wish.body, "count")), expected);
	message_free(&wish);
	while (move->line_count < expected) {
		int line = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

		assert_int_equal(connect(line, (struct sockaddr *)&address, sizeof(address)), 0);
		if (middle && move->line_count == 0)
			line = put_between(middle, line);
		json_array_append_new(sockets, json_pack("{s:{s:i}}", "socket", "fd", (int)move->line_count));
		move->lines[move->line_count++] = line;
	}
	carrier_say(&move->source, json_pack("{s:s, s:o}", "do", "connected", "sockets", sockets),
		move->lines, move->line_count);
	if (middle) {
		close(move->lines[0]); /* so that the one in the middle sees the source's end */
		move->lines[0] = -1;
	}
}

/* Whether the next event but progress is this one, which then is in *message. */
static bool next_is(struct carrier_thread *carrier, const char *name, struct message *message)
{
	for (;;) {
		const char *heard;
		bool is, aside;

		assert_int_equal(channel_receive(carrier->channel, message, NULL), 0);
		heard = json_string_value(json_object_get(message->body, "event"));
		is = strcmp(heard, name) == 0;
		if (is)
			return true;
		aside = carrier_event_is_aside(carrier, message);
		message_free(message);
		if (!aside)
			return false;
	}
}

/* The destination's xend: a carrier at the door finds out what each wants, the socket goes to the other one.
 */
static void hand_over_line(struct move *move, bool may_fail)
{
	struct carrier_thread door;
	struct message join;
	json_t *body;
	int fds[2] = {accept_from(move->listener)};

	carrier_thread_begin(&door, receive_job);
	say_job(&door, json_pack("{s:s, s:{s:i}}", "do", "receive", "socket", "fd", 0), fds, 1, false);
	if (may_fail && !next_is(&door, "join", &join)) {
		carrier_thread_end(&door);
		close(fds[0]);
		return;
	}
	if (!may_fail)
		join = carrier_event(&door, "join");
	assert_string_equal(json_string_value(json_object_get(join.body, "ticket")), TICKET);
	assert_non_null(json_object_get(join.body, "peer"));
	body = json_pack("{s:s, s:O, s:{s:i}}", "do", "join", "stream", json_object_get(join.body, "stream"),
		"socket", "fd", 0);
	message_free(&join);
	carrier_thread_end(&door);
	/* Nobody takes any where the source has given up on them all. */
	assert_true(channel_send(move->joins, body, fds, 1, NULL) == 0 || may_fail);
	json_decref(body);
	close(fds[0]);
}

static void set_up_lines(struct move *move, unsigned count)
{
	connect_lines(move, count, NULL);
	for (unsigned i = 0; i < count; i++)
		hand_over_line(move, false);
}

static void complete(struct move *move, int64_t *milliseconds, int64_t *bytes)
{
	struct message done;

	pass(&move->dest, "received");
	say(&move->dest, "received");
	pass(&move->source, "received");
	assert_false(move->from.running);
	assert_true(move->to.loaded);
	assert_int_equal(memcmp(move->from.ram, move->to.ram, move->to.pages * FAKE_PAGE), 0);
	say(&move->source, "commit");
	pass(&move->dest, "commit");
	carrier_say(&move->dest, json_pack("{s:s, s:i}", "do", "running", "id", 17), NULL, 0);
	pass(&move->dest, "done");
	done = carrier_event(&move->source, "done");
	*milliseconds = json_integer_value(json_object_get(done.body, "milliseconds"));
	*bytes = json_integer_value(json_object_get(done.body, "bytes"));
	message_free(&done);
	move_end(move);
}

static void migrate(uint64_t pages, bool live, unsigned connections, const char *compress)
{
	struct move move;
	int64_t milliseconds, bytes;

	move_begin(&move, pages, live, (int)connections, 0, compress);
	set_up_lines(&move, connections);
	complete(&move, &milliseconds, &bytes);
}

static void a_guest_moves(void **state)
{
	(void)state;
	migrate(64 * MIB_PAGES, false, 4, "auto");
	migrate(64 * MIB_PAGES, false, 3, "yes");
	migrate(1 * MIB_PAGES, false, PEER_STREAMS_MAX, "no");
}

static void a_running_guest_moves(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 6; i++)
		migrate(64 * MIB_PAGES, true, 2 + i % 3, i % 2 ? "no" : "yes");
}

static void the_rate_is_kept_by_all_together(void **state)
{
	struct move move;
	int64_t milliseconds, bytes;

	(void)state;
	/* 40 % of 16 MiB at 100 Mbit/s: half a second. */
	move_begin(&move, 16 * MIB_PAGES, false, 4, 100, "no");
	set_up_lines(&move, 4);
	complete(&move, &milliseconds, &bytes);
	assert_true(bytes > 6 << 20);
	assert_true(milliseconds >= bytes * 8 / 100000 * 8 / 10);
}

static void a_destination_may_want_fewer(void **state)
{
	struct move move;
	int64_t milliseconds, bytes;

	(void)state;
	for (int most = 1; most <= 3; most += 2) {
		move = (struct move){.port = 0};
		move.listener = listen_here(&move.port);
		fake_guest_begin(&move.from, 4 * MIB_PAGES);
		fake_guest_begin(&move.to, 4 * MIB_PAGES);
		fake_guest_fill(&move.from, 3, 3 * MIB_PAGES, 1);
		begin_source(&move, false, 4, 0, "auto");
		begin_dest(&move, most);
		pass(&move.dest, "offer");
		carrier_accept(&move.dest, &move.to);
		if (most > 1)
			set_up_lines(&move, (unsigned)most);
		complete(&move, &milliseconds, &bytes);
	}
}

static void without_connections_one_does(void **state)
{
	struct move move;
	int64_t milliseconds, bytes;

	(void)state;
	move_begin(&move, 8 * MIB_PAGES, true, 4, 0, "auto");
	pass(&move.source, "connect");
	carrier_say(&move.source, json_pack("{s:s, s:[]}", "do", "connected", "sockets"), NULL, 0);
	complete(&move, &milliseconds, &bytes);
}

/* Somebody who knows the ticket, but not the token, is there before the source: it loses a connection by
 * that, nothing else. */
static void a_stranger_joins_nothing(void **state)
{
	struct move move;
	int64_t milliseconds, bytes;
	uint8_t words[RECORD_HEAD_SIZE + PEER_TOKEN_SIZE] = {0}, heard[64];
	json_t *body = json_pack("{s:s, s:i, s:{s:i}}", "do", "join", "stream", 2, "socket", "fd", 0);
	int pair[2];

	(void)state;
	move_begin(&move, 8 * MIB_PAGES, false, 2, 0, "auto");
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	record_encode(&(struct record){.type = RECORD_JOIN, .argument = 2, .length = PEER_TOKEN_SIZE}, words);
	assert_int_equal(send(pair[0], words, sizeof(words), MSG_NOSIGNAL), sizeof(words));
	assert_int_equal(channel_send(move.joins, body, &pair[1], 1, NULL), 0);
	json_decref(body);
	close(pair[1]);
	connect_lines(&move, 2, NULL);
	hand_over_line(&move, true);
	hand_over_line(&move, true);
	complete(&move, &milliseconds, &bytes);
	/* It was not answered: what TLS said, if anything, is an alert. */
	assert_true(recv(pair[0], heard, sizeof(heard), MSG_DONTWAIT) < RECORD_HEAD_SIZE);
	close(pair[0]);
}

enum loss { SOURCES_XEND, DESTINATIONS_XEND, A_LINE, LOSSES };

/* Whatever goes while the memory is on its way: both sides fail, and the guest runs on. */
static void what_is_lost_ends_it_on_both_sides(void **state)
{
	(void)state;
	for (unsigned loss = 0; loss < LOSSES; loss++) {
		struct move move;

		move_begin(&move, 64 * MIB_PAGES, true, 3, 5, "no");
		set_up_lines(&move, 3);
		poll(NULL, 0, 100);
		if (loss == SOURCES_XEND) {
			carrier_thread_end(move.gone = &move.source);
			pass(&move.dest, "failed");
		} else if (loss == DESTINATIONS_XEND) {
			carrier_thread_end(move.gone = &move.dest);
			pass(&move.source, "failed");
		} else {
			shutdown(move.lines[1], SHUT_RDWR);
			pass(&move.source, "failed");
			pass(&move.dest, "failed");
		}
		assert_true(move.from.running);
		assert_false(move.to.loaded);
		move_end(&move);
		assert_false(move.from.tracking);
	}
}

/* A small guest by two data connections, with byte `at` of what the source says on the first changed. True
 * where it arrived, and then it is right. */
static bool arrives_damaged(size_t at, size_t *said)
{
	struct move move = {.port = 0};
	struct middle middle = {.at = at};
	struct message event;
	bool arrives;

	move.listener = listen_here(&move.port);
	fake_guest_begin(&move.from, 2 * MIB_PAGES);
	fake_guest_begin(&move.to, 2 * MIB_PAGES);
	fake_guest_fill(&move.from, 10, 2, 1);
	memset(move.from.ram + 20 * FAKE_PAGE, 0x5a, 3 * FAKE_PAGE); /* these travel compressed */
	begin_source(&move, false, 2, 0, "yes");
	begin_dest(&move, 2);
	pass(&move.dest, "offer");
	carrier_accept(&move.dest, &move.to);
	connect_lines(&move, 2, &middle);
	hand_over_line(&move, true);
	hand_over_line(&move, true);
	arrives = next_is(&move.dest, "received", &event);
	if (arrives) {
		message_free(&event);
		assert_int_equal(memcmp(move.from.ram, move.to.ram, move.to.pages * FAKE_PAGE), 0);
		say(&move.dest, "received");
	}
	pass(&move.source, arrives ? "received" : "failed");
	move_end(&move);
	pthread_join(middle.thread, NULL);
	*said = middle.passed;
	return arrives;
}

/* Before it has joined, a damaged connection is done without. */
static void a_damaged_connection_never_becomes_memory(void **state)
{
	const size_t joined = HELLO_SIZE + RECORD_HEAD_SIZE + PEER_TOKEN_SIZE;
	/* Where lines are secured a damaged length makes both sides wait for more. */
	const size_t few = secured.on ? 37 : 9;
	size_t size, ignored;

	(void)state;
	assert_true(arrives_damaged(SIZE_MAX, &size));
	for (size_t at = 0; at<size; at += at> joined + 200 && at + 100 < size ? 331 : few)
		if (arrives_damaged(at, &ignored) != (at < joined) && !secured.on)
			fail_msg("byte %zu of %zu", at, size);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		BOTH_WAYS(a_guest_moves),
		BOTH_WAYS(a_running_guest_moves),
		BOTH_WAYS(the_rate_is_kept_by_all_together),
		BOTH_WAYS(a_destination_may_want_fewer),
		BOTH_WAYS(without_connections_one_does),
		BOTH_WAYS(a_stranger_joins_nothing),
		BOTH_WAYS(what_is_lost_ends_it_on_both_sides),
		BOTH_WAYS(a_damaged_connection_never_becomes_memory),
	};

	log_open("carry-streams", LOG_WARNING_);
	signal(SIGPIPE, SIG_IGN); /* as the carrier does */
	return cmocka_run_group_tests(tests, NULL, NULL);
}
