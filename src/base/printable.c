#include "base/printable.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LONGEST 10 /* what one character may become: \u{10ffff} */

/* The character that begins here: how many bytes it has, 0 where they are none. */
static unsigned decode(const char *text, size_t left, uint32_t *character)
{
	static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
	uint8_t first = (uint8_t)*text;
	unsigned length = first < 0x80             ? 1
			  : (first & 0xe0) == 0xc0 ? 2
			  : (first & 0xf0) == 0xe0 ? 3
			  : (first & 0xf8) == 0xf0 ? 4
						   : 0;

	if (length == 0 || length > left)
		return 0;
	*character = length == 1 ? first : first & (0x7fu >> length);
	for (unsigned i = 1; i < length; i++) {
		if ((text[i] & 0xc0) != 0x80)
			return 0;
		*character = *character << 6 | ((uint8_t)text[i] & 0x3fu);
	}
	if (*character < least[length] || *character > 0x10ffff ||
		(*character >= 0xd800 && *character < 0xe000))
		return 0;
	return length;
}

/* Controls (C0, DEL, C1), what ends lines, turns the order of letters or is no visible part of a text
 * (Unicode's classes Cc, Zl, Zp, Bidi_Control; tags; noncharacters). */
static bool acts(uint32_t character)
{
	static const struct {
		uint32_t first, last;
	} ranges[] = {{0, 0x1f}, {0x7f, 0x9f}, {0x061c, 0x061c}, {0x200b, 0x200b}, {0x200e, 0x200f},
		{0x2028, 0x202e}, {0x2060, 0x206f}, {0xfdd0, 0xfdef}, {0xfeff, 0xfeff}, {0xfff9, 0xfffb},
		{0xe0000, 0xe007f}};

	for (size_t i = 0; i < sizeof(ranges) / sizeof(*ranges); i++)
		if (character >= ranges[i].first && character <= ranges[i].last)
			return true;
	return (character & 0xfffe) == 0xfffe;
}

static size_t show(uint32_t character, char piece[LONGEST + 1])
{
	int length;

	if (character == '\n' || character == '\t' || character == '\r')
		length = snprintf(piece, LONGEST + 1, "\\%c",
			character == '\n'   ? 'n'
			: character == '\t' ? 't'
					    : 'r');
	else if (character < 0x80)
		length = snprintf(piece, LONGEST + 1, "\\x%02x", (unsigned)character);
	else
		length = snprintf(piece, LONGEST + 1, "\\u{%x}", (unsigned)character);
	return (size_t)length;
}

size_t printable(const char *text, size_t length, enum printable kind, char *out, size_t size)
{
	size_t at = 0, used = 0;

	while (at < length) {
		uint32_t character = 0;
		unsigned bytes = decode(text + at, length - at, &character);
		char piece[LONGEST + 1];
		size_t shown = bytes;

		if (bytes == 0)
			shown = (size_t)snprintf(piece, sizeof(piece), "\\x%02x", (uint8_t)text[at]);
		else if (acts(character) &&
			 !(kind == PRINTABLE_LINES && (character == '\n' || character == '\t')))
			shown = show(character, piece);
		else
			memcpy(piece, text + at, bytes);
		if (used + shown >= size)
			break;
		memcpy(out + used, piece, shown);
		used += shown;
		at += bytes ? bytes : 1;
	}
	out[used] = '\0';
	return used;
}

char *printable_copy(const char *text, enum printable kind)
{
	size_t length = strlen(text), size = length * LONGEST + 1;
	char *copy = malloc(size);

	if (copy)
		printable(text, length, kind, copy, size);
	return copy;
}

json_t *printable_sentence(const char *text)
{
	char *copy = printable_copy(text, PRINTABLE_LINES);
	json_t *sentence = json_string(copy ? copy : "Out of memory.");

	free(copy);
	return sentence;
}

static void clean(json_t *text, enum printable kind)
{
	char *copy = printable_copy(json_string_value(text), kind);

	if (!copy || strcmp(copy, json_string_value(text)) != 0)
		json_string_set(text, copy ? copy : "");
	free(copy);
}

void printable_json(json_t *value)
{
	const char *key;
	json_t *member;
	size_t i;

	if (json_is_string(value))
		clean(value, PRINTABLE_LINE);
	json_array_foreach(value, i, member) printable_json(member);
	json_object_foreach(value, key, member)
	{
		if (json_is_string(member) && (strcmp(key, "error") == 0 || strcmp(key, "console") == 0))
			clean(member, PRINTABLE_LINES);
		else
			printable_json(member);
	}
}
