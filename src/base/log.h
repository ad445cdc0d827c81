/*
 * Log lines to standard error, which xend points at the right file.
 *
 *	[2026-01-31 12:00:00.123 ferry-guest 4711] WARNING: sentence
 *
 * The level that is shown is the process's only log state; the main file sets it once.
 */
#pragma once

enum log_level { LOG_DEBUG_, LOG_INFO_, LOG_WARNING_, LOG_ERROR_ };

/* name: of the program, kept by reference. Lines below `least` are dropped. */
void log_open(const char *name, enum log_level least);
void log_line(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#define log_debug(...) log_line(LOG_DEBUG_, __VA_ARGS__)
#define log_info(...) log_line(LOG_INFO_, __VA_ARGS__)
#define log_warning(...) log_line(LOG_WARNING_, __VA_ARGS__)
#define log_error(...) log_line(LOG_ERROR_, __VA_ARGS__)
