#include "config/sxp.h"

#include "base/cleanup.h"

#include <errno.h>
#include <string.h>

/* Characters that end a bare atom. */
static bool ends_atom(int c)
{
	return c <= ' ' || c == '(' || c == ')' || c == '\'' || c == '"' || c == ';' || c == 0x7f;
}

static void skip_blanks(struct scanner *s)
{
	for (int c = scanner_peek(s, 0); c != -1; c = scanner_peek(s, 0)) {
		if (c == '#' || c == ';')
			while (c != -1 && c != '\n') {
				scanner_skip(s, 1);
				c = scanner_peek(s, 0);
			}
		else if (c <= ' ')
			scanner_skip(s, 1);
		else
			return;
	}
}

/* \n \t \r, a quote, a backslash; before anything else a backslash stands for itself, as in patterns:
 * '\.mil$'. */
static int take_escape(struct scanner *s, struct buffer *text, struct error *error)
{
	static const char meanings[][2] = {
		{'n', '\n'}, {'t', '\t'}, {'r', '\r'}, {'\\', '\\'}, {'\'', '\''}, {'"', '"'}};
	int c = scanner_peek(s, 1);

	if (c == -1)
		return place_error(
			error, &s->place, "expected a character after '\\', found the end of the file.");
	for (size_t i = 0; i < ARRAY_SIZE(meanings); i++)
		if (c == meanings[i][0]) {
			buffer_u8(text, (uint8_t)meanings[i][1]);
			scanner_skip(s, 2);
			return 0;
		}
	buffer_u8(text, '\\');
	scanner_skip(s, 1);
	return 0;
}

static int take_atom(struct scanner *s, struct value *atom, size_t *budget, struct error *error)
{
	_cleanup_buffer_ struct buffer text = {0};
	struct place start = s->place;
	int quote = scanner_peek(s, 0), c, r = 0;
	bool quoted = quote == '\'' || quote == '"';

	if (quoted)
		scanner_skip(s, 1);
	for (c = scanner_peek(s, 0); r >= 0 && (quoted ? c != quote : !ends_atom(c));
		c = scanner_peek(s, 0)) {
		if (c == -1)
			return place_error(error, &s->place,
				"expected %c to end the text that begins in line %u, column %u; found the "
				"end of the file.",
				quote, start.line, start.column);
		if (c == '\\' && quoted) {
			r = take_escape(s, &text, error);
			continue;
		}
		buffer_u8(&text, (uint8_t)c);
		scanner_skip(s, 1);
	}
	if (r < 0)
		return r;
	if (quoted)
		scanner_skip(s, 1);
	r = value_charge(&start, text.size, budget, error);
	if (r < 0)
		return r;
	buffer_u8(&text, 0);
	if (text.failed)
		return error_set(error, ENOMEM, "Out of memory.");
	*atom = (struct value){.kind = VALUE_STRING, .place = start, .text = (char *)take_pointer(text.data)};
	return 0;
}

/* Expressions up to the closing parenthesis (opened) or the end of the text (opened NULL). */
static int take_list(struct scanner *s, struct value *list, const struct place *opened, size_t depth,
	size_t *budget, struct error *error)
{
	for (;;) {
		_cleanup_value_ struct value item = {0};
		struct place start;
		int r;

		skip_blanks(s);
		start = s->place;
		if (scanner_peek(s, 0) == -1) {
			if (!opened)
				return 0;
			return place_error(error, &start,
				"expected ')' to end the '(' in line %u, column %u; found the end of the "
				"file.",
				opened->line, opened->column);
		}
		if (scanner_peek(s, 0) == ')') {
			if (!opened)
				return place_error(
					error, &start, "expected '(' or the end of the file, found ')'.");
			scanner_skip(s, 1);
			return 0;
		}
		if (scanner_peek(s, 0) == '(') {
			if (depth >= VALUE_DEPTH_MAX)
				return place_error(error, &start,
					"lists may not be nested more than %d deep.", VALUE_DEPTH_MAX);
			scanner_skip(s, 1);
			item = (struct value){.kind = VALUE_LIST, .place = start};
			r = take_list(s, &item, &start, depth + 1, budget, error);
		} else {
			r = take_atom(s, &item, budget, error);
		}
		if (r >= 0)
			r = value_append(list, &item, budget, error);
		if (r < 0)
			return r;
	}
}

int sxp_parse(struct value *list, const char *source, const char *text, size_t size, struct error *error)
{
	_cleanup_value_ struct value parsed = {.kind = VALUE_LIST, .place = {source, 1, 1}};
	size_t budget = VALUE_BUDGET;
	struct scanner scanner;
	int r = scanner_open(&scanner, source, text, size, error);

	if (r >= 0)
		r = take_list(&scanner, &parsed, NULL, 0, &budget, error);
	if (r < 0)
		return r;
	*list = parsed;
	parsed = (struct value){0};
	return 0;
}

void sxp_atom(struct buffer *out, const char *text)
{
	bool bare = *text;

	for (const char *c = text; *c; c++)
		bare = bare && !ends_atom((unsigned char)*c) && *c != '#' && *c != '\\';
	if (bare) {
		buffer_append(out, text, strlen(text));
		return;
	}
	buffer_u8(out, '\'');
	for (const char *c = text; *c; c++) {
		if (*c == '\'' || *c == '\\')
			buffer_u8(out, '\\');
		buffer_u8(out, (uint8_t)*c);
	}
	buffer_u8(out, '\'');
}

void sxp_pair(struct buffer *out, const char *name, const char *value)
{
	if (!value)
		return;
	buffer_u8(out, '(');
	sxp_atom(out, name);
	buffer_u8(out, ' ');
	sxp_atom(out, value);
	buffer_u8(out, ')');
}
