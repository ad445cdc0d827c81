#include "xm/http.h"

#include "base/cleanup.h"

#include <errno.h>
#include <string.h>
#include <strings.h>

#define VERSION "HTTP/1."

void http_request(struct buffer *request, const char *method, const char *path, const char *content_type,
	const void *body, size_t size)
{
	char length[32];
	const char *const parts[] = {method, " ", path, " HTTP/1.1\r\nHost: xend\r\nConnection: close\r\n"};
	const char *const about_body[] = {
		"Content-Type: ", content_type, "\r\nContent-Length: ", length, "\r\n"};
	bool has_body = body || !strcmp(method, "POST");

	snprintf(length, sizeof(length), "%zu", body ? size : 0);
	for (size_t i = 0; i < ARRAY_SIZE(parts); i++)
		buffer_append(request, parts[i], strlen(parts[i]));
	for (size_t i = 0; has_body && i < ARRAY_SIZE(about_body); i++)
		buffer_append(request, about_body[i], strlen(about_body[i]));
	buffer_append(request, "\r\n", 2);
	if (body)
		buffer_append(request, body, size);
}

static int fault(struct http_answer *answer, const char *what)
{
	answer->fault = what;
	return -EPROTO;
}

static unsigned digit(char c)
{
	if (c >= '0' && c <= '9')
		return (unsigned)(c - '0');
	c = (char)(c | 0x20);
	return c >= 'a' && c <= 'f' ? (unsigned)(c - 'a') + 10 : 16;
}

/* The number that `text` begins with; returns what is behind it, NULL where there is none or too large a one.
 */
static const char *take_number(const char *text, unsigned base, uint64_t *number)
{
	const char *at = text;

	*number = 0;
	for (; digit(*at) < base; at++)
		if (__builtin_mul_overflow(*number, base, number) ||
			__builtin_add_overflow(*number, digit(*at), number))
			return NULL;
	return at == text ? NULL : at;
}

static const char *skip_blanks(const char *text)
{
	return text + strspn(text, " \t");
}

/* 4: HTTP-version SP status-code SP [reason] */
static int take_status_line(struct http_answer *answer)
{
	const char *minor = answer->line + strlen(VERSION), *code = minor + 2, *end;
	uint64_t status = 0;

	if (strncmp(answer->line, VERSION, strlen(VERSION)) != 0 || digit(*minor) >= 10 || minor[1] != ' ')
		return fault(answer, "no HTTP status line");
	end = take_number(code, 10, &status);
	if (!end || end != code + 3 || (*end && *end != ' ') || status < 100 || status > 599)
		return fault(answer, "no HTTP status");
	answer->announced = (int)status;
	answer->has_length = answer->is_chunked = false;
	answer->left = 0;
	answer->part = HTTP_HEADERS;
	return 0;
}

static int take_length(struct http_answer *answer, const char *value)
{
	uint64_t length;
	const char *end = take_number(value, 10, &length);

	if (!end || *skip_blanks(end) || (answer->has_length && answer->left != length))
		return fault(answer, "a Content-Length that is none");
	answer->has_length = true;
	answer->left = length;
	return 0;
}

static int take_encoding(struct http_answer *answer, const char *value)
{
	const char *end = value + strcspn(value, " \t");

	if (answer->is_chunked || end - value != 7 || strncasecmp(value, "chunked", 7) != 0 ||
		*skip_blanks(end))
		return fault(answer, "an unknown Transfer-Encoding");
	answer->is_chunked = true;
	return 0;
}

/* 5: field-name ":" OWS field-value OWS; a line that goes on with the one before (5.2) counts as none. */
static int take_header(struct http_answer *answer)
{
	static const struct {
		const char *name;
		int (*take)(struct http_answer *answer, const char *value);
	} known[] = {{"Content-Length", take_length}, {"Transfer-Encoding", take_encoding}};
	size_t name = strcspn(answer->line, ": \t");

	if (!name || answer->line[name] != ':')
		return fault(answer, "a line that is no header");
	for (size_t i = 0; i < ARRAY_SIZE(known); i++)
		if (strlen(known[i].name) == name && !strncasecmp(known[i].name, answer->line, name))
			return known[i].take(answer, skip_blanks(answer->line + name + 1));
	return 0;
}

/* The empty line behind the headers: 6.3 says what comes then. */
static int end_headers(struct http_answer *answer)
{
	if (answer->announced < 200) { /* 1xx: the answer proper follows */
		answer->part = HTTP_STATUS_LINE;
		return 0;
	}
	if (answer->is_chunked && answer->has_length)
		return fault(answer, "Content-Length and Transfer-Encoding at once");
	answer->status = answer->announced;
	answer->head_size = 0;
	if (answer->status == 204 || answer->status == 304)
		answer->part = HTTP_COMPLETE;
	else if (answer->is_chunked)
		answer->part = HTTP_CHUNK_SIZE;
	else if (answer->has_length)
		answer->part = answer->left ? HTTP_BODY : HTTP_COMPLETE;
	else
		answer->part = HTTP_BODY_TO_END;
	return 0;
}

/* 7.1: chunk-size [chunk-ext] */
static int take_chunk_size(struct http_answer *answer)
{
	const char *end = take_number(answer->line, 16, &answer->left);

	end = end ? skip_blanks(end) : NULL;
	if (!end || (*end && *end != ';'))
		return fault(answer, "a chunk without a size");
	answer->part = answer->left ? HTTP_CHUNK : HTTP_TRAILERS;
	answer->head_size = 0;
	return 0;
}

static int take_line(struct http_answer *answer)
{
	bool is_empty = !*answer->line;

	switch (answer->part) {
	case HTTP_STATUS_LINE:
		return take_status_line(answer);
	case HTTP_HEADERS:
		return is_empty ? end_headers(answer) : take_header(answer);
	case HTTP_CHUNK_SIZE:
		return take_chunk_size(answer);
	case HTTP_CHUNK_END:
		if (!is_empty)
			return fault(answer, "a chunk that is longer than its size");
		answer->part = HTTP_CHUNK_SIZE;
		return 0;
	default: /* a trailer means nothing to xm */
		if (is_empty)
			answer->part = HTTP_COMPLETE;
		return 0;
	}
}

/*
 * A byte of a line, the one place where lines are bounded. They end in CR LF, or in LF alone (2.2); a CR or
 * NUL within a line is a fault.
 */
static int take_line_byte(struct http_answer *answer, char byte)
{
	size_t at = answer->line_size;
	bool after_cr = at && answer->line[at - 1] == '\r';
	int r;

	if (++answer->head_size > HTTP_HEAD_MAX)
		return fault(answer, "too many headers");
	if (byte == '\n') {
		answer->line[after_cr ? at - 1 : at] = '\0';
		r = take_line(answer);
		answer->line_size = 0;
		return r;
	}
	/* What speaks something else is not waited for until its line ends. */
	if (answer->part == HTTP_STATUS_LINE && at < strlen(VERSION) && byte != VERSION[at])
		return fault(answer, "no HTTP");
	if (after_cr || !byte)
		return fault(answer, "a line with a byte that no HTTP has");
	if (at == HTTP_LINE_MAX && byte != '\r')
		return fault(answer, "a line too long");
	answer->line[answer->line_size++] = byte;
	return 0;
}

/* Counted bytes of the body, or those up to the end; gives how many of `size` they are. */
static size_t body_bytes(const struct http_answer *answer, size_t size)
{
	switch (answer->part) {
	case HTTP_BODY:
	case HTTP_CHUNK:
		return size < answer->left ? size : (size_t)answer->left;
	case HTTP_BODY_TO_END:
		return size;
	default:
		return 0;
	}
}

int http_answer_take(
	struct http_answer *answer, const char *bytes, size_t size, http_body_function body, void *context)
{
	int r = 0;

	while (r >= 0 && size && answer->part != HTTP_COMPLETE) {
		size_t taken = body_bytes(answer, size);

		if (taken) {
			r = body(context, bytes, taken);
			if (answer->part != HTTP_BODY_TO_END)
				answer->left -= taken;
			if (!answer->left && answer->part == HTTP_BODY)
				answer->part = HTTP_COMPLETE;
			else if (!answer->left && answer->part == HTTP_CHUNK)
				answer->part = HTTP_CHUNK_END;
		} else {
			taken = 1;
			r = take_line_byte(answer, *bytes);
		}
		bytes += taken;
		size -= taken;
	}
	return r < 0 ? r : 0;
}

int http_answer_end(struct http_answer *answer)
{
	if (answer->part == HTTP_BODY_TO_END)
		answer->part = HTTP_COMPLETE;
	return answer->part == HTTP_COMPLETE ? 0 : -EPIPE;
}
