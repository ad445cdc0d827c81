/*
 * Somebody between two hosts flips a byte of the secured line, or cuts it, at every place in turn: what
 * arrives is what was sent, or an error.
 */
#include "base/cleanup.h"
#include "base/log.h"
#include "carry/clock.h"
#include "carry/tls.h"
#include "carry/wire.h"
#include "secured.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/socket.h>
#include <cmocka.h>

#define WORDS 64
#define PATIENCE_MS 60000
#define PATIENCE_DAMAGED_MS 200 /* a damaged length makes both sides wait */
#define STEP 3                  /* every so many bytes: all of them take a minute */

enum harm { NO_HARM, FLIP, CUT };

struct damage {
	enum harm harm;
	bool to_source; /* which direction */
	size_t at;      /* its so many-th byte */
};

struct middle {
	int source, dest;
	struct damage damage;
	size_t passed[2]; /* bytes to the destination, to the source */
};

static bool pass(struct middle *middle, bool to_source)
{
	const struct damage *damage = &middle->damage;
	uint8_t bytes[4096];
	size_t *passed = &middle->passed[to_source];
	ssize_t n = read(to_source ? middle->dest : middle->source, bytes, sizeof(bytes));
	size_t size = n > 0 ? (size_t)n : 0;

	if (n <= 0)
		return false;
	if (damage->harm != NO_HARM && damage->to_source == to_source && damage->at >= *passed &&
		damage->at < *passed + size) {
		if (damage->harm == FLIP)
			bytes[damage->at - *passed] ^= 0x10;
		else
			size = damage->at - *passed;
	}
	*passed += size;
	return send(to_source ? middle->source : middle->dest, bytes, size, MSG_NOSIGNAL) == (ssize_t)size &&
	       size == (size_t)n;
}

static void *pass_on(void *context)
{
	struct middle *middle = context;
	struct pollfd ready[2] = {
		{.fd = middle->source, .events = POLLIN}, {.fd = middle->dest, .events = POLLIN}};

	while (poll(ready, 2, PATIENCE_MS) > 0 && pass(middle, !ready[0].revents))
		;
	close(middle->source);
	close(middle->dest);
	return NULL;
}

struct side {
	struct wire wire;
	struct job job;
	bool source;
	int patience_ms;
	uint8_t heard[WORDS];
	int result;
};

static void words_of(bool source, uint8_t words[WORDS])
{
	memset(words, source ? 's' : 'd', WORDS);
}

/* A conversation: handshake, the source's words, the destination's. */
static void *converse(void *context)
{
	struct side *side = context;
	uint8_t words[WORDS];
	struct iovec said = {.iov_base = words, .iov_len = WORDS},
		     heard = {.iov_base = side->heard, .iov_len = WORDS};
	int r;

	words_of(side->source, words);
	wire_limit(&side->wire, side->patience_ms);
	r = wire_handshake(&side->wire, NULL);
	for (unsigned turn = 0; turn < 2 && r == 0; turn++)
		r = (turn == 0) == side->source ? wire_send(&side->wire, &said, 1, NULL)
						: wire_receive(&side->wire, &heard, 1, NULL);
	side->result = r;
	wire_finish(&side->wire);
	wire_close(&side->wire);
	return NULL;
}

static void side_begin(
	struct side *side, const struct test_host *own, const struct test_host *other, int fd, bool source)
{
	*side = (struct side){.job = {.channel = -1}, .source = source};
	side->job.secure = json_pack("{s:s, s:[o]}", "identity", own->pem, "trusted",
		trusted("localhost", "", other->fingerprint));
	side->wire = (struct wire){.fd = fd, .job = &side->job};
	assert_int_equal(tls_prepare(&side->wire.tls, side->job.secure, fd,
				 source ? &(struct tls_peer){.host = "localhost"} : NULL, NULL),
		0);
}

/* True when both sides heard the other's words. What is heard is never anything else. */
static bool talk(const struct test_host hosts[2], struct damage damage, size_t passed[2])
{
	struct middle middle = {.damage = damage};
	struct side sides[2];
	pthread_t threads[3];
	int pairs[2][2];

	for (unsigned i = 0; i < 2; i++)
		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pairs[i]), 0);
	for (unsigned i = 0; i < 2; i++) {
		fcntl(pairs[i][0], F_SETFL, O_NONBLOCK);
		side_begin(&sides[i], &hosts[i], &hosts[1 - i], pairs[i][0], i == 0);
		sides[i].patience_ms = damage.harm == NO_HARM ? PATIENCE_MS : PATIENCE_DAMAGED_MS;
	}
	middle.source = pairs[0][1];
	middle.dest = pairs[1][1];
	pthread_create(&threads[2], NULL, pass_on, &middle);
	for (unsigned i = 0; i < 2; i++)
		pthread_create(&threads[i], NULL, converse, &sides[i]);
	for (unsigned i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
	for (unsigned i = 0; i < 2; i++) {
		uint8_t words[WORDS];

		words_of(i != 0, words);
		if (sides[i].result == 0)
			assert_memory_equal(sides[i].heard, words, WORDS);
		json_decref(sides[i].job.secure);
	}
	memcpy(passed, middle.passed, sizeof(middle.passed));
	return sides[0].result == 0 && sides[1].result == 0;
}

static void harm_everywhere(enum harm harm)
{
	struct test_host hosts[2];
	size_t whole[2], passed[2];
	unsigned survived = 0;

	test_host_begin(&hosts[0]);
	test_host_begin(&hosts[1]);
	assert_true(talk(hosts, (struct damage){NO_HARM}, whole));
	assert_true(whole[0] > 500 && whole[1] > 500);
	for (unsigned to_source = 0; to_source < 2; to_source++)
		for (size_t at = 0; at < whole[to_source]; at += STEP)
			survived += talk(hosts, (struct damage){harm, to_source, at}, passed);
	/* Only the farewell may suffer unnoticed: a record of 24 bytes each way, when all has been said. */
	assert_in_range(survived, 0, 2 * 24 / STEP);
	test_host_end(&hosts[0]);
	test_host_end(&hosts[1]);
}

static void a_flipped_byte_is_never_heard(void **state)
{
	(void)state;
	harm_everywhere(FLIP);
}

static void a_cut_line_is_an_error(void **state)
{
	(void)state;
	harm_everywhere(CUT);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_flipped_byte_is_never_heard),
		cmocka_unit_test(a_cut_line_is_an_error),
	};

	log_open("carry-damage", LOG_WARNING_);
	signal(SIGPIPE, SIG_IGN); /* as the carrier does */
	return cmocka_run_group_tests(tests, NULL, NULL);
}
