/*
 * A growing byte buffer for writing, and a bounded cursor for reading what
 * somebody else wrote.
 *
 * Writing: numbers are little-endian. A failed allocation sticks: `failed` is
 * set, later appends do nothing, and the caller asks once at the end.
 *
 * Reading: every take is checked against the end; a short input sticks as
 * `failed`, takes then give 0 or NULL, and the caller asks once per record.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct buffer {
	uint8_t *data; /* owned */
	size_t size, capacity;
	bool failed;
};

#define _cleanup_buffer_ __attribute__((cleanup(buffer_free)))

void buffer_free(struct buffer *buffer);
void buffer_clear(struct buffer *buffer); /* size 0, memory kept */
void buffer_append(struct buffer *buffer, const void *data, size_t size);
void *buffer_extend(struct buffer *buffer, size_t size); /* room for size bytes, zeroed; NULL when failed */
void buffer_u8(struct buffer *buffer, uint8_t value);
void buffer_u16(struct buffer *buffer, uint16_t value);
void buffer_u32(struct buffer *buffer, uint32_t value);
void buffer_u64(struct buffer *buffer, uint64_t value);
void buffer_patch_u32(
	struct buffer *buffer, size_t at, uint32_t value); /* overwrite 4 bytes written before */

struct cursor {
	const uint8_t *data; /* borrowed */
	size_t size, at;
	bool failed;
};

struct cursor cursor_over(const void *data, size_t size);
size_t cursor_left(const struct cursor *cursor);
const void *cursor_take(struct cursor *cursor, size_t size); /* borrowed bytes, NULL when too short */
struct cursor cursor_sub(
	struct cursor *cursor, size_t size); /* the next size bytes as a cursor of their own */
uint8_t cursor_u8(struct cursor *cursor);
uint16_t cursor_u16(struct cursor *cursor);
uint32_t cursor_u32(struct cursor *cursor);
uint64_t cursor_u64(struct cursor *cursor);
