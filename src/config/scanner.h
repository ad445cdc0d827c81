/*
 * What both configuration languages start from: a text that was checked once
 * (UTF-8, no NUL, not too large), walked character by character with line and
 * column, and sentences that begin with the place.
 */
#pragma once

#include "base/buffer.h"
#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>

#define CONFIG_TEXT_MAX ((size_t)1 << 20)

/* Where something was written. line 0: no position is known; source NULL: nothing is known (JSON). */
struct place {
	const char *source; /* borrowed: a path or "the command line" */
	unsigned line, column;
};

struct scanner {
	const char *text; /* borrowed */
	size_t size, at;
	struct place place; /* of the character at `at` */
};

/* Sets -EINVAL and a sentence "SOURCE, line L, column C: …". */
int place_error(struct error *error, const struct place *place, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

/* Checks the text and starts at its beginning. A byte order mark is skipped. */
int scanner_open(
	struct scanner *scanner, const char *source, const char *text, size_t size, struct error *error);

int scanner_peek(const struct scanner *scanner, size_t ahead); /* a byte, or -1 past the end */
void scanner_skip(struct scanner *scanner, size_t bytes);
bool scanner_starts(const struct scanner *scanner, const char *prefix);

/* Length of the valid UTF-8 character at the start of text, 0 where it is none (overlong forms, surrogates
 * …). */
size_t utf8_length(const char *text, size_t size);
/* The text with every byte that is not UTF-8 as a character (base/raw_bytes.h): `text` may be replaced.
 * Negative: out of memory. */
int text_keep_bytes(char **text, size_t *size);
void utf8_append(struct buffer *buffer, unsigned code_point);

/* Reads a whole file of at most CONFIG_TEXT_MAX bytes into *text (owned by the caller, NUL-terminated). */
int text_load(const char *path, char **text, size_t *size, struct error *error);

/*
 * The name in `names` (count of them, NULLs skipped) that a misspelt word was
 * most likely meant to be, or NULL where none is near.
 */
const char *nearest_name(const char *word, const char *const *names, size_t count);
