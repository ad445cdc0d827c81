/*
 * The sockets that the relocation port is listened to by: those of every address where none is given, else of
 * the one that is. An address that is not there, or is another program's, is waited for.
 */
#pragma once

#include <poll.h>
#include <stdbool.h>
#include <sys/socket.h>

#define LISTENING_MAX 8u

struct listening {
	const char *host; /* as configured; "": every address */
	unsigned port;
	struct listener {
		int socket; /* owned */
		struct sockaddr_storage address;
	} listeners[LISTENING_MAX];
	unsigned count;
	bool complete, told;
	long long next_try_ms, paused_until_ms;
};

/* Tries at once. `host` is borrowed. */
void listening_begin(struct listening *listening, const char *host, unsigned port);

/* Fills in what is to be polled; tries again where it is time to. Returns how many. */
unsigned listening_poll(struct listening *listening, struct pollfd *ready, long long now_ms);

/* In how many ms listening_poll is due; -1: never. */
int listening_patience(const struct listening *listening, long long now_ms);

/* Takes what has come, a bounded number. The socket is the callee's. */
void listening_accept(struct listening *listening, const struct pollfd *ready, unsigned count,
	void (*arrived)(void *context, int socket, const struct sockaddr *address, socklen_t size),
	void *context);

void listening_close(struct listening *listening);
