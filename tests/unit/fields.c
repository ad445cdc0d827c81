/* Field tables: what is saved comes back; what does not fit is refused. */
#include "thing.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <cmocka.h>

/* The same without its last field: what an older Ferry wrote. */
static const struct field_table old_table = {"thing", 1, thing_fields, 7};

static void fill(struct thing *thing)
{
	*thing = (struct thing){.small = 3,
		.words = {1, 2, 0xffffffff},
		.on = true,
		.raw = "abcd",
		.fixed = {{1, 2}, {3, 4}},
		.used = 1,
		.varying = {{9, 10}},
		.later = 77};
	buffer_append(&thing->text, "hello", 5);
}

static void what_is_saved_comes_back(void **state)
{
	_cleanup_buffer_ struct buffer out = {0};
	struct thing from, to = {0};
	struct error error = {0};
	struct cursor records;

	(void)state;
	fill(&from);
	fields_save(&out, &thing_table, 4, &to);
	fields_save(&out, &thing_table, 5, &from);
	records = cursor_over(out.data, out.size);
	assert_int_equal(fields_load(&records, &thing_table, 5, &to, &error), 0);
	assert_int_equal(to.words[2], 0xffffffff);
	assert_true(to.on);
	assert_memory_equal(to.raw, "abcd", 5);
	assert_memory_equal(to.text.data, "hello", 5);
	assert_int_equal(to.fixed[1].right, 4);
	assert_int_equal(to.used, 1);
	assert_int_equal(to.varying[0].left, 9);
	assert_int_equal(to.later, 77);
	assert_int_equal(fields_load(&records, &thing_table, 6, &to, &error), -ENOENT);
	buffer_free(&from.text);
	buffer_free(&to.text);
}

static void an_older_record_leaves_newer_fields_alone(void **state)
{
	_cleanup_buffer_ struct buffer out = {0};
	struct thing from, to = {.later = 5};
	struct cursor records;

	(void)state;
	fill(&from);
	fields_save(&out, &old_table, 0, &from);
	records = cursor_over(out.data, out.size);
	assert_int_equal(fields_load(&records, &thing_table, 0, &to, NULL), 0);
	assert_int_equal(to.later, 5);
	buffer_free(&from.text);
	buffer_free(&to.text);
}

static void an_unknown_mandatory_field_is_refused(void **state)
{
	_cleanup_buffer_ struct buffer out = {0};
	struct thing from, to = {0};
	struct error error = {0};
	struct cursor records;

	(void)state;
	fill(&from);
	fields_save(&out, &thing_table, 0, &from);
	records = cursor_over(out.data, out.size);
	assert_int_equal(fields_load(&records, &old_table, 0, &to, &error), -EINVAL);
	assert_non_null(strstr(error.text, "later"));
	buffer_free(&from.text);
	buffer_free(&to.text);
}

static void every_truncation_is_refused(void **state)
{
	_cleanup_buffer_ struct buffer out = {0};
	struct thing from, to = {0};

	(void)state;
	fill(&from);
	fields_save(&out, &thing_table, 0, &from);
	for (size_t size = 0; size < out.size; size++) {
		struct cursor records = cursor_over(out.data, size);

		assert_true(fields_load(&records, &thing_table, 0, &to, NULL) < 0);
	}
	buffer_free(&from.text);
	buffer_free(&to.text);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_saved_comes_back),
		cmocka_unit_test(an_older_record_leaves_newer_fields_alone),
		cmocka_unit_test(an_unknown_mandatory_field_is_refused),
		cmocka_unit_test(every_truncation_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
