/*
 * The answer to one API request, given by a worker: either whole, or as a stream
 * of lines or bytes whose client may leave at any time.
 *
 * The HTTP connection belongs to the loop's thread; these functions may be called
 * from any thread and only hand over what is to be written.
 */
#pragma once

#include "base/error.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

struct http_request;
struct reply;
struct xend;

/* For a request whose handler has just been called, on the loop's thread. NULL when out of memory. */
struct reply *reply_new(struct xend *xend, struct http_request *request);
struct reply *reply_ref(struct reply *reply);
void reply_unref(struct reply *reply);

/* A whole answer; `body` is consumed. */
void reply_json(struct reply *reply, int status, json_t *body);
/* 4xx or 5xx with the sentence; the last line of a stream that has begun. */
void reply_error(struct reply *reply, const struct error *error);

/* Begins a chunked answer of that content type; then lines of JSON (consumed), or bytes; then the end. Of a
 * client that does not read, lines of progress are dropped. */
void reply_stream(struct reply *reply, const char *type);
void reply_line(struct reply *reply, json_t *line);
void reply_bytes(struct reply *reply, const void *data, size_t size);
void reply_end(struct reply *reply);

/* An eventfd that becomes readable when the client has gone before the answer's end. Borrowed. */
int reply_cancel_fd(const struct reply *reply);
bool reply_gone(struct reply *reply);

/* Bytes handed over and not yet taken by the client's socket. */
size_t reply_backlog(struct reply *reply);
