/*
 * HTTP/1.1 on a listening socket, as far as xend's API needs it: one request a connection, answered whole or
 * as a stream; the connection ends with its answer. Everything here happens on the loop's thread.
 *
 * Connections are bounded, by number and by what they may send: where too many have not said what they want,
 * the one that has waited longest is closed, and whoever comes when all places are taken, or no descriptor is
 * left, is told so. What cannot be understood is answered with a sentence.
 */
#pragma once

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>

struct evbuffer;
struct event_base;
struct http_request;

#define HTTP_HEAD_MAX 16384
#define HTTP_BODY_MAX 1048576
#define HTTP_NO_DESCRIPTORS "xend has no file descriptors left; try again in a moment."

/* What a request's head says. The texts are in what was parsed. */
struct http_head {
	const char *method, *path, *query; /* "": none */
	size_t body;
	bool expects; /* that it is told to go on (100-continue) */
};

/* `text`, NUL-terminated, is the head without its last empty line, and is cut into pieces. The error's code
 * is what http_status understands. */
int http_parse_head(char *text, struct http_head *head, struct error *error);

/* Which status an errno is. */
int http_status(int code);

/* Answers what comes in on `listening`, a socket that it takes over, until the process ends: `handle` is
 * called with each request that has arrived whole, and answers it some time. */
int http_serve(struct event_base *base, int listening,
	void (*handle)(struct http_request *request, void *context), void *context, struct error *error);

/* How many streams there may be, so that places are left for others. */
unsigned http_streams_max(void);

const struct http_head *http_head(const struct http_request *request);
/* NUL-terminated. */
const char *http_body(const struct http_request *request, size_t *size);

/* left(context) when the client has gone before the answer's end, written(context) whenever it has taken all
 * of it so far. */
void http_watch(struct http_request *request, void (*left)(void *context), void (*written)(void *context),
	void *context);

/* The answer, whole: the request is gone afterwards, and nobody watches it any more. `data` (NULL: nothing)
 * is emptied. */
void http_answer(struct http_request *request, int status, const char *type, struct evbuffer *data);

/* The same with the error's sentence. */
void http_refuse(struct http_request *request, const struct error *error);

/* The answer as a stream; after http_end the request is gone, and nobody watches it any more. */
void http_begin(struct http_request *request, int status, const char *type);
void http_chunk(struct http_request *request, struct evbuffer *data);
void http_end(struct http_request *request);
