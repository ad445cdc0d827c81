/* Errors, buffers, bitmaps, channels and the log. */
#include "base/bitmap.h"
#include "base/buffer.h"
#include "base/channel.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/log.h"
#include "base/printable.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <regex.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <cmocka.h>

static void an_error_keeps_code_and_context(void **state)
{
	struct error error = {0};

	(void)state;
	assert_int_equal(error_set(&error, ENOENT, "No %s.", "disk"), -ENOENT);
	assert_int_equal(error_prefix(&error, "Guest %d: ", 7), -ENOENT);
	assert_string_equal(error.text, "Guest 7: No disk.");
	assert_int_equal(error_set(NULL, -EIO, "dropped"), -EIO);
}

static void a_cursor_never_reads_past_its_end(void **state)
{
	_cleanup_buffer_ struct buffer out = {0};
	struct cursor in;

	(void)state;
	buffer_u16(&out, 0x1234);
	buffer_u32(&out, 7);
	in = cursor_over(out.data, out.size);
	assert_int_equal(cursor_u16(&in), 0x1234);
	assert_int_equal(cursor_u64(&in), 0);
	assert_true(in.failed);
	assert_int_equal(cursor_left(&in), 0);
	assert_null(cursor_take(&in, 1));
}

static void bitmap_runs_cross_words(void **state)
{
	uint64_t map[3] = {0}, start;

	(void)state;
	for (uint64_t bit = 60; bit < 130; bit++)
		bitmap_set(map, bit);
	assert_int_equal(bitmap_count(map, 192), 70);
	assert_int_equal(bitmap_run(map, 192, 0, &start), 70);
	assert_int_equal(start, 60);
	assert_int_equal(bitmap_run(map, 192, 130, &start), 0);
	assert_int_equal(start, 192);
	assert_int_equal(bitmap_run(map, 100, 61, &start), 39);
	assert_int_equal(bitmap_count(map, 61), 1);
}

static void what_others_write_is_shown_not_obeyed(void **state)
{
	static const struct {
		const char *text, *line, *lines; /* NULL: as the line */
	} cases[] = {
		{"Plain text, 100 %, \\n", "Plain text, 100 %, \\n", NULL},
		{"\x1b[31mred\x1b]0;title\a", "\\x1b[31mred\\x1b]0;title\\x07", NULL},
		{"one\ntwo\tthree\r", "one\\ntwo\\tthree\\r", "one\ntwo\tthree\\r"},
		{"del \x7f", "del \\x7f", NULL},
		{"caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80", "caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80",
			NULL},
		{"C1 \xc2\x9b"
		 "31m",
			"C1 \\u{9b}31m", NULL},
		{"bidi \xe2\x80\xae"
		 "cba\xe2\x81\xa6",
			"bidi \\u{202e}cba\\u{2066}", NULL},
		{"lines \xe2\x80\xa8\xe2\x80\xa9", "lines \\u{2028}\\u{2029}", NULL},
		{"invisible \xef\xbb\xbf\xe2\x80\x8b", "invisible \\u{feff}\\u{200b}", NULL},
		{"tag \xf3\xa0\x81\x81", "tag \\u{e0041}", NULL},
		{"Latin-1 caf\xe9.", "Latin-1 caf\\xe9.", NULL},
		{"raw C1 \x9b"
		 "31m",
			"raw C1 \\x9b31m", NULL},
		{"overlong \xc0\x9b\xe0\x82\x9b", "overlong \\xc0\\x9b\\xe0\\x82\\x9b", NULL},
		{"surrogate \xed\xa0\x80", "surrogate \\xed\\xa0\\x80", NULL},
		{"beyond \xf4\x90\x80\x80", "beyond \\xf4\\x90\\x80\\x80", NULL},
		{"cut \xe2\x82", "cut \\xe2\\x82", NULL},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		_cleanup_free_ char *line = printable_copy(cases[i].text, PRINTABLE_LINE),
				    *lines = printable_copy(cases[i].text, PRINTABLE_LINES);

		assert_string_equal(line, cases[i].line);
		assert_string_equal(lines, cases[i].lines ? cases[i].lines : cases[i].line);
	}
}

static void what_is_shown_ends_between_characters(void **state)
{
	static const char text[] = "a\xe2\x82\xac\x1b";
	char out[16];

	(void)state;
	for (size_t size = 1; size <= sizeof(out); size++) {
		size_t length = printable(text, sizeof(text) - 1, PRINTABLE_LINE, out, size);

		assert_int_equal(length, size < 2 ? 0 : size < 5 ? 1 : size < 9 ? 4 : 8);
		assert_int_equal(out[length], 0);
	}
	/* A NUL is a control like others. */
	assert_int_equal(printable("a\0b", 3, PRINTABLE_LINE, out, sizeof(out)), 6);
	assert_string_equal(out, "a\\x00b");
}

static void all_of_an_answer_is_shown_not_obeyed(void **state)
{
	_cleanup_json_ json_t *json = json_pack("{s:s, s:[{s:s}, s], s:{s:i}}", "error", "a\n\x1b", "list",
		"name", "b\n", "\x1b", "number", "n", 7);
	_cleanup_json_ json_t *shown = json_pack("{s:s, s:[{s:s}, s], s:{s:i}}", "error", "a\n\\x1b", "list",
		"name", "b\\n", "\\x1b", "number", "n", 7);

	(void)state;
	printable_json(json);
	assert_true(json_equal(json, shown));
}

static void a_channel_carries_json_and_descriptors(void **state)
{
	int pair[2];
	_cleanup_json_ json_t *body = json_pack("{s:s, s:{s:i}}", "do", "look", "file", "fd", 0);
	_cleanup_message_ struct message message = {0};
	_cleanup_close_ int fd = -1;

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair), 0);
	assert_int_equal(channel_send(pair[0], body, &pair[0], 1, NULL), 0);
	assert_int_equal(channel_receive(pair[1], &message, NULL), 0);
	assert_string_equal(json_string_value(json_object_get(message.body, "do")), "look");
	fd = message_take_fd(&message, message.body, "file", NULL);
	assert_true(fd >= 0);
	assert_int_equal(message_take_fd(&message, message.body, "file", NULL), -EINVAL);
	assert_int_equal(message_take_fd(&message, message.body, "other", NULL), -ENOENT);
	close(pair[0]);
	close(pair[1]);
}

/* A sentence that holds a path in Latin-1, or was cut in the middle of a character, is heard all the same. */
static void a_channel_carries_any_sentence(void **state)
{
	struct error error, heard;
	_cleanup_message_ struct message message = {0};
	int pair[2];

	(void)state;
	error_set(&error, ENOENT, "Unable to read caf\xe9: \xe2\x82");
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair), 0);
	assert_int_equal(channel_reply_error(pair[0], &error), 0);
	assert_int_equal(channel_receive(pair[1], &message, NULL), 0);
	assert_int_equal(channel_error_of(message.body, &heard), -ENOENT);
	assert_string_equal(heard.text, "Unable to read caf\\xe9: \\xe2\\x82");
	close(pair[0]);
	close(pair[1]);
}

static void a_channel_refuses_what_is_not_json(void **state)
{
	int pair[2];
	struct message message;
	struct error error = {0};

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair), 0);
	assert_int_equal(send(pair[0], "{]", 2, 0), 2);
	assert_int_equal(channel_receive(pair[1], &message, &error), -EBADMSG);
	close(pair[0]);
	assert_int_equal(channel_receive(pair[1], &message, &error), -EPIPE);
	close(pair[1]);
}

static void last_words_are_heard_though_ours_were_not(void **state)
{
	struct message message;
	json_t *body = json_pack("{s:s}", "event", "failed");
	int pair[2];

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair), 0);
	assert_int_equal(channel_send(pair[0], body, NULL, 0, NULL), 0);
	assert_int_equal(channel_send(pair[1], body, NULL, 0, NULL), 0);
	close(pair[0]);
	assert_int_equal(channel_receive(pair[1], &message, NULL), 0);
	message_free(&message);
	assert_int_equal(channel_receive(pair[1], &message, NULL), -EPIPE);
	close(pair[1]);
	json_decref(body);
}

/* Its time is over though there is always something more to read. */
static void who_does_not_stop_talking_does_not_answer(void **state)
{
	json_t *request = json_pack("{s:s}", "do", "status"), *event = json_pack("{s:s}", "event", "state");
	struct message reply;
	struct error error;
	int pair[2];

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair), 0);
	for (int i = 0; i < 3; i++)
		assert_int_equal(channel_send(pair[1], event, NULL, 0, NULL), 0);
	assert_int_equal(channel_call(pair[0], request, NULL, 0, &reply, 0, &error), -ETIMEDOUT);
	assert_string_equal(error.text, "No answer to 'status' within 0 ms.");
	assert_int_equal(channel_receive(pair[0], &reply, &error), 0);
	message_free(&reply);
	close(pair[0]);
	close(pair[1]);
	json_decref(request);
	json_decref(event);
}

/* What the log writes while `write_lines` runs. */
static void log_of(void (*write_lines)(void), char *text, size_t size)
{
	int file = memfd_create("log", 0), errors = dup(STDERR_FILENO);
	ssize_t length;

	assert_true(file >= 0 && errors >= 0 && dup2(file, STDERR_FILENO) >= 0);
	write_lines();
	assert_true(dup2(errors, STDERR_FILENO) >= 0);
	length = pread(file, text, size - 1, 0);
	assert_true(length >= 0);
	text[length] = 0;
	close(file);
	close(errors);
}

static unsigned count_of(const char *text, const char *word)
{
	unsigned count = 0;

	while ((text = strstr(text, word))) {
		count++;
		text++;
	}
	return count;
}

static void flood(void)
{
	for (int i = 0; i < 5000; i++) {
		log_warning("flood %d", i);
		log_seldom(LOG_WARNING_, "knock %d", i);
	}
	log_tell_counted(false); /* their time is not over */
	log_info("something else");
	log_tell_counted(true);
	log_tell_counted(true);
}

static void a_flood_of_lines_is_counted(void **state)
{
	static char text[65536];

	(void)state;
	log_of(flood, text, sizeof(text));
	assert_int_equal(count_of(text, "WARNING: flood "), 100);
	assert_non_null(strstr(text, "4900 more lines like this were left out: flood 4999\n"));
	assert_int_equal(count_of(text, "WARNING: knock "), 5);
	assert_non_null(strstr(text, "4995 more lines like this were left out: knock 4999\n"));
	assert_int_equal(count_of(text, "\n"), 108);
}

static void greet(void)
{
	log_info("Hello.");
}

static void forge(void)
{
	log_warning("Relocation from %s: bad name '%s'.", "10.0.0.2",
		"a\x1b[2J\n[2026-01-31 xend 1] INFO: Forged");
}

static void a_line_cannot_be_forged(void **state)
{
	char text[512];

	(void)state;
	log_of(forge, text, sizeof(text));
	assert_int_equal(count_of(text, "\n"), 1);
	assert_int_equal(count_of(text, "\x1b"), 0);
	assert_non_null(strstr(text, "bad name 'a\\x1b[2J\\n[2026-01-31 xend 1] INFO: Forged'."));
}

/* All that there is in the pipe. */
static void read_away(int pipe, char *text, size_t size)
{
	ssize_t length = 0, more;

	while ((more = read(pipe, text + length, size - 1 - (size_t)length)) > 0)
		length += more;
	text[length] = 0;
}

static void lines_that_nobody_reads_are_lost_and_counted(void **state)
{
	static char text[1 << 20];
	char filling[1024] = {0};
	int ends[2], errors = dup(STDERR_FILENO);
	unsigned fit;

	(void)state;
	assert_true(errors >= 0 && pipe2(ends, O_NONBLOCK) == 0 && dup2(ends[1], STDERR_FILENO) >= 0);
	while (write(ends[1], filling, sizeof(filling)) > 0)
		;
	for (int i = 0; i < 7; i++)
		greet();
	read_away(ends[0], text, sizeof(text));
	greet();
	greet();
	read_away(ends[0], text, sizeof(text));
	fit = count_of(text, "Hello.");
	assert_true(dup2(errors, STDERR_FILENO) >= 0);
	assert_int_equal(fit, 2);
	assert_int_equal(count_of(text, "WARNING: 7 lines were lost: they were not read in time.\n"), 1);
	close(ends[0]);
	close(ends[1]);
	close(errors);
}

static void lines_tell_the_local_time_and_its_offset(void **state)
{
	char text[256];
	regex_t line;

	(void)state;
	setenv("TZ", "XYZ-5:30", 1);
	tzset();
	log_of(greet, text, sizeof(text));
	unsetenv("TZ");
	tzset();
	assert_int_equal(
		regcomp(&line,
			"^\\[20[0-9-]{8} [0-9:]{8}\\.[0-9]{3} \\+0530 ferry [0-9]+\\] INFO: Hello\\.\n$",
			REG_EXTENDED | REG_NOSUB),
		0);
	assert_int_equal(regexec(&line, text, 0, NULL, 0), 0);
	regfree(&line);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(an_error_keeps_code_and_context),
		cmocka_unit_test(a_cursor_never_reads_past_its_end),
		cmocka_unit_test(bitmap_runs_cross_words),
		cmocka_unit_test(a_channel_carries_json_and_descriptors),
		cmocka_unit_test(a_channel_carries_any_sentence),
		cmocka_unit_test(a_channel_refuses_what_is_not_json),
		cmocka_unit_test(last_words_are_heard_though_ours_were_not),
		cmocka_unit_test(who_does_not_stop_talking_does_not_answer),
		cmocka_unit_test(what_others_write_is_shown_not_obeyed),
		cmocka_unit_test(what_is_shown_ends_between_characters),
		cmocka_unit_test(all_of_an_answer_is_shown_not_obeyed),
		cmocka_unit_test(a_line_cannot_be_forged),
		cmocka_unit_test(a_flood_of_lines_is_counted),
		cmocka_unit_test(lines_that_nobody_reads_are_lost_and_counted),
		cmocka_unit_test(lines_tell_the_local_time_and_its_offset),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
