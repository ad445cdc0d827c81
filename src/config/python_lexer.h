/* Tokens of Python syntax: internal to the parser, python.c. */
#pragma once

#include "config/scanner.h"

#include <stdint.h>

enum token_kind {
	TOKEN_END,     /* of the text */
	TOKEN_NEWLINE, /* end of a logical line; never inside brackets */
	TOKEN_NAME,
	TOKEN_NUMBER,
	TOKEN_STRING, /* decoded, in `string` */
	TOKEN_OPERATOR,
};

struct token {
	enum token_kind kind;
	struct place place;
	const char *text; /* as written, borrowed from the source */
	size_t size;
	int64_t number;
};

struct python_lexer {
	struct scanner scanner;
	struct token token;   /* the current one */
	struct buffer string; /* owned: what the current TOKEN_STRING means, NUL-terminated */
	unsigned brackets;    /* how many are open: line ends do not count inside */
};

/* Starts; the first token is read by python_next. */
int python_lexer_open(
	struct python_lexer *lexer, const char *source, const char *text, size_t size, struct error *error);
int python_next(struct python_lexer *lexer, struct error *error);
bool token_is(const struct python_lexer *lexer, const char *operator_or_name);

/* Sets the error "expected EXPECTED, found 'word'." at the current token. */
int python_expected(const struct python_lexer *lexer, const char *expected, struct error *error);
