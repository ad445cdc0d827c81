/* What devices stand on: the event loop, guest memory, buses, and the console hub. */
#include "vmm/bus.h"
#include "vmm/console_hub.h"
#include "vmm/device.h"
#include "vmm/loop.h"
#include "vmm/memory.h"

#include "base/cleanup.h"
#include "base/bitmap.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <cmocka.h>

#define GIB (1ull << 30)

static struct loop *new_loop(void)
{
	struct error error = {0};
	struct loop *loop = loop_new(&error);

	assert_non_null(loop);
	return loop;
}

/* ---- loop ---- */

struct stubborn {
	struct loop *loop;
	struct watch event;
	unsigned deferred;
};

static void again(void *context)
{
	struct stubborn *stubborn = context;

	assert_true(stubborn->deferred++ < 1000);
	loop_defer(stubborn->loop, again, stubborn);
}

static void came(void *context, uint32_t events)
{
	struct stubborn *stubborn = context;

	(void)events;
	loop_stop(stubborn->loop);
}

/* What defers itself for ever keeps no event from being handled. */
static void deferred_work_does_not_starve_events(void **state)
{
	struct stubborn stubborn = {.loop = new_loop()};
	struct error error = {0};

	(void)state;
	stubborn.event = (struct watch){.fd = eventfd(1, EFD_CLOEXEC), .handler = came, .context = &stubborn};
	assert_int_equal(loop_add(stubborn.loop, &stubborn.event, EPOLLIN, &error), 0);
	loop_defer(stubborn.loop, again, &stubborn);
	assert_int_equal(loop_run(stubborn.loop, &error), 0);
	assert_true(stubborn.deferred >= 1);
	loop_remove(stubborn.loop, &stubborn.event);
	close(stubborn.event.fd);
	loop_free(stubborn.loop);
}

struct listener {
	struct loop *loop;
	struct watch watch;
	struct listener *victim; /* removed by the handler */
	unsigned calls;
	bool stops;
};

static void heard(void *context, uint32_t events)
{
	struct listener *listener = context;

	assert_true(events & EPOLLIN);
	listener->calls++;
	if (listener->victim)
		loop_remove(listener->loop, &listener->victim->watch);
	if (listener->stops)
		loop_stop(listener->loop);
}

static struct listener listen_on(struct loop *loop)
{
	return (struct listener){.loop = loop, .watch = {.fd = eventfd(1, EFD_NONBLOCK), .handler = heard}};
}

static void stop_loop(void *context)
{
	loop_stop(context);
}

static void a_removed_watch_is_not_called_again(void **state)
{
	struct loop *loop = new_loop();
	struct listener first = listen_on(loop), second = listen_on(loop);
	struct error error;

	(void)state;
	first.watch.context = &first;
	second.watch.context = &second;
	/* Both are ready in the same round; whichever comes first removes the other, and itself. */
	first.victim = &second;
	second.victim = &first;
	assert_int_equal(loop_add(loop, &first.watch, EPOLLIN, &error), 0);
	assert_int_equal(loop_add(loop, &second.watch, EPOLLIN, &error), 0);
	first.stops = second.stops = true;
	assert_int_equal(loop_run(loop, &error), 0);
	assert_int_equal(first.calls + second.calls, 1);
	close(first.watch.fd);
	close(second.watch.fd);
	loop_free(loop);
}

static void *remove_from_another_thread(void *context)
{
	struct listener *listener = context;
	uint64_t one = 1;

	loop_lock(listener->loop);
	/* The main thread may have seen the event already: it waits for the lock. */
	assert_int_equal(write(listener->watch.fd, &one, sizeof(one)), sizeof(one));
	loop_remove(listener->loop, &listener->watch);
	loop_defer(listener->loop, stop_loop, listener->loop);
	loop_unlock(listener->loop);
	return NULL;
}

static void a_watch_removed_by_another_thread_is_not_called(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 200; i++) {
		struct loop *loop = new_loop();
		struct listener listener = listen_on(loop);
		struct error error;
		uint64_t ignored;
		pthread_t thread;

		listener.watch.context = &listener;
		assert_int_equal(read(listener.watch.fd, &ignored, sizeof(ignored)), sizeof(ignored));
		assert_int_equal(loop_add(loop, &listener.watch, EPOLLIN, &error), 0);
		assert_int_equal(pthread_create(&thread, NULL, remove_from_another_thread, &listener), 0);
		assert_int_equal(loop_run(loop, &error), 0);
		pthread_join(thread, NULL);
		assert_int_equal(listener.calls, 0);
		close(listener.watch.fd);
		loop_free(loop);
	}
}

struct order {
	struct loop *loop;
	unsigned seen;
};

static void second_deferred(void *context)
{
	struct order *order = context;

	assert_int_equal(order->seen++, 1);
	loop_stop(order->loop);
}

static void first_deferred(void *context)
{
	struct order *order = context;

	assert_int_equal(order->seen++, 0);
	loop_defer(order->loop, second_deferred, order);
}

static void deferred_work_runs_in_order(void **state)
{
	struct order order = {.loop = new_loop()};
	struct error error;

	(void)state;
	loop_defer(order.loop, first_deferred, &order);
	assert_int_equal(loop_run(order.loop, &error), 0);
	assert_int_equal(order.seen, 2);
	loop_free(order.loop);
}

/* ---- memory ---- */

static struct memory new_memory(uint64_t size)
{
	struct memory memory;
	struct error error = {0};
	int fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	assert_int_equal(ftruncate(fd, (off_t)size), 0);
	assert_int_equal(memory_map(&memory, fd, size, false, &error), 0);
	return memory;
}

static void addresses_are_checked(void **state)
{
	struct memory memory = new_memory(16 << 20);
	uint8_t bytes[16];

	(void)state;
	assert_ptr_equal(memory_at(&memory, 0, 16 << 20), memory.base);
	assert_null(memory_at(&memory, 0, (16 << 20) + 1));
	assert_null(memory_at(&memory, (16 << 20) - 1, 2));
	assert_non_null(memory_at(&memory, (16 << 20) - 1, 1));
	assert_null(memory_at(&memory, UINT64_MAX, 2));
	assert_null(memory_at(&memory, 1, UINT64_MAX));
	assert_null(memory_at(&memory, UINT64_MAX, UINT64_MAX));
	assert_int_equal(memory_read(&memory, (16 << 20) - 8, bytes, 16), -EFAULT);
	assert_int_equal(memory_write(&memory, (16 << 20) - 8, bytes, 16), -EFAULT);
	memory_unmap(&memory);
}

static void large_memory_goes_on_above_the_hole(void **state)
{
	struct memory memory = new_memory(5 * GIB);

	(void)state;
	assert_int_equal(memory.region_count, 2);
	assert_ptr_equal(memory_at(&memory, 3 * GIB - 1, 1), memory.base + 3 * GIB - 1);
	assert_null(memory_at(&memory, 3 * GIB, 1));
	assert_null(memory_at(&memory, 3 * GIB - 1, 2));
	assert_null(memory_at(&memory, 4 * GIB - 1, 1));
	assert_ptr_equal(memory_at(&memory, 4 * GIB, 2 * GIB), memory.base + 3 * GIB);
	assert_null(memory_at(&memory, 4 * GIB, 2 * GIB + 1));
	memory_unmap(&memory);
}

static void writes_are_marked(void **state)
{
	struct memory memory = new_memory(5 * GIB);
	uint64_t pages = memory.size / GUEST_PAGE_SIZE;

	(void)state;
	memory_wrote(&memory, 0, 1); /* not tracking: nothing to mark */
	memory.device_dirty = calloc(1, bitmap_bytes(pages));
	memory_wrote(&memory, 0x1fff, 2);
	memory_wrote(&memory, 4 * GIB, 1);
	memory_wrote(&memory, 3 * GIB, 1); /* no RAM */
	memory_wrote(&memory, 0x9000, 0);
	assert_int_equal(bitmap_count(memory.device_dirty, pages), 3);
	assert_true(bitmap_test(memory.device_dirty, 1));
	assert_true(bitmap_test(memory.device_dirty, 2));
	assert_true(bitmap_test(memory.device_dirty, 3 * GIB / GUEST_PAGE_SIZE));
	free(memory.device_dirty);
	memory_unmap(&memory);
}

static void memory_that_is_too_short_is_refused(void **state)
{
	struct memory memory;
	struct error error = {0};
	int fd = memfd_create("test", MFD_CLOEXEC);

	(void)state;
	assert_int_equal(ftruncate(fd, 4096), 0);
	assert_int_equal(memory_map(&memory, fd, 8192, false, &error), -EINVAL);
	assert_int_equal(memory_map(&memory, fd, 100, false, &error), -EINVAL);
	assert_int_equal(memory_map(&memory, fd, 0, false, &error), -EINVAL);
	close(fd);
}

static void mapped_memory_cannot_be_cut_off(void **state)
{
	struct memory memory = new_memory(1 << 20);

	(void)state;
	assert_int_equal(ftruncate(memory.fd, 4096), -1);
	memory_unmap(&memory);
}

/* ---- bus ---- */

static void read_name(void *context, uint64_t offset, void *data, unsigned size)
{
	memset(data, 0, size);
	*(uint8_t *)data = (uint8_t)(*(const char *)context + (char)offset);
}

static void the_smallest_range_answers(void **state)
{
	struct bus bus = {0};
	char outer_name = 'a', inner_name = 'x';
	struct bus_range outer = {.base = 0xcf8, .size = 8, .read = read_name, .context = &outer_name};
	struct bus_range inner = {.base = 0xcf9, .size = 1, .read = read_name, .context = &inner_name};
	struct bus_range across = {.base = 0xcff, .size = 2}, same = {.base = 0xcf8, .size = 8};
	struct bus_range wraps = {.base = UINT64_MAX, .size = 2}, nothing = {.base = 1, .size = 0};
	uint32_t value;

	(void)state;
	assert_int_equal(bus_add(&bus, &outer), 0);
	assert_int_equal(bus_add(&bus, &inner), 0);
	assert_int_equal(bus_add(&bus, &across), -EEXIST);
	assert_int_equal(bus_add(&bus, &same), -EEXIST);
	assert_int_equal(bus_add(&bus, &wraps), -EINVAL);
	assert_int_equal(bus_add(&bus, &nothing), -EINVAL);
	assert_true(bus_read(&bus, 0xcf9, &value, 1));
	assert_int_equal(value & 0xff, 'x');
	assert_true(bus_read(&bus, 0xcf8, &value, 4));
	assert_int_equal(value, 'a');
	assert_true(bus_read(&bus, 0xcfc, &value, 4));
	assert_int_equal(value, 'e');
	bus_remove(&bus, &inner);
	assert_true(bus_read(&bus, 0xcf9, &value, 1));
	assert_int_equal(value & 0xff, 'b');
}

static void where_nobody_answers_all_is_ones(void **state)
{
	struct bus bus = {0};
	char name = 'a';
	struct bus_range range = {.base = 0x10, .size = 4, .read = read_name, .context = &name};
	uint64_t value = 0;

	(void)state;
	assert_int_equal(bus_add(&bus, &range), 0);
	assert_false(bus_read(&bus, 0x12, &value, 4));
	assert_int_equal(value, 0xffffffff);
	assert_false(bus_read(&bus, UINT64_MAX, &value, 8));
	assert_true(value == UINT64_MAX);
	assert_false(bus_write(&bus, 0x10, &value, 1)); /* it has no write handler */
}

/* ---- console hub ---- */

struct terminal {
	struct console_port port;
	char typed[8192];
	size_t size, room; /* it takes no more than room bytes */
};

struct desk {
	struct platform platform;
	struct console_hub *hub;
	struct terminal first, second;
};

static void take_typed(void *context)
{
	struct terminal *terminal = context;

	terminal->size += console_input(
		&terminal->port, terminal->typed + terminal->size, terminal->room - terminal->size);
}

static struct desk *new_desk(unsigned limit_kib)
{
	struct desk *desk = calloc(1, sizeof(*desk));
	struct error error;

	desk->platform.loop = new_loop();
	desk->hub = console_hub_new(&desk->platform, limit_kib, &error);
	assert_non_null(desk->hub);
	desk->first = (struct terminal){.port = {.input = take_typed, .context = &desk->first}, .room = 8192};
	desk->second =
		(struct terminal){.port = {.input = take_typed, .context = &desk->second}, .room = 8192};
	console_port_add(desk->hub, &desk->first.port);
	console_port_add(desk->hub, &desk->second.port);
	return desk;
}

static void free_desk(struct desk *desk)
{
	platform_free_devices(&desk->platform);
	loop_free(desk->platform.loop);
	free(desk);
}

static void end_round(void *context, uint32_t events)
{
	(void)events;
	loop_stop(context);
}

/* Lets the loop handle what is there. */
static void settle(struct desk *desk)
{
	struct loop *loop = desk->platform.loop;
	struct watch end = {.fd = eventfd(1, EFD_NONBLOCK), .handler = end_round, .context = loop};
	struct error error;

	assert_int_equal(loop_add(loop, &end, EPOLLIN, &error), 0);
	for (unsigned i = 0; i < 20; i++)
		assert_int_equal(loop_run(loop, &error), 0);
	loop_remove(loop, &end);
	close(end.fd);
}

static int attach(struct desk *desk, bool history)
{
	struct error error;
	int pair[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
	assert_int_equal(console_attach(desk->hub, pair[1], history, &error), 0);
	return pair[0];
}

static void expect(int stream, const char *text)
{
	char got[8192] = "";
	ssize_t size = recv(stream, got, sizeof(got) - 1, MSG_DONTWAIT);

	assert_int_equal(size < 0 ? 0 : size, (ssize_t)strlen(text));
	assert_string_equal(got, text);
}

static void print(struct terminal *terminal, const char *text)
{
	console_output(&terminal->port, text, strlen(text));
}

static void output_goes_to_all_and_history_to_who_asks(void **state)
{
	struct desk *desk = new_desk(64);
	int early = attach(desk, false), late, curious;

	(void)state;
	print(&desk->first, "one ");
	settle(desk);
	late = attach(desk, false);
	curious = attach(desk, true);
	print(&desk->second, "two");
	settle(desk);
	expect(early, "one two");
	expect(late, "two");
	expect(curious, "one two");
	close(late); /* who goes is forgotten */
	settle(desk);
	print(&desk->second, "!");
	settle(desk);
	expect(early, "!");
	close(early);
	close(curious);
	free_desk(desk);
}

static void history_is_as_long_as_was_asked(void **state)
{
	struct desk *desk = new_desk(1);
	char printed[3001] = "", got[4096];
	int curious;

	(void)state;
	for (size_t i = 0; i < 30; i++) {
		snprintf(printed + i * 100, 101, "%099zu\n", i);
		print(&desk->first, printed + i * 100);
	}
	curious = attach(desk, true);
	settle(desk);
	assert_int_equal(recv(curious, got, sizeof(got), MSG_DONTWAIT), 1024);
	assert_memory_equal(got, printed + 3000 - 1024, 1024);
	close(curious);
	free_desk(desk);
}

static void who_looks_on_is_counted(void **state)
{
	struct desk *desk = new_desk(64);
	struct error error;
	int streams[384], pair[2];

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(streams); i++)
		streams[i] = attach(desk, false);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
	assert_int_equal(console_attach(desk->hub, pair[1], false, &error), -EBUSY);
	assert_string_equal(error.text, "384 clients look at the guest's console already.");
	close(streams[7]);
	settle(desk);
	assert_int_equal(console_attach(desk->hub, pair[1], false, &error), 0);
	streams[7] = pair[0];
	print(&desk->first, "hello");
	settle(desk);
	expect(streams[7], "hello");
	for (size_t i = 0; i < ARRAY_SIZE(streams); i++)
		close(streams[i]);
	free_desk(desk);
}

static void input_goes_to_who_printed_last(void **state)
{
	struct desk *desk = new_desk(64);
	int stream = attach(desk, false);

	(void)state;
	assert_int_equal(write(stream, "a", 1), 1);
	settle(desk);
	print(&desk->second, "login: ");
	assert_int_equal(write(stream, "b", 1), 1);
	settle(desk);
	assert_string_equal(desk->first.typed, "a");
	assert_string_equal(desk->second.typed, "b");
	close(stream);
	free_desk(desk);
}

static void input_waits_while_nobody_takes_it(void **state)
{
	struct desk *desk = new_desk(64);
	int stream = attach(desk, false);
	char typed[8000];
	size_t sent = 0;

	(void)state;
	desk->first.room = 0;
	memset(typed, 'k', sizeof(typed));
	while (sent < sizeof(typed)) {
		ssize_t size = send(stream, typed + sent, sizeof(typed) - sent, MSG_DONTWAIT);

		settle(desk);
		if (size < 0)
			break;
		sent += (size_t)size;
	}
	assert_int_equal(sent, sizeof(typed)); /* the rest waits in the socket */
	desk->first.room = sizeof(desk->first.typed);
	take_typed(&desk->first);
	assert_int_equal(desk->first.size, 4096);
	settle(desk);
	assert_int_equal(desk->first.size, sizeof(typed));
	close(stream);
	free_desk(desk);
}

static void a_paused_guest_gets_no_input(void **state)
{
	struct desk *desk = new_desk(64);
	int stream = attach(desk, false);

	(void)state;
	desk->platform.paused = true;
	assert_int_equal(write(stream, "x", 1), 1);
	settle(desk);
	assert_int_equal(desk->first.size, 0);
	desk->platform.paused = false;
	for (struct device *device = desk->platform.devices; device; device = device->next)
		device->class->resume(device);
	assert_string_equal(desk->first.typed, "x");
	close(stream);
	free_desk(desk);
}

/* Prints `lines` lines of 10 bytes. */
static void print_lines(struct desk *desk, unsigned from, unsigned lines)
{
	for (unsigned i = from; i < from + lines; i++) {
		char line[16];

		snprintf(line, sizeof(line), "%08u\r\n", i);
		print(&desk->first, line);
	}
}

static void a_slow_stream_loses_output_and_the_ring_keeps_its_end(void **state)
{
	struct desk *desk = new_desk(4);
	int slow = attach(desk, false), late;
	char got[8192];
	ssize_t size;

	(void)state;
	print_lines(desk, 0, 100000); /* without a chance to send */
	settle(desk);
	size = recv(slow, got, sizeof(got), MSG_DONTWAIT);
	assert_int_equal(size, 4096);
	assert_memory_equal(got + size - 10, "00099999\r\n", 10);
	late = attach(desk, true);
	settle(desk);
	size = recv(late, got, sizeof(got), MSG_DONTWAIT);
	assert_int_equal(size, 4096);
	assert_memory_equal(got + size - 10, "00099999\r\n", 10);
	close(slow);
	close(late);
	free_desk(desk);
}

static void the_history_moves_with_the_guest(void **state)
{
	struct desk *from = new_desk(4), *to = new_desk(4);
	struct device *source = from->platform.devices, *target = to->platform.devices;
	_cleanup_buffer_ struct buffer saved = {0};
	int before = attach(to, true), late;
	struct cursor records;
	struct error error = {0};
	char got[8192];

	(void)state;
	print_lines(from, 0, 1000);
	source->class->before_save(source);
	fields_save(&saved, source->class->state, 0, source);
	records = cursor_over(saved.data, saved.size);
	assert_int_equal(fields_load(&records, target->class->state, 0, target, &error), 0);
	assert_int_equal(target->class->after_load(target, &error), 0);
	print_lines(to, 1000, 1);
	settle(to);
	assert_int_equal(recv(before, got, sizeof(got), MSG_DONTWAIT), 4096 + 10);
	assert_memory_equal(got + 4096 - 10, "00000999\r\n00001000\r\n", 20);
	late = attach(to, true);
	settle(to);
	assert_int_equal(recv(late, got, sizeof(got), MSG_DONTWAIT), 4096);
	assert_memory_equal(got + 4096 - 20, "00000999\r\n00001000\r\n", 20);
	/* The source goes on as if nothing had been. */
	print_lines(from, 1000, 1);
	close(before);
	close(late);
	free_desk(from);
	free_desk(to);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(deferred_work_does_not_starve_events),
		cmocka_unit_test(a_removed_watch_is_not_called_again),
		cmocka_unit_test(a_watch_removed_by_another_thread_is_not_called),
		cmocka_unit_test(deferred_work_runs_in_order),
		cmocka_unit_test(addresses_are_checked),
		cmocka_unit_test(large_memory_goes_on_above_the_hole),
		cmocka_unit_test(writes_are_marked),
		cmocka_unit_test(memory_that_is_too_short_is_refused),
		cmocka_unit_test(mapped_memory_cannot_be_cut_off),
		cmocka_unit_test(the_smallest_range_answers),
		cmocka_unit_test(where_nobody_answers_all_is_ones),
		cmocka_unit_test(output_goes_to_all_and_history_to_who_asks),
		cmocka_unit_test(history_is_as_long_as_was_asked),
		cmocka_unit_test(who_looks_on_is_counted),
		cmocka_unit_test(input_goes_to_who_printed_last),
		cmocka_unit_test(input_waits_while_nobody_takes_it),
		cmocka_unit_test(a_paused_guest_gets_no_input),
		cmocka_unit_test(a_slow_stream_loses_output_and_the_ring_keeps_its_end),
		cmocka_unit_test(the_history_moves_with_the_guest),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
