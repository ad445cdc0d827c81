/* Device-state records from outside: walking them, and loading them into an object of every field type. */
#include "../unit/thing.h"

#include <string.h>

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
