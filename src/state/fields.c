#include "state/fields.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/*
 * Encoding (docs/checkpoint-format.md, "Device-state records"), all little-endian:
 *   record: u32 length of what follows, u16 version, u32 instance, u8 name length, name, fields
 *   field:  u8 type, u8 flags, u8 name length, name, u32 payload length, payload
 * The payload of numbers is count × size bytes; of structs, for each element u32 length and its fields.
 */
#define FLAG_OPTIONAL 0x01
#define BUFFER_MAX (16u << 20)
#define NEST_MAX 4

struct field_view {
	uint8_t type, flags, name_length;
	const char *name;
	struct cursor payload;
};

static void put_name(struct buffer *out, const char *name)
{
	size_t length = strlen(name);

	buffer_u8(out, (uint8_t)length);
	buffer_append(out, name, length);
}

static uint64_t get_number(const void *from, size_t size)
{
	uint64_t value = 0;

	memcpy(&value, from, size); /* x86-64 hosts: little-endian as the format */
	return value;
}

static size_t used_elements(const struct field *field, const void *object)
{
	uint32_t used;

	if (field->used_offset == FIELD_ALL)
		return field->count;
	memcpy(&used, (const char *)object + field->used_offset, sizeof(used));
	return used < field->count ? used : field->count;
}

static void save_fields(struct buffer *out, const struct field_table *table, const void *object);

static void save_payload(struct buffer *out, const struct field *field, const void *object)
{
	const char *member = (const char *)object + field->offset;

	if (field->type == FIELD_BUFFER) {
		const struct buffer *content = (const void *)member;

		buffer_append(out, content->data, content->size);
	} else if (field->type == FIELD_STRUCTS) {
		size_t used = used_elements(field, object);

		for (size_t i = 0; i < used; i++) {
			size_t at = out->size;

			buffer_u32(out, 0);
			save_fields(out, field->table, member + i * field->size);
			buffer_patch_u32(out, at, (uint32_t)(out->size - at - sizeof(uint32_t)));
		}
	} else {
		buffer_append(out, member, field->size * field->count);
	}
}

static void save_fields(struct buffer *out, const struct field_table *table, const void *object)
{
	for (size_t i = 0; i < table->count; i++) {
		const struct field *field = &table->fields[i];
		size_t at;

		buffer_u8(out, (uint8_t)field->type);
		buffer_u8(out, field->optional ? FLAG_OPTIONAL : 0);
		put_name(out, field->name);
		at = out->size;
		buffer_u32(out, 0);
		save_payload(out, field, object);
		buffer_patch_u32(out, at, (uint32_t)(out->size - at - sizeof(uint32_t)));
	}
}

void fields_save(struct buffer *out, const struct field_table *table, uint32_t instance, const void *object)
{
	size_t at = out->size;

	buffer_u32(out, 0);
	buffer_u16(out, table->version);
	buffer_u32(out, instance);
	put_name(out, table->name);
	save_fields(out, table, object);
	buffer_patch_u32(out, at, (uint32_t)(out->size - at - sizeof(uint32_t)));
}

static bool next_field(struct cursor *from, struct field_view *view)
{
	view->type = cursor_u8(from);
	view->flags = cursor_u8(from);
	view->name_length = cursor_u8(from);
	view->name = cursor_take(from, view->name_length);
	view->payload = cursor_sub(from, cursor_u32(from));
	return !from->failed;
}

static const struct field *find_field(const struct field_table *table, const struct field_view *view)
{
	for (size_t i = 0; i < table->count; i++)
		if (strlen(table->fields[i].name) == view->name_length &&
			memcmp(table->fields[i].name, view->name, view->name_length) == 0)
			return &table->fields[i];
	return NULL;
}

static int load_fields(struct cursor *from, const struct field_table *table, uint16_t version, void *object,
	unsigned depth, struct error *error);

static int misfit(const struct field_table *table, const struct field *field, struct error *error)
{
	return error_set(error, EINVAL, "The state of '%s' has a field '%s' that does not fit this Ferry's.",
		table->name, field->name);
}

static int load_structs(const struct field_table *table, const struct field *field, struct cursor *payload,
	uint16_t version, void *object, unsigned depth, struct error *error)
{
	char *member = (char *)object + field->offset;
	uint32_t used = 0;

	while (cursor_left(payload)) {
		struct cursor element = cursor_sub(payload, cursor_u32(payload));
		int r;

		if (element.failed || used == field->count)
			return misfit(table, field, error);
		r = load_fields(
			&element, field->table, version, member + used * field->size, depth + 1, error);
		if (r < 0)
			return r;
		used++;
	}
	if (payload->failed)
		return misfit(table, field, error);
	if (field->used_offset != FIELD_ALL)
		memcpy((char *)object + field->used_offset, &used, sizeof(used));
	else if (used != field->count)
		return misfit(table, field, error);
	return 0;
}

static int load_field(const struct field_table *table, const struct field *field, struct field_view *view,
	uint16_t version, void *object, unsigned depth, struct error *error)
{
	char *member = (char *)object + field->offset;

	if (view->type != field->type)
		return misfit(table, field, error);
	if (field->type == FIELD_STRUCTS)
		return load_structs(table, field, &view->payload, version, object, depth, error);
	if (field->type == FIELD_BUFFER) {
		struct buffer *content = (void *)member;

		if (view->payload.size > BUFFER_MAX)
			return misfit(table, field, error);
		buffer_clear(content);
		buffer_append(content, view->payload.data, view->payload.size);
		return content->failed
			       ? error_set(error, ENOMEM, "Out of memory while loading '%s'.", table->name)
			       : 0;
	}
	if (view->payload.size != field->size * field->count)
		return misfit(table, field, error);
	if (field->type == FIELD_BOOL)
		for (size_t i = 0; i < view->payload.size; i++)
			if (get_number(view->payload.data + i, 1) > 1)
				return misfit(table, field, error);
	memcpy(member, view->payload.data, view->payload.size);
	return 0;
}

static int load_fields(struct cursor *from, const struct field_table *table, uint16_t version, void *object,
	unsigned depth, struct error *error)
{
	uint64_t seen = 0;

	if (depth > NEST_MAX || table->count > 64)
		return error_set(error, EINVAL, "The state of '%s' is nested too deeply.", table->name);
	while (cursor_left(from)) {
		struct field_view view;
		const struct field *field;
		int r;

		if (!next_field(from, &view))
			return error_set(error, EINVAL, "The state of '%s' is cut short.", table->name);
		field = find_field(table, &view);
		if (!field && view.flags & FLAG_OPTIONAL)
			continue;
		if (!field)
			return error_set(error, EINVAL,
				"The state of '%s' has a field '%.*s' that this Ferry does not know.",
				table->name, (int)view.name_length, view.name);
		if (seen & 1ULL << (field - table->fields))
			return misfit(table, field, error);
		seen |= 1ULL << (field - table->fields);
		r = load_field(table, field, &view, version, object, depth, error);
		if (r < 0)
			return r;
	}
	for (size_t i = 0; i < table->count; i++)
		if (!(seen & 1ULL << i) && !table->fields[i].optional && table->fields[i].since <= version)
			return error_set(error, EINVAL, "The state of '%s' lacks its field '%s'.",
				table->name, table->fields[i].name);
	return 0;
}

static int next_record(
	struct cursor *records, struct record_head *head, struct cursor *body, struct error *error)
{
	const char *name;
	uint8_t length;

	if (!cursor_left(records) && !records->failed)
		return 0;
	*body = cursor_sub(records, cursor_u32(records));
	head->version = cursor_u16(body);
	head->instance = cursor_u32(body);
	length = cursor_u8(body);
	name = cursor_take(body, length);
	if (body->failed || length == 0 || length >= sizeof(head->name))
		return error_set(
			error, EINVAL, "The device state is damaged: a record is cut short or has no name.");
	memcpy(head->name, name, length);
	head->name[length] = '\0';
	return 1;
}

int fields_next(struct cursor *records, struct record_head *head, struct error *error)
{
	struct cursor body;

	return next_record(records, head, &body, error);
}

int fields_load(const struct cursor *records, const struct field_table *table, uint32_t instance,
	void *object, struct error *error)
{
	struct cursor all = cursor_over(records->data, records->size), body;
	struct record_head head;
	int r;

	while ((r = next_record(&all, &head, &body, error)) > 0) {
		if (head.instance != instance || strcmp(head.name, table->name) != 0)
			continue;
		return load_fields(&body, table, head.version, object, 0, error);
	}
	if (r < 0)
		return r;
	return error_set(error, ENOENT, "The state of '%s' number %u is missing.", table->name, instance);
}
