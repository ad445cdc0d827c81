/*
 * A value as a configuration gives it, before anybody knows which option it is
 * for: read from Python syntax (python.h), from the command line or from JSON,
 * with the place where it was written.
 */
#pragma once

#include "config/scanner.h"

#include <jansson.h>
#include <stdint.h>

#define VALUE_DEPTH_MAX 16             /* lists in lists */
#define VALUE_BUDGET ((size_t)4 << 20) /* bytes that the values of one configuration may take */

enum value_kind { VALUE_NONE, VALUE_BOOL, VALUE_NUMBER, VALUE_STRING, VALUE_LIST };

struct value {
	enum value_kind kind;
	struct place place;
	int64_t number;      /* VALUE_NUMBER; 0 or 1 for VALUE_BOOL */
	char *text;          /* VALUE_STRING: owned, UTF-8 without NUL */
	struct value *items; /* VALUE_LIST: owned */
	size_t count;
};

#define _cleanup_value_ __attribute__((cleanup(value_free)))

void value_free(struct value *value);

/* Copies; *budget shrinks by what the copy takes. -E2BIG when it is used up. */
int value_copy(struct value *to, const struct value *from, size_t *budget, struct error *error);

/* Appends the item, which the list then owns. */
int value_append(struct value *list, struct value *item, size_t *budget, struct error *error);

/* Takes bytes from the budget. */
int value_charge(const struct place *place, size_t bytes, size_t *budget, struct error *error);

/* Strings with NUL, real numbers and objects are refused: "expected …, found …". `name` is the option's. */
int value_from_json(struct value *value, const char *name, const json_t *json, struct error *error);
json_t *value_to_json(const struct value *value); /* a new reference, NULL when out of memory */

/* "a string", "a number" … as sentences name it. */
const char *value_describe(const struct value *value);

/* Neither None, nor False, nor 0, nor empty, nor the words 0 and no. */
bool value_is_set(const struct value *value);
