#include "config/scanner.h"

#include "base/cleanup.h"
#include "base/raw_bytes.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int place_error(struct error *error, const struct place *place, const char *format, ...)
{
	char sentence[sizeof(error->text)];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(sentence, sizeof(sentence), format, arguments);
	va_end(arguments);
	if (!place->source)
		return error_set(error, EINVAL, "%s", sentence);
	if (!place->line)
		return error_set(error, EINVAL, "%s: %s", place->source, sentence);
	return error_set(error, EINVAL, "%s, line %u, column %u: %s", place->source, place->line,
		place->column, sentence);
}

size_t utf8_length(const char *text, size_t size)
{
	static const struct {
		uint8_t mask, lead;
		uint32_t least;
	} forms[] = {{0x80, 0x00, 0}, {0xe0, 0xc0, 0x80}, {0xf0, 0xe0, 0x800}, {0xf8, 0xf0, 0x10000}};
	const uint8_t *bytes = (const uint8_t *)text;

	for (size_t extra = 0; size && extra < ARRAY_SIZE(forms); extra++) {
		uint32_t code_point;

		if ((bytes[0] & forms[extra].mask) != forms[extra].lead)
			continue;
		if (extra >= size)
			return 0;
		code_point = bytes[0] & (uint8_t)~forms[extra].mask;
		for (size_t i = 1; i <= extra; i++) {
			if ((bytes[i] & 0xc0) != 0x80)
				return 0;
			code_point = code_point << 6 | (bytes[i] & 0x3f);
		}
		if (code_point < forms[extra].least || code_point > 0x10ffff ||
			(code_point >= 0xd800 && code_point < 0xe000))
			return 0;
		return extra + 1;
	}
	return 0;
}

void utf8_append(struct buffer *buffer, unsigned code_point)
{
	if (code_point < 0x80) {
		buffer_u8(buffer, (uint8_t)code_point);
	} else if (code_point < 0x800) {
		buffer_u8(buffer, (uint8_t)(0xc0 | code_point >> 6));
		buffer_u8(buffer, (uint8_t)(0x80 | (code_point & 0x3f)));
	} else if (code_point < 0x10000) {
		buffer_u8(buffer, (uint8_t)(0xe0 | code_point >> 12));
		buffer_u8(buffer, (uint8_t)(0x80 | (code_point >> 6 & 0x3f)));
		buffer_u8(buffer, (uint8_t)(0x80 | (code_point & 0x3f)));
	} else {
		buffer_u8(buffer, (uint8_t)(0xf0 | code_point >> 18));
		buffer_u8(buffer, (uint8_t)(0x80 | (code_point >> 12 & 0x3f)));
		buffer_u8(buffer, (uint8_t)(0x80 | (code_point >> 6 & 0x3f)));
		buffer_u8(buffer, (uint8_t)(0x80 | (code_point & 0x3f)));
	}
}

int text_keep_bytes(char **text, size_t *size)
{
	_cleanup_buffer_ struct buffer out = {0};
	bool plain = true;

	for (size_t at = 0; at < *size;) {
		size_t length = utf8_length(*text + at, *size - at);
		const uint8_t *c = (const uint8_t *)*text + at;
		/* A character that stands for a byte stands for its own three, so that it comes out as it
		 * was. */
		bool stands = length == 3 && c[0] == 0xee && (c[1] & 0xfe) == 0xbe;

		plain = plain && length && !stands;
		if (length && !stands) {
			buffer_append(&out, c, length);
			at += length;
			continue;
		}
		for (size_t end = at + (stands ? 3 : 1); at < end; at++)
			utf8_append(&out, RAW_BYTE_FIRST | (uint8_t)(*text)[at]);
	}
	if (plain)
		return 0;
	*size = out.size;
	buffer_u8(&out, 0);
	if (out.failed)
		return -ENOMEM;
	free(*text);
	*text = (char *)take_pointer(out.data);
	return 0;
}

int scanner_open(
	struct scanner *scanner, const char *source, const char *text, size_t size, struct error *error)
{
	struct scanner check;

	if (size >= 3 && !memcmp(text, "\xef\xbb\xbf", 3)) {
		text += 3;
		size -= 3;
	}
	*scanner = (struct scanner){.text = text, .size = size, .place = {source, 1, 1}};
	if (size > CONFIG_TEXT_MAX)
		return error_set(error, EFBIG, "%s: too large for a configuration (over %zu bytes).", source,
			CONFIG_TEXT_MAX);
	for (check = *scanner; check.at < size;) {
		size_t length = utf8_length(text + check.at, size - check.at);

		if (!length || !text[check.at])
			return place_error(error, &check.place,
				"expected UTF-8 text, found the byte 0x%02x: is this a configuration file?",
				(unsigned char)text[check.at]);
		scanner_skip(&check, length);
	}
	return 0;
}

int scanner_peek(const struct scanner *scanner, size_t ahead)
{
	return ahead < scanner->size - scanner->at ? (unsigned char)scanner->text[scanner->at + ahead] : -1;
}

void scanner_skip(struct scanner *scanner, size_t bytes)
{
	for (; bytes && scanner->at < scanner->size; bytes--, scanner->at++) {
		unsigned char c = (unsigned char)scanner->text[scanner->at];

		if (c == '\n') {
			scanner->place.line++;
			scanner->place.column = 1;
		} else if ((c & 0xc0) != 0x80) {
			scanner->place.column++;
		}
	}
}

bool scanner_starts(const struct scanner *scanner, const char *prefix)
{
	size_t length = strlen(prefix);

	return scanner->size - scanner->at >= length && !memcmp(scanner->text + scanner->at, prefix, length);
}

int text_load(const char *path, char **text, size_t *size, struct error *error)
{
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	_cleanup_free_ char *data = NULL;
	struct stat status;
	size_t got = 0;

	if (fd < 0 || fstat(fd, &status) < 0)
		return error_set(error, errno, "Unable to read file %s: %s.", path, strerror(errno));
	if (S_ISDIR(status.st_mode))
		return error_set(error, EISDIR, "Unable to read file %s: it is a directory.", path);
	if ((size_t)status.st_size > CONFIG_TEXT_MAX)
		return error_set(error, EFBIG,
			"Unable to read file %s: too large for a configuration (over %zu bytes).", path,
			CONFIG_TEXT_MAX);
	data = malloc(CONFIG_TEXT_MAX + 2);
	if (!data)
		return error_set(error, ENOMEM, "Unable to read file %s: out of memory.", path);
	for (ssize_t r = 1; r && got <= CONFIG_TEXT_MAX; got += (size_t)r) {
		r = read(fd, data + got, CONFIG_TEXT_MAX + 1 - got);
		if (r < 0)
			return error_set(error, errno, "Unable to read file %s: %s.", path, strerror(errno));
	}
	data[got] = '\0';
	*size = got;
	*text = take_pointer(data);
	return 0;
}

/* Levenshtein's distance, no further than words of 40 characters. */
static size_t distance(const char *a, const char *b)
{
	size_t row[41], lengths[2] = {strlen(a), strlen(b)};

	if (lengths[0] > 40 || lengths[1] > 40)
		return SIZE_MAX;
	for (size_t j = 0; j <= lengths[1]; j++)
		row[j] = j;
	for (size_t i = 1; i <= lengths[0]; i++) {
		size_t corner = row[0];

		row[0] = i;
		for (size_t j = 1; j <= lengths[1]; j++) {
			size_t best = corner + (a[i - 1] != b[j - 1]);

			if (row[j] + 1 < best)
				best = row[j] + 1;
			if (row[j - 1] + 1 < best)
				best = row[j - 1] + 1;
			corner = row[j];
			row[j] = best;
		}
	}
	return row[lengths[1]];
}

const char *nearest_name(const char *word, const char *const *names, size_t count)
{
	size_t least = strlen(word) / 3 + 1;
	const char *nearest = NULL;

	for (size_t i = 0; i < count; i++) {
		size_t d = names[i] ? distance(word, names[i]) : SIZE_MAX;

		if (d <= least && d < strlen(word)) {
			nearest = names[i];
			least = d ? d - 1 : 0;
		}
	}
	return nearest;
}
