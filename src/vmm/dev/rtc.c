#include "vmm/dev/rtc.h"
#include "base/cleanup.h"
#include "vmm/bus.h"
#include "vmm/interrupts.h"
#include "vmm/loop.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/timerfd.h>
#include <time.h>

#define RTC_PORT 0x70u /* index; data at the next port */
#define RTC_GSI 8u
#define CMOS_SIZE 128u
#define DAY_SECONDS 86400
#define TIME_MOST (1ll << 40) /* seconds */

/* Registers (MC146818A data sheet, figures 8 and 9). */
enum {
	SECONDS = 0,
	SECONDS_ALARM = 1,
	MINUTES = 2,
	MINUTES_ALARM = 3,
	HOURS = 4,
	HOURS_ALARM = 5,
	WEEKDAY = 6,
	DAY = 7,
	MONTH = 8,
	YEAR = 9,
	REGISTER_A = 10,
	REGISTER_B = 11,
	REGISTER_C = 12,
	REGISTER_D = 13,
};
#define A_DIVIDER 0x26u /* 32768 Hz, 1024 Hz; never "update in progress" */
#define B_SET 0x80u
#define B_ALARM 0x20u
#define B_BINARY 0x04u
#define B_24_HOURS 0x02u
#define C_IRQ 0x80u
#define C_ALARM 0x20u
#define D_VALID 0x80u
#define PM 0x80u
#define ALARM_ANY 0xc0u /* and above: matches always */

struct rtc {
	struct device device;
	struct platform *platform;
	struct bus_range range;
	struct watch timer; /* the next alarm */
	uint8_t index;
	uint8_t cmos[CMOS_SIZE];
	int64_t offset; /* seconds that the guest's clock is ahead of the host's */
	int64_t frozen; /* the guest's time while it sets the clock (B_SET) */
	int64_t alarm;  /* the guest's time of the next alarm, 0: none */
};

static const struct field rtc_fields[] = {
	FIELD(struct rtc, index, FIELD_U8),
	FIELD(struct rtc, cmos, FIELD_BYTES),
	FIELD(struct rtc, offset, FIELD_U64),
	FIELD(struct rtc, frozen, FIELD_U64),
	FIELD_OPTIONAL(struct rtc, alarm, FIELD_U64, 2),
};
static const struct field_table rtc_state = FIELD_TABLE("rtc", 2, rtc_fields);

static int64_t host_time(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return now.tv_sec;
}

static int64_t guest_time(const struct rtc *rtc)
{
	return rtc->cmos[REGISTER_B] & B_SET ? rtc->frozen : host_time() + rtc->offset;
}

static uint8_t encode(const struct rtc *rtc, int value)
{
	return (uint8_t)(rtc->cmos[REGISTER_B] & B_BINARY ? value : value / 10 * 16 + value % 10);
}

static int decode(const struct rtc *rtc, uint8_t value)
{
	return rtc->cmos[REGISTER_B] & B_BINARY ? value : (value >> 4) * 10 + (value & 15);
}

static uint8_t encode_hour(const struct rtc *rtc, int hour)
{
	if (rtc->cmos[REGISTER_B] & B_24_HOURS)
		return encode(rtc, hour);
	return (uint8_t)(encode(rtc, hour % 12 ? hour % 12 : 12) | (hour >= 12 ? PM : 0));
}

static int decode_hour(const struct rtc *rtc, uint8_t value)
{
	if (rtc->cmos[REGISTER_B] & B_24_HOURS)
		return decode(rtc, value);
	return decode(rtc, value & 0x7f) % 12 + (value & PM ? 12 : 0);
}

static struct tm fields_of(int64_t time)
{
	time_t seconds = time;
	struct tm fields = {0};

	gmtime_r(&seconds, &fields);
	return fields;
}

static uint8_t read_time(const struct rtc *rtc, unsigned index)
{
	struct tm now = fields_of(guest_time(rtc));

	switch (index) {
	case SECONDS:
		return encode(rtc, now.tm_sec);
	case MINUTES:
		return encode(rtc, now.tm_min);
	case HOURS:
		return encode_hour(rtc, now.tm_hour);
	case WEEKDAY:
		return encode(rtc, now.tm_wday + 1);
	case DAY:
		return encode(rtc, now.tm_mday);
	case MONTH:
		return encode(rtc, now.tm_mon + 1);
	case YEAR:
		return encode(rtc, now.tm_year % 100);
	default:
		return encode(rtc, 19 + now.tm_year / 100);
	}
}

static void write_time(struct rtc *rtc, unsigned index, uint8_t value)
{
	struct tm now = fields_of(guest_time(rtc));
	int number = decode(rtc, value);
	int64_t time;

	switch (index) {
	case SECONDS:
		now.tm_sec = number;
		break;
	case MINUTES:
		now.tm_min = number;
		break;
	case HOURS:
		now.tm_hour = decode_hour(rtc, value);
		break;
	case DAY:
		now.tm_mday = number;
		break;
	case MONTH:
		now.tm_mon = number - 1;
		break;
	case YEAR:
		now.tm_year = now.tm_year / 100 * 100 + number;
		break;
	case RTC_CENTURY:
		now.tm_year = (number - 19) * 100 + now.tm_year % 100;
		break;
	default: /* the weekday follows from the date */
		return;
	}
	time = timegm(&now);
	if (rtc->cmos[REGISTER_B] & B_SET)
		rtc->frozen = time;
	else
		rtc->offset = time - host_time();
}

/* Whether an alarm's byte says this number. */
static bool says(uint8_t alarm, int number, int said)
{
	return alarm >= ALARM_ANY || number == said;
}

/*
 * The first moment after `now` at which the alarm rings, 0: none, for its bytes say no time of day. It steps
 * over whole hours and minutes that do not match.
 */
static int64_t next_alarm(const struct rtc *rtc, int64_t now)
{
	uint8_t hours = rtc->cmos[HOURS_ALARM], minutes = rtc->cmos[MINUTES_ALARM],
		seconds = rtc->cmos[SECONDS_ALARM];
	int64_t at = now + 1;

	while (at <= now + DAY_SECONDS) {
		int64_t second = ((at % DAY_SECONDS) + DAY_SECONDS) % DAY_SECONDS;

		if (!says(hours, decode_hour(rtc, hours), (int)(second / 3600)))
			at += 3600 - second % 3600;
		else if (!says(minutes, decode(rtc, minutes), (int)(second / 60 % 60)))
			at += 60 - second % 60;
		else if (!says(seconds, decode(rtc, seconds), (int)(second % 60)))
			at++;
		else
			return at;
	}
	return 0;
}

static void set_timer(const struct rtc *rtc)
{
	struct itimerspec when = {.it_value.tv_sec = rtc->alarm ? rtc->alarm - rtc->offset : 0};

	/* A time before 1970 is refused, and no alarm then rings. */
	if (timerfd_settime(rtc->timer.fd, TFD_TIMER_ABSTIME, &when, NULL) < 0)
		return;
}

/* Sets the timer to the next alarm, or to none. */
static void arm(struct rtc *rtc)
{
	bool wanted = rtc->cmos[REGISTER_B] & B_ALARM && !(rtc->cmos[REGISTER_B] & B_SET);

	rtc->alarm = wanted ? next_alarm(rtc, guest_time(rtc)) : 0;
	set_timer(rtc);
}

static void update_line(struct rtc *rtc)
{
	bool high = rtc->cmos[REGISTER_C] & rtc->cmos[REGISTER_B] & C_ALARM;

	if (high)
		rtc->cmos[REGISTER_C] |= C_IRQ;
	interrupts_line(rtc->platform->interrupts, RTC_GSI, high);
}

static void alarm_rings(void *context, uint32_t events)
{
	struct rtc *rtc = context;
	uint64_t ignored;

	(void)events;
	if (read(rtc->timer.fd, &ignored, sizeof(ignored)) < 0)
		return;
	rtc->cmos[REGISTER_C] |= C_ALARM;
	update_line(rtc);
	arm(rtc);
}

static uint8_t read_register(struct rtc *rtc)
{
	uint8_t value = rtc->cmos[rtc->index];

	switch (rtc->index) {
	case SECONDS:
	case MINUTES:
	case HOURS:
	case WEEKDAY:
	case DAY:
	case MONTH:
	case YEAR:
	case RTC_CENTURY:
		return read_time(rtc, rtc->index);
	case REGISTER_C: /* reading clears the flags */
		rtc->cmos[REGISTER_C] = 0;
		update_line(rtc);
		return value;
	case REGISTER_D:
		return D_VALID;
	default:
		return value;
	}
}

static void write_control(struct rtc *rtc, uint8_t value)
{
	bool was_set = rtc->cmos[REGISTER_B] & B_SET, is_set = value & B_SET;

	if (is_set && !was_set)
		rtc->frozen = guest_time(rtc);
	rtc->cmos[REGISTER_B] = value;
	if (was_set && !is_set)
		rtc->offset = rtc->frozen - host_time();
	update_line(rtc);
}

static void write_register(struct rtc *rtc, uint8_t value)
{
	switch (rtc->index) {
	case SECONDS:
	case MINUTES:
	case HOURS:
	case WEEKDAY:
	case DAY:
	case MONTH:
	case YEAR:
	case RTC_CENTURY:
		write_time(rtc, rtc->index, value);
		break;
	case REGISTER_B:
		write_control(rtc, value);
		break;
	case REGISTER_A:
		rtc->cmos[REGISTER_A] = value & 0x7f;
		return;
	case REGISTER_C:
	case REGISTER_D:
		return;
	default:
		rtc->cmos[rtc->index] = value;
		if (rtc->index > HOURS_ALARM)
			return;
	}
	arm(rtc);
}

static void rtc_read(void *context, uint64_t offset, void *data, unsigned size)
{
	struct rtc *rtc = context;

	(void)size;
	*(uint8_t *)data = offset == 0 ? rtc->index : read_register(rtc);
}

static void rtc_write(void *context, uint64_t offset, const void *data, unsigned size)
{
	struct rtc *rtc = context;
	uint8_t value = *(const uint8_t *)data;

	if (offset == 0)
		rtc->index = value % CMOS_SIZE; /* the top bit masks NMI */
	if (offset == 0 && size == 1)
		return;
	write_register(rtc, offset == 0 ? ((const uint8_t *)data)[1] : value);
}

/* Of seconds: beyond the year 9999, or as far back. */
static bool is_far(int64_t time)
{
	return time > TIME_MOST || time < -TIME_MOST;
}

static int rtc_after_load(struct device *device, struct error *error)
{
	struct rtc *rtc = CONTAINER_OF(device, struct rtc, device);

	if (rtc->index >= CMOS_SIZE)
		return error_set(
			error, EINVAL, "The clock's state names register %u of %u.", rtc->index, CMOS_SIZE);
	if (is_far(rtc->offset) || is_far(rtc->frozen) || is_far(rtc->alarm))
		return error_set(error, EINVAL, "The clock's state shows a time that no clock can show.");
	update_line(rtc);
	/* One whose time has come meanwhile rings now. States of before version 2 do not tell it. */
	if (rtc->alarm)
		set_timer(rtc);
	else
		arm(rtc);
	return 0;
}

static void rtc_free(struct device *device)
{
	struct rtc *rtc = CONTAINER_OF(device, struct rtc, device);

	bus_remove(rtc->platform->ports, &rtc->range);
	if (rtc->timer.fd >= 0) {
		loop_remove(rtc->platform->loop, &rtc->timer);
		close(rtc->timer.fd);
	}
	free(rtc);
}

static const struct device_class rtc_class = {
	.state = &rtc_state,
	.after_load = rtc_after_load,
	.free = rtc_free,
};

struct device *rtc_new(struct platform *platform, struct error *error)
{
	struct rtc *rtc = calloc(1, sizeof(*rtc));

	if (!rtc) {
		error_set(error, ENOMEM, "Out of memory while making the real-time clock.");
		return NULL;
	}
	rtc->device.class = &rtc_class;
	rtc->platform = platform;
	rtc->cmos[REGISTER_A] = A_DIVIDER;
	rtc->cmos[REGISTER_B] = B_24_HOURS;
	rtc->range = (struct bus_range){.name = "CMOS",
		.base = RTC_PORT,
		.size = 2,
		.read = rtc_read,
		.write = rtc_write,
		.context = rtc};
	rtc->timer = (struct watch){.fd = timerfd_create(CLOCK_REALTIME, TFD_CLOEXEC | TFD_NONBLOCK),
		.handler = alarm_rings,
		.context = rtc};
	if (rtc->timer.fd < 0) {
		error_set(
			error, errno, "Unable to make a timer for the real-time clock: %s.", strerror(errno));
		rtc_free(&rtc->device);
		return NULL;
	}
	if (loop_add(platform->loop, &rtc->timer, EPOLLIN, error) < 0) {
		rtc_free(&rtc->device);
		return NULL;
	}
	if (bus_add(platform->ports, &rtc->range) < 0) {
		error_set(error, EEXIST, "The I/O ports of the real-time clock are taken.");
		rtc_free(&rtc->device);
		return NULL;
	}
	platform_add(platform, &rtc->device);
	return &rtc->device;
}
