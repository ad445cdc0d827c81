/* Long silences that are no faults: a guest that takes its time, memory that is all zeros. */
#include "hand_over.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "carry/copy.h"
#include "carry/wire.h"

#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/socket.h>
#include <unistd.h>
#include <cmocka.h>

#define SILENCE_S (WIRE_SILENCE_MS / 1000 + 2)

struct move {
	int listener;
	struct fake_guest from, to;
	struct carrier_thread source, dest;
};

static void begin(struct move *move, unsigned load_s, unsigned pause_s)
{
	int port, fds[2] = {-1};

	move->listener = listen_here(&port);
	fake_guest_begin(&move->from, MIB_PAGES);
	fake_guest_begin(&move->to, MIB_PAGES);
	fake_guest_fill(&move->from, 3, MIB_PAGES / 2, 1);
	pthread_mutex_lock(&move->to.lock);
	move->to.load_s = load_s;
	pthread_mutex_unlock(&move->to.lock);
	pthread_mutex_lock(&move->from.lock);
	move->from.pause_s = pause_s;
	pthread_mutex_unlock(&move->from.lock);
	fds[0] = move->from.carrier_end;
	carrier_thread_begin(&move->source, send_job);
	say_job(&move->source,
		json_pack("{s:s, s:{s:i}, s:s, s:i, s:{s:s, s:s, s:i}, s:s, s:b}", "do", "send", "guest",
			"fd", 0, "host", "127.0.0.1", "port", port, "domain", "name", "TestGuest", "uuid",
			UUID, "memory_mib", 1, "ticket", TICKET, "live", 0),
		fds, 1, true);
	fds[0] = accept4(move->listener, NULL, NULL, SOCK_CLOEXEC);
	carrier_thread_begin(&move->dest, receive_job);
	say_job(&move->dest, json_pack("{s:s, s:{s:i}, s:[]}", "do", "receive", "socket", "fd", 0, "allow"),
		fds, 1, false);
	close(fds[0]);
}

static void end(struct move *move)
{
	carrier_thread_end(&move->source);
	carrier_thread_end(&move->dest);
	fake_guest_end(&move->from);
	fake_guest_end(&move->to);
	close(move->listener);
}

/* The one loads its state, the other stops, for longer than a line may be silent; both at the same time. */
static void a_guest_may_take_its_time(void **state)
{
	struct move moves[2];

	(void)state;
	begin(&moves[0], SILENCE_S, 0);
	begin(&moves[1], 0, SILENCE_S);
	for (unsigned i = 0; i < ARRAY_SIZE(moves); i++) {
		pass(&moves[i].dest, "offer");
		carrier_accept(&moves[i].dest, &moves[i].to);
	}
	for (unsigned i = 0; i < ARRAY_SIZE(moves); i++) {
		pass(&moves[i].dest, "received");
		say(&moves[i].dest, "received");
		pass(&moves[i].source, "received");
		end(&moves[i]);
	}
}

struct counting {
	struct sink sink;
	unsigned attended;
};

static int nothing(struct sink *sink, uint64_t first, uint64_t count, struct error *error)
{
	(void)sink, (void)first, (void)count, (void)error;
	return 0;
}

static int end_round(struct sink *sink, unsigned number, struct error *error)
{
	(void)sink, (void)number, (void)error;
	return 0;
}

static int attend(struct sink *sink, struct error *error)
{
	(void)error;
	CONTAINER_OF(sink, struct counting, sink)->attended++;
	return 0;
}

/* Of memory that was touched and is zero nothing is sent: the line is seen to all the same. */
static void zeros_do_not_silence_the_line(void **state)
{
	struct counting counting = {
		.sink = {.pages = nothing, .zeros = nothing, .round = end_round, .attend = attend}};
	struct fake_guest fake;
	struct guest guest;
	struct job job = {.channel = -1};
	struct copy copy = {.job = &job, .guest = &guest, .sink = &counting.sink};
	struct error error = {0};

	(void)state;
	fake_guest_begin(&fake, 16 * MIB_PAGES);
	for (uint64_t page = 0; page < fake.pages; page++)
		*(volatile uint8_t *)(fake.ram + page * FAKE_PAGE) = 0;
	assert_int_equal(guest_open(&guest, dup(fake.carrier_end), GUEST_CARRY, &error), 0);
	assert_int_equal(copy_guest(&copy, &error), 0);
	assert_int_equal(copy.sent_pages, 0);
	assert_int_equal(counting.attended, 16);
	guest_close(&guest);
	fake_guest_end(&fake);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_guest_may_take_its_time),
		cmocka_unit_test(zeros_do_not_silence_the_line),
	};

	log_open("carry-silence", LOG_WARNING_);
	signal(SIGPIPE, SIG_IGN); /* as the carrier does */
	return cmocka_run_group_tests(tests, NULL, NULL);
}
