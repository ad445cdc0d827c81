/*
 * The subset of Python's syntax that guest configurations are written in. No
 * code is executed: a file is a list of assignments
 *
 *	NAME = value		NAME += value		NAME = NAME2 = value
 *
 * where a value is made of strings (all of Python's ways to write them), whole
 * numbers, True, False, None, lists, tuples, names assigned before, + and
 * "…%s…" % value. Everything else is refused in a sentence with its place.
 */
#pragma once

#include "config/value.h"

struct python_binding {
	char *name;
	struct place place; /* of the name where it was assigned last */
	struct value value;
	bool used; /* a later expression read it */
};

struct python_file {
	struct python_binding *bindings; /* in the order of their first assignment */
	size_t count;
	size_t budget;
};

#define _cleanup_python_ __attribute__((cleanup(python_free)))

/* Gives a variable its value before (or after) a text is parsed. Takes the value over. */
int python_define(struct python_file *file, const char *name, const struct place *place, struct value *value,
	struct error *error);

/* Parses text into `file`, which starts as all zero. `source` is borrowed by the places in it. */
int python_parse(
	struct python_file *file, const char *source, const char *text, size_t size, struct error *error);

/* Parses a single value, as on a command line. Names are not known in it. */
int python_parse_value(
	struct value *value, const char *source, const char *text, size_t size, struct error *error);

struct python_binding *python_find(const struct python_file *file, const char *name);
void python_free(struct python_file *file);
