/* Memory that follows its guest: what is touched comes first, all of it comes, and nothing that is wrong. */
#include "fake_guest.h"
#include "base/cleanup.h"
#include "state/checkpoint.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <semaphore.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <cmocka.h>

#define MIB_PAGES 256u
#define PAGES (16 * MIB_PAGES)
#define EXTENTS (PAGES / CHECKPOINT_EXTENT_PAGES)
#define LAST (PAGES - 1)      /* a page with contents in the last extent */
#define EMPTY (7 * MIB_PAGES) /* one in an extent without any */

/* A guest, the file it was saved to, and one that waits for the memory in it. */
struct both {
	struct fake_guest from, to;
	struct carrier_thread carrier;
	int file;
};

static void set_up(struct both *both)
{
	struct message saved;
	int fds[2];

	both->file = open(".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (both->file < 0)
		both->file = memfd_create("checkpoint", MFD_CLOEXEC);
	fake_guest_begin(&both->to, PAGES);
	fake_guest_wait_for_memory(&both->to);
	fake_guest_begin(&both->from, PAGES);
	fake_guest_fill(&both->from, 0, 5 * MIB_PAGES, 1);
	fake_guest_fill(&both->from, 9 * MIB_PAGES + 3, 6 * MIB_PAGES, 2);
	fake_guest_fill(&both->from, PAGES - 3, 3, 3);
	fds[0] = both->from.carrier_end;
	fds[1] = both->file;
	carrier_thread_begin(&both->carrier, save_job);
	carrier_say(&both->carrier,
		json_pack("{s:s, s:{s:i}, s:{s:i}, s:{s:s, s:s, s:i}}", "do", "save", "guest", "fd", 0,
			"file", "fd", 1, "domain", "name", "TestGuest", "uuid",
			"cc0029f5-10a1-e6d0-3c92-19b0ea021f21", "memory_mib", PAGES / MIB_PAGES),
		fds, 2);
	saved = carrier_event(&both->carrier, "saved");
	message_free(&saved);
	carrier_thread_end(&both->carrier);
}

/* Where the test has not seen to the carrier's end itself. */
static void tear_down(struct both *both)
{
	if (both->carrier.channel >= 0)
		carrier_thread_end(&both->carrier);
	fake_guest_end(&both->to);
	fake_guest_end(&both->from);
	close(both->file);
}

/* Up to `loaded`: from then on the guest might run. */
static void restore(struct both *both)
{
	struct message message;

	carrier_thread_begin(&both->carrier, restore_job);
	carrier_say(&both->carrier,
		json_pack("{s:s, s:{s:i}, s:b}", "do", "restore", "file", "fd", 0, "lazy", 1), &both->file,
		1);
	message = carrier_event(&both->carrier, "offer");
	message_free(&message);
	carrier_say(&both->carrier, json_pack("{s:s, s:{s:i}}", "do", "accept", "guest", "fd", 0),
		&both->to.carrier_end, 1);
	message = carrier_event(&both->carrier, "loaded");
	assert_true(json_is_true(json_object_get(message.body, "filling")));
	message_free(&message);
}

static void go_on(struct both *both)
{
	carrier_say(&both->carrier, json_pack("{s:s}", "do", "go-on"), NULL, 0);
}

static void fill(struct both *both)
{
	int fds[] = {both->file, both->to.carrier_end};

	carrier_thread_begin(&both->carrier, fill_job);
	carrier_say(&both->carrier,
		json_pack("{s:s, s:{s:i}, s:{s:i}}", "do", "fill", "file", "fd", 0, "guest", "fd", 1), fds,
		2);
}

static void assert_filled(struct both *both)
{
	struct message message = carrier_event(&both->carrier, "filled");

	message_free(&message);
	assert_true(both->to.filled);
	assert_int_equal(memcmp(both->from.ram, both->to.ram, PAGES * FAKE_PAGE), 0);
	assert_memory_equal(both->from.state, both->to.state, both->from.state_size);
}

static void assert_page(const struct both *both, uint64_t page)
{
	assert_memory_equal(both->from.ram + page * FAKE_PAGE, both->to.ram + page * FAKE_PAGE, FAKE_PAGE);
}

static uint64_t first_of(const struct fake_guest *guest, uint64_t page)
{
	uint64_t value;

	memcpy(&value, guest->ram + page * FAKE_PAGE, sizeof(value));
	return value;
}

static void test_what_is_touched_comes_first(void **state)
{
	struct both both = {0};

	(void)state;
	set_up(&both);
	both.to.looks_at = LAST; /* while the carrier waits for the answer */
	restore(&both);
	assert_int_equal(both.to.seen, first_of(&both.from, LAST));
	assert_page(&both, LAST);
	assert_page(&both, EMPTY);
	assert_page(&both, 4); /* a zero page between others */
	assert_page(&both, 9 * MIB_PAGES + 3);
	assert_true(fake_guest_allocated(&both.to) < fake_guest_allocated(&both.from) / 2);
	assert_false(both.to.filled);
	go_on(&both);
	assert_filled(&both);
	tear_down(&both);
}

static void test_zeros_take_no_memory(void **state)
{
	struct both both = {0};
	uint64_t stored;

	(void)state;
	set_up(&both);
	stored = fake_guest_allocated(&both.from) * 4 / 5; /* every fifth page of the source is zero */
	restore(&both);
	go_on(&both);
	while (!both.to.filled)
		usleep(1000);
	assert_true(fake_guest_allocated(&both.to) <= stored + 2);
	assert_filled(&both);
	tear_down(&both);
}

static void test_without_xend(void **state)
{
	struct both both = {0};

	(void)state;
	set_up(&both);
	restore(&both);
	go_on(&both);
	carrier_thread_end(&both.carrier);
	assert_true(both.to.filled);
	assert_int_equal(memcmp(both.from.ram, both.to.ram, PAGES * FAKE_PAGE), 0);
	tear_down(&both);
}

struct touch {
	struct fake_guest *guest;
	uint64_t page, seen;
};

static void *touch(void *context)
{
	struct touch *touched = context;

	touched->seen = first_of(touched->guest, touched->page);
	return NULL;
}

/* A carrier hears that a page is missed and dies: missed it stays, until the next one brings it. */
static void test_the_next_carrier(void **state)
{
	struct both both = {0};
	struct touch stored = {&both.to, LAST, 0}, zero = {&both.to, EMPTY, 1};
	pthread_t threads[2];

	(void)state;
	set_up(&both);
	restore(&both);
	assert_page(&both, 0);
	carrier_thread_end(&both.carrier); /* before go-on: it gives up */
	assert_false(both.to.filled);
	pthread_create(&threads[0], NULL, touch, &stored);
	pthread_create(&threads[1], NULL, touch, &zero);
	for (unsigned heard = 0; heard < 2;) {
		struct pollfd ready = {.fd = both.to.faults, .events = POLLIN};
		struct uffd_msg missed;

		assert_int_equal(poll(&ready, 1, 60000), 1);
		heard += read(both.to.faults, &missed, sizeof(missed)) == sizeof(missed);
	}
	fill(&both);
	assert_filled(&both);
	pthread_join(threads[0], NULL);
	pthread_join(threads[1], NULL);
	assert_int_equal(stored.seen, first_of(&both.from, LAST));
	assert_int_equal(zero.seen, 0);
	tear_down(&both);
}

/* A page that is missed when all is there: the carrier has read who misses it, and is as slow as it can be.
 */
static struct {
	_Atomic(struct fake_guest *) guest;
	struct touch touch;
	pthread_t thread;
	sem_t heard;
} late;

int __real_ioctl(int fd, unsigned long request, void *argument);
int __wrap_ioctl(int fd, unsigned long request, void *argument);

int __wrap_ioctl(int fd, unsigned long request, void *argument)
{
	if (request == UFFDIO_ZEROPAGE && late.guest) {
		sem_post(&late.heard);
		while (!late.guest->filled)
			usleep(1000);
	}
	return __real_ioctl(fd, request, argument);
}

static void miss_late(struct fake_guest *guest)
{
	late.touch = (struct touch){guest, EMPTY, 1};
	late.guest = guest;
	pthread_create(&late.thread, NULL, touch, &late.touch);
	sem_wait(&late.heard);
}

/* A guest's process that waits for no page any more has not ended. */
static void test_what_is_missed_when_all_is_there(void **state)
{
	struct both both = {0};

	(void)state;
	set_up(&both);
	sem_init(&late.heard, 0, 0);
	both.to.when_told = miss_late;
	restore(&both);
	go_on(&both);
	assert_filled(&both);
	pthread_join(late.thread, NULL);
	late.guest = NULL;
	assert_int_equal(late.touch.seen, 0);
	tear_down(&both);
}

/* Which of its signs a guest's end was known by is said. */
static void test_a_guest_that_ends(void **state)
{
	struct both both = {0};
	struct message failed;

	(void)state;
	set_up(&both);
	restore(&both);
	shutdown(both.to.server_end, SHUT_RDWR);
	failed = carrier_event(&both.carrier, "failed");
	assert_int_equal(json_integer_value(json_object_get(failed.body, "errno")), ESRCH);
	assert_non_null(strstr(json_string_value(json_object_get(failed.body, "error")),
		"its process has closed the connection"));
	message_free(&failed);
	tear_down(&both);
}

static void test_damage_stays_outside(void **state)
{
	struct both both = {0};
	struct message failed;
	uint64_t before;
	uint8_t byte;
	off_t at = (off_t)(CHECKPOINT_RAM_AT + LAST * FAKE_PAGE + 1234);

	(void)state;
	set_up(&both);
	assert_int_equal(pread(both.file, &byte, 1, at), 1);
	byte ^= 0x20;
	assert_int_equal(pwrite(both.file, &byte, 1, at), 1);
	restore(&both);
	go_on(&both);
	failed = carrier_event(&both.carrier, "failed");
	assert_int_equal(json_integer_value(json_object_get(failed.body, "errno")), EBADMSG);
	assert_non_null(strstr(json_string_value(json_object_get(failed.body, "error")), "damaged"));
	message_free(&failed);
	assert_false(both.to.filled);
	before = fake_guest_allocated(&both.to);
	assert_true(before <= (EXTENTS - 1) * CHECKPOINT_EXTENT_PAGES);
	assert_true(lseek(both.to.ram_fd, (off_t)((EXTENTS - 1) * CHECKPOINT_EXTENT_SIZE), SEEK_DATA) < 0);
	tear_down(&both);
}

static void test_a_guest_that_cannot_wait(void **state)
{
	struct both both = {0};
	struct message message;

	(void)state;
	set_up(&both);
	fake_guest_end(&both.to);
	fake_guest_begin(&both.to, PAGES);
	carrier_thread_begin(&both.carrier, restore_job);
	carrier_say(&both.carrier,
		json_pack("{s:s, s:{s:i}, s:b}", "do", "restore", "file", "fd", 0, "lazy", 1), &both.file, 1);
	message = carrier_event(&both.carrier, "offer");
	message_free(&message);
	carrier_say(&both.carrier, json_pack("{s:s, s:{s:i}}", "do", "accept", "guest", "fd", 0),
		&both.to.carrier_end, 1);
	message = carrier_event(&both.carrier, "loaded");
	assert_false(json_is_true(json_object_get(message.body, "filling")));
	message_free(&message);
	assert_int_equal(memcmp(both.from.ram, both.to.ram, PAGES * FAKE_PAGE), 0);
	tear_down(&both);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_what_is_touched_comes_first),
		cmocka_unit_test(test_zeros_take_no_memory),
		cmocka_unit_test(test_without_xend),
		cmocka_unit_test(test_the_next_carrier),
		cmocka_unit_test(test_what_is_missed_when_all_is_there),
		cmocka_unit_test(test_a_guest_that_ends),
		cmocka_unit_test(test_damage_stays_outside),
		cmocka_unit_test(test_a_guest_that_cannot_wait),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
