/*
 * Text that a guest, another host or a file may have written, before it is shown on a terminal or written to
 * a log: what would move the cursor, change colours, begin a line of its own or turn the order of the letters
 * is shown as what it is: \n, \x1b, \u{202e}. So are bytes that are no UTF-8 (RFC 3629).
 */
#pragma once

#include <jansson.h>
#include <stddef.h>

enum printable { PRINTABLE_LINE, PRINTABLE_LINES /* keeps ends of lines and tabs */ };

/* Writes as much of it as there is room for, with a NUL, and returns the length; never a part of a character.
 */
size_t printable(const char *text, size_t length, enum printable kind, char *out, size_t size);
/* The same, whole; the caller frees it. NULL where there is no memory. */
char *printable_copy(const char *text, enum printable kind);

/* A sentence as JSON has it, which takes no bytes that are no UTF-8, such as those of a character that was
 * cut. */
json_t *printable_sentence(const char *text);

/* All texts in it; sentences for people (the member "error") and what is kept of a console ("console") may
 * have several lines. */
void printable_json(json_t *value);
