/* Who is let in at the relocation port: silent ones, floods of one and of many addresses, and hosts that are
 * known. */
#include "xend/door.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>
#include <cmocka.h>

static const bool all_open[DOOR_CLASSES] = {true, true};

static struct door door;
static long long now;
static int peers[4096];
static unsigned peer_count;

static int begin(void **state)
{
	(void)state;
	door = (struct door){0};
	now = 1000000;
	peer_count = 0;
	return 0;
}

static int end(void **state)
{
	(void)state;
	door_close(&door);
	while (peer_count)
		close(peers[--peer_count]);
	return 0;
}

static struct door_address four(unsigned number)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0x0a000000u + number)};

	return door_address_of((struct sockaddr *)&address);
}

static struct door_address six(const char *text)
{
	struct sockaddr_in6 address = {.sin6_family = AF_INET6};

	assert_int_equal(inet_pton(AF_INET6, text, &address.sin6_addr), 1);
	return door_address_of((struct sockaddr *)&address);
}

/* Their end of a connection from 10.0.0.number, which has said something or not. */
static int knock(unsigned number, bool speaks)
{
	char text[32];
	int pair[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	if (speaks)
		assert_int_equal(write(pair[1], "x", 1), 1);
	snprintf(text, sizeof(text), "10.0.%u.%u", number / 256, number % 256);
	door_enter(&door, pair[0], four(number), text, now);
	for (unsigned i = door.count; i-- > 0;)
		if (door.waiting[i].socket == pair[0])
			door_look(&door, i);
	peers[peer_count++] = pair[1];
	return pair[1];
}

static bool is_closed(int peer)
{
	char byte;

	return recv(peer, &byte, 1, MSG_DONTWAIT) == 0;
}

/* The text of who is let in next; "": nobody. */
static const char *next(void)
{
	static struct waiting waiting;

	if (!door_next(&door, all_open, &waiting, now))
		return "";
	close(waiting.socket);
	return waiting.text;
}

static unsigned let_in_all(void)
{
	unsigned count = 0;

	while (*next())
		count++;
	return count;
}

static void who_says_nothing_is_not_let_in(void **state)
{
	int silent, left;

	(void)state;
	silent = knock(1, false);
	left = knock(2, true);
	knock(3, true);
	close(left);
	peers[1] = dup(silent);
	assert_int_equal(door.count, 3);
	assert_true(door_look(&door, 1)); /* it is gone, whatever it has said */
	assert_string_equal(next(), "10.0.0.3");
	assert_string_equal(next(), "");
	assert_in_range(door_patience(&door, now), 1, 10000);
	now += 9999;
	door_expire(&door, now);
	assert_false(is_closed(silent));
	now++;
	door_expire(&door, now);
	assert_true(is_closed(silent));
	assert_int_equal(door.turned_away, 1);
	assert_int_equal(door_patience(&door, now), -1);
}

static void one_address_displaces_itself_only(void **state)
{
	int other, first, last;

	(void)state;
	other = knock(1, false);
	first = knock(2, false);
	for (unsigned i = 0; i < 1000; i++)
		last = knock(2, false);
	assert_true(is_closed(first));
	assert_false(is_closed(last));
	assert_false(is_closed(other));
	assert_int_equal(door.count, 17);
}

static void among_many_the_one_with_a_single_connection_stays(void **state)
{
	int single;

	(void)state;
	single = knock(1000, false);
	for (unsigned i = 0; i < 2000; i++)
		knock(i % 40, false);
	assert_false(is_closed(single));
	assert_true(door.count <= 64);
}

static void floods_are_rationed_and_newcomers_come_first(void **state)
{
	unsigned count = 0;

	(void)state;
	for (unsigned second = 0; second < 20; second++) {
		for (unsigned i = 0; i < 60; i++)
			knock(i % 4, true);
		count += let_in_all();
		now += 1000;
	}
	/* What four addresses may at first, then two a second each. */
	assert_in_range(count, 100, 220);
	knock(77, true);
	assert_string_equal(next(), "10.0.0.77");
}

static void strangers_in_all_are_rationed(void **state)
{
	unsigned count = 0;

	(void)state;
	for (unsigned second = 0; second < 10; second++) {
		for (unsigned i = 0; i < 64; i++)
			knock(second * 64 + i, true);
		count += let_in_all();
		now += 1000;
	}
	assert_in_range(count, 32 + 80, 32 + 100);
	assert_true(door_patience(&door, now) <=
		    1000); /* who has spoken and has no ration yet is not forgotten */
	now += 30000;
	door_expire(&door, now);
	assert_int_equal(door.count, 0);
}

static void a_known_host_is_not_kept_out_by_strangers(void **state)
{
	int silent;

	(void)state;
	door_familiar(&door, four(9), now);
	silent = knock(9, false);
	for (unsigned i = 0; i < 1000; i++)
		knock(100 + i, true);
	while (*next())
		;
	for (unsigned i = 0; i < 1000; i++)
		knock(100 + i, true);
	assert_false(is_closed(silent));
	for (unsigned i = 0; i < 9; i++)
		knock(9, true);
	for (unsigned i = 0; i < 9; i++)
		assert_string_equal(next(), "10.0.0.9");
	assert_string_equal(next(), "");
	/* It stays known, however many addresses there are. */
	assert_int_equal(door_class_of(&door.waiting[0]), DOOR_FAMILIAR);
}

static void a_class_is_let_in_where_it_is_open(void **state)
{
	const bool familiar_only[DOOR_CLASSES] = {[DOOR_FAMILIAR] = true};
	struct waiting waiting;

	(void)state;
	door_familiar(&door, four(9), now);
	knock(1, true);
	assert_false(door_next(&door, familiar_only, &waiting, now));
	knock(9, true);
	assert_true(door_next(&door, familiar_only, &waiting, now));
	assert_string_equal(waiting.text, "10.0.0.9");
	close(waiting.socket);
}

static void the_known_are_bounded(void **state)
{
	unsigned familiar = 0;

	(void)state;
	for (unsigned i = 0; i < 5000; i++)
		door_familiar(&door, four(i), now + i);
	for (unsigned i = 0; i < DOOR_CALLERS; i++)
		familiar += door.callers[i].used && door.callers[i].familiar;
	assert_int_equal(familiar, 64);
	knock(4999, true);
	assert_int_equal(door_class_of(&door.waiting[0]), DOOR_FAMILIAR);
}

static void addresses_of_one_network_are_one(void **state)
{
	struct door_address one = six("2001:db8:1:2::1"), same = six("2001:db8:1:2:ffff::9"),
			    other = six("2001:db8:1:3::1"), mapped = six("::ffff:10.0.0.5"), plain = four(5),
			    next_one = six("::ffff:10.0.0.6");

	(void)state;
	assert_memory_equal(&one, &same, sizeof(one));
	assert_memory_not_equal(&one, &other, sizeof(one));
	assert_memory_equal(&mapped, &plain, sizeof(one));
	assert_memory_not_equal(&mapped, &next_one, sizeof(one));
}

#define WITH_DOOR(test) cmocka_unit_test_setup_teardown(test, begin, end)

int main(void)
{
	const struct CMUnitTest tests[] = {
		WITH_DOOR(who_says_nothing_is_not_let_in),
		WITH_DOOR(one_address_displaces_itself_only),
		WITH_DOOR(among_many_the_one_with_a_single_connection_stays),
		WITH_DOOR(floods_are_rationed_and_newcomers_come_first),
		WITH_DOOR(strangers_in_all_are_rationed),
		WITH_DOOR(a_known_host_is_not_kept_out_by_strangers),
		WITH_DOOR(a_class_is_let_in_where_it_is_open),
		WITH_DOOR(the_known_are_bounded),
		WITH_DOOR(addresses_of_one_network_are_one),
	};

	struct rlimit descriptors;

	if (getrlimit(RLIMIT_NOFILE, &descriptors) == 0) {
		descriptors.rlim_cur = descriptors.rlim_max;
		setrlimit(RLIMIT_NOFILE, &descriptors);
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
