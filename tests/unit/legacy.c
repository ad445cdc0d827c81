/* The devices that every PC has: serial port, clock, power controls, crash device, generation ID; from the
 * guest's side. */
#include "vmm/bus.h"
#include "vmm/console_hub.h"
#include "vmm/dev/crash.h"
#include "vmm/dev/generation.h"
#include "vmm/dev/power.h"
#include "vmm/dev/rtc.h"
#include "vmm/dev/serial.h"
#include "vmm/interrupts.h"
#include "vmm/layout.h"
#include "vmm/loop.h"
#include "vmm/memory.h"

#include "base/cleanup.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <cmocka.h>

#define COM1 0x3f8
#define COM1_GSI 4
#define RTC_GSI 8
#define SCI_GSI 9

struct pc {
	struct platform platform;
	struct bus ports;
	struct console_hub *hub;
	struct device *power;
	int stream; /* somebody at the console */
	unsigned stops;
	enum stop_reason reason;
};

/* What interrupts.c would tell KVM. */
static bool lines[24];
static unsigned rises[24];

void interrupts_line(struct interrupts *interrupts, unsigned gsi, bool high)
{
	(void)interrupts;
	rises[gsi] += high && !lines[gsi];
	lines[gsi] = high;
}

static void stopped(void *machine, enum stop_reason reason, const char *detail)
{
	struct pc *pc = machine;

	(void)detail;
	pc->stops++;
	pc->reason = reason;
}

static struct pc *new_pc(void)
{
	struct pc *pc = calloc(1, sizeof(*pc));
	struct error error;
	int pair[2];

	memset(lines, 0, sizeof(lines));
	memset(rises, 0, sizeof(rises));
	pc->platform = (struct platform){
		.loop = loop_new(&error), .ports = &pc->ports, .stop = stopped, .machine = pc};
	pc->hub = console_hub_new(&pc->platform, 64, &error);
	pc->power = power_new(&pc->platform, &error);
	assert_non_null(pc->power);
	assert_non_null(serial_new(&pc->platform, pc->hub, &error));
	assert_non_null(rtc_new(&pc->platform, &error));
	assert_non_null(crash_new(&pc->platform, &error));
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
	assert_int_equal(console_attach(pc->hub, pair[0], true, &error), 0);
	pc->stream = pair[1];
	return pc;
}

static void free_pc(struct pc *pc)
{
	close(pc->stream);
	platform_free_devices(&pc->platform);
	assert_null(pc->ports.ranges);
	loop_free(pc->platform.loop);
	free(pc);
}

static uint8_t in(struct pc *pc, uint64_t port)
{
	uint8_t value;

	bus_read(&pc->ports, port, &value, sizeof(value));
	return value;
}

static void out(struct pc *pc, uint64_t port, uint8_t value)
{
	bus_write(&pc->ports, port, &value, sizeof(value));
}

static void stop_loop(void *context)
{
	loop_stop(context);
}

static void end_round(void *context, uint32_t events)
{
	(void)events;
	loop_stop(context);
}

/* Types at the console, and lets the loop see it. */
static void type(struct pc *pc, const char *text)
{
	struct watch end = {.fd = pc->stream, .handler = end_round, .context = pc->platform.loop};
	struct error error;

	assert_int_equal(write(pc->stream, text, strlen(text)), (ssize_t)strlen(text));
	assert_int_equal(loop_add(pc->platform.loop, &end, EPOLLOUT, &error), 0);
	for (unsigned i = 0; i < 10; i++)
		assert_int_equal(loop_run(pc->platform.loop, &error), 0);
	loop_remove(pc->platform.loop, &end);
}

static void what_is_sent_arrives(void **state)
{
	struct pc *pc = new_pc();
	char got[16] = "";
	struct error error;

	(void)state;
	assert_int_equal(in(pc, COM1 + 5), 0x60);
	for (const char *c = "hello"; *c; c++)
		out(pc, COM1, (uint8_t)*c);
	loop_defer(pc->platform.loop, stop_loop, pc->platform.loop);
	assert_int_equal(loop_run(pc->platform.loop, &error), 0);
	assert_int_equal(recv(pc->stream, got, sizeof(got), MSG_DONTWAIT), 5);
	assert_string_equal(got, "hello");
	free_pc(pc);
}

static void the_divisor_hides_data_and_interrupts(void **state)
{
	struct pc *pc = new_pc();

	(void)state;
	out(pc, COM1 + 3, 0x80);
	out(pc, COM1, 1);
	out(pc, COM1 + 1, 2);
	assert_int_equal(in(pc, COM1), 1);
	assert_int_equal(in(pc, COM1 + 1), 2);
	out(pc, COM1 + 3, 0x03);
	assert_int_equal(in(pc, COM1 + 1), 0);
	out(pc, COM1 + 7, 0x5a);
	assert_int_equal(in(pc, COM1 + 7), 0x5a);
	free_pc(pc);
}

static void an_empty_transmitter_interrupts_once(void **state)
{
	struct pc *pc = new_pc();

	(void)state;
	assert_int_equal(in(pc, COM1 + 2) & 0x0f, 1);
	out(pc, COM1 + 1, 2);
	assert_true(lines[COM1_GSI]);
	assert_int_equal(in(pc, COM1 + 2) & 0x0f, 2); /* reading it acknowledges */
	assert_false(lines[COM1_GSI]);
	assert_int_equal(in(pc, COM1 + 2) & 0x0f, 1);
	out(pc, COM1, 'x');
	assert_true(lines[COM1_GSI]);
	out(pc, COM1 + 1, 0);
	assert_false(lines[COM1_GSI]);
	free_pc(pc);
}

static void typing_goes_through_the_fifo(void **state)
{
	struct pc *pc = new_pc();
	char got[32] = "";

	(void)state;
	out(pc, COM1 + 2, 0x01);
	assert_int_equal(in(pc, COM1 + 2) & 0xc0, 0xc0);
	out(pc, COM1 + 1, 1);
	type(pc, "twenty characters...");
	assert_true(lines[COM1_GSI]);
	assert_int_equal(in(pc, COM1 + 2) & 0x0f, 4);
	for (unsigned i = 0; i < 20; i++) {
		assert_int_equal(in(pc, COM1 + 5) & 1, 1);
		got[i] = (char)in(pc, COM1);
	}
	assert_string_equal(got, "twenty characters...");
	assert_int_equal(in(pc, COM1 + 5) & 1, 0);
	assert_false(lines[COM1_GSI]);
	free_pc(pc);
}

static void loop_back_sees_itself(void **state)
{
	struct pc *pc = new_pc();

	(void)state;
	out(pc, COM1 + 4, 0x1a); /* Linux looks for a port this way */
	assert_int_equal(in(pc, COM1 + 6) & 0xf0, 0x90);
	out(pc, COM1, 'x');
	out(pc, COM1, 'y'); /* one too many without a FIFO */
	assert_int_equal(in(pc, COM1 + 5) & 3, 3);
	assert_int_equal(in(pc, COM1), 'x');
	free_pc(pc);
}

static void the_serial_port_moves(void **state)
{
	struct pc *pc = new_pc(), *there = new_pc();
	_cleanup_buffer_ struct buffer saved = {0};
	struct error error = {0};
	struct cursor records;

	(void)state;
	out(pc, COM1 + 2, 0x01);
	out(pc, COM1 + 1, 1);
	type(pc, "abc");
	for (struct device *device = pc->platform.devices; device; device = device->next)
		fields_save(&saved, device->class->state, device->instance, device);
	memset(lines, 0, sizeof(lines));
	memset(rises, 0, sizeof(rises));
	records = cursor_over(saved.data, saved.size);
	for (struct device *device = there->platform.devices; device; device = device->next) {
		assert_int_equal(
			fields_load(&records, device->class->state, device->instance, device, &error), 0);
		if (device->class->after_load)
			assert_int_equal(device->class->after_load(device, &error), 0);
	}
	assert_true(lines[COM1_GSI]);
	assert_int_equal(in(there, COM1), 'a');
	assert_int_equal(in(there, COM1), 'b');
	assert_int_equal(in(there, COM1), 'c');
	assert_false(lines[COM1_GSI]);
	free_pc(pc);
	free_pc(there);
}

/* ---- clock ---- */

static uint8_t read_clock(struct pc *pc, uint8_t index)
{
	out(pc, 0x70, index);
	return in(pc, 0x71);
}

static void write_clock(struct pc *pc, uint8_t index, uint8_t value)
{
	out(pc, 0x70, index);
	out(pc, 0x71, value);
}

/* Reads the clock as a driver does: again if the minute has changed meanwhile. Binary mode. */
static time_t clock_time(struct pc *pc)
{
	struct tm fields = {0};
	uint8_t second;

	do {
		second = read_clock(pc, 0);
		fields = (struct tm){.tm_sec = second,
			.tm_min = read_clock(pc, 2),
			.tm_hour = read_clock(pc, 4),
			.tm_mday = read_clock(pc, 7),
			.tm_mon = read_clock(pc, 8) - 1,
			.tm_year = read_clock(pc, 0x32) * 100 + read_clock(pc, 9) - 1900};
	} while (read_clock(pc, 0) != second);
	return timegm(&fields);
}

/* To the nanosecond, as the device asks: time() may still be in the second before (time(2), clock_getres(2)).
 */
static time_t now_exactly(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return now.tv_sec;
}

static void the_clock_shows_utc(void **state)
{
	struct pc *pc = new_pc();
	time_t before = now_exactly(), shown;

	(void)state;
	assert_int_equal(read_clock(pc, 11), 0x02); /* BCD, 24 hours */
	assert_int_equal(read_clock(pc, 13), 0x80);
	assert_int_equal(read_clock(pc, 10) & 0x80, 0); /* never being updated */
	write_clock(pc, 11, 0x06);
	shown = clock_time(pc);
	assert_true(shown >= before && shown <= now_exactly());
	free_pc(pc);
}

static void bcd_and_twelve_hours(void **state)
{
	struct pc *pc = new_pc();
	struct tm now;
	time_t before;
	uint8_t hour, minute;

	(void)state;
	write_clock(pc, 11, 0x00);
	do {
		before = now_exactly() / 60;
		hour = read_clock(pc, 4);
		minute = read_clock(pc, 2);
	} while (before != now_exactly() / 60);
	before *= 60;
	gmtime_r(&before, &now);
	assert_int_equal(minute, now.tm_min / 10 * 16 + now.tm_min % 10);
	assert_int_equal(hour >> 7, now.tm_hour >= 12);
	assert_int_equal((hour & 0x7f) / 16 * 10 + hour % 16, now.tm_hour % 12 ? now.tm_hour % 12 : 12);
	free_pc(pc);
}

static void the_guest_sets_the_clock(void **state)
{
	struct pc *pc = new_pc();
	struct tm then = {.tm_year = 101, .tm_mon = 1, .tm_mday = 3, .tm_hour = 4, .tm_min = 5, .tm_sec = 6};
	time_t shown;

	(void)state;
	write_clock(pc, 11, 0x86);
	write_clock(pc, 0x32, 20);
	write_clock(pc, 9, 1);
	write_clock(pc, 8, 2);
	write_clock(pc, 7, 3);
	write_clock(pc, 4, 4);
	write_clock(pc, 2, 5);
	write_clock(pc, 0, 6);
	write_clock(pc, 11, 0x06);
	shown = clock_time(pc);
	assert_true(shown >= timegm(&then) && shown <= timegm(&then) + 30);
	free_pc(pc);
}

static void the_alarm_rings(void **state)
{
	struct pc *pc = new_pc();
	time_t start = time(NULL);
	struct error error;

	(void)state;
	write_clock(pc, 11, 0x06);
	write_clock(pc, 1, 0xff); /* any second */
	write_clock(pc, 3, 0xff);
	write_clock(pc, 5, 0xff);
	write_clock(pc, 11, 0x26);
	while (!lines[RTC_GSI] && time(NULL) < start + 60) {
		struct watch end = {.fd = pc->stream, .handler = end_round, .context = pc->platform.loop};

		assert_int_equal(loop_add(pc->platform.loop, &end, EPOLLOUT, &error), 0);
		assert_int_equal(loop_run(pc->platform.loop, &error), 0);
		loop_remove(pc->platform.loop, &end);
		usleep(10000);
	}
	assert_true(lines[RTC_GSI]);
	assert_int_equal(read_clock(pc, 12), 0xa0);
	assert_false(lines[RTC_GSI]);
	assert_int_equal(read_clock(pc, 12), 0);
	free_pc(pc);
}

/* Lets the loop work for so long, or until the alarm's line is high. */
static bool alarm_within(struct pc *pc, int seconds)
{
	time_t end = now_exactly() + seconds;
	struct error error;

	while (!lines[RTC_GSI] && now_exactly() <= end) {
		struct watch round = {.fd = pc->stream, .handler = end_round, .context = pc->platform.loop};

		assert_int_equal(loop_add(pc->platform.loop, &round, EPOLLOUT, &error), 0);
		assert_int_equal(loop_run(pc->platform.loop, &error), 0);
		loop_remove(pc->platform.loop, &round);
		usleep(10000);
	}
	return lines[RTC_GSI];
}

static void set_alarm(struct pc *pc, int seconds_ahead)
{
	time_t at = clock_time(pc) + seconds_ahead;
	struct tm fields;

	gmtime_r(&at, &fields);
	write_clock(pc, 1, (uint8_t)fields.tm_sec);
	write_clock(pc, 3, (uint8_t)fields.tm_min);
	write_clock(pc, 5, (uint8_t)fields.tm_hour);
	write_clock(pc, 11, 0x26);
}

static void move_clock(struct pc *pc, struct pc *there)
{
	_cleanup_buffer_ struct buffer saved = {0};
	struct error error = {0};
	struct cursor records;

	for (struct device *device = pc->platform.devices; device; device = device->next)
		fields_save(&saved, device->class->state, device->instance, device);
	/* It may wait in a file, in which its time comes. */
	sleep(3);
	memset(lines, 0, sizeof(lines));
	records = cursor_over(saved.data, saved.size);
	for (struct device *device = there->platform.devices; device; device = device->next) {
		assert_int_equal(
			fields_load(&records, device->class->state, device->instance, device, &error), 0);
		if (device->class->after_load)
			assert_int_equal(device->class->after_load(device, &error), 0);
	}
}

static void an_alarm_rings_whose_time_came_meanwhile(void **state)
{
	struct pc *pc = new_pc(), *there = new_pc();

	(void)state;
	write_clock(pc, 11, 0x06);
	set_alarm(pc, 2);
	move_clock(pc, there);
	assert_true(alarm_within(there, 60));
	assert_int_equal(read_clock(there, 12), 0xa0);
	assert_false(alarm_within(there, 2)); /* once */
	free_pc(pc);
	free_pc(there);
}

static void an_alarm_whose_time_is_to_come_waits(void **state)
{
	struct pc *pc = new_pc(), *there = new_pc();

	(void)state;
	write_clock(pc, 11, 0x06);
	set_alarm(pc, 3600);
	move_clock(pc, there);
	assert_false(alarm_within(there, 1));
	free_pc(pc);
	free_pc(there);
}

static void the_alarm_rings_tomorrow_too(void **state)
{
	struct pc *pc = new_pc();

	(void)state;
	write_clock(pc, 11, 0x86);
	write_clock(pc, 4, 23);
	write_clock(pc, 2, 59);
	write_clock(pc, 0, 57);
	write_clock(pc, 11, 0x06);
	set_alarm(pc, 5);
	assert_true(alarm_within(pc, 60));
	write_clock(pc, 3, 75); /* no minute: never */
	read_clock(pc, 12);
	assert_false(alarm_within(pc, 1));
	free_pc(pc);
}

/* ---- power ---- */

static void out16(struct pc *pc, uint64_t port, uint16_t value)
{
	bus_write(&pc->ports, port, &value, sizeof(value));
}

static uint16_t in16(struct pc *pc, uint64_t port)
{
	uint16_t value;

	bus_read(&pc->ports, port, &value, sizeof(value));
	return value;
}

static void soft_off_powers_off(void **state)
{
	struct pc *pc = new_pc();

	(void)state;
	assert_int_equal(in16(pc, 0x604), 1);
	out16(pc, 0x604, 5 << 10); /* the type alone does nothing */
	assert_int_equal(pc->stops, 0);
	out16(pc, 0x604, 5 << 10 | 0x2000);
	assert_int_equal(pc->stops, 1);
	assert_int_equal(pc->reason, STOP_POWEROFF);
	assert_int_equal(in16(pc, 0x604) & 0x2000, 0);
	free_pc(pc);
}

static void the_button_interrupts_until_it_is_seen(void **state)
{
	struct pc *pc = new_pc();

	(void)state;
	power_press_button(pc->power);
	assert_false(lines[SCI_GSI]);
	out16(pc, 0x602, 0x100);
	assert_true(lines[SCI_GSI]);
	assert_int_equal(in16(pc, 0x600), 0x100);
	out16(pc, 0x600, 0x100);
	assert_false(lines[SCI_GSI]);
	assert_int_equal(in16(pc, 0x600), 0);
	assert_int_equal(in16(pc, 0x602), 0x100);
	free_pc(pc);
}

static void resets_reboot(void **state)
{
	struct pc *pc = new_pc();

	(void)state;
	out(pc, 0xcf9, 0x02);
	assert_int_equal(pc->stops, 0);
	out(pc, 0xcf9, 0x06);
	assert_int_equal(pc->stops, 1);
	assert_int_equal(pc->reason, STOP_REBOOT);
	assert_int_equal(in(pc, 0x64), 0);
	out(pc, 0x64, 0xfe);
	assert_int_equal(pc->stops, 2);
	assert_int_equal(pc->reason, STOP_REBOOT);
	free_pc(pc);
}

static void a_panic_is_a_crash(void **state)
{
	struct pc *pc = new_pc();

	(void)state;
	assert_int_equal(in(pc, 0x505), 3);
	out(pc, 0x505, 2); /* a crash kernel takes over */
	assert_int_equal(pc->stops, 0);
	out(pc, 0x505, 1);
	assert_int_equal(pc->stops, 1);
	assert_int_equal(pc->reason, STOP_CRASH);
	free_pc(pc);
}

static struct device *new_generation(struct platform *platform, const char *id, bool incoming)
{
	struct error error;
	struct device *device = generation_new(platform, (const uint8_t *)id, incoming, &error);

	assert_non_null(device);
	return device;
}

static void a_guest_is_told_of_its_new_id(void **state)
{
	static const char first[17] = "first generation", second[17] = "other generation";
	static uint8_t room[1 << 20];
	struct memory memory = {.fd = -1,
		.base = room,
		.size = sizeof(room),
		.regions = {{.size = sizeof(room)}},
		.region_count = 1};
	struct platform platform = {.memory = &memory};
	_cleanup_buffer_ struct buffer saved = {0};
	struct cursor records;
	struct error error;
	struct device *device;

	(void)state;
	memset(rises, 0, sizeof(rises));
	device = new_generation(&platform, first, false);
	device->class->resume(device);
	assert_memory_equal(room + LAYOUT_GENERATION, first, 16);
	fields_save(&saved, device->class->state, 0, device);
	platform_free_devices(&platform);

	platform.devices = NULL; /* moved: nothing is new */
	device = new_generation(&platform, NULL, true);
	records = cursor_over(saved.data, saved.size);
	assert_int_equal(fields_load(&records, device->class->state, 0, device, &error), 0);
	assert_int_equal(device->class->after_load(device, &error), 0);
	device->class->resume(device);
	assert_memory_equal(room + LAYOUT_GENERATION, first, 16);
	assert_int_equal(rises[GENERATION_GSI], 0);
	platform_free_devices(&platform);

	platform.devices =
		NULL; /* restored; saved again before it runs; restored by somebody who keeps the ID */
	device = new_generation(&platform, second, true);
	assert_memory_equal(room + LAYOUT_GENERATION, first, 16);
	records = cursor_over(saved.data, saved.size);
	assert_int_equal(fields_load(&records, device->class->state, 0, device, &error), 0);
	assert_int_equal(device->class->after_load(device, &error), 0);
	assert_memory_equal(room + LAYOUT_GENERATION, second, 16);
	buffer_clear(&saved);
	fields_save(&saved, device->class->state, 0, device);
	platform_free_devices(&platform);
	platform.devices = NULL;
	device = new_generation(&platform, NULL, true);
	records = cursor_over(saved.data, saved.size);
	assert_int_equal(fields_load(&records, device->class->state, 0, device, &error), 0);
	assert_int_equal(device->class->after_load(device, &error), 0);
	for (unsigned i = 0; i < 2; i++)
		device->class->resume(device);
	assert_int_equal(rises[GENERATION_GSI], 1);
	assert_false(lines[GENERATION_GSI]);
	platform_free_devices(&platform);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_sent_arrives),
		cmocka_unit_test(the_divisor_hides_data_and_interrupts),
		cmocka_unit_test(an_empty_transmitter_interrupts_once),
		cmocka_unit_test(typing_goes_through_the_fifo),
		cmocka_unit_test(loop_back_sees_itself),
		cmocka_unit_test(the_serial_port_moves),
		cmocka_unit_test(the_clock_shows_utc),
		cmocka_unit_test(bcd_and_twelve_hours),
		cmocka_unit_test(the_guest_sets_the_clock),
		cmocka_unit_test(the_alarm_rings),
		cmocka_unit_test(an_alarm_rings_whose_time_came_meanwhile),
		cmocka_unit_test(an_alarm_whose_time_is_to_come_waits),
		cmocka_unit_test(the_alarm_rings_tomorrow_too),
		cmocka_unit_test(soft_off_powers_off),
		cmocka_unit_test(the_button_interrupts_until_it_is_seen),
		cmocka_unit_test(resets_reboot),
		cmocka_unit_test(a_panic_is_a_crash),
		cmocka_unit_test(a_guest_is_told_of_its_new_id),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
