/* Save and restore: what was saved comes back; what was damaged does not come back unnoticed. */
#include "fake_guest.h"
#include "base/bitmap.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "state/checkpoint.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#define UUID "cc0029f5-10a1-e6d0-3c92-19b0ea021f21"
#define MIB_PAGES 256u

static json_t *domain_of(const struct fake_guest *guest)
{
	return json_pack("{s:s, s:s, s:I}", "name", "TestGuest", "uuid", UUID, "memory_mib",
		(json_int_t)(guest->pages / MIB_PAGES));
}

/* A new, empty, nameless file on the file system of the build (not tmpfs, so that direct I/O is tried). */
static int new_file(void)
{
	int fd = open(".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);

	if (fd < 0)
		fd = memfd_create("checkpoint", MFD_CLOEXEC);
	assert_true(fd >= 0);
	return fd;
}

enum how { STOPPED = 0, LIVE = 1, COMPRESSED = 2 };

static void save(struct fake_guest *guest, int file, unsigned how)
{
	struct carrier_thread carrier;
	struct message saved;
	int fds[] = {guest->carrier_end, file};

	carrier_thread_begin(&carrier, save_job);
	carrier_say(&carrier,
		json_pack("{s:s, s:{s:i}, s:{s:i}, s:o, s:b, s:b}", "do", "save", "guest", "fd", 0, "file",
			"fd", 1, "domain", domain_of(guest), "live", how & LIVE, "compress",
			how & COMPRESSED),
		fds, 2);
	saved = carrier_event(&carrier, "saved");
	assert_true(json_integer_value(json_object_get(saved.body, "logical_bytes")) > 0);
	message_free(&saved);
	carrier_thread_end(&carrier);
	assert_false(guest->running);
}

/* Restores into `guest`; returns 0, or the errno with its sentence in `text`. */
static int restore(struct fake_guest *guest, int file, char text[1024])
{
	struct carrier_thread carrier;
	struct message message;
	const char *event;
	int code = -1;

	carrier_thread_begin(&carrier, restore_job);
	carrier_say(&carrier, json_pack("{s:s, s:{s:i}}", "do", "restore", "file", "fd", 0), &file, 1);
	while (code < 0) {
		struct error error = {0};

		if (channel_receive(carrier.channel, &message, &error) < 0)
			fail_msg("%s", error.text);
		event = json_string_value(json_object_get(message.body, "event"));
		if (strcmp(event, "offer") == 0) {
			assert_int_equal(json_integer_value(json_object_get(message.body, "memory_mib")),
				guest->pages / MIB_PAGES);
			carrier_say(&carrier, json_pack("{s:s, s:{s:i}}", "do", "accept", "guest", "fd", 0),
				&guest->carrier_end, 1);
		} else if (strcmp(event, "loaded") == 0) {
			code = 0;
		} else if (strcmp(event, "failed") == 0) {
			code = (int)json_integer_value(json_object_get(message.body, "errno"));
			snprintf(text, 1024, "%s", json_string_value(json_object_get(message.body, "error")));
		}
		message_free(&message);
	}
	carrier_thread_end(&carrier);
	return code;
}

static void assert_same(const struct fake_guest *one, const struct fake_guest *other)
{
	assert_int_equal(memcmp(one->ram, other->ram, one->pages * FAKE_PAGE), 0);
	assert_int_equal(one->state_size, other->state_size);
	assert_memory_equal(one->state, other->state, one->state_size);
	assert_true(other->loaded);
}

/* Pages of which zstd makes something smaller. */
static void fill_text(struct fake_guest *guest, uint64_t first, uint64_t count)
{
	for (uint64_t page = first; page < first + count; page++)
		for (unsigned i = 0; i < FAKE_PAGE; i++)
			guest->ram[page * FAKE_PAGE + i] =
				(uint8_t)((unsigned char)"all work and no play"[i % 20] + page % 7);
}

static void round_trip(uint64_t pages, unsigned how)
{
	_cleanup_close_ int file = new_file();
	struct fake_guest from, to;
	struct stat status;
	uint64_t touched;
	char text[1024];

	fake_guest_begin(&from, pages);
	fake_guest_fill(&from, 0, 100, 1);
	fake_guest_fill(&from, 700, 5 * MIB_PAGES, 2);
	fake_guest_fill(&from, pages - 3, 3, 3);
	fill_text(&from, 6 * MIB_PAGES, 7 * MIB_PAGES);
	touched = fake_guest_allocated(&from);
	if (how & LIVE)
		fake_guest_run(&from, 1000);
	save(&from, file, how);
	assert_int_equal(from.pauses, 1);
	assert_false(from.tracking);
	if (!(how & LIVE))
		assert_int_equal(fake_guest_allocated(&from), touched);
	assert_int_equal(fstat(file, &status), 0);
	assert_true((uint64_t)status.st_blocks * 512 < (touched + 1000) * FAKE_PAGE + (1 << 20));
	if (how == COMPRESSED)
		assert_in_range((uint64_t)status.st_blocks * 512, 1, (touched - 6 * MIB_PAGES) * FAKE_PAGE);
	fake_guest_begin(&to, pages);
	if (restore(&to, file, text))
		fail_msg("%s", text);
	assert_true(fake_guest_allocated(&to) <= fake_guest_allocated(&from) + CHECKPOINT_EXTENT_PAGES);
	assert_same(&from, &to);
	fake_guest_end(&from);
	fake_guest_end(&to);
}

/* The specification, read by somebody else: tools/ferry-checkpoint.py gives the same memory and state. */
static void another_reader_agrees_about(unsigned how)
{
	_cleanup_close_ int file = new_file(), ram = memfd_create("ram", 0),
			    records = memfd_create("records", 0);
	_cleanup_free_ uint8_t *image = NULL;
	const char *reader = getenv("FERRY_CHECKPOINT_READER");
	struct fake_guest guest;
	char command[1024], bytes[sizeof(guest.state)];
	int status;
	off_t at;

	if (!reader)
		skip();
	fake_guest_begin(&guest, 17 * MIB_PAGES);
	fake_guest_fill(&guest, 20, 8 * MIB_PAGES, 1);
	fill_text(&guest, 9 * MIB_PAGES, 4 * MIB_PAGES);
	fake_guest_run(&guest, 1000);
	save(&guest, file, how);
	snprintf(command, sizeof(command),
		"r='%s' p=/proc/%d/fd; $r verify $p/%d >&2 && $r ram $p/%d $p/%d && $r state $p/%d $p/%d",
		reader, getpid(), file, file, ram, file, records);
	status = system(command);
	assert_int_equal(status, 0);
	image = malloc(guest.pages * FAKE_PAGE);
	assert_int_equal(pread(ram, image, guest.pages * FAKE_PAGE, 0), guest.pages * FAKE_PAGE);
	assert_int_equal(memcmp(image, guest.ram, guest.pages * FAKE_PAGE), 0);
	assert_int_equal(pread(records, bytes, sizeof(bytes), 0), guest.state_size);
	assert_memory_equal(bytes, guest.state, guest.state_size);
	/* A page that the running guest left alone, so that it is stored. */
	at = (off_t)(CHECKPOINT_RAM_AT + 1501ull * FAKE_PAGE);
	if (how & COMPRESSED)
		at = (off_t)(CHECKPOINT_RAM_AT + 10ull * MIB_PAGES * FAKE_PAGE) + 20;
	assert_int_equal(pread(file, bytes, 1, at), 1);
	bytes[0] ^= 1;
	assert_int_equal(pwrite(file, bytes, 1, at), 1);
	snprintf(command, sizeof(command), "%s verify /proc/%d/fd/%d 2>/dev/null", reader, getpid(), file);
	assert_int_not_equal(system(command), 0);
	fake_guest_end(&guest);
}

static void another_reader_agrees(void **state)
{
	(void)state;
	another_reader_agrees_about(LIVE);
}

static void another_reader_agrees_about_compressed_ones(void **state)
{
	(void)state;
	another_reader_agrees_about(COMPRESSED);
	another_reader_agrees_about(LIVE | COMPRESSED);
}

static void a_compressed_guest_comes_back(void **state)
{
	(void)state;
	round_trip(64 * MIB_PAGES, COMPRESSED);
	round_trip(17 * MIB_PAGES, COMPRESSED);
	for (unsigned i = 0; i < 5; i++)
		round_trip(64 * MIB_PAGES, LIVE | COMPRESSED);
}

static void a_saved_guest_comes_back(void **state)
{
	(void)state;
	round_trip(64 * MIB_PAGES, STOPPED);
}

static void a_guest_saved_while_it_runs_comes_back(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 5; i++)
		round_trip(64 * MIB_PAGES, LIVE);
}

static void a_last_extent_that_is_not_full_comes_back(void **state)
{
	(void)state;
	round_trip(17 * MIB_PAGES, STOPPED);
}

int __real_fsync(int fd);
int __wrap_fsync(int fd);

/* Of storage that buffers: what it has got since it was last asked, at most; in blocks of 512 bytes. */
static struct {
	bool on;
	blkcnt_t before, most;
} buffered;

int __wrap_fsync(int fd)
{
	struct stat status;

	if (buffered.on && fstat(fd, &status) == 0) {
		if (status.st_blocks - buffered.before > buffered.most)
			buffered.most = status.st_blocks - buffered.before;
		buffered.before = status.st_blocks;
		usleep(1100000); /* not quick */
	}
	return __real_fsync(fd);
}

static void storage_that_buffers_is_asked_in_between(void **state)
{
	(void)state;
	for (unsigned how = STOPPED; how <= COMPRESSED; how += COMPRESSED) {
		_cleanup_close_ int file = new_file();
		struct fake_guest guest;

		fake_guest_begin(&guest, 200 * MIB_PAGES);
		fake_guest_fill(&guest, 0, 200 * MIB_PAGES, 1);
		buffered.before = buffered.most = 0;
		buffered.on = true;
		save(&guest, file, how);
		buffered.on = false;
		assert_in_range(buffered.most, 1, (70 << 20) / 512);
		fake_guest_end(&guest);
	}
}

/* Where the log misses what was written there is no file. */
static void a_lost_page_ends_the_save(void **state)
{
	(void)state;
	for (int compress = 0; compress < 2; compress++) {
		_cleanup_close_ int file = new_file();
		struct carrier_thread carrier;
		struct fake_guest guest;
		struct message failed;
		int fds[2];

		fake_guest_begin(&guest, 16 * MIB_PAGES);
		fake_guest_fill(&guest, 0, 8 * MIB_PAGES, 1);
		guest.forgets = true;
		fake_guest_run(&guest, 0);
		carrier_thread_begin(&carrier, save_job);
		fds[0] = guest.carrier_end;
		fds[1] = file;
		carrier_say(&carrier,
			json_pack("{s:s, s:{s:i}, s:{s:i}, s:{s:s, s:s, s:i}, s:b, s:b}", "do", "save",
				"guest", "fd", 0, "file", "fd", 1, "domain", "name", "TestGuest", "uuid",
				"cc0029f5-10a1-e6d0-3c92-19b0ea021f21", "memory_mib", 16, "live", 1,
				"compress", compress),
			fds, 2);
		failed = carrier_event(&carrier, "failed");
		assert_non_null(strstr(json_string_value(json_object_get(failed.body, "error")),
			"Page 0 of the guest's memory is not what was sent"));
		message_free(&failed);
		carrier_thread_end(&carrier);
		fake_guest_end(&guest);
	}
}

static void an_abandoned_save_leaves_the_guest_untracked(void **state)
{
	_cleanup_close_ int file = new_file();
	struct carrier_thread carrier;
	struct fake_guest guest;
	int fds[2];

	(void)state;
	fake_guest_begin(&guest, 256 * MIB_PAGES);
	fake_guest_fill(&guest, 0, guest.pages, 7);
	fake_guest_run(&guest, 100);
	fds[0] = guest.carrier_end;
	fds[1] = file;
	carrier_thread_begin(&carrier, save_job);
	carrier_say(&carrier,
		json_pack("{s:s, s:{s:i}, s:{s:i}, s:o, s:b}", "do", "save", "guest", "fd", 0, "file", "fd",
			1, "domain", domain_of(&guest), "live", true),
		fds, 2);
	carrier_thread_end(&carrier);
	assert_false(guest.tracking);
	fake_guest_end(&guest);
}

/* Before the file is called complete the disks are as the guest believes them to be. */
static void disks_are_flushed_while_the_guest_stands_still(void **state)
{
	(void)state;
	for (unsigned how = STOPPED; how <= LIVE; how++) {
		struct fake_guest guest;
		_cleanup_close_ int file = new_file();

		fake_guest_begin(&guest, 4 * MIB_PAGES);
		fake_guest_fill(&guest, 0, guest.pages, 1);
		fake_guest_run(&guest, 64);
		guest.flush_takes = 20;
		save(&guest, file, how);
		/* Once while it runs, however many rounds come after that, and once more. */
		assert_true(guest.flushes == 2 && guest.flushed_paused);
		assert_int_equal(guest.flush_looks, 0);
		fake_guest_end(&guest);
	}
}

static void a_disk_that_cannot_be_flushed_fails_the_save(void **state)
{
	(void)state;
	for (unsigned live = 0; live < 2; live++) {
		struct fake_guest guest;
		_cleanup_close_ int file = new_file();
		struct carrier_thread carrier;
		struct message failed;

		fake_guest_begin(&guest, 4 * MIB_PAGES);
		fake_guest_run(&guest, 64);
		guest.flush_fails = true;
		carrier_thread_begin(&carrier, save_job);
		carrier_say(&carrier,
			json_pack("{s:s, s:{s:i}, s:{s:i}, s:o, s:b, s:b}", "do", "save", "guest", "fd", 0,
				"file", "fd", 1, "domain", domain_of(&guest), "live", live, "compress", 0),
			(const int[]){guest.carrier_end, file}, 2);
		failed = carrier_event(&carrier, "failed");
		assert_string_equal(json_string_value(json_object_get(failed.body, "error")),
			"The guest's process: Disk xvda cannot be flushed.");
		message_free(&failed);
		carrier_thread_end(&carrier);
		fake_guest_end(&guest);
	}
}

static void a_guest_of_before_there_were_flushes_is_saved(void **state)
{
	struct fake_guest guest;
	_cleanup_close_ int file = new_file();

	(void)state;
	fake_guest_begin(&guest, 4 * MIB_PAGES);
	fake_guest_run(&guest, 64);
	guest.flush_unknown = true;
	save(&guest, file, LIVE);
	fake_guest_end(&guest);
}

static void a_file_too_small_for_the_guest_fails_the_save(void **state)
{
	_cleanup_close_ int full = open("/dev/full", O_RDWR | O_CLOEXEC);
	struct carrier_thread carrier;
	struct fake_guest guest;
	struct message failed;
	int fds[2];

	(void)state;
	fake_guest_begin(&guest, 4 * MIB_PAGES);
	fake_guest_fill(&guest, 0, 100, 7);
	fds[0] = guest.carrier_end;
	fds[1] = full;
	carrier_thread_begin(&carrier, save_job);
	carrier_say(&carrier,
		json_pack("{s:s, s:{s:i}, s:{s:i}, s:o}", "do", "save", "guest", "fd", 0, "file", "fd", 1,
			"domain", domain_of(&guest)),
		fds, 2);
	failed = carrier_event(&carrier, "failed");
	assert_non_null(strstr(json_string_value(json_object_get(failed.body, "error")), "Unable to write"));
	message_free(&failed);
	carrier_thread_end(&carrier);
	fake_guest_end(&guest);
}

/* ---- damage ---- */

struct small {
	struct fake_guest guest;
	int file;
	uint64_t size;
	uint8_t *bytes;
};

static void small_begin(struct small *small, unsigned how)
{
	struct stat status;

	fake_guest_begin(&small->guest, MIB_PAGES);
	fake_guest_fill(&small->guest, 2, 2, 5);
	if (how & COMPRESSED)
		fill_text(&small->guest, 4, 4);
	small->file = memfd_create("small", MFD_CLOEXEC);
	save(&small->guest, small->file, how);
	assert_int_equal(fstat(small->file, &status), 0);
	small->size = (uint64_t)status.st_size;
	small->bytes = mmap(NULL, small->size, PROT_READ | PROT_WRITE, MAP_SHARED, small->file, 0);
	assert_true(small->bytes != MAP_FAILED);
}

static void small_end(struct small *small)
{
	munmap(small->bytes, small->size);
	close(small->file);
	fake_guest_end(&small->guest);
}

/* Holes are looked at by pages and at some lengths, unless somebody asks for all of it, which takes minutes.
 */
static bool every_byte(void)
{
	const char *exhaustive = getenv("FERRY_EXHAUSTIVE");

	return exhaustive && strcmp(exhaustive, "1") == 0;
}

/* All that is in the small guest is in its first pages. */
#define SMALL_PAGES 8

/* As restore does, without threads: 0 and the memory, or a verdict. */
static int read_small(const struct small *small, uint8_t *ram, struct error *error)
{
	static uint8_t content[CHECKPOINT_EXTENT_SIZE];
	_cleanup_checkpoint_ struct checkpoint checkpoint = {0};
	int r = checkpoint_open(&checkpoint, small->file, error);

	if (r < 0)
		return r;
	assert_int_equal(checkpoint.ram_size, small->guest.pages * FAKE_PAGE);
	memset(ram, 0, SMALL_PAGES * FAKE_PAGE);
	r = checkpoint_read_extent(&checkpoint, 0, content, error);
	if (r < 0)
		return r;
	for (uint64_t page = 0; page < SMALL_PAGES; page++)
		if (bitmap_test(checkpoint.extents[0].stored, page))
			memcpy(ram + page * FAKE_PAGE, content + page * FAKE_PAGE, FAKE_PAGE);
	assert_int_equal(checkpoint.state.size, small->guest.state_size);
	assert_memory_equal(checkpoint.state.data, small->guest.state, small->guest.state_size);
	assert_string_equal(
		json_string_value(json_object_get(json_object_get(checkpoint.description, "domain"), "uuid")),
		UUID);
	return 0;
}

static void flip(uint8_t *bytes, uint64_t count)
{
	for (uint64_t i = 0; i < count; i++)
		bytes[i] ^= 0x20;
}

static void flip_every_byte(unsigned how)
{
	_cleanup_free_ uint8_t *ram = malloc(SMALL_PAGES * FAKE_PAGE);
	struct small small;
	unsigned refused = 0;
	bool every = every_byte();

	small_begin(&small, how);
	assert_int_equal(read_small(&small, ram, NULL), 0);
	for (uint64_t at = 0, span; at < small.size; at += span) {
		struct error error = {0};
		bool ends = at < 4096 || at >= CHECKPOINT_RAM_AT + MIB_PAGES * FAKE_PAGE;
		bool contents =
			at >= CHECKPOINT_RAM_AT + 2 * FAKE_PAGE && at < CHECKPOINT_RAM_AT + 4 * FAKE_PAGE;

		if (how & COMPRESSED) /* where the frame is, and a little behind it */
			contents = at >= CHECKPOINT_RAM_AT && at < CHECKPOINT_RAM_AT + 4 * FAKE_PAGE;

		/* Holes between: all bytes of a page together. */
		span = ends || contents || every ? 1 : FAKE_PAGE;
		flip(small.bytes + at, span);
		if (read_small(&small, ram, &error) < 0) {
			assert_true(error.text[0]);
			refused++;
		} else {
			assert_memory_equal(ram, small.guest.ram, SMALL_PAGES * FAKE_PAGE);
		}
		flip(small.bytes + at, span);
	}
	/* Header and footer blocks and the two pages are digested whole. */
	assert_true(refused > 4 * 4096);
	small_end(&small);
}

static void cut_everywhere(unsigned how)
{
	_cleanup_free_ uint8_t *ram = malloc(SMALL_PAGES * FAKE_PAGE), *copy = NULL;
	struct small small;
	bool every = every_byte();

	small_begin(&small, how);
	copy = malloc(small.size);
	memcpy(copy, small.bytes, small.size);
	for (uint64_t size = small.size - 1; size > 0;
		size -= size > CHECKPOINT_RAM_AT || size <= 4096 || every ? 1 : 4096) {
		struct error error = {0};
		_cleanup_checkpoint_ struct checkpoint checkpoint = {0};

		if (size > CHECKPOINT_RAM_AT && size % 97 && size < small.size - 2 * 4096 && !every)
			continue;
		assert_int_equal(ftruncate(small.file, (off_t)size), 0);
		assert_true(checkpoint_open(&checkpoint, small.file, &error) < 0);
		assert_true(error.text[0]);
	}
	assert_int_equal(ftruncate(small.file, (off_t)small.size), 0);
	memcpy(small.bytes, copy, small.size);
	assert_int_equal(read_small(&small, ram, NULL), 0);
	assert_int_equal(ftruncate(small.file, (off_t)small.size + 4096), 0);
	assert_true(read_small(&small, ram, NULL) < 0);
	small_end(&small);
}

static void every_flipped_byte_is_refused_or_harmless(void **state)
{
	(void)state;
	flip_every_byte(STOPPED);
	flip_every_byte(COMPRESSED);
}

static void every_truncation_is_refused(void **state)
{
	(void)state;
	cut_everywhere(STOPPED);
	cut_everywhere(COMPRESSED);
}

static void verdicts_name_the_cause(void **state)
{
	struct small small;
	struct fake_guest to;
	char text[1024];

	(void)state;
	small_begin(&small, STOPPED);
	small.bytes[CHECKPOINT_RAM_AT + 3 * FAKE_PAGE] ^= 1;
	fake_guest_begin(&to, MIB_PAGES);
	assert_int_equal(restore(&to, small.file, text), EBADMSG);
	assert_non_null(strstr(text, "damaged: memory"));
	assert_false(to.loaded);
	fake_guest_end(&to);
	small.bytes[8] = 9;
	fake_guest_begin(&to, MIB_PAGES);
	assert_int_equal(restore(&to, small.file, text), EINVAL);
	assert_non_null(strstr(text, "newer Ferry"));
	fake_guest_end(&to);
	memcpy(small.bytes, "GARBAGE", 7);
	fake_guest_begin(&to, MIB_PAGES);
	restore(&to, small.file, text);
	assert_string_equal(text, "The file is not a checkpoint.");
	fake_guest_end(&to);
	memset(small.bytes, 0, 4096);
	fake_guest_begin(&to, MIB_PAGES);
	restore(&to, small.file, text);
	assert_non_null(strstr(text, "never finished"));
	fake_guest_end(&to);
	small_end(&small);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_saved_guest_comes_back),
		cmocka_unit_test(a_guest_saved_while_it_runs_comes_back),
		cmocka_unit_test(a_last_extent_that_is_not_full_comes_back),
		cmocka_unit_test(a_lost_page_ends_the_save),
		cmocka_unit_test(storage_that_buffers_is_asked_in_between),
		cmocka_unit_test(an_abandoned_save_leaves_the_guest_untracked),
		cmocka_unit_test(disks_are_flushed_while_the_guest_stands_still),
		cmocka_unit_test(a_disk_that_cannot_be_flushed_fails_the_save),
		cmocka_unit_test(a_guest_of_before_there_were_flushes_is_saved),
		cmocka_unit_test(a_file_too_small_for_the_guest_fails_the_save),
		cmocka_unit_test(another_reader_agrees),
		cmocka_unit_test(a_compressed_guest_comes_back),
		cmocka_unit_test(another_reader_agrees_about_compressed_ones),
		cmocka_unit_test(every_flipped_byte_is_refused_or_harmless),
		cmocka_unit_test(every_truncation_is_refused),
		cmocka_unit_test(verdicts_name_the_cause),
	};

	log_open("carry-save", LOG_WARNING_);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
