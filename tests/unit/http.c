/* What xend understands of HTTP, and what it says to the rest. */
#include "xend/http.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <cmocka.h>

static void a_head_is_taken_apart(void **state)
{
	char text[] = "POST /domains/7/pause?history=1 HTTP/1.1\r\nHost: localhost\r\ncontent-length:  12 "
		      "\r\nExpect: "
		      "100-Continue",
	     plain[] = "GET / HTTP/1.0";
	struct http_head head;
	struct error error;

	(void)state;
	assert_int_equal(http_parse_head(text, &head, &error), 0);
	assert_string_equal(head.method, "POST");
	assert_string_equal(head.path, "/domains/7/pause");
	assert_string_equal(head.query, "history=1");
	assert_int_equal(head.body, 12);
	assert_true(head.expects);
	assert_int_equal(http_parse_head(plain, &head, &error), 0);
	assert_string_equal(head.path, "/");
	assert_string_equal(head.query, "");
	assert_int_equal(head.body, 0);
	assert_false(head.expects);
}

static void what_is_no_request_gets_a_sentence(void **state)
{
	static const struct {
		const char *text, *sentence;
		int status;
	} wrong[] = {
		{"", "no request of HTTP/1.1", 400},
		{"GET", "no request of HTTP/1.1", 400},
		{"GET ", "no request of HTTP/1.1", 400},
		{"GET /", "no request of HTTP/1.1", 400},
		{" / HTTP/1.1", "no request of HTTP/1.1", 400},
		{"GET  HTTP/1.1", "no request of HTTP/1.1", 400},
		{"GET / x HTTP/1.1", "no request of HTTP/1.1", 400},
		{"GET ?x HTTP/1.1", "no request of HTTP/1.1", 400},
		{"GET / HTTP/2", "no request of HTTP/1.1", 400},
		{"GET / HTTP/1.1\r\nnonsense", "a line that is no header: 'nonsense'", 400},
		{"GET / HTTP/1.1\r\n: x", "a line that is no header", 400},
		{"GET / HTTP/1.1\r\nContent-Length: x", "Content-Length is no number", 400},
		{"GET / HTTP/1.1\r\nContent-Length:", "Content-Length is no number", 400},
		{"GET / HTTP/1.1\r\nContent-Length: -1", "Content-Length is no number", 400},
		{"GET / HTTP/1.1\r\nContent-Length: 1 1", "Content-Length is no number", 400},
		{"GET / HTTP/1.1\r\nContent-Length: 1048577", "at most 1048576 bytes", 413},
		{"GET / HTTP/1.1\r\nContent-Length: 99999999999999999999", "at most 1048576 bytes", 413},
		{"GET / HTTP/1.1\r\nTransfer-Encoding: chunked", "no request in pieces", 501},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		struct error error = {0};
		struct http_head head;
		char text[200];

		strcpy(text, wrong[i].text);
		assert_true(http_parse_head(text, &head, &error) < 0);
		assert_non_null(strstr(error.text, wrong[i].sentence));
		assert_int_equal(http_status(error.code), wrong[i].status);
	}
}

static void errors_have_their_status(void **state)
{
	(void)state;
	assert_int_equal(http_status(ENOENT), 404);
	assert_int_equal(http_status(EBUSY), 409);
	assert_int_equal(http_status(EINVAL), 400);
	assert_int_equal(http_status(EIO), 500);
	assert_int_equal(http_status(0), 500);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_head_is_taken_apart),
		cmocka_unit_test(what_is_no_request_gets_a_sentence),
		cmocka_unit_test(errors_have_their_status),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
