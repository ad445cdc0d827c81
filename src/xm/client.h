/*
 * xend's API (docs/internal/api.md) over its unix socket.
 *
 * client_call is one request with a JSON answer. What lasts longer is a
 * transfer: started, waited for together with descriptors of the caller's (the
 * terminal, signals), and finished, which turns what went wrong into a sentence.
 */
#pragma once

#include "base/buffer.h"
#include "base/error.h"
#include "xm/http.h"

#include <jansson.h>
#include <poll.h>
#include <stdbool.h>
#include <time.h>

struct client {
	struct transfer *transfers; /* those that were started and not yet freed; not owned */
	char *socket;               /* owned: path of xend's socket */
	char *complaint; /* owned: what is wrong in xend's configuration, which then does not count; NULL:
			    nothing */
};

#define _cleanup_client_ __attribute__((cleanup(client_close)))

/* The socket is the environment's XEND_SOCKET, or xend-unix-path of xend's configuration. Connects to nothing
 * yet. */
int client_open(struct client *client, struct error *error);
void client_close(struct client *client);

/* Takes bytes of a good answer as they arrive; a negative errno ends the transfer. */
typedef int (*receive_function)(void *context, const char *bytes, size_t size, struct error *error);

struct transfer {
	struct client *client;
	struct transfer *next; /* of the client's */
	bool started;          /* and not yet freed */
	int connection;        /* once started: -1 as long as xend has no room for a connection */
	struct buffer request; /* what is sent, */
	size_t sent;           /* and how much of it was */
	struct http_answer http;
	struct buffer answer; /* what came, where there is no `receive`, or of a 4xx or 5xx answer */
	receive_function receive;
	void *context;
	struct error error; /* why it ended early */
	bool ended;
};

#define _cleanup_transfer_ __attribute__((cleanup(transfer_free)))

/*
 * Begins a request; `body` (size bytes of type `content_type`) is copied, NULL: none. `transfer` must be all
 * zero, and stay where it is until it is freed.
 */
int transfer_start(struct transfer *transfer, struct client *client, const char *method, const char *path,
	const void *body, size_t size, const char *content_type, receive_function receive, void *context,
	struct error *error);

/* Whether a good answer has begun to arrive. */
bool transfer_is_answered(const struct transfer *transfer);

/* Once ended: 0, or a negative errno with what xend says, or why there is no answer. */
int transfer_result(struct transfer *transfer, struct error *error);

/* Also breaks off what has not ended. */
void transfer_free(struct transfer *transfer);

/*
 * Lets the client's transfers go on until one makes progress, one of the caller's descriptors is ready (its
 * revents is then set), or timeout_ms have passed (-1: for ever).
 */
int client_wait(struct client *client, struct pollfd *descriptors, unsigned count, int timeout_ms,
	struct error *error);

/* For how long something takes: by a clock that nobody sets. */
time_t steady_seconds(void);

/* One request and its whole answer. With timeout_s 0 it may take for ever. The answer is NUL-terminated. */
int client_fetch(struct client *client, const char *method, const char *path, const json_t *body,
	struct buffer *answer, int timeout_s, struct error *error);

/* The same with a JSON object as answer; `reply` may be NULL. */
int client_call(struct client *client, const char *method, const char *path, const json_t *body,
	json_t **reply, struct error *error);
