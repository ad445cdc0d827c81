/* Device-state records from outside: walking them, and loading them into an object of every field type. */
#include "state/fields.h"

#include <string.h>

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
};
static const struct field_table thing_table = FIELD_TABLE("thing", 1, thing_fields);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct cursor all = cursor_over(data, size);
	struct thing thing = {0};
	struct record_head head;
	struct error error = {0};

	while (fields_next(&all, &head, &error) > 0)
		if (strlen(head.name) >= sizeof(head.name))
			__builtin_trap();
	all = cursor_over(data, size);
	if (fields_load(&all, &thing_table, 0, &thing, &error) == 0) {
		struct buffer again = {0};
		struct thing copy = {0};
		struct cursor records;

		/* What was accepted must survive another trip unchanged. */
		fields_save(&again, &thing_table, 0, &thing);
		records = cursor_over(again.data, again.size);
		if (fields_load(&records, &thing_table, 0, &copy, &error) < 0 || copy.used != thing.used ||
			memcmp(copy.words, thing.words, sizeof(copy.words)) != 0)
			__builtin_trap();
		buffer_free(&again);
		buffer_free(&copy.text);
	} else if (!error.text[0]) {
		__builtin_trap();
	}
	buffer_free(&thing.text);
	return 0;
}
