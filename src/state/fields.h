/*
 * Field tables: how every device and every piece of CPU state says what it
 * consists of, and the one routine that saves and restores all of them.
 *
 *	static const struct field rtc_fields[] = {
 *		FIELD(struct rtc, index, FIELD_U8),
 *		FIELD(struct rtc, cmos, FIELD_BYTES),
 *		FIELD_SINCE(struct rtc, alarm, FIELD_U64, 2),
 *	};
 *	const struct field_table rtc_state = FIELD_TABLE("rtc", 2, rtc_fields);
 *
 *	fields_save(out, &rtc_state, 0, rtc);	// appends one record
 *	fields_load(&records, &rtc_state, 0, rtc, &error);
 *
 * Records are self-describing (name, instance, version; each field with name,
 * type, length). A reader skips optional fields it does not know, and refuses
 * unknown mandatory ones, missing ones and lengths that do not fit: the object
 * is then untouched by that field, and the machine must not run. The encoding
 * is specified in docs/checkpoint-format.md, "Device-state records".
 */
#pragma once

#include "base/buffer.h"
#include "base/error.h"

enum field_type {
	FIELD_U8 = 1,
	FIELD_U16,
	FIELD_U32,
	FIELD_U64,
	FIELD_BOOL,
	FIELD_BYTES,   /* the member's bytes as they are: registers defined as bytes by their specification */
	FIELD_BUFFER,  /* the member is a struct buffer; any length up to 16 MiB */
	FIELD_STRUCTS, /* array of structs, each described by `table` */
};

struct field {
	const char *name;
	enum field_type type;
	/* First table version that has it; a record of an older version leaves the member alone. */
	uint16_t since;
	/* A reader that does not know it may skip it. */
	bool optional;
	size_t offset;
	/* Of one element. */
	size_t size;
	/* Elements; the most that fit where used_offset is given. */
	size_t count;
	/* Where the object keeps (uint32_t) how many elements are in use; FIELD_ALL: all are. */
	size_t used_offset;
	/* What describes one element of FIELD_STRUCTS. */
	const struct field_table *table;
};

struct field_table {
	const char *name;
	uint16_t version;
	const struct field *fields;
	size_t count;
};

#define FIELD_ALL ((size_t)-1)
#define FIELD_MEMBER_(type, member) (((type *)0)->member)
#define FIELD_ELEMENT_(kind, type, member)                                                                   \
	((kind) == FIELD_U8            ? (size_t)1                                                           \
		: (kind) == FIELD_U16  ? (size_t)2                                                           \
		: (kind) == FIELD_U32  ? (size_t)4                                                           \
		: (kind) == FIELD_U64  ? (size_t)8                                                           \
		: (kind) == FIELD_BOOL ? sizeof(bool)                                                        \
				       : sizeof(FIELD_MEMBER_(type, member)))

/* A number, an array of numbers, bytes or a buffer, in every version. */
#define FIELD(type, member, kind) FIELD_SINCE(type, member, kind, 1)
#define FIELD_SINCE(type, member, kind, version)                                                             \
	{                                                                                                    \
#member, kind, version, false, offsetof(type, member), FIELD_ELEMENT_(kind, type, member),   \
			sizeof(FIELD_MEMBER_(type, member)) / FIELD_ELEMENT_(kind, type, member), FIELD_ALL, \
			NULL                                                                                 \
	}
/* One that came with a later version, and that a reader which does not know it may do without. */
#define FIELD_OPTIONAL(type, member, kind, version)                                                          \
	{                                                                                                    \
#member, kind, version, true, offsetof(type, member), FIELD_ELEMENT_(kind, type, member),    \
			sizeof(FIELD_MEMBER_(type, member)) / FIELD_ELEMENT_(kind, type, member), FIELD_ALL, \
			NULL                                                                                 \
	}
/* A struct or an array of structs. */
#define FIELD_NESTED(type, member, elements, subtable)                                                       \
	{                                                                                                    \
#member, FIELD_STRUCTS, 1, false, offsetof(type, member),                                    \
			sizeof(FIELD_MEMBER_(type, member)) / (elements), elements, FIELD_ALL, subtable      \
	}
/* An array of structs of which member `used` (uint32_t) says how many count. */
#define FIELD_VARYING(type, member, used, elements, subtable)                                                \
	{                                                                                                    \
#member, FIELD_STRUCTS, 1, false, offsetof(type, member),                                    \
			sizeof(FIELD_MEMBER_(type, member)) / (elements), elements, offsetof(type, used),    \
			subtable                                                                             \
	}
#define FIELD_TABLE(table_name, table_version, array)                                                        \
	{                                                                                                    \
		.name = (table_name), .version = (table_version), .fields = (array),                         \
		.count = sizeof(array) / sizeof((array)[0])                                                  \
	}

/* Appends one record with the object's state. Out of memory shows as out->failed. */
void fields_save(struct buffer *out, const struct field_table *table, uint32_t instance, const void *object);

/*
 * Finds the record (table->name, instance) among `records` (a sequence of whole
 * records, from its beginning) and loads it into the object. -ENOENT where there
 * is none; -EINVAL with a sentence where it does not fit. Hostile input is safe.
 */
int fields_load(const struct cursor *records, const struct field_table *table, uint32_t instance,
	void *object, struct error *error);

/* One record's head, for walking over all of them (xm checkpoint, "which devices are in it"). */
struct record_head {
	char name[64];
	uint32_t instance;
	uint16_t version;
};

/* Steps over the next record: 1 with its head, 0 at the end, -EINVAL where the bytes are not a record. */
int fields_next(struct cursor *records, struct record_head *head, struct error *error);
