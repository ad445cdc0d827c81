#include "config/python_format.h"

#include "base/cleanup.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int python_add(struct value *left, struct value *right, const struct place *place, size_t *budget,
	struct error *error)
{
	int r;

	if (left->kind != right->kind || left->kind == VALUE_NONE || left->kind == VALUE_BOOL)
		return place_error(error, place,
			"'+' joins two strings, two numbers or two lists, found %s and %s.",
			value_describe(left), value_describe(right));
	if (left->kind == VALUE_NUMBER) {
		if (__builtin_add_overflow(left->number, right->number, &left->number))
			return place_error(error, place, "the sum is not below 2^63.");
		return 0;
	}
	if (left->kind == VALUE_STRING) {
		size_t size = strlen(left->text), added = strlen(right->text);
		char *text;

		r = value_charge(place, size + added, budget, error);
		if (r < 0)
			return r;
		text = realloc(left->text, size + added + 1);
		if (!text)
			return error_set(error, ENOMEM, "Out of memory.");
		memcpy(text + size, right->text, added + 1);
		left->text = text;
		return 0;
	}
	for (size_t i = 0; i < right->count; i++) {
		r = value_append(left, &right->items[i], budget, error);
		if (r < 0)
			return r;
	}
	return 0;
}

/* What a directive's letter makes of a value, before it is padded. `number` is room for a number's digits. */
static const char *convert(char number[static 32], char letter, const struct value *value)
{
	bool is_number = value->kind == VALUE_NUMBER || (value->kind == VALUE_BOOL && letter != 's');

	if (letter == 's' && value->kind == VALUE_STRING)
		return value->text;
	if (letter == 's' && value->kind == VALUE_NONE)
		return "None";
	if (letter == 's' && value->kind == VALUE_BOOL)
		return value->number ? "True" : "False";
	if (!is_number || (strchr("xXo", letter) && value->number < 0))
		return NULL;
	snprintf(number, 32,
		letter == 'x'   ? "%lx"
		: letter == 'X' ? "%lX"
		: letter == 'o' ? "%lo"
				: "%ld",
		value->number);
	return number;
}

struct directive {
	bool left, zeros;
	size_t width;
	char letter;
};

/* Reads flags, width and letter behind a %; returns how many characters they take, 0 where they are
 * malformed. */
static size_t read_directive(struct directive *directive, const char *text)
{
	size_t at = 0;

	*directive = (struct directive){0};
	for (; text[at] == '0' || text[at] == '-'; at++) {
		directive->zeros = directive->zeros || text[at] == '0';
		directive->left = directive->left || text[at] == '-';
	}
	for (; text[at] >= '0' && text[at] <= '9' && directive->width < 1000; at++)
		directive->width = directive->width * 10 + (size_t)(text[at] - '0');
	directive->letter = text[at];
	if (!text[at] || !strchr("sdiuxXo%", text[at]) || directive->width > 255)
		return 0;
	return at + 1;
}

static void append_padded(struct buffer *out, const struct directive *directive, const char *text)
{
	size_t size = strlen(text), missing = directive->width > size ? directive->width - size : 0;
	bool zeros = directive->zeros && !directive->left && directive->letter != 's';

	if (zeros && *text == '-') {
		buffer_u8(out, '-');
		text++;
		size--;
	}
	for (size_t i = 0; i < missing && !directive->left; i++)
		buffer_u8(out, zeros ? '0' : ' ');
	buffer_append(out, text, size);
	for (size_t i = 0; i < missing && directive->left; i++)
		buffer_u8(out, ' ');
}

int python_format(struct value *result, const struct value *format, const struct value *right,
	const struct place *place, size_t *budget, struct error *error)
{
	_cleanup_buffer_ struct buffer out = {0};
	const struct value *items = right->kind == VALUE_LIST ? right->items : right;
	size_t count = right->kind == VALUE_LIST ? right->count : 1, used = 0;

	if (format->kind != VALUE_STRING)
		return place_error(
			error, place, "'%%' needs a string on its left, found %s.", value_describe(format));
	for (const char *at = format->text; *at;) {
		struct directive directive;
		size_t length = strcspn(at, "%");
		const char *text;
		char number[32];

		buffer_append(&out, at, length);
		at += length;
		if (!*at)
			break;
		length = read_directive(&directive, at + 1);
		if (!length)
			return place_error(error, place,
				"expected %%s, %%d or %%x in the string left of '%%', found '%.8s'.", at);
		at += 1 + length;
		if (directive.letter == '%') {
			buffer_u8(&out, '%');
			continue;
		}
		if (used == count)
			return place_error(error, place,
				"expected a value for each %%%c of the string, found only %zu.",
				directive.letter, count);
		text = convert(number, directive.letter, &items[used]);
		if (!text)
			return place_error(error, place, "'%%%c' of the string cannot show %s.",
				directive.letter, value_describe(&items[used]));
		used++;
		append_padded(&out, &directive, text);
		if (out.size > *budget)
			return value_charge(place, out.size, budget, error);
	}
	if (used < count)
		return place_error(error, place,
			"expected %zu values for the string left of '%%', found %zu.", used, count);
	buffer_u8(&out, 0);
	if (out.failed)
		return error_set(error, ENOMEM, "Out of memory.");
	if (value_charge(place, out.size, budget, error) < 0)
		return -EINVAL;
	*result = (struct value){
		.kind = VALUE_STRING, .place = format->place, .text = (char *)take_pointer(out.data)};
	return 0;
}
