/*
 * TLS 1.3 with mutual authentication on a connected socket (docs/relocation-protocol.md, "The secured line").
 * All that the carrier knows of OpenSSL is in tls.c.
 *
 * A side is known by its key. `secure`, a member of xend's jobs (docs/internal/carrier-jobs.md), says who we
 * are and whom we trust; tls_prepare reads it, and whatever OpenSSL would read from files or load, before the
 * sandbox is entered. Nothing here waits: a call that cannot go on returns -EAGAIN and says what to poll for.
 */
#pragma once

#include "base/error.h"
#include "base/identity.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define TLS_RECORD_MAX 16384 /* bytes of plaintext in one record (RFC 8446, section 5.1) */

struct tls;

/* Whom the source means to reach; borrowed. */
struct tls_peer {
	const char *host;        /* by this name or address */
	const char *fingerprint; /* and with this key, no other that is trusted; NULL: any that is */
	bool any;                /* whoever answers, to learn its key */
};

/* Makes the TLS side of the connected socket `fd` (borrowed). `peer` NULL: we are the destination, and
 * whoever is trusted may come. */
int tls_prepare(
	struct tls **tls, const json_t *secure, int fd, const struct tls_peer *peer, struct error *error);
/* The TLS side of another connection (`fd`, borrowed) between the sides of `first`, whose handshake is done:
 * the peer must show the key that it had there. Needs nothing from files. */
int tls_further(struct tls **tls, const struct tls *first, int fd, struct error *error);
void tls_free(struct tls *tls);

/* Each returns -EAGAIN with *events (POLLIN or POLLOUT) when the socket is not ready, or another error with a
 * sentence; tls_send and tls_receive return how many bytes (at least 1) they moved. */
int tls_handshake(struct tls *tls, short *events, struct error *error);
ssize_t tls_send(struct tls *tls, const void *data, size_t size, short *events, struct error *error);
ssize_t tls_receive(struct tls *tls, void *data, size_t size, short *events, struct error *error);

/* Whether tls_receive would give bytes, or an error, at once. */
bool tls_heard(struct tls *tls);
/* Tells the peer that nothing more comes. */
void tls_finish(struct tls *tls);

/* After the handshake: the peer's key, and its address as this host sees it. */
const char *tls_fingerprint(const struct tls *tls);
const char *tls_address(const struct tls *tls);
/* At the destination: the peer is trusted if one of these names leads to its address, which the sandbox
 * cannot ask; until then nothing of what it wants is done. NULL: it is trusted already. Borrowed. */
const json_t *tls_claims(const struct tls *tls);
/* Keys are renewed after so many bytes sent; for tests. */
void tls_renew_after(struct tls *tls, uint64_t bytes);
