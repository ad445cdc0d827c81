#include "base/buffer.h"

#include <endian.h>
#include <stdlib.h>
#include <string.h>

void buffer_free(struct buffer *buffer)
{
	free(buffer->data);
	*buffer = (struct buffer){0};
}

void buffer_clear(struct buffer *buffer)
{
	buffer->size = 0;
	buffer->failed = false;
}

void *buffer_extend(struct buffer *buffer, size_t size)
{
	size_t needed, capacity;

	if (buffer->failed || __builtin_add_overflow(buffer->size, size, &needed) || needed > SIZE_MAX / 2) {
		buffer->failed = true;
		return NULL;
	}
	if (needed > buffer->capacity) {
		uint8_t *data;

		for (capacity = buffer->capacity ? buffer->capacity : 64; capacity < needed;)
			capacity *= 2;
		data = realloc(buffer->data, capacity);
		if (!data) {
			buffer->failed = true;
			return NULL;
		}
		buffer->data = data;
		buffer->capacity = capacity;
	}
	if (size == 0)
		return buffer->data; /* which is NULL as long as nothing was put into it */
	memset(buffer->data + buffer->size, 0, size);
	buffer->size = needed;
	return buffer->data + needed - size;
}

void buffer_append(struct buffer *buffer, const void *data, size_t size)
{
	void *room = size ? buffer_extend(buffer, size) : NULL;

	if (room)
		memcpy(room, data, size);
}

void buffer_u8(struct buffer *buffer, uint8_t value)
{
	buffer_append(buffer, &value, sizeof(value));
}

void buffer_u16(struct buffer *buffer, uint16_t value)
{
	value = htole16(value);
	buffer_append(buffer, &value, sizeof(value));
}

void buffer_u32(struct buffer *buffer, uint32_t value)
{
	value = htole32(value);
	buffer_append(buffer, &value, sizeof(value));
}

void buffer_u64(struct buffer *buffer, uint64_t value)
{
	value = htole64(value);
	buffer_append(buffer, &value, sizeof(value));
}

void buffer_patch_u32(struct buffer *buffer, size_t at, uint32_t value)
{
	value = htole32(value);
	if (!buffer->failed && at + sizeof(value) <= buffer->size)
		memcpy(buffer->data + at, &value, sizeof(value));
}

struct cursor cursor_over(const void *data, size_t size)
{
	return (struct cursor){.data = data, .size = size};
}

size_t cursor_left(const struct cursor *cursor)
{
	return cursor->failed ? 0 : cursor->size - cursor->at;
}

const void *cursor_take(struct cursor *cursor, size_t size)
{
	const void *taken;

	if (cursor->failed || size > cursor->size - cursor->at) {
		cursor->failed = true;
		return NULL;
	}
	taken = cursor->data + cursor->at;
	cursor->at += size;
	return taken;
}

struct cursor cursor_sub(struct cursor *cursor, size_t size)
{
	const void *taken = cursor_take(cursor, size);

	return (struct cursor){.data = taken, .size = taken ? size : 0, .failed = !taken};
}

static uint64_t take_number(struct cursor *cursor, size_t size)
{
	const void *taken = cursor_take(cursor, size);
	uint64_t value = 0;

	if (taken)
		memcpy(&value, taken, size);
	return le64toh(value);
}

uint8_t cursor_u8(struct cursor *cursor)
{
	return (uint8_t)take_number(cursor, sizeof(uint8_t));
}

uint16_t cursor_u16(struct cursor *cursor)
{
	return (uint16_t)take_number(cursor, sizeof(uint16_t));
}

uint32_t cursor_u32(struct cursor *cursor)
{
	return (uint32_t)take_number(cursor, sizeof(uint32_t));
}

uint64_t cursor_u64(struct cursor *cursor)
{
	return take_number(cursor, sizeof(uint64_t));
}
