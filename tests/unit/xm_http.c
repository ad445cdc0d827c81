/* xm's HTTP: requests as written, answers whole, cut up, cut short, and wrong. */
#include "base/buffer.h"
#include "base/cleanup.h"
#include "xm/http.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <cmocka.h>

#define OK "HTTP/1.1 200 OK\r\n"
#define CHUNKED OK "Transfer-Encoding: chunked\r\n\r\n"

/* What has come of an answer: whole, taken, or wrong. */
struct outcome {
	int r, end; /* of http_answer_take and http_answer_end */
	int status;
	const char *fault;
	struct buffer body;
};

static int keep(void *context, const char *bytes, size_t size)
{
	struct buffer *body = context;

	assert_true(size > 0);
	buffer_append(body, bytes, size);
	return 0;
}

/* Takes the pieces before and behind the cuts; pieces lie in memory of just their size, for sanitizers to
 * see. */
static struct outcome take(const char *bytes, size_t size, size_t first, size_t second)
{
	struct http_answer answer = {0};
	struct outcome outcome = {0};
	const size_t ends[] = {first, second, size};
	size_t at = 0;

	for (size_t i = 0; i < ARRAY_SIZE(ends) && outcome.r >= 0; i++) {
		_cleanup_free_ char *piece = malloc(ends[i] - at + 1);

		assert_non_null(piece);
		memcpy(piece, bytes + at, ends[i] - at);
		outcome.r = http_answer_take(&answer, piece, ends[i] - at, keep, &outcome.body);
		at = ends[i];
	}
	outcome.status = answer.status;
	outcome.fault = answer.fault;
	outcome.end = outcome.r < 0 ? outcome.r : http_answer_end(&answer);
	return outcome;
}

static void check(const char *bytes, size_t size, size_t first, size_t second, const struct outcome *expected)
{
	struct outcome outcome = take(bytes, size, first, second);

	assert_int_equal(outcome.r, expected->r);
	assert_int_equal(outcome.end, expected->end);
	assert_int_equal(outcome.status, expected->status);
	assert_ptr_equal(outcome.fault, expected->fault);
	assert_int_equal(outcome.body.size, expected->body.size);
	if (outcome.body.size)
		assert_memory_equal(outcome.body.data, expected->body.data, outcome.body.size);
	buffer_free(&outcome.body);
}

/* However it is cut into two, three or single bytes, the same comes of it. */
static void check_cuts(const char *bytes, size_t size, const struct outcome *expected)
{
	struct outcome bytewise = {0};
	struct http_answer answer = {0};

	for (size_t first = 0; first <= size; first++)
		for (size_t second = first; second <= size; second += second % 7 + 1)
			check(bytes, size, first, second, expected);
	for (size_t i = 0; i < size && bytewise.r >= 0; i++)
		bytewise.r = http_answer_take(&answer, bytes + i, 1, keep, &bytewise.body);
	assert_int_equal(bytewise.r, expected->r);
	assert_int_equal(bytewise.body.size, expected->body.size);
	buffer_free(&bytewise.body);
}

static const struct {
	const char *bytes;
	int status;
	const char *body;
	const char *behind; /* what is ignored at its end; NULL: it lasts as long as the connection */
} good[] = {
	{OK "Content-Length: 5\r\n\r\nhello", 200, "hello", ""},
	{OK "content-LENGTH:\t 5 \t\r\nX: y\r\n\r\nhello", 200, "hello", ""},
	{OK "Content-Length: 5\r\nContent-Length: 05\r\n\r\nhelloHTTP/1.1", 200, "hello", "HTTP/1.1"},
	{OK "Content-Length: 0\r\n\r\n", 200, "", ""},
	{"HTTP/1.0 404 Not Found\nContent-Length: 2\n\n{}", 404, "{}", ""},
	{"HTTP/1.1 201\r\nContent-Length: 2\r\n\r\n{}", 201, "{}", ""},
	{"HTTP/1.1 204 \r\nX: y\r\n\r\n", 204, "", ""},
	{"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n", 304, "", ""},
	{OK "\r\nhello\r\n", 200, "hello\r\n", NULL},
	{OK "Connection: close\r\n\r\n", 200, "", NULL},
	{CHUNKED "5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n", 200, "hello!", ""},
	{CHUNKED "0\r\n\r\nmore", 200, "", "more"},
	{OK "Transfer-Encoding:  Chunked \r\n\r\n0000b;a=\"b\"\r\nhello world\r\n0 ; x\r\nA: "
	    "b\r\nB:c\r\n\r\n",
		200, "hello world", ""},
	{OK "transfer-encoding: chunked\n\nA\n0123456789\na \n0123456789\n0\n\n", 200, "01234567890123456789",
		""},
	{"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nContent-Length: 9\r\nLink: x\r\n\r\n" OK
	 "Content-Length: 2\r\n\r\n{}",
		200, "{}", ""},
};

static void answers_are_the_same_in_any_pieces(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
		struct outcome expected = {.status = good[i].status};

		buffer_append(&expected.body, good[i].body, strlen(good[i].body));
		check_cuts(good[i].bytes, strlen(good[i].bytes), &expected);
		buffer_free(&expected.body);
	}
}

static void only_a_body_has_any_byte(void **state)
{
	static const char body[] = OK "Content-Length: 4\r\n\r\n\0\r\n\xff", header[] = OK "A: \0\r\n";
	struct outcome outcome = take(body, sizeof(body) - 1, 7, 8);

	(void)state;
	assert_int_equal(outcome.end, 0);
	assert_int_equal(outcome.body.size, 4);
	assert_memory_equal(outcome.body.data, "\0\r\n\xff", 4);
	buffer_free(&outcome.body);
	outcome = take(header, sizeof(header) - 1, 7, 8);
	assert_int_equal(outcome.r, -EPROTO);
	assert_string_equal(outcome.fault, "a line with a byte that no HTTP has");
}

/* Without its last byte and with any fewer: never complete, never a fault, and no byte too many. */
static void an_answer_cut_short_is_noticed(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
		size_t whole = strlen(good[i].bytes) - (good[i].behind ? strlen(good[i].behind) : 0);

		for (size_t size = 0; good[i].behind && size < whole; size++) {
			struct outcome outcome = take(good[i].bytes, size, size / 2, size);

			assert_int_equal(outcome.r, 0);
			assert_int_equal(outcome.end, -EPIPE);
			assert_true(outcome.body.size <= strlen(good[i].body));
			buffer_free(&outcome.body);
		}
	}
}

static const struct {
	const char *bytes, *fault;
} wrong[] = {
	{"220 mail.example.org ESMTP\r\n", "no HTTP"},
	{"SSH-2.0", "no HTTP"},
	{"\r\n" OK, "no HTTP"},
	{"HTTP/2.0 200 OK\r\n", "no HTTP"},
	{"HTTP/1.\r\n", "no HTTP status line"},
	{"HTTP/1.x 200\r\n", "no HTTP status line"},
	{"HTTP/1.1\r\n", "no HTTP status line"},
	{"HTTP/1.1 \r\n", "no HTTP status"},
	{"HTTP/1.1 20\r\n", "no HTTP status"},
	{"HTTP/1.1 0200 OK\r\n", "no HTTP status"},
	{"HTTP/1.1 2000\r\n", "no HTTP status"},
	{"HTTP/1.1 099\r\n", "no HTTP status"},
	{"HTTP/1.1 600 No\r\n", "no HTTP status"},
	{"HTTP/1.1 20x OK\r\n", "no HTTP status"},
	{"HTTP/1.1 -20 OK\r\n", "no HTTP status"},
	{OK "a\rb: c\r\n", "a line with a byte that no HTTP has"},
	{OK "a: c\r\r\n", "a line with a byte that no HTTP has"},
	{OK "no colon\r\n", "a line that is no header"},
	{OK ": nameless\r\n", "a line that is no header"},
	{OK "Content-Length : 5\r\n", "a line that is no header"},
	{OK "A: b\r\n goes on\r\n", "a line that is no header"},
	{OK "Content-Length:\r\n", "a Content-Length that is none"},
	{OK "Content-Length: -1\r\n", "a Content-Length that is none"},
	{OK "Content-Length: 0x5\r\n", "a Content-Length that is none"},
	{OK "Content-Length: 5, 5\r\n", "a Content-Length that is none"},
	{OK "Content-Length: 18446744073709551616\r\n", "a Content-Length that is none"},
	{OK "Content-Length: 5\r\nContent-Length: 6\r\n", "a Content-Length that is none"},
	{OK "Transfer-Encoding: gzip\r\n", "an unknown Transfer-Encoding"},
	{OK "Transfer-Encoding: gzip, chunked\r\n", "an unknown Transfer-Encoding"},
	{OK "Transfer-Encoding: chunked, chunked\r\n", "an unknown Transfer-Encoding"},
	{OK "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "an unknown Transfer-Encoding"},
	{OK "Transfer-Encoding:\r\n", "an unknown Transfer-Encoding"},
	{OK "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
		"Content-Length and Transfer-Encoding at once"},
	{CHUNKED "\r\n", "a chunk without a size"},
	{CHUNKED "zz\r\n", "a chunk without a size"},
	{CHUNKED "-1\r\n", "a chunk without a size"},
	{CHUNKED " 5\r\n", "a chunk without a size"},
	{CHUNKED "5 5\r\n", "a chunk without a size"},
	{CHUNKED "0x5\r\n", "a chunk without a size"},
	{CHUNKED "10000000000000000\r\n", "a chunk without a size"},
	{CHUNKED "5\r\nhello\r\n;x\r\n", "a chunk without a size"},
	{CHUNKED "5\r\nhello!\r\n", "a chunk that is longer than its size"},
};

static void what_is_not_http_is_a_fault(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
		size_t size = strlen(wrong[i].bytes);
		struct outcome expected = take(wrong[i].bytes, size, size, size);

		assert_int_equal(expected.r, -EPROTO);
		assert_non_null(expected.fault);
		assert_string_equal(expected.fault, wrong[i].fault);
		check_cuts(wrong[i].bytes, size, &expected);
		buffer_free(&expected.body);
	}
}

/* The longest that is taken, and one byte more. */
static void lines_have_a_limit(void **state)
{
	static const struct {
		const char *before, *line;
	} lines[] = {{"", "HTTP/1.1 200 "}, {OK, "X:"}, {CHUNKED, "5;"}, {CHUNKED "0\r\n", "X:"}};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(lines); i++) {
		for (size_t over = 0; over < 2; over++) {
			_cleanup_buffer_ struct buffer bytes = {0};
			size_t padding = HTTP_LINE_MAX - strlen(lines[i].line) + over;
			struct outcome outcome;

			buffer_append(&bytes, lines[i].before, strlen(lines[i].before));
			buffer_append(&bytes, lines[i].line, strlen(lines[i].line));
			memset(buffer_extend(&bytes, padding), 'x', padding);
			buffer_append(&bytes, "\r\n", 2);
			outcome = take((char *)bytes.data, bytes.size, 9, bytes.size);
			assert_int_equal(outcome.r, over ? -EPROTO : 0);
			assert_int_equal(outcome.end, over ? -EPROTO : -EPIPE);
		}
	}
}

static void heads_have_a_limit(void **state)
{
	static const char *const heads[] = {OK "A: b\r\n", CHUNKED "0\r\nA: b\r\n",
		"HTTP/1.1 100 C\r\n\r\n"}; /* the last line again and again */

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(heads); i++) {
		_cleanup_buffer_ struct buffer bytes = {0};
		const char *again = i < 2 ? "A: b\r\n" : heads[i];
		struct outcome outcome;

		buffer_append(&bytes, heads[i], strlen(heads[i]));
		while (bytes.size + 2 * strlen(again) < HTTP_HEAD_MAX)
			buffer_append(&bytes, again, strlen(again));
		outcome = take((char *)bytes.data, bytes.size, 9, bytes.size);
		assert_int_equal(outcome.end, -EPIPE);
		while (bytes.size < HTTP_HEAD_MAX + 512)
			buffer_append(&bytes, again, strlen(again));
		outcome = take((char *)bytes.data, bytes.size, 9, bytes.size);
		assert_int_equal(outcome.r, -EPROTO);
		assert_string_equal(outcome.fault, "too many headers");
		buffer_free(&outcome.body);
	}
}

/* Many small chunks are no head, however long the answer lasts. */
static void a_stream_has_no_limit(void **state)
{
	struct http_answer answer = {0};
	struct buffer body = {0};

	(void)state;
	assert_int_equal(http_answer_take(&answer, CHUNKED, strlen(CHUNKED), keep, &body), 0);
	for (int i = 0; i < HTTP_HEAD_MAX; i++)
		assert_int_equal(http_answer_take(&answer, "1\r\nx\r\n", 6, keep, &body), 0);
	assert_int_equal(http_answer_take(&answer, "0\r\n\r\n", 5, keep, &body), 0);
	assert_int_equal(answer.part, HTTP_COMPLETE);
	assert_int_equal(body.size, HTTP_HEAD_MAX);
	buffer_free(&body);
}

static int refuse(void *context, const char *bytes, size_t size)
{
	(void)bytes;
	(void)size;
	++*(int *)context;
	return -EFBIG;
}

static void who_takes_the_body_can_end_it(void **state)
{
	struct http_answer answer = {0};
	const char *bytes = CHUNKED "1\r\nx\r\n1\r\ny\r\n0\r\n\r\n";
	int calls = 0;

	(void)state;
	assert_int_equal(http_answer_take(&answer, bytes, strlen(bytes), refuse, &calls), -EFBIG);
	assert_int_equal(calls, 1);
	assert_null(answer.fault);
}

static void requests_say_what_they_carry(void **state)
{
	static const struct {
		const char *method, *type, *body, *expected;
	} requests[] = {
		{"GET", "application/json", NULL,
			"GET /info HTTP/1.1\r\nHost: xend\r\nConnection: close\r\n\r\n"},
		{"POST", "application/json", NULL,
			"POST /info HTTP/1.1\r\nHost: xend\r\nConnection: close\r\n"
			"Content-Type: application/json\r\nContent-Length: 0\r\n\r\n"},
		{"POST", "application/octet-stream", "keys",
			"POST /info HTTP/1.1\r\nHost: xend\r\nConnection: close\r\n"
			"Content-Type: application/octet-stream\r\nContent-Length: 4\r\n\r\nkeys"},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(requests); i++) {
		_cleanup_buffer_ struct buffer request = {0};

		http_request(&request, requests[i].method, "/info", requests[i].type, requests[i].body,
			requests[i].body ? strlen(requests[i].body) : 0);
		assert_int_equal(request.size, strlen(requests[i].expected));
		assert_memory_equal(request.data, requests[i].expected, request.size);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(answers_are_the_same_in_any_pieces),
		cmocka_unit_test(only_a_body_has_any_byte),
		cmocka_unit_test(an_answer_cut_short_is_noticed),
		cmocka_unit_test(what_is_not_http_is_a_fault),
		cmocka_unit_test(lines_have_a_limit),
		cmocka_unit_test(heads_have_a_limit),
		cmocka_unit_test(a_stream_has_no_limit),
		cmocka_unit_test(who_takes_the_body_can_end_it),
		cmocka_unit_test(requests_say_what_they_carry),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
