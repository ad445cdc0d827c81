/* What a checkpoint says of a disk: a disk that was written since is told, one that was only moved or copied
 * is not. */
#include "base/cleanup.h"
#include "state/disk_content.h"
#include "state/saved_disk.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#define MIB (1u << 20)
#define SIZE (24 * MIB)

struct fixture {
	char path[64];
	json_t *portrait;
};

static void write_random(const char *path, uint64_t at, size_t size, unsigned seed)
{
	_cleanup_free_ uint8_t *bytes = malloc(size);
	_cleanup_close_ int fd = open(path, O_WRONLY | O_CLOEXEC);

	srandom(seed);
	for (size_t i = 0; i < size; i++)
		bytes[i] = (uint8_t)(random() >> 7);
	assert_int_equal(pwrite(fd, bytes, size, (off_t)at), size);
}

static void flip(const char *path, uint64_t at)
{
	_cleanup_close_ int fd = open(path, O_RDWR | O_CLOEXEC);
	uint8_t byte;

	assert_int_equal(pread(fd, &byte, 1, (off_t)at), 1);
	byte ^= 0x10;
	assert_int_equal(pwrite(fd, &byte, 1, (off_t)at), 1);
}

static void new_disk(char path[64], uint64_t size)
{
	int fd;

	strcpy(path, "/var/tmp/ferry-saved-XXXXXX");
	fd = mkstemp(path);
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)size), 0);
	close(fd);
}

static void set_up(struct fixture *f, const char *mode)
{
	struct error error = {0};

	new_disk(f->path, SIZE);
	write_random(f->path, 3 * MIB + 12345, 5 * MIB, 1);
	f->portrait = saved_disk_portray(f->path, "xvda", mode, false, &error);
	if (!f->portrait)
		fail_msg("%s", error.text);
}

static void tear_down(struct fixture *f)
{
	json_decref(f->portrait);
	unlink(f->path);
}

static enum saved_disk_verdict look(const char *path, const json_t *portrait, char text[1024])
{
	enum saved_disk_verdict verdict;
	struct error error = {0};

	if (saved_disk_compare(path, "xvda", portrait, &verdict, &error) < 0)
		fail_msg("%s", error.text);
	snprintf(text, 1024, "%.1000s", error.text);
	return verdict;
}

static void a_disk_that_nobody_touched_is_the_same(void **state)
{
	struct fixture f;
	char text[1024];

	(void)state;
	set_up(&f, "w");
	assert_int_equal(look(f.path, f.portrait, text), SAVED_DISK_SAME);
	tear_down(&f);
}

static void one_byte_is_told_wherever_it_is(void **state)
{
	static const uint64_t places[] = {0, 511, 3 * MIB + 20000, 9 * MIB, SIZE - 1};
	char text[1024];

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(places); i++) {
		struct fixture f;
		struct stat before;

		set_up(&f, "w");
		assert_int_equal(stat(f.path, &before), 0);
		flip(f.path, places[i]);
		/* Whoever puts the times back does not go unseen either. */
		assert_int_equal(utimensat(AT_FDCWD, f.path,
					 (const struct timespec[]){before.st_atim, before.st_mtim}, 0),
			0);
		assert_int_equal(look(f.path, f.portrait, text), SAVED_DISK_CHANGED);
		assert_non_null(strstr(text, f.path));
		assert_non_null(strstr(text, "(xvda) was written after the checkpoint was taken"));
		assert_non_null(strstr(text, "--accept=disks"));
		tear_down(&f);
	}
}

static void what_is_written_and_put_back_is_the_same(void **state)
{
	struct fixture f;
	char text[1024];

	(void)state;
	set_up(&f, "w");
	write_random(f.path, 3 * MIB + 12345, 5 * MIB, 2);
	assert_int_equal(look(f.path, f.portrait, text), SAVED_DISK_CHANGED);
	write_random(f.path, 3 * MIB + 12345, 5 * MIB, 1);
	assert_int_equal(look(f.path, f.portrait, text), SAVED_DISK_SAME);
	tear_down(&f);
}

/* With holes or without, another file with other times. */
static void a_copy_is_the_same(void **state)
{
	static const char *const ways[] = {"cp --sparse=always", "cp --sparse=never"};
	struct fixture f;
	char command[256], copy[80], text[1024];

	(void)state;
	set_up(&f, "w");
	for (size_t i = 0; i < ARRAY_SIZE(ways); i++) {
		snprintf(copy, sizeof(copy), "%s.copy", f.path);
		snprintf(command, sizeof(command), "%s %s %s", ways[i], f.path, copy);
		assert_int_equal(system(command), 0);
		assert_int_equal(look(copy, f.portrait, text), SAVED_DISK_SAME);
		write_random(copy, 20 * MIB, 512, 3);
		assert_int_equal(look(copy, f.portrait, text), SAVED_DISK_CHANGED);
		unlink(copy);
	}
	tear_down(&f);
}

static void another_size_is_told(void **state)
{
	struct fixture f;
	char text[1024];

	(void)state;
	set_up(&f, "w!"); /* of which nothing else is told */
	assert_int_equal(truncate(f.path, SIZE + 512), 0);
	assert_int_equal(look(f.path, f.portrait, text), SAVED_DISK_CHANGED);
	assert_non_null(strstr(text, "has 25166336 bytes, and had 25165824"));
	assert_int_equal(truncate(f.path, SIZE), 0);
	assert_int_equal(look(f.path, f.portrait, text), SAVED_DISK_UNKNOWN);
	json_object_set_new(f.portrait, "block_size", json_integer(256));
	assert_int_equal(look(f.path, f.portrait, text), SAVED_DISK_CHANGED);
	assert_non_null(strstr(text, "in blocks of 512 bytes, and was in blocks of 256"));
	tear_down(&f);
}

static void a_disk_that_is_only_read_is_mentioned(void **state)
{
	struct fixture f;
	char text[1024];

	(void)state;
	set_up(&f, "r");
	flip(f.path, 0);
	assert_int_equal(look(f.path, f.portrait, text), SAVED_DISK_ODD);
	assert_non_null(strstr(text, "which the guest only reads"));
	tear_down(&f);
}

static void what_is_no_portrait_tells_nothing(void **state)
{
	static const char *const bad[] = {"null", "[]", "{}", "{\"size\": \"x\"}", "{\"size\": 25165824}",
		"{\"size\": 25165824, \"content\": 1, \"file\": [], \"written\": 3, \"mode\": {}}",
		"{\"size\": 25165824, \"content\": {\"whole\": \"zz\", \"sample\": 5, \"passes\": -1}}",
		"{\"size\": 25165824, \"content\": {\"sample\": \"0123456789abcdef\", \"passes\": 99}}"};
	struct fixture f;
	char text[1024];

	(void)state;
	set_up(&f, "w");
	assert_int_equal(look(f.path, NULL, text), SAVED_DISK_UNKNOWN);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		_cleanup_json_ json_t *portrait = json_loads(bad[i], JSON_DECODE_ANY, NULL);

		assert_int_equal(look(f.path, portrait, text), SAVED_DISK_UNKNOWN);
	}
	tear_down(&f);
}

/* A disk too large to be read: a stretch as long as its grid is wide is told wherever it lies. */
static void a_stretch_is_told_on_a_large_disk(void **state)
{
	const uint64_t size = 8ull << 30;
	struct error error = {0};
	char path[64];

	(void)state;
	new_disk(path, size);
	for (unsigned i = 0; i < 6; i++) {
		uint64_t at = i * (size / 6) + 12345 * i;
		_cleanup_close_ int fd = open(path, O_RDWR | O_CLOEXEC);
		_cleanup_json_ json_t *content = disk_content(fd, size, size, i % 2, &error);
		enum content_verdict verdict;
		uint64_t width;

		assert_non_null(content);
		assert_null(json_object_get(content, "whole"));
		width = size >> json_integer_value(json_object_get(content, "passes"));
		assert_true(width <= size >> (i % 2 ? 4 : 8));
		assert_int_equal(disk_content_compare(fd, size, size, content, &verdict, &error), 0);
		assert_int_equal(verdict, CONTENT_ALIKE);
		write_random(path, at, width + 4096, i + 1);
		assert_int_equal(disk_content_compare(fd, size, size, content, &verdict, &error), 0);
		assert_int_equal(verdict, CONTENT_CHANGED);
	}
	unlink(path);
}

static void a_disk_that_is_not_there_is_an_error(void **state)
{
	struct fixture f;
	enum saved_disk_verdict verdict;
	struct error error = {0};

	(void)state;
	set_up(&f, "w");
	assert_int_equal(saved_disk_compare("/nowhere", "xvda", f.portrait, &verdict, &error), -ENOENT);
	assert_string_equal(error.text, "Unable to open disk /nowhere (xvda): No such file or directory.");
	assert_null(saved_disk_portray("/dev/null", "xvda", "w", true, &error));
	tear_down(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_disk_that_nobody_touched_is_the_same),
		cmocka_unit_test(one_byte_is_told_wherever_it_is),
		cmocka_unit_test(what_is_written_and_put_back_is_the_same),
		cmocka_unit_test(a_copy_is_the_same),
		cmocka_unit_test(another_size_is_told),
		cmocka_unit_test(a_disk_that_is_only_read_is_mentioned),
		cmocka_unit_test(what_is_no_portrait_tells_nothing),
		cmocka_unit_test(a_stretch_is_told_on_a_large_disk),
		cmocka_unit_test(a_disk_that_is_not_there_is_an_error),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
