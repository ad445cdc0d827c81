/*
 * Log lines to standard error, which xend points at the right file.
 *
 *	[2026-01-31 12:00:00.123 +0100 ferry-guest 4711] WARNING: sentence
 *
 * The time is local, with its distance from UTC. Lines are counted by their format: where more than a hundred
 *of one come within ten seconds the rest are counted, and the count is written when the time is over. So
 *nobody who causes lines fills a disk with them.
 * Controls in the text are written as printable.h shows them: one line is one sentence of ours.
 *
 * A standard error that does not block and takes no more loses lines; how many, the next that it takes says.
 *
 * The level that is shown is set once, by the main file.
 */
#pragma once

#include <stdbool.h>

enum log_level { LOG_DEBUG_, LOG_INFO_, LOG_WARNING_, LOG_ERROR_ };

/* name: of the program, kept by reference. Lines below `least` are dropped. */
void log_open(const char *name, enum log_level least);
void log_line(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* A line that strangers cause: five within a minute, the rest are counted. */
void log_seldom(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Writes what was counted and whose time is over, or all of it. The next line does the first as well. */
void log_tell_counted(bool all);

#define log_debug(...) log_line(LOG_DEBUG_, __VA_ARGS__)
#define log_info(...) log_line(LOG_INFO_, __VA_ARGS__)
#define log_warning(...) log_line(LOG_WARNING_, __VA_ARGS__)
#define log_error(...) log_line(LOG_ERROR_, __VA_ARGS__)
