/*
 * The line to the peer: all of it that the carrier sends and receives goes through
 * here. It is TLS where the job has `secure` (tls.h), and a stream socket as it is where it has not.
 *
 * Every call gives up when xend gives the job up (-ECANCELED), when the line is silent for
 * WIRE_SILENCE_MS (-ETIMEDOUT), or when the time for one message is over (wire_limit).
 */
#pragma once

#include "base/address.h"
#include "base/error.h"
#include "carry/job.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#define WIRE_SILENCE_MS 30000
#define WIRE_ALIVE_MS 5000
#define WIRE_LAST_WORDS_MS 200 /* the reason for what one connection's end shows may come over another */
#define WIRE_PARTS_MAX 512     /* pieces of one wire_send or wire_receive */

struct tls;

struct wire {
	int fd;          /* owned, non-blocking */
	struct tls *tls; /* owned; NULL: clear text */
	const struct job *job;
	bool deaf_to_xend; /* what xend says is for another thread, which ends this one with `stop` */
	const int *stop; /* borrowed: an eventfd that is readable once another thread has ended it all; NULL:
			    none */
	char peer[128];  /* for sentences: name or address */
	char address[ADDRESS_SIZE]; /* the peer's, numeric */
	uint8_t peer_self[16];      /* what identifies the peer's records, as its HELLO says; zero: it does
				       not */
	int64_t deadline;           /* monotonic ns, 0: none */
	uint64_t sent_bytes;
	int64_t sent_at;   /* monotonic ns: when something was sent last */
	int64_t waited_ns; /* for the line, in all */
};

#define _cleanup_wire_ __attribute__((cleanup(wire_close)))

/* Connects to host (name or address) and port; takes at most 10 s for each of the host's addresses. */
int wire_connect(
	struct wire *wire, const struct job *job, const char *host, const char *port, struct error *error);
/* Takes over a connected stream socket (also when it fails). `peer` names it in sentences. */
int wire_adopt(struct wire *wire, const struct job *job, int socket, const char *peer, struct error *error);
/* Takes over a socket (also when it fails) that is another connection between the sides of `first`, whose
 * handshake is done: the same key is wanted of the peer. For the sandbox. */
int wire_further(struct wire *wire, const struct wire *first, int socket, struct error *error);
/* The TLS handshake, where there is to be one; within the time that is set. wire_connect and wire_adopt have
 * read before whatever it needs from files: this is for the sandbox. */
int wire_handshake(struct wire *wire, struct error *error);
void wire_close(struct wire *wire);
/* Ends a conversation so that the peer gets everything that was sent: no more is sent, what still comes is
 * dropped. */
void wire_finish(struct wire *wire);

/* The next calls have `milliseconds` in all (0: only silence ends them). */
void wire_limit(struct wire *wire, int milliseconds);

/* Sends, or fills, all parts. `parts` is used up: its entries change. */
int wire_send(struct wire *wire, struct iovec *parts, unsigned count, struct error *error);
int wire_receive(struct wire *wire, struct iovec *parts, unsigned count, struct error *error);

/* As they come from the socket, also where there is TLS, which has not begun: the first byte, which stays
 * there; all parts. */
int wire_peek_clear(struct wire *wire, uint8_t *byte, struct error *error);
int wire_receive_clear(struct wire *wire, struct iovec *parts, unsigned count, struct error *error);
int wire_send_clear(struct wire *wire, struct iovec *parts, unsigned count, struct error *error);

/* -ECANCELED with a sentence when xend gave the job up, or another thread has ended it all; else 0. */
int wire_cancelled(const struct wire *wire, struct error *error);
/* Waits until the peer (1) or xend (2, also where another thread has ended it all) has something to say, or
 * the time is over (0). */
int wire_wait(const struct wire *wire, int milliseconds, struct error *error);
/* Whether the peer has something to say already. */
bool wire_heard(const struct wire *wire);
