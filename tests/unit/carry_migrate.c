/* Hand-overs between two carriers over loopback, and what happens when a side leaves at any step. */
#include "hand_over.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "carry/clock.h"
#include "carry/peer.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <cmocka.h>

/* A migration with everybody in place. */
struct move {
	int listener, port;
	struct fake_guest from, to;
	struct carrier_thread source, dest;
	uint64_t allocated; /* pages of `to`, before the comparison touched them all */
};

/* `more`: members of the job beside the usual ones; used up. */
static void begin_source(struct move *move, bool live, int rate_mbit, json_t *more)
{
	int fds[2] = {move->from.carrier_end};
	json_t *job = json_pack("{s:s, s:{s:i}, s:s, s:i, s:{s:s, s:s, s:I}, s:s, s:b, s:i, s:i}", "do",
		"send", "guest", "fd", 0, "host", "127.0.0.1", "port", move->port, "domain", "name",
		"TestGuest", "uuid", UUID, "memory_mib", (json_int_t)(move->from.pages / MIB_PAGES), "ticket",
		TICKET, "live", live, "rate_mbit", rate_mbit, "max_downtime_ms", 50);

	if (more)
		json_object_update(job, more);
	json_decref(more);
	carrier_thread_begin(&move->source, send_job);
	say_job(&move->source, job, fds, 1, true);
}

static void begin_dest(struct move *move)
{
	int fds[2] = {accept_from(move->listener)};

	carrier_thread_begin(&move->dest, receive_job);
	say_job(&move->dest,
		json_pack("{s:s, s:{s:i}, s:[s, s]}", "do", "receive", "socket", "fd", 0, "allow",
			"^somewhere$", "127\\.0\\.0\\.1"),
		fds, 1, false);
	close(fds[0]);
}

static void move_begin_with(struct move *move, uint64_t pages, bool live, int rate_mbit, json_t *more)
{
	move->listener = listen_here(&move->port);
	fake_guest_begin(&move->from, pages);
	fake_guest_begin(&move->to, pages);
	fake_guest_fill(&move->from, 3, pages / 2, 1);
	fake_guest_fill(&move->from, pages - 2, 2, 2);
	if (live)
		fake_guest_run(&move->from, pages / 4);
	begin_source(move, live, rate_mbit, more);
	begin_dest(move);
}

static void move_begin(struct move *move, uint64_t pages, bool live, int rate_mbit)
{
	move_begin_with(move, pages, live, rate_mbit, NULL);
}

static void move_end(struct move *move)
{
	carrier_thread_end(&move->source);
	carrier_thread_end(&move->dest);
	fake_guest_end(&move->from);
	fake_guest_end(&move->to);
	close(move->listener);
}

static void accept_offer(struct move *move)
{
	struct message offer = carrier_event(&move->dest, "offer");

	assert_string_equal(json_string_value(json_object_get(offer.body, "ticket")), TICKET);
	assert_non_null(json_object_get(offer.body, "peer"));
	assert_int_equal(
		json_integer_value(json_object_get(offer.body, "memory_mib")), move->to.pages / MIB_PAGES);
	assert_string_equal(json_string_value(json_object_get(json_object_get(offer.body, "domain"), "name")),
		"TestGuest");
	message_free(&offer);
	carrier_accept(&move->dest, &move->to);
}

/* Up to RECEIVED at the source, where the guest must be the same on both sides. */
static void copy_all(struct move *move)
{
	accept_offer(move);
	pass(&move->dest, "received");
	say(&move->dest, "received");
	pass(&move->source, "received");
	assert_false(move->from.running);
	assert_true(move->to.loaded);
	move->allocated = fake_guest_allocated(&move->to);
	assert_int_equal(memcmp(move->from.ram, move->to.ram, move->to.pages * FAKE_PAGE), 0);
	assert_memory_equal(move->from.state, move->to.state, move->from.state_size);
}

static struct message finish(struct move *move)
{
	say(&move->source, "commit");
	pass(&move->dest, "commit");
	assert_true(move->to.clock_told);
	/* One host, one clock, seen through answers that may take as long as a handshake. */
	assert_true(llabs(move->to.clock_offset_ns + set_forward_ns) < PEER_HANDSHAKE_MS * 1000000ll);
	carrier_say(&move->dest, json_pack("{s:s, s:i}", "do", "running", "id", 17), NULL, 0);
	pass(&move->dest, "done");
	return carrier_event(&move->source, "done");
}

static void migrate(uint64_t pages, bool live, const char *compress)
{
	struct move move;
	struct message done;

	move_begin_with(&move, pages, live, 0, json_pack("{s:s}", "compress", compress));
	copy_all(&move);
	done = finish(&move);
	assert_int_equal(json_integer_value(json_object_get(done.body, "remote_id")), 17);
	assert_true(move.allocated <= fake_guest_allocated(&move.from));
	if (!live) {
		assert_int_equal(json_integer_value(json_object_get(done.body, "rounds")), 1);
		/* Pages that the source touched but left zero are not touched here. */
		assert_true(move.allocated <= pages / 2 * 4 / 5 + 3);
	}
	message_free(&done);
	move_end(&move);
	/* What has left is not touched any more. */
	assert_int_equal(move.from.tracking, live);
}

static void a_guest_moves(void **state)
{
	(void)state;
	migrate(64 * MIB_PAGES, false, "auto");
	migrate(1 * MIB_PAGES, false, "no");
	migrate(1 * MIB_PAGES, false, "yes");
}

static void a_running_guest_moves(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 10; i++)
		migrate(64 * MIB_PAGES, true, i % 2 ? "auto" : "yes");
}

/* Hours may lie between the handshake and the guest's standing still: what its host's clock shows then
 * counts.
 */
static void a_clock_that_is_set_meanwhile_is_looked_at_again(void **state)
{
	struct message done;
	struct move move;

	(void)state;
	set_forward_ns = 50 * NS_PER_S;
	move_begin(&move, 4 * MIB_PAGES, false, 0);
	copy_all(&move);
	done = finish(&move);
	message_free(&done);
	move_end(&move);
	set_forward_ns = 0;
}

static void the_rate_is_kept(void **state)
{
	struct move move;
	struct message done;
	int64_t milliseconds, bytes;

	(void)state;
	/* 40 % of 16 MiB at 100 Mbit/s: half a second. */
	move_begin(&move, 16 * MIB_PAGES, false, 100);
	copy_all(&move);
	done = finish(&move);
	milliseconds = json_integer_value(json_object_get(done.body, "milliseconds"));
	bytes = json_integer_value(json_object_get(done.body, "bytes"));
	assert_true(milliseconds >= bytes * 8 / 100000 * 8 / 10);
	message_free(&done);
	move_end(&move);
}

/* A quarter of the memory is noise, the rest the same word over and over. */
static void pages_are_compressed_where_that_helps(void **state)
{
	struct move move;
	struct message done;
	int64_t bytes, memory;

	(void)state;
	move.listener = listen_here(&move.port);
	fake_guest_begin(&move.from, 64 * MIB_PAGES);
	fake_guest_begin(&move.to, 64 * MIB_PAGES);
	fake_guest_fill(&move.from, 0, 8 * MIB_PAGES, 1);
	memset(move.from.ram + (32 << 20), 0x5a, 24 << 20);
	begin_source(&move, false, 80, NULL);
	begin_dest(&move);
	copy_all(&move);
	done = finish(&move);
	bytes = json_integer_value(json_object_get(done.body, "bytes"));
	memory = json_integer_value(json_object_get(done.body, "memory_bytes"));
	assert_true(memory > (30 << 20) && bytes < memory * 2 / 3);
	message_free(&done);
	move_end(&move);
}

/* The writer writes 16 MiB over and over; the line takes 40 MB a second. */
static void a_guest_that_writes_too_fast_is_slowed(void **state)
{
	struct move move;
	struct message done;

	(void)state;
	move_begin(&move, 64 * MIB_PAGES, true, 320);
	copy_all(&move);
	done = finish(&move);
	assert_true(json_integer_value(json_object_get(done.body, "slowed_percent")) >= 50);
	assert_true(move.from.slowed_most >= 50);
	message_free(&done);
	move_end(&move);
}

/* 26 MB at 20 MB a second, in 3 s, and no end of writing. The limit holds for what comes after the stop, too.
 */
static void a_guest_arrives_in_time(void **state)
{
	struct move move;
	struct message done;
	int64_t milliseconds, bytes;

	(void)state;
	move_begin_with(&move, 64 * MIB_PAGES, true, 160,
		json_pack("{s:i, s:s, s:s}", "timeout_s", 3, "on_stall", "stop", "compress", "no"));
	copy_all(&move);
	done = finish(&move);
	milliseconds = json_integer_value(json_object_get(done.body, "milliseconds"));
	bytes = json_integer_value(json_object_get(done.body, "bytes"));
	assert_true(milliseconds < 20000);
	assert_true(milliseconds >= bytes / 20000 * 9 / 10);
	message_free(&done);
	move_end(&move);
}

/*
 * The log is taken in the middle of a round, which then goes on (4 s) or ends early (3 s); either way each
 * page that was written anywhere, once, is there. 26 MB at 10 MB a second.
 */
static void what_is_written_meanwhile_arrives_in_time(void **state)
{
	(void)state;
	for (int timeout_s = 3; timeout_s <= 4; timeout_s++) {
		struct move move;
		struct message done;

		move.listener = listen_here(&move.port);
		fake_guest_begin(&move.from, 64 * MIB_PAGES);
		fake_guest_begin(&move.to, 64 * MIB_PAGES);
		fake_guest_fill(&move.from, 3, 32 * MIB_PAGES, 1);
		move.from.scatters = true;
		fake_guest_run(&move.from, 16);
		begin_source(&move, true, 80,
			json_pack("{s:i, s:s, s:s}", "timeout_s", timeout_s, "on_stall", "stop", "compress",
				"no"));
		begin_dest(&move);
		copy_all(&move);
		done = finish(&move);
		message_free(&done);
		move_end(&move);
	}
}

static void a_guest_stays(uint64_t pages, int rate_mbit, json_t *more, const char *why)
{
	struct move move;
	struct message failed;

	move_begin_with(&move, pages, true, rate_mbit, more);
	accept_offer(&move);
	pass(&move.dest, "failed");
	failed = carrier_event(&move.source, "failed");
	if (!strstr(json_string_value(json_object_get(failed.body, "error")), why))
		fail_msg("%s", json_string_value(json_object_get(failed.body, "error")));
	message_free(&failed);
	assert_int_equal(move.from.pauses, 0);
	assert_true(move.from.running);
	move_end(&move);
	assert_int_equal(move.from.slowed, 0);
	assert_false(move.from.tracking);
}

static void a_guest_that_cannot_go_in_time_stays(void **state)
{
	(void)state;
	/* 26 MB at half a MB a second are there in no case, so that the guest is not stopped for it. */
	a_guest_stays(64 * MIB_PAGES, 4, json_pack("{s:i, s:s}", "timeout_s", 2, "on_stall", "stop"),
		"cannot be there in the 2 s that --timeout gives");
	a_guest_stays(64 * MIB_PAGES, 64, json_pack("{s:i, s:s}", "timeout_s", 1, "on_stall", "cancel"),
		"does not arrive in the time that --timeout gives");
	/* Slowed to 1 % it still writes all of its 1 MiB while 4 MB a second are sent. */
	a_guest_stays(4 * MIB_PAGES, 32, json_pack("{s:s}", "on_stall", "cancel"),
		"writes its memory faster than it can be copied");
}

static void objections_reach_the_source(void **state)
{
	struct move move;
	struct message failed;
	const char *text;

	(void)state;
	move_begin(&move, 4 * MIB_PAGES, false, 0);
	pass(&move.dest, "offer");
	carrier_say(&move.dest,
		json_pack(
			"{s:s, s:[s, s]}", "do", "refuse", "why", "No bridge xenbr7.", "Too little memory."),
		NULL, 0);
	pass(&move.dest, "failed");
	failed = carrier_event(&move.source, "failed");
	text = json_string_value(json_object_get(failed.body, "error"));
	assert_non_null(strstr(
		text, "refuses the guest, for 2 reasons:\n  - No bridge xenbr7.\n  - Too little memory."));
	message_free(&failed);
	assert_int_equal(move.from.pauses, 0);
	move_end(&move);
}

static void a_guest_that_does_not_load_stays(void **state)
{
	struct move move;
	struct message failed;

	(void)state;
	move_begin(&move, 4 * MIB_PAGES, true, 0);
	move.to.refuses_state = true;
	accept_offer(&move);
	pass(&move.dest, "failed");
	failed = carrier_event(&move.source, "failed");
	assert_non_null(strstr(
		json_string_value(json_object_get(failed.body, "error")), "This guest cannot do that."));
	message_free(&failed);
	move_end(&move);
	assert_false(move.from.tracking);
}

/* Whether the destination has received everything before or not. */
static void destination_fails(struct move *move)
{
	bool failed = false;

	while (!failed) {
		struct message message;

		assert_int_equal(channel_receive(move->dest.channel, &message, NULL), 0);
		if (!carrier_event_is_aside(&move->dest, &message)) {
			const char *name = json_string_value(json_object_get(message.body, "event"));

			_cleanup_json_ json_t *answer = json_pack("{s:s}", "do", "received");

			failed = strcmp(name, "failed") == 0;
			assert_true(failed || strcmp(name, "received") == 0);
			if (!failed) /* it may have heard of the source's failure meanwhile */
				channel_send(move->dest.channel, answer, NULL, 0, NULL);
		}
		message_free(&message);
	}
}

/* Where the log misses what was written the guest does not go: its memory itself is compared. */
static void a_lost_page_ends_the_migration(void **state)
{
	(void)state;
	for (int timeout_s = 0; timeout_s < 2; timeout_s++) {
		struct move move;
		struct message failed;

		move.listener = listen_here(&move.port);
		fake_guest_begin(&move.from, 16 * MIB_PAGES);
		fake_guest_begin(&move.to, 16 * MIB_PAGES);
		fake_guest_fill(&move.from, 0, 8 * MIB_PAGES, 1);
		move.from.forgets = true;
		fake_guest_run(&move.from, 0);
		pthread_mutex_lock(&move.to.lock);
		move.to.load_s = 2; /* meanwhile the source reads all, also where it is slow */
		pthread_mutex_unlock(&move.to.lock);
		begin_source(&move, true, 0, json_pack("{s:i}", "timeout_s", timeout_s));
		begin_dest(&move);
		accept_offer(&move);
		destination_fails(&move);
		failed = carrier_event(&move.source, "failed");
		assert_non_null(strstr(json_string_value(json_object_get(failed.body, "error")),
			"Page 0 of the guest's memory is not what was sent"));
		message_free(&failed);
		move_end(&move);
	}
}

/* The steps of a hand-over after each of which one xend goes away. */
enum step { AT_OFFER, WHILE_COPYING, AT_RECEIVED, AT_SOURCE_RECEIVED, STEPS };

static void reach(struct move *move, enum step step)
{
	if (step == AT_OFFER) {
		pass(&move->dest, "offer");
		return;
	}
	accept_offer(move);
	if (step == WHILE_COPYING)
		return;
	pass(&move->dest, "received");
	if (step == AT_RECEIVED)
		return;
	say(&move->dest, "received");
	pass(&move->source, "received");
}

static void whoever_leaves_before_commit_the_other_learns_it(void **state)
{
	(void)state;
	for (unsigned step = 0; step < STEPS; step++)
		for (unsigned source_leaves = 0; source_leaves < 2; source_leaves++) {
			struct move move;
			struct carrier_thread *leaves, *stays;

			move_begin(&move, 64 * MIB_PAGES, true, step == WHILE_COPYING ? 5 : 0);
			leaves = source_leaves ? &move.source : &move.dest;
			stays = source_leaves ? &move.dest : &move.source;
			reach(&move, step);
			carrier_thread_end(leaves);
			leaves->channel = -1;
			pass(stays, "failed");
			carrier_thread_end(stays);
			assert_false(move.from.tracking);
			fake_guest_end(&move.from);
			fake_guest_end(&move.to);
			close(move.listener);
		}
}

static void after_commit_a_silent_peer_is_uncertain(void **state)
{
	struct move move;

	(void)state;
	move_begin(&move, 4 * MIB_PAGES, false, 0);
	copy_all(&move);
	say(&move.source, "commit");
	pass(&move.dest, "commit");
	carrier_thread_end(&move.dest);
	pass(&move.source, "uncertain");
	carrier_thread_end(&move.source);
	fake_guest_end(&move.from);
	fake_guest_end(&move.to);
	close(move.listener);
}

static void an_aborted_hand_over_ends_on_both_sides(void **state)
{
	struct move move;

	(void)state;
	move_begin(&move, 4 * MIB_PAGES, true, 0);
	copy_all(&move);
	say(&move.source, "abort");
	pass(&move.source, "failed");
	pass(&move.dest, "failed");
	move_end(&move);
}

static void a_ticket_is_asked_about(void **state)
{
	static const char *const states[] = {"owned", "refused", "unknown"};

	(void)state;
	for (unsigned i = 0; i < 3; i++) {
		struct move move;
		struct message answer, ask;
		int fds[1];

		move.listener = listen_here(&move.port);
		carrier_thread_begin(&move.source, ask_job);
		say_job(&move.source,
			json_pack("{s:s, s:s, s:i, s:s}", "do", "ask", "host", "127.0.0.1", "port", move.port,
				"ticket", TICKET),
			fds, 0, true);
		begin_dest(&move);
		ask = carrier_event(&move.dest, "ask");
		assert_string_equal(json_string_value(json_object_get(ask.body, "ticket")), TICKET);
		message_free(&ask);
		carrier_say(&move.dest, json_pack("{s:s, s:s}", "do", "answer", "state", states[i]), NULL, 0);
		pass(&move.dest, "done");
		answer = carrier_event(&move.source, "answer");
		assert_string_equal(json_string_value(json_object_get(answer.body, "state")), states[i]);
		message_free(&answer);
		carrier_thread_end(&move.source);
		carrier_thread_end(&move.dest);
		close(move.listener);
	}
}

static void hosts_ask_each_other(void **state)
{
	(void)state;
	for (int probe = 0; probe < 2; probe++) {
		struct move move;
		struct message query, reply;
		const json_t *line;
		int fds[1];

		move.listener = listen_here(&move.port);
		carrier_thread_begin(&move.source, query_job);
		say_job(&move.source,
			json_pack("{s:s, s:s, s:i, s:{s:s}, s:b}", "do", "query", "host", "127.0.0.1", "port",
				move.port, "query", "query", "who-has", "probe", probe),
			fds, 0, true);
		begin_dest(&move);
		query = carrier_event(&move.dest, "query");
		assert_string_equal(
			json_string_value(json_object_get(json_object_get(query.body, "query"), "query")),
			"who-has");
		message_free(&query);
		carrier_say(
			&move.dest, json_pack("{s:s, s:{s:[]}}", "do", "reply", "reply", "guests"), NULL, 0);
		pass(&move.source, "connecting");
		pass(&move.source, "connected");
		reply = carrier_event(&move.source, "reply");
		assert_true(json_is_array(json_object_get(json_object_get(reply.body, "reply"), "guests")));
		line = json_object_get(reply.body, "line");
		assert_int_equal(json_integer_value(json_object_get(line, "bytes_per_second")) > 0, probe);
		assert_int_equal(json_integer_value(json_object_get(line, "round_trip_ns")) > 0, probe);
		message_free(&reply);
		carrier_thread_end(&move.source);
		pass(&move.dest, "done");
		carrier_thread_end(&move.dest);
		close(move.listener);
	}
}

static void nobody_listens(void **state)
{
	struct move move;
	struct message failed;

	(void)state;
	move.listener = listen_here(&move.port);
	close(move.listener);
	fake_guest_begin(&move.from, MIB_PAGES);
	begin_source(&move, true, 0, NULL);
	failed = carrier_event(&move.source, "failed");
	assert_non_null(strstr(
		json_string_value(json_object_get(failed.body, "error")), "Unable to connect to 127.0.0.1"));
	message_free(&failed);
	carrier_thread_end(&move.source);
	fake_guest_end(&move.from);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		BOTH_WAYS(a_guest_moves),
		BOTH_WAYS(a_running_guest_moves),
		BOTH_WAYS(a_clock_that_is_set_meanwhile_is_looked_at_again),
		BOTH_WAYS(the_rate_is_kept),
		cmocka_unit_test(pages_are_compressed_where_that_helps),
		cmocka_unit_test(a_guest_that_writes_too_fast_is_slowed),
		cmocka_unit_test(a_guest_arrives_in_time),
		cmocka_unit_test(what_is_written_meanwhile_arrives_in_time),
		cmocka_unit_test(a_guest_that_cannot_go_in_time_stays),
		BOTH_WAYS(objections_reach_the_source),
		BOTH_WAYS(a_guest_that_does_not_load_stays),
		BOTH_WAYS(a_lost_page_ends_the_migration),
		BOTH_WAYS(whoever_leaves_before_commit_the_other_learns_it),
		BOTH_WAYS(after_commit_a_silent_peer_is_uncertain),
		BOTH_WAYS(an_aborted_hand_over_ends_on_both_sides),
		BOTH_WAYS(a_ticket_is_asked_about),
		BOTH_WAYS(hosts_ask_each_other),
		BOTH_WAYS(nobody_listens),
	};

	log_open("carry-migrate", LOG_WARNING_);
	signal(SIGPIPE, SIG_IGN); /* as the carrier does */
	return cmocka_run_group_tests(tests, NULL, NULL);
}
