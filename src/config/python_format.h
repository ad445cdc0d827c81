/* The two operators on values that configurations use: + and %. Internal to the parser, python.c. */
#pragma once

#include "config/value.h"

/* left + right, of two strings, numbers or lists. The result replaces left; right is consumed. */
int python_add(struct value *left, struct value *right, const struct place *place, size_t *budget,
	struct error *error);

/* "format" % right, with %s %d %i %x %X %o %% and a width; right is a value or a tuple of them. */
int python_format(struct value *result, const struct value *format, const struct value *right,
	const struct place *place, size_t *budget, struct error *error);
