#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const char *program = "ferry";
static enum log_level threshold = LOG_INFO_;

void log_open(const char *name, enum log_level least)
{
	program = name;
	threshold = least;
}

void log_line(enum log_level level, const char *format, ...)
{
	static const char *const names[] = {"DEBUG", "INFO", "WARNING", "ERROR"};
	char text[2048], line[2400], date[32];
	struct timespec now;
	struct tm fields;
	va_list arguments;
	int length;

	if (level < threshold)
		return;
	va_start(arguments, format);
	vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	clock_gettime(CLOCK_REALTIME, &now);
	localtime_r(&now.tv_sec, &fields);
	strftime(date, sizeof(date), "%F %T", &fields);
	length = snprintf(line, sizeof(line), "[%s.%03ld %s %d] %s: %s\n", date, now.tv_nsec / 1000000,
		program, (int)getpid(), names[level], text);
	/* One write a line, so that lines of several threads and processes stay whole. */
	if (length > 0 && write(STDERR_FILENO, line, (size_t)length) < 0)
		return;
}
