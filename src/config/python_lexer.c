#include "config/python_lexer.h"

#include "base/cleanup.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static bool is_name_start(int c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || c >= 0x80;
}

static bool is_digit(int c)
{
	return c >= '0' && c <= '9';
}

static int digit_value(int c)
{
	if (is_digit(c))
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return 99;
}

int python_lexer_open(
	struct python_lexer *lexer, const char *source, const char *text, size_t size, struct error *error)
{
	*lexer = (struct python_lexer){0};
	return scanner_open(&lexer->scanner, source, text, size, error);
}

/* Skips blanks, comments and joined lines. Returns 1 where a logical line ended, -EINVAL for a stray
 * backslash. */
static int skip_blanks(struct python_lexer *lexer, struct error *error)
{
	struct scanner *s = &lexer->scanner;

	for (;;) {
		int c = scanner_peek(s, 0);

		if (c == '#') {
			while (c != '\n' && c != -1) {
				scanner_skip(s, 1);
				c = scanner_peek(s, 0);
			}
		} else if (c == '\n') {
			lexer->token.place = s->place;
			scanner_skip(s, 1);
			if (!lexer->brackets)
				return 1;
		} else if (scanner_starts(s, "\\\n")) {
			scanner_skip(s, 2);
		} else if (scanner_starts(s, "\\\r\n")) {
			scanner_skip(s, 3);
		} else if (c == '\\') {
			return place_error(error, &s->place, "expected the end of the line after '\\'.");
		} else if (c == ' ' || c == '\t' || c == '\r' || c == '\f') {
			scanner_skip(s, 1);
		} else {
			return 0;
		}
	}
}

/* Takes up to `most` digits of the base; returns how many there were. */
static unsigned take_digits(struct scanner *s, int base, unsigned most, unsigned *value)
{
	unsigned taken = 0;

	for (*value = 0; taken < most && digit_value(scanner_peek(s, 0)) < base; taken++) {
		*value = *value * (unsigned)base + (unsigned)digit_value(scanner_peek(s, 0));
		scanner_skip(s, 1);
	}
	return taken;
}

/* What follows a backslash inside a string that is not raw. */
static int take_escape(struct python_lexer *lexer, struct error *error)
{
	static const char simple[][2] = {{'\\', '\\'}, {'\'', '\''}, {'"', '"'}, {'n', '\n'}, {'r', '\r'},
		{'t', '\t'}, {'a', '\a'}, {'b', '\b'}, {'f', '\f'}, {'v', '\v'}};
	static const struct {
		char letter;
		unsigned digits;
	} coded[] = {{'x', 2}, {'u', 4}, {'U', 8}};
	struct scanner *s = &lexer->scanner;
	struct place place = s->place;
	int c = scanner_peek(s, 1);
	unsigned code_point;

	for (size_t i = 0; i < ARRAY_SIZE(simple); i++)
		if (c == simple[i][0]) {
			scanner_skip(s, 2);
			buffer_u8(&lexer->string, (uint8_t)simple[i][1]);
			return 0;
		}
	if (c == '\n' || (c == '\r' && scanner_peek(s, 2) == '\n')) {
		scanner_skip(s, c == '\n' ? 2 : 3);
		return 0;
	}
	if (c >= '0' && c <= '7') {
		scanner_skip(s, 1);
		take_digits(s, 8, 3, &code_point);
	} else {
		size_t i = 0;

		while (i < ARRAY_SIZE(coded) && c != coded[i].letter)
			i++;
		if (i == ARRAY_SIZE(coded)) { /* Python leaves an unknown escape as it is */
			scanner_skip(s, 1);
			buffer_u8(&lexer->string, '\\');
			return 0;
		}
		scanner_skip(s, 2);
		if (take_digits(s, 16, coded[i].digits, &code_point) != coded[i].digits)
			return place_error(error, &place, "expected %u hexadecimal digits after '\\%c'.",
				coded[i].digits, c);
	}
	if (!code_point || code_point > 0x10ffff || (code_point >= 0xd800 && code_point < 0xe000))
		return place_error(
			error, &place, "expected the code of a character, found 0x%x.", code_point);
	utf8_append(&lexer->string, code_point);
	return 0;
}

static int take_string(struct python_lexer *lexer, bool raw, struct error *error)
{
	struct scanner *s = &lexer->scanner;
	char quotes[4] = {(char)scanner_peek(s, 0), 0};
	size_t quote_size = 1;

	if (scanner_peek(s, 1) == quotes[0] && scanner_peek(s, 2) == quotes[0]) {
		memset(quotes, quotes[0], 3);
		quote_size = 3;
	}
	scanner_skip(s, quote_size);
	buffer_clear(&lexer->string);
	while (!scanner_starts(s, quotes)) {
		int c = scanner_peek(s, 0);

		if (c == -1 || (c == '\n' && quote_size == 1))
			return place_error(error, &s->place,
				"expected %s to end the string that begins in line %u, column %u; found the "
				"end of the %s.",
				quotes, lexer->token.place.line, lexer->token.place.column,
				c == -1 ? "file" : "line");
		if (c == '\\' && !raw) {
			int r = take_escape(lexer, error);

			if (r < 0)
				return r;
			continue;
		}
		if (c == '\\' &&
			scanner_peek(s, 1) != -1) { /* raw: a quote after it does not end the string */
			buffer_u8(&lexer->string, '\\');
			scanner_skip(s, 1);
			c = scanner_peek(s, 0);
		}
		buffer_u8(&lexer->string, (uint8_t)c);
		scanner_skip(s, 1);
	}
	scanner_skip(s, quote_size);
	buffer_u8(&lexer->string, 0);
	if (lexer->string.failed)
		return error_set(error, ENOMEM, "Out of memory.");
	lexer->token.kind = TOKEN_STRING;
	return 0;
}

static int take_number(struct python_lexer *lexer, struct error *error)
{
	static const struct {
		const char *prefix;
		int base;
	} bases[] = {{"0x", 16}, {"0X", 16}, {"0o", 8}, {"0O", 8}, {"0b", 2}, {"0B", 2}, {"0", 8}, {"", 10}};
	struct scanner *s = &lexer->scanner;
	const char *text = s->text + s->at;
	size_t size = 0, at = 0, digits = 0;
	int base = 10;

	while (is_digit(scanner_peek(s, size)) || is_name_start(scanner_peek(s, size)) ||
		scanner_peek(s, size) == '.')
		size++;
	for (size_t i = 0; i < ARRAY_SIZE(bases); i++)
		if (scanner_starts(s, bases[i].prefix)) {
			at = strlen(bases[i].prefix);
			base = bases[i].base;
			break;
		}
	digits = at == 1; /* the 0 of an octal number is a digit of its own */
	for (; at < size && digit_value(text[at]) < base; at++, digits++)
		if (__builtin_mul_overflow(lexer->token.number, base, &lexer->token.number) ||
			__builtin_add_overflow(
				lexer->token.number, digit_value(text[at]), &lexer->token.number))
			return place_error(error, &lexer->token.place,
				"expected a number below 2^63, found '%.*s'.", size > 40 ? 40 : (int)size,
				text);
	if (at + 1 == size && (text[at] == 'L' || text[at] == 'l')) /* Python 2's long numbers */
		at++;
	if (at < size || !digits)
		return place_error(error, &lexer->token.place, "expected a whole number, found '%.*s'.",
			size > 40 ? 40 : (int)size, text);
	scanner_skip(s, size);
	lexer->token.kind = TOKEN_NUMBER;
	return 0;
}

/* The letters before a string's quote, as in r'…': their number, or 0 where there is no string. */
static size_t string_prefix(const struct scanner *s)
{
	for (size_t i = 0; i <= 2; i++) {
		int c = scanner_peek(s, i);

		if (c == '\'' || c == '"')
			return i;
		if (c <= 0 || !strchr("rRuUbBfF", c))
			return 0;
	}
	return 0;
}

static int take_token(struct python_lexer *lexer, struct error *error)
{
	struct scanner *s = &lexer->scanner;
	int c = scanner_peek(s, 0);
	size_t prefix = string_prefix(s), size = 1;

	if (c == -1)
		return 0;
	if (prefix || c == '\'' || c == '"') {
		bool raw = false;

		for (size_t i = 0; i < prefix; i++) {
			raw = raw || scanner_peek(s, i) == 'r' || scanner_peek(s, i) == 'R';
			if (scanner_peek(s, i) == 'f' || scanner_peek(s, i) == 'F')
				return place_error(error, &s->place,
					"f-strings are Python code, which is not run: write \"…%%s…\" %% "
					"NAME.");
		}
		scanner_skip(s, prefix);
		return take_string(lexer, raw, error);
	}
	if (is_digit(c))
		return take_number(lexer, error);
	if (is_name_start(c)) {
		while (is_name_start(scanner_peek(s, size)) || is_digit(scanner_peek(s, size)))
			size++;
		lexer->token.kind = TOKEN_NAME;
	} else {
		lexer->token.kind = TOKEN_OPERATOR;
		if (scanner_peek(s, 1) == '=' && strchr("+-*/%=!<>&|^", c))
			size = 2;
		if (strchr("([{", c))
			lexer->brackets++;
		if (strchr(")]}", c) && lexer->brackets)
			lexer->brackets--;
	}
	scanner_skip(s, size);
	return 0;
}

int python_next(struct python_lexer *lexer, struct error *error)
{
	int r = skip_blanks(lexer, error);

	if (r < 0)
		return r;
	if (r == 1) {
		lexer->token.kind = TOKEN_NEWLINE;
		return 0;
	}
	lexer->token = (struct token){.kind = TOKEN_END,
		.place = lexer->scanner.place,
		.text = lexer->scanner.text + lexer->scanner.at};
	r = take_token(lexer, error);
	if (r < 0)
		return r;
	lexer->token.size = (size_t)(lexer->scanner.text + lexer->scanner.at - lexer->token.text);
	return 0;
}

bool token_is(const struct python_lexer *lexer, const char *word)
{
	const struct token *token = &lexer->token;

	return (token->kind == TOKEN_NAME || token->kind == TOKEN_OPERATOR) && token->size == strlen(word) &&
	       !memcmp(token->text, word, token->size);
}

int python_expected(const struct python_lexer *lexer, const char *expected, struct error *error)
{
	const struct token *token = &lexer->token;
	size_t size = 0;

	if (token->kind == TOKEN_END || token->kind == TOKEN_NEWLINE)
		return place_error(error, &token->place, "expected %s, found the end of the %s.", expected,
			token->kind == TOKEN_END ? "file" : "line");
	while (size < token->size && token->text[size] != '\n') { /* whole characters, at most 40 bytes */
		size_t length = utf8_length(token->text + size, token->size - size);

		if (!length || size + length > 40)
			break;
		size += length;
	}
	return place_error(error, &token->place, "expected %s, found %s%.*s%s%s.", expected,
		token->kind == TOKEN_STRING ? "" : "'", (int)size, token->text, size < token->size ? "…" : "",
		token->kind == TOKEN_STRING ? "" : "'");
}
