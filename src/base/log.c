#include "base/log.h"
#include "base/printable.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define KINDS 64u

/* How many lines of a kind there may be in how many seconds. */
struct measure {
	unsigned lines, seconds;
};

static const struct measure usual = {100, 10}, seldom = {5, 60};

/* Lines of one format, from the first of them until its seconds are over. */
struct kind {
	const char *format; /* NULL: none */
	struct measure most;
	enum log_level level;
	time_t began;
	unsigned written;
	unsigned long left_out;
	char last[256]; /* the latest that was left out, cut */
};

static const char *program = "ferry";
static enum log_level threshold = LOG_INFO_;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of what follows */
static struct kind kinds[KINDS];
static unsigned with_left_out;
static unsigned long lost; /* lines that standard error did not take */

void log_open(const char *name, enum log_level least)
{
	program = name;
	threshold = least;
}

static void put_line(enum log_level level, const char *text)
{
	static const char *const names[] = {"DEBUG", "INFO", "WARNING", "ERROR"};
	char shown[4096], line[4352], date[32], offset[8];
	struct timespec now;
	struct tm fields;
	ssize_t written;
	int length;

	clock_gettime(CLOCK_REALTIME, &now);
	localtime_r(&now.tv_sec, &fields);
	strftime(date, sizeof(date), "%F %T", &fields);
	strftime(offset, sizeof(offset), "%z", &fields);
	/* What guests and peers write begins no line, and nothing on the terminal of who reads it. */
	printable(text, strlen(text), PRINTABLE_LINE, shown, sizeof(shown));
	length = snprintf(line, sizeof(line), "[%s.%03ld %s %s %d] %s: %s\n", date, now.tv_nsec / 1000000,
		offset, program, (int)getpid(), names[level], shown);
	/* One write a line, so that lines of several threads and processes stay whole. Who reads them may be
	 * away, and nobody waits for that (src/xend/process_log.h). */
	written = length > 0 ? write(STDERR_FILENO, line, (size_t)length) : 0;
	if (written < 0 ? errno == EAGAIN : written < length)
		lost++;
}

/* With the lock. */
static void put(enum log_level level, const char *text)
{
	unsigned long before = lost;
	char sentence[128];

	if (before) {
		snprintf(sentence, sizeof(sentence), "%lu lines were lost: they were not read in time.",
			before);
		lost = 0;
		put_line(LOG_WARNING_, sentence);
		if (lost) /* they still are not */
			lost = before;
	}
	put_line(level, text);
}

static time_t now_s(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec;
}

static bool is_over(const struct kind *kind, time_t now)
{
	return now - kind->began >= (time_t)kind->most.seconds;
}

/* With the lock. */
static void tell_and_forget(struct kind *kind)
{
	char text[512];

	if (kind->left_out) {
		snprintf(text, sizeof(text), "%lu more lines like this were left out: %s", kind->left_out,
			kind->last);
		put(kind->level, text);
		with_left_out--;
	}
	*kind = (struct kind){0};
}

/* With the lock. */
static void tell_counted(bool all)
{
	time_t now = now_s();

	for (unsigned i = 0; i < KINDS && with_left_out; i++)
		if (kinds[i].left_out && (all || is_over(&kinds[i], now)))
			tell_and_forget(&kinds[i]);
}

/* A format is its address; another one that falls on its place takes that. With the lock. */
static struct kind *kind_of(const char *format, struct measure most)
{
	uintptr_t number = (uintptr_t)format;
	struct kind *kind = &kinds[(number ^ number >> 6 ^ number >> 12) % KINDS];
	time_t now = now_s();

	if (kind->format != format || is_over(kind, now))
		tell_and_forget(kind);
	if (!kind->format)
		*kind = (struct kind){.format = format, .most = most, .began = now};
	return kind;
}

static void __attribute__((format(printf, 3, 0)))
write_or_count(enum log_level level, struct measure most, const char *format, va_list arguments)
{
	char text[2048];
	struct kind *kind;

	if (level < threshold)
		return;
	vsnprintf(text, sizeof(text), format, arguments);
	pthread_mutex_lock(&lock);
	if (with_left_out)
		tell_counted(false);
	kind = kind_of(format, most);
	if (kind->written < kind->most.lines) {
		kind->written++;
		put(level, text);
	} else {
		with_left_out += !kind->left_out++;
		kind->level = level;
		snprintf(kind->last, sizeof(kind->last), "%.255s", text);
	}
	pthread_mutex_unlock(&lock);
}

void log_line(enum log_level level, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	write_or_count(level, usual, format, arguments);
	va_end(arguments);
}

void log_seldom(enum log_level level, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	write_or_count(level, seldom, format, arguments);
	va_end(arguments);
}

void log_tell_counted(bool all)
{
	pthread_mutex_lock(&lock);
	tell_counted(all);
	pthread_mutex_unlock(&lock);
}
