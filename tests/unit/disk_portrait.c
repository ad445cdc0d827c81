/* Whether two hosts mean the same disk: portraits, compared with the disk, with a copy and with another. */
#include "base/cleanup.h"
#include "xend/disk_portrait.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <cmocka.h>

#define SIZE (8u << 20)

static char root[64];

static int one_directory(void **state)
{
	(void)state;
	strcpy(root, "/var/tmp/portrait-XXXXXX");
	return mkdtemp(root) ? 0 : -1;
}

static struct guest_disk make(const char *name, unsigned size, unsigned seed)
{
	static char paths[4][96];
	static unsigned used;
	char *path = paths[used++ % 4];
	_cleanup_close_ int fd = -1;
	_cleanup_free_ uint32_t *content = malloc(SIZE);

	snprintf(path, sizeof(paths[0]), "%s/%s", root, name);
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	for (unsigned i = 0; i < SIZE / 4; i++)
		content[i] = seed ? seed * 2654435761u + i : 0;
	assert_int_equal(write(fd, content, size), size);
	return (struct guest_disk){.target = path, .device = (char *)"xvda", .mode = DISK_WRITE};
}

static int no_directory(void **state)
{
	static const char *const names[] = {"one", "copy", "other", "small", "blank", "empty"};
	char path[96];

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		snprintf(path, sizeof(path), "%s/%s", root, names[i]);
		unlink(path);
	}
	return rmdir(root);
}

static struct disk_likeness compare(const struct guest_disk *disk, const json_t *portrait)
{
	struct disk_likeness likeness;

	assert_int_equal(disk_compare(disk, portrait, true, &likeness, NULL), 0);
	return likeness;
}

static void a_disk_is_like_itself_and_its_copy_and_like_no_other(void **state)
{
	struct guest_disk one = make("one", SIZE, 1), copy = make("copy", SIZE, 1),
			  other = make("other", SIZE, 2), small = make("small", SIZE / 2, 1);
	_cleanup_json_ json_t *portrait = disk_portrait(&one);
	struct disk_likeness likeness;

	(void)state;
	assert_non_null(portrait);
	likeness = compare(&one, portrait);
	assert_int_equal(likeness.identity, IDENTITY_SAME);
	assert_true(likeness.size == SIZE && likeness.other_size == SIZE);
	assert_true(likeness.block_size == 512 && likeness.other_block_size == 512);
	assert_int_equal(compare(&copy, portrait).identity, IDENTITY_DIFFERENT);
	/* As of a kind of storage that has no identity. */
	json_object_set_new(portrait, "kind", json_string(""));
	likeness = compare(&copy, portrait);
	assert_int_equal(likeness.identity, IDENTITY_UNKNOWN);
	assert_true(likeness.equal > 10 && likeness.unequal == 0);
	assert_true(disk_likely_same(&likeness, true, false));
	assert_false(disk_likely_same(&likeness, false, true));
	likeness = compare(&other, portrait);
	assert_true(likeness.equal == 0 && likeness.unequal > 10);
	assert_false(disk_likely_same(&likeness, true, true));
	likeness = compare(&small, portrait);
	assert_int_equal(likeness.size, SIZE / 2);
	assert_false(disk_likely_same(&likeness, true, true));
}

static void a_disk_that_is_being_written_is_still_the_same(void **state)
{
	struct guest_disk one = make("one", SIZE, 1);
	_cleanup_json_ json_t *portrait = disk_portrait(&one);
	_cleanup_close_ int fd = open(one.target, O_WRONLY | O_CLOEXEC);
	struct disk_likeness likeness;

	(void)state;
	assert_int_equal(pwrite(fd, "written", 7, 4096), 7);
	json_object_set_new(portrait, "kind", json_string(""));
	likeness = compare(&one, portrait);
	assert_int_equal(likeness.unequal, 1);
	assert_true(disk_likely_same(&likeness, true, true));
	/* For a guest of another name that is too little. */
	assert_false(disk_likely_same(&likeness, true, false));
}

static void a_blank_disk_proves_nothing(void **state)
{
	struct guest_disk blank = make("blank", SIZE, 0);
	_cleanup_json_ json_t *portrait = disk_portrait(&blank);
	struct disk_likeness likeness;

	(void)state;
	json_object_set_new(portrait, "kind", json_string(""));
	likeness = compare(&blank, portrait);
	assert_int_equal(likeness.equal + likeness.unequal, 0);
	assert_true(disk_likely_same(&likeness, true, true));
	assert_false(disk_likely_same(&likeness, true, false));
}

static void what_a_stranger_says_is_checked(void **state)
{
	static const char *const texts[] = {"{}", "[]",
		"{\"size\": \"1\", \"kind\": \"\", \"identity\": \"\"}",
		"{\"size\": 1, \"kind\": 3, \"identity\": \"\"}"};
	static const char harmless[] =
		"{\"size\": -1, \"kind\": \"nfs\", \"identity\": \"\", \"blocks\": [[-4096, \"x\"], [1, "
		"\"2\"], "
		"[9223372036854771712, \"2\"], [4096], {}, [\"0\", 0], 7, [0, \"zz\"]]}";
	struct guest_disk one = make("one", SIZE, 1), empty = make("empty", 0, 0);
	_cleanup_json_ json_t *odd = json_loads(harmless, 0, NULL), *many = json_loads(harmless, 0, NULL);
	struct disk_likeness likeness;
	struct error error;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
		_cleanup_json_ json_t *portrait = json_loads(texts[i], 0, NULL);

		assert_int_equal(disk_compare(&one, portrait, true, &likeness, &error), -EPROTO);
	}
	likeness = compare(&one, odd);
	assert_int_equal(likeness.equal, 0);
	for (unsigned i = 0; i < 100; i++)
		json_array_append_new(json_object_get(many, "blocks"), json_pack("[i, s]", 0, "0"));
	assert_int_equal(disk_compare(&one, many, true, &likeness, &error), -EPROTO);
	likeness = compare(&empty, odd);
	assert_int_equal(likeness.size, 0);
	one.target = (char *)"/nowhere";
	assert_null(disk_portrait(&one));
	assert_int_equal(disk_compare(&one, odd, true, &likeness, &error), -ENOENT);
	one.target = (char *)"/dev/null";
	assert_null(disk_portrait(&one));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_disk_is_like_itself_and_its_copy_and_like_no_other),
		cmocka_unit_test(a_disk_that_is_being_written_is_still_the_same),
		cmocka_unit_test(a_blank_disk_proves_nothing),
		cmocka_unit_test(what_a_stranger_says_is_checked),
	};

	return cmocka_run_group_tests(tests, one_directory, no_directory);
}
