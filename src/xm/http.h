/*
 * The HTTP/1.1 that xm speaks with xend: a request, and its answer, taken in
 * the pieces in which it comes. One connection carries one request, and the
 * numbers of sections here and in http.c are RFC 9112's.
 *
 *	struct http_answer answer = {0};
 *	while (answer.part != HTTP_COMPLETE && (size = recv(...)) > 0)
 *		http_answer_take(&answer, bytes, size, body, context);
 *
 * The result is the same however the answer is cut into pieces. The answer is
 * understood as far as xm needs: of the headers only those that say where the
 * body ends. What is not HTTP, or ambiguous, is a fault and no guess is made.
 */
#pragma once

#include "base/buffer.h"

#include <stddef.h>
#include <stdint.h>

#define HTTP_LINE_MAX 4096  /* bytes of a line, without its end */
#define HTTP_HEAD_MAX 65536 /* bytes of all status lines and headers, and again of the trailers */

/* Writes a whole request; `path` has to be of visible characters. `size` bytes of `body` follow, NULL: none.
 */
void http_request(struct buffer *request, const char *method, const char *path, const char *content_type,
	const void *body, size_t size);

/* What comes next. */
enum http_part {
	HTTP_STATUS_LINE,
	HTTP_HEADERS,
	HTTP_BODY,        /* of a known length */
	HTTP_BODY_TO_END, /* up to the end of the connection */
	HTTP_CHUNK_SIZE,  /* 7.1: a body in chunks */
	HTTP_CHUNK,
	HTTP_CHUNK_END,
	HTTP_TRAILERS,
	HTTP_COMPLETE, /* nothing: what follows is ignored */
};

/* All zero at first. */
struct http_answer {
	enum http_part part;
	int status;        /* from when the headers are complete; 0 before */
	const char *fault; /* why this is not HTTP, a constant; NULL as long as it is */
	int announced;     /* the status, while the headers are not complete */
	bool has_length, is_chunked;
	uint64_t left; /* bytes of the body or of the chunk that have yet to come */
	size_t head_size, line_size;
	char line[HTTP_LINE_MAX + 1]; /* as much as has come of it */
};

/* Takes bytes of the body. A negative errno ends the answer. */
typedef int (*http_body_function)(void *context, const char *bytes, size_t size);

/*
 * The next bytes of the answer, whose body goes to `body` as it comes. Returns 0, -EPROTO with `fault` set,
 * or what `body` returned; after an error nothing more may be given.
 */
int http_answer_take(
	struct http_answer *answer, const char *bytes, size_t size, http_body_function body, void *context);

/* The connection has ended: 0 and complete, or -EPIPE where something is missing. */
int http_answer_end(struct http_answer *answer);
