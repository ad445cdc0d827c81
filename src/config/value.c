#include "config/value.h"

#include "base/cleanup.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

void value_free(struct value *value)
{
	for (size_t i = 0; i < value->count; i++)
		value_free(&value->items[i]);
	free(value->items);
	free(value->text);
	*value = (struct value){0};
}

int value_charge(const struct place *place, size_t bytes, size_t *budget, struct error *error)
{
	if (bytes > *budget)
		return place_error(error, place,
			"the values of this configuration become too large (over %zu bytes).", VALUE_BUDGET);
	*budget -= bytes;
	return 0;
}

static size_t depth(const struct value *value)
{
	size_t deepest = 0;

	for (size_t i = 0; i < value->count; i++) {
		size_t d = depth(&value->items[i]);

		deepest = d > deepest ? d : deepest;
	}
	return deepest + (value->kind == VALUE_LIST);
}

int value_append(struct value *list, struct value *item, size_t *budget, struct error *error)
{
	struct value *items;
	int r = value_charge(&item->place, sizeof(*item), budget, error);

	if (r < 0)
		return r;
	if (item->kind == VALUE_LIST && depth(item) >= VALUE_DEPTH_MAX)
		return place_error(
			error, &item->place, "lists may not be nested more than %d deep.", VALUE_DEPTH_MAX);
	items = list->items;
	if (!(list->count & (list->count - 1)))
		items = reallocarray(items, list->count ? list->count * 2 : 1, sizeof(*items));
	if (!items)
		return error_set(error, ENOMEM, "Out of memory.");
	list->items = items;
	items[list->count++] = *item;
	*item = (struct value){0};
	return 0;
}

int value_copy(struct value *to, const struct value *from, size_t *budget, struct error *error)
{
	_cleanup_value_ struct value copy = {
		.kind = from->kind, .place = from->place, .number = from->number};
	int r = value_charge(
		&from->place, sizeof(copy) + (from->text ? strlen(from->text) : 0), budget, error);

	if (r < 0)
		return r;
	if (from->text) {
		copy.text = strdup(from->text);
		if (!copy.text)
			return error_set(error, ENOMEM, "Out of memory.");
	}
	for (size_t i = 0; i < from->count; i++) {
		_cleanup_value_ struct value item = {0};

		r = value_copy(&item, &from->items[i], budget, error);
		if (r >= 0)
			r = value_append(&copy, &item, budget, error);
		if (r < 0)
			return r;
	}
	*to = copy;
	copy = (struct value){0};
	return 0;
}

static int from_json(struct value *value, const char *name, const json_t *json, size_t nesting,
	size_t *budget, struct error *error)
{
	switch (json_typeof(json)) {
	case JSON_NULL:
		value->kind = VALUE_NONE;
		return 0;
	case JSON_TRUE:
	case JSON_FALSE:
		value->kind = VALUE_BOOL;
		value->number = json_is_true(json);
		return 0;
	case JSON_INTEGER:
		value->kind = VALUE_NUMBER;
		value->number = json_integer_value(json);
		return 0;
	case JSON_STRING:
		if (strlen(json_string_value(json)) != json_string_length(json))
			return error_set(
				error, EINVAL, "%s: expected text, found a NUL character in it.", name);
		value->kind = VALUE_STRING;
		value->text = strdup(json_string_value(json));
		return value->text ? value_charge(&value->place, json_string_length(json), budget, error)
				   : error_set(error, ENOMEM, "Out of memory.");
	case JSON_ARRAY:
		if (nesting >= VALUE_DEPTH_MAX)
			return error_set(error, EINVAL, "%s: lists may not be nested more than %d deep.",
				name, VALUE_DEPTH_MAX);
		value->kind = VALUE_LIST;
		for (size_t i = 0; i < json_array_size(json); i++) {
			_cleanup_value_ struct value item = {0};
			int r = from_json(&item, name, json_array_get(json, i), nesting + 1, budget, error);

			if (r >= 0)
				r = value_append(value, &item, budget, error);
			if (r < 0)
				return r;
		}
		return 0;
	case JSON_OBJECT:
	case JSON_REAL:
		break;
	}
	return error_set(error, EINVAL, "%s: expected a string, a whole number or a list, found %s.", name,
		json_is_object(json) ? "an object" : "a number with a fraction");
}

int value_from_json(struct value *value, const char *name, const json_t *json, struct error *error)
{
	_cleanup_value_ struct value read = {0};
	size_t budget = VALUE_BUDGET;
	int r = from_json(&read, name, json, 0, &budget, error);

	if (r < 0)
		return r;
	*value = read;
	read = (struct value){0};
	return 0;
}

json_t *value_to_json(const struct value *value)
{
	json_t *list;

	switch (value->kind) {
	case VALUE_NONE:
		return json_null();
	case VALUE_BOOL:
		return json_boolean(value->number);
	case VALUE_NUMBER:
		return json_integer(value->number);
	case VALUE_STRING:
		return json_string(value->text);
	case VALUE_LIST:
		break;
	}
	list = json_array();
	for (size_t i = 0; list && i < value->count; i++)
		if (json_array_append_new(list, value_to_json(&value->items[i])) < 0) {
			json_decref(list);
			return NULL;
		}
	return list;
}

const char *value_describe(const struct value *value)
{
	static const char *const words[] = {[VALUE_NONE] = "None",
		[VALUE_BOOL] = "True or False",
		[VALUE_NUMBER] = "a number",
		[VALUE_STRING] = "a string",
		[VALUE_LIST] = "a list"};

	return words[value->kind];
}

bool value_is_set(const struct value *value)
{
	switch (value->kind) {
	case VALUE_NONE:
		return false;
	case VALUE_BOOL:
	case VALUE_NUMBER:
		return value->number != 0;
	case VALUE_STRING:
		return *value->text && strcmp(value->text, "0") != 0 && strcasecmp(value->text, "no") != 0;
	case VALUE_LIST:
		return value->count > 0;
	}
	return false;
}
