/*
 * Channels: JSON messages with file descriptors between Ferry's own processes
 * (xend, ferry-guest, ferry-carrier) over SOCK_SEQPACKET unix sockets.
 *
 * One datagram is one JSON object of at most CHANNEL_MESSAGE_MAX bytes, with up
 * to CHANNEL_FDS_MAX descriptors. Inside the JSON a descriptor is written as
 * {"fd": N}, N being its place in the message. Larger things travel in a memfd.
 *
 * Requests:  {"do": "verb", …}          answered, in order, by
 * replies:   {"ok": true, …}  or  {"error": "sentence", "errno": N}
 * events:    {"event": "name", …}       unasked, at any time
 *
 * What the verbs are: docs/internal/guest-control.md and carrier-jobs.md.
 */
#pragma once

#include "base/error.h"

#include <jansson.h>

#define CHANNEL_MESSAGE_MAX 65536
#define CHANNEL_FDS_MAX 64

struct message {
	json_t *body;             /* owned, an object */
	int fds[CHANNEL_FDS_MAX]; /* owned; -1 once taken */
	unsigned fd_count;
};

#define _cleanup_message_ __attribute__((cleanup(message_free)))

void message_free(struct message *message);

/*
 * Takes the descriptor that member `key` ({"fd": N}) names out of the message:
 * the caller owns it. Returns -ENOENT where there is none (no sentence), -EINVAL with a
 * sentence where it is malformed.
 */
int message_take_fd(struct message *message, const json_t *object, const char *key, struct error *error);

/* Sends one message. Blocks on a blocking socket; -EAGAIN on a full non-blocking one. Descriptors stay the
 * caller's. */
int channel_send(int socket, const json_t *body, const int *fds, unsigned fd_count, struct error *error);

/*
 * Receives one message into `message` (which need not be initialised). Returns
 * -EAGAIN where a non-blocking socket has none, -EPIPE when the other side has closed.
 */
int channel_receive(int socket, struct message *message, struct error *error);

/*
 * One request and its reply, waiting at most timeout_ms (-1: for ever). Events
 * that arrive in between are dropped, so use it on a channel of its own. A reply
 * {"error": …} becomes the error. `reply` may be NULL.
 */
int channel_call(int socket, const json_t *request, const int *fds, unsigned fd_count, struct message *reply,
	int timeout_ms, struct error *error);

/* Sends {"error": sentence, "errno": code}. */
int channel_reply_error(int socket, const struct error *error);

/* Fills error from {"error": …, "errno": …}; returns 0 where the body carries none. */
int channel_error_of(const json_t *body, struct error *error);
