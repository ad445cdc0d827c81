#include "config/python.h"

#include "base/cleanup.h"
#include "config/python_format.h"
#include "config/python_lexer.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define A_VALUE "a string, a number or a list"
#define NESTING_MAX 32 /* brackets and parentheses inside each other */

struct parser {
	struct python_lexer lexer;
	struct python_file *file;
	unsigned nesting;
};

static void parser_close(struct parser *parser)
{
	buffer_free(&parser->lexer.string);
}

struct python_binding *python_find(const struct python_file *file, const char *name)
{
	for (size_t i = 0; i < file->count; i++)
		if (!strcmp(file->bindings[i].name, name))
			return &file->bindings[i];
	return NULL;
}

int python_define(struct python_file *file, const char *name, const struct place *place, struct value *value,
	struct error *error)
{
	struct python_binding *binding = python_find(file, name);

	if (!binding) {
		struct python_binding *grown =
			reallocarray(file->bindings, file->count + 1, sizeof(*file->bindings));

		if (!grown)
			return error_set(error, ENOMEM, "Out of memory.");
		file->bindings = grown;
		binding = &grown[file->count];
		*binding = (struct python_binding){.name = strdup(name)};
		if (!binding->name)
			return error_set(error, ENOMEM, "Out of memory.");
		file->count++;
	}
	value_free(&binding->value);
	binding->place = *place;
	binding->value = *value;
	*value = (struct value){0};
	return 0;
}

void python_free(struct python_file *file)
{
	for (size_t i = 0; i < file->count; i++) {
		value_free(&file->bindings[i].value);
		free(file->bindings[i].name);
	}
	free(file->bindings);
	*file = (struct python_file){0};
}

static int parse_sum(struct parser *p, struct value *value, struct error *error);

static int next(struct parser *p, struct error *error)
{
	return python_next(&p->lexer, error);
}

/* The items of a list or tuple up to `closer`; the opener has been read. */
static int parse_items(struct parser *p, struct value *list, const char *closer, const struct place *opened,
	bool *comma_seen, struct error *error)
{
	char expected[128];
	int r;

	while (!token_is(&p->lexer, closer)) {
		_cleanup_value_ struct value item = {0};

		r = parse_sum(p, &item, error);
		if (r >= 0)
			r = value_append(list, &item, &p->file->budget, error);
		if (r < 0)
			return r;
		if (token_is(&p->lexer, ",")) {
			*comma_seen = true;
			r = next(p, error);
			if (r < 0)
				return r;
		} else if (!token_is(&p->lexer, closer)) {
			snprintf(expected, sizeof(expected),
				"',' or '%s' (of the '%s' in line %u, column %u)", closer,
				*closer == ']' ? "[" : "(", opened->line, opened->column);
			return python_expected(&p->lexer, expected, error);
		}
	}
	return next(p, error);
}

static int parse_bracketed(struct parser *p, struct value *value, struct error *error)
{
	bool list = token_is(&p->lexer, "["), comma_seen = false;
	struct place opened = p->lexer.token.place;
	_cleanup_value_ struct value items = {.kind = VALUE_LIST, .place = opened};
	int r;

	if (p->nesting >= NESTING_MAX)
		return place_error(
			error, &opened, "brackets may not be nested more than %d deep.", NESTING_MAX);
	p->nesting++;
	r = next(p, error);
	if (r >= 0)
		r = parse_items(p, &items, list ? "]" : ")", &opened, &comma_seen, error);
	p->nesting--;
	if (r < 0)
		return r;
	if (list || comma_seen || !items.count) {
		*value = items;
		items = (struct value){0};
	} else { /* (x) is x */
		*value = items.items[0];
		items.items[0] = (struct value){0};
	}
	return 0;
}

/* Adjoining strings are one. */
static int parse_string(struct parser *p, struct value *value, struct error *error)
{
	_cleanup_buffer_ struct buffer text = {0};
	struct place place = p->lexer.token.place;
	int r;

	while (p->lexer.token.kind == TOKEN_STRING) {
		size_t size = p->lexer.string.size - 1;

		r = value_charge(&place, size, &p->file->budget, error);
		if (r < 0)
			return r;
		buffer_append(&text, p->lexer.string.data, size);
		r = next(p, error);
		if (r < 0)
			return r;
	}
	buffer_u8(&text, 0);
	if (text.failed)
		return error_set(error, ENOMEM, "Out of memory.");
	*value =
		(struct value){.kind = VALUE_STRING, .place = place, .text = (char *)take_pointer(text.data)};
	return 0;
}

static int parse_name(struct parser *p, struct value *value, struct error *error)
{
	static const struct {
		const char *name;
		enum value_kind kind;
		int number;
	} constants[] = {{"True", VALUE_BOOL, 1}, {"False", VALUE_BOOL, 0}, {"None", VALUE_NONE, 0}};
	struct token token = p->lexer.token;
	_cleanup_free_ char *name = strndup(token.text, token.size);
	struct python_binding *binding;
	int r;

	if (!name)
		return error_set(error, ENOMEM, "Out of memory.");
	r = next(p, error);
	if (r < 0)
		return r;
	if (token_is(&p->lexer, "(") || token_is(&p->lexer, "."))
		return place_error(error, &token.place,
			"expected " A_VALUE
			", found '%.40s%.1s': functions are Python code, which is not run.",
			name, p->lexer.token.text);
	for (size_t i = 0; i < ARRAY_SIZE(constants); i++)
		if (!strcmp(name, constants[i].name)) {
			*value = (struct value){.kind = constants[i].kind,
				.place = token.place,
				.number = constants[i].number};
			return 0;
		}
	binding = python_find(p->file, name);
	if (!binding)
		return place_error(error, &token.place,
			"expected " A_VALUE
			", found the name '%.40s', which has no value before this line%s.",
			name, token.size < 40 ? " (text belongs in quotes)" : "");
	binding->used = true;
	r = value_copy(value, &binding->value, &p->file->budget, error);
	value->place = token.place;
	return r;
}

static int parse_primary(struct parser *p, struct value *value, struct error *error)
{
	const struct token *token = &p->lexer.token;

	if (token->kind == TOKEN_STRING)
		return parse_string(p, value, error);
	if (token->kind == TOKEN_NAME)
		return parse_name(p, value, error);
	if (token->kind == TOKEN_NUMBER) {
		*value = (struct value){.kind = VALUE_NUMBER, .place = token->place, .number = token->number};
		return next(p, error);
	}
	if (token_is(&p->lexer, "[") || token_is(&p->lexer, "("))
		return parse_bracketed(p, value, error);
	if (token_is(&p->lexer, "-")) {
		struct place place = token->place;
		int r = next(p, error);

		if (r < 0)
			return r;
		if (token->kind != TOKEN_NUMBER)
			return python_expected(&p->lexer, "a number after '-'", error);
		*value = (struct value){.kind = VALUE_NUMBER, .place = place, .number = -token->number};
		return next(p, error);
	}
	if (token_is(&p->lexer, "{"))
		return python_expected(&p->lexer, A_VALUE " (no option takes a dictionary)", error);
	return python_expected(&p->lexer, A_VALUE, error);
}

static int parse_term(struct parser *p, struct value *value, struct error *error)
{
	int r = parse_primary(p, value, error);

	while (r >= 0 && token_is(&p->lexer, "%")) {
		_cleanup_value_ struct value right = {0}, result = {0};
		struct place place = p->lexer.token.place;

		r = next(p, error);
		if (r >= 0)
			r = parse_primary(p, &right, error);
		if (r >= 0)
			r = python_format(&result, value, &right, &place, &p->file->budget, error);
		if (r < 0)
			return r;
		value_free(value);
		*value = result;
		result = (struct value){0};
	}
	return r;
}

static int parse_sum(struct parser *p, struct value *value, struct error *error)
{
	int r = parse_term(p, value, error);

	while (r >= 0 && token_is(&p->lexer, "+")) {
		_cleanup_value_ struct value right = {0};
		struct place place = p->lexer.token.place;

		r = next(p, error);
		if (r >= 0)
			r = parse_term(p, &right, error);
		if (r >= 0)
			r = python_add(value, &right, &place, &p->file->budget, error);
	}
	return r;
}

/* What stands right of = : a value, or several with commas, which are a tuple. */
static int parse_right_side(struct parser *p, struct value *value, struct error *error)
{
	_cleanup_value_ struct value tuple = {.kind = VALUE_LIST, .place = p->lexer.token.place};
	int r = parse_sum(p, value, error);

	if (r < 0 || !token_is(&p->lexer, ","))
		return r;
	r = value_append(&tuple, value, &p->file->budget, error);
	while (r >= 0 && token_is(&p->lexer, ",")) {
		_cleanup_value_ struct value item = {0};

		r = next(p, error);
		if (r < 0 || p->lexer.token.kind == TOKEN_NEWLINE || p->lexer.token.kind == TOKEN_END)
			break;
		r = parse_sum(p, &item, error);
		if (r >= 0)
			r = value_append(&tuple, &item, &p->file->budget, error);
	}
	if (r < 0)
		return r;
	*value = tuple;
	tuple = (struct value){0};
	return 0;
}

static int end_of_statement(struct parser *p, struct error *error)
{
	if (p->lexer.token.kind == TOKEN_END)
		return 0;
	if (p->lexer.token.kind == TOKEN_NEWLINE || token_is(&p->lexer, ";"))
		return next(p, error);
	return python_expected(&p->lexer, "the end of the line", error);
}

/* NAME += value */
static int parse_addition(struct parser *p, const char *name, const struct place *place, struct error *error)
{
	_cleanup_value_ struct value right = {0};
	struct place plus = p->lexer.token.place;
	struct python_binding *binding = python_find(p->file, name);
	int r;

	if (!binding)
		return place_error(error, place,
			"'%.40s' has no value before this line: there is nothing to add to.", name);
	r = next(p, error);
	if (r >= 0)
		r = parse_right_side(p, &right, error);
	if (r >= 0)
		r = python_add(&binding->value, &right, &plus, &p->file->budget, error);
	if (r < 0)
		return r;
	binding->place = *place;
	return end_of_statement(p, error);
}

/* NAME = … ; the name and = have been read. NAME = NAME2 = … gives both the value. */
static int parse_value_of(struct parser *p, const char *name, const struct place *place, struct error *error)
{
	_cleanup_value_ struct value value = {0};
	int r;

	if (p->lexer.token.kind == TOKEN_NAME) {
		struct python_lexer start = p->lexer; /* a look at the token behind the name */
		struct place second_place = p->lexer.token.place;
		_cleanup_free_ char *second = strndup(p->lexer.token.text, p->lexer.token.size);

		if (!second)
			return error_set(error, ENOMEM, "Out of memory.");
		r = next(p, error);
		if (r < 0)
			return r;
		if (token_is(&p->lexer, "=")) {
			if (++p->nesting > NESTING_MAX)
				return place_error(error, &second_place,
					"at most %d names can get one value.", NESTING_MAX);
			r = next(p, error);
			if (r >= 0)
				r = parse_value_of(p, second, &second_place, error);
			p->nesting--;
			if (r >= 0)
				r = value_copy(&value, &python_find(p->file, second)->value, &p->file->budget,
					error);
			if (r >= 0)
				r = python_define(p->file, name, place, &value, error);
			return r;
		}
		start.string = p->lexer.string; /* its memory may have moved */
		p->lexer = start;
	}
	r = parse_right_side(p, &value, error);
	if (r >= 0)
		r = end_of_statement(p, error);
	return r < 0 ? r : python_define(p->file, name, place, &value, error);
}

static int parse_assignment(struct parser *p, struct error *error)
{
	static const char *const keywords[] = {"and", "assert", "break", "class", "continue", "def", "del",
		"elif", "else", "except", "exec", "finally", "for", "from", "global", "if", "import",
		"lambda", "not", "or", "pass", "print", "raise", "return", "try", "while", "with", "yield"};
	struct place place = p->lexer.token.place;
	_cleanup_free_ char *name = strndup(p->lexer.token.text, p->lexer.token.size);
	int r;

	if (!name)
		return error_set(error, ENOMEM, "Out of memory.");
	for (size_t i = 0; i < ARRAY_SIZE(keywords); i++)
		if (!strcmp(name, keywords[i]))
			return place_error(error, &place,
				"expected NAME = VALUE, found '%s': Python code is not run, only values are "
				"read.",
				name);
	if (!strcmp(name, "True") || !strcmp(name, "False") || !strcmp(name, "None"))
		return place_error(error, &place, "'%s' cannot be given a value.", name);
	r = next(p, error);
	if (r < 0)
		return r;
	if (token_is(&p->lexer, "+="))
		return parse_addition(p, name, &place, error);
	if (token_is(&p->lexer, "("))
		return place_error(error, &place,
			"expected NAME = VALUE, found '%.40s(': functions are Python code, which is not run.",
			name);
	if (!token_is(&p->lexer, "=")) {
		char expected[64];

		snprintf(expected, sizeof(expected), "'=' after '%.40s'", name);
		return python_expected(&p->lexer, expected, error);
	}
	r = next(p, error);
	return r < 0 ? r : parse_value_of(p, name, &place, error);
}

static int parse_statement(struct parser *p, struct error *error)
{
	const struct token *token = &p->lexer.token;

	if (token->kind == TOKEN_NEWLINE)
		return next(p, error);
	if (token->kind == TOKEN_STRING) { /* a text that stands alone is a comment */
		_cleanup_value_ struct value ignored = {0};
		int r = parse_string(p, &ignored, error);

		return r < 0 ? r : end_of_statement(p, error);
	}
	if (token->kind != TOKEN_NAME)
		return python_expected(&p->lexer, "the name of an option", error);
	return parse_assignment(p, error);
}

/* Python allows no blanks before a statement. */
static int check_indentation(const struct parser *p, struct error *error)
{
	const struct scanner *s = &p->lexer.scanner;
	const struct token *token = &p->lexer.token;
	const char *at = token->text;

	if (token->kind == TOKEN_NEWLINE || token->kind == TOKEN_END || at == s->text ||
		token->place.column == 1)
		return 0;
	while (at > s->text && (at[-1] == ' ' || at[-1] == '\t'))
		at--;
	if (at == s->text || at[-1] == '\n')
		return place_error(error, &token->place,
			"expected no blanks before '%.*s' at the beginning of a line.",
			token->size > 40 ? 40 : (int)token->size, token->text);
	return 0;
}

int python_parse(
	struct python_file *file, const char *source, const char *text, size_t size, struct error *error)
{
	_cleanup_(parser_close) struct parser parser = {.file = file};
	int r = python_lexer_open(&parser.lexer, source, text, size, error);

	if (!file->budget)
		file->budget = VALUE_BUDGET;
	if (r >= 0)
		r = next(&parser, error);
	while (r >= 0 && parser.lexer.token.kind != TOKEN_END) {
		r = check_indentation(&parser, error);
		if (r >= 0)
			r = parse_statement(&parser, error);
	}
	return r;
}

int python_parse_value(
	struct value *value, const char *source, const char *text, size_t size, struct error *error)
{
	_cleanup_python_ struct python_file file = {.budget = VALUE_BUDGET};
	_cleanup_(parser_close) struct parser parser = {.file = &file};
	_cleanup_value_ struct value parsed = {0};
	int r = python_lexer_open(&parser.lexer, source, text, size, error);

	if (r >= 0)
		r = next(&parser, error);
	if (r >= 0)
		r = parse_right_side(&parser, &parsed, error);
	if (r >= 0 && parser.lexer.token.kind != TOKEN_END)
		r = python_expected(&parser.lexer, "the end of the value", error);
	if (r < 0)
		return r;
	*value = parsed;
	parsed = (struct value){0};
	return 0;
}
