/* An object with a field of every type, for the tests and the fuzzer of src/state/fields.c. */
#pragma once

#include "state/fields.h"

struct pair {
	uint16_t left;
	uint64_t right;
};

struct thing {
	uint8_t small;
	uint32_t words[3];
	bool on;
	uint8_t raw[5];
	struct buffer text;
	struct pair fixed[2];
	uint32_t used;
	struct pair varying[4];
	uint64_t later;
};

static const struct field pair_fields[] = {
	FIELD(struct pair, left, FIELD_U16),
	FIELD(struct pair, right, FIELD_U64),
};
static const struct field_table pair_table = FIELD_TABLE("pair", 1, pair_fields);

static const struct field thing_fields[] = {
	FIELD(struct thing, small, FIELD_U8),
	FIELD(struct thing, words, FIELD_U32),
	FIELD(struct thing, on, FIELD_BOOL),
	FIELD(struct thing, raw, FIELD_BYTES),
	FIELD(struct thing, text, FIELD_BUFFER),
	FIELD_NESTED(struct thing, fixed, 2, &pair_table),
	FIELD_VARYING(struct thing, varying, used, 4, &pair_table),
	FIELD_SINCE(struct thing, later, FIELD_U64, 2),
};
static const struct field_table thing_table = FIELD_TABLE("thing", 2, thing_fields);
