/*
 * Errors as sentences for the user.
 *
 * A function that can fail returns 0 or a negative errno and, where it takes a
 * `struct error *`, fills it with one sentence: what failed, on what, why, what
 * to do. The caller passes it upwards unchanged, or puts a context before it.
 *
 *	if (fd < 0)
 *		return error_set(error, errno, "Unable to read file %s: %s.", path, strerror(errno));
 *
 * A NULL error is allowed everywhere: the sentence is then dropped.
 */
#pragma once

#include <stdarg.h>

struct error {
	int code;        /* positive errno, 0 while nothing failed */
	char text[4096]; /* the sentence, NUL-terminated, "" while nothing failed */
};

/* Sets code and sentence; returns -code (code may be given with either sign; 0 becomes EIO). */
int error_set(struct error *error, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Puts a context before the sentence that is there; returns -error->code (-EIO for NULL). */
int error_prefix(struct error *error, const char *format, ...) __attribute__((format(printf, 2, 3)));
