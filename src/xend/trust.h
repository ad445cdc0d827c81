/*
 * Who this host is to other hosts, and which of them it trusts (docs/relocation-protocol.md, "The secured
 * line").
 *
 * The key is made at the first start and kept beside the store, readable by xend only; the file of
 * xend-relocation-server-ssl-cert-file and -key-file takes its place where they are set. What is trusted is
 * in the store. Carriers get both with a job; xend itself speaks with no other host.
 */
#pragma once

#include "base/identity.h"
#include "xend/api.h"
#include "xend/carrier.h"

struct trust {
	char *identity;                     /* PEM: key and certificates; NULL: unusable, or clear text */
	char *authority;                    /* PEM: xend-relocation-ca-file; NULL: none */
	char fingerprint[FINGERPRINT_SIZE]; /* of the identity's key */
	struct error unusable;              /* why there is no identity where there should be one */
};

/* Reads or makes the key, for as long as xend lives. A host without a usable one runs its guests all the
 * same, and says why at each move. */
struct trust *trust_open(struct xend *xend);

/* Gives a carrier a job that speaks with another host: carrier_say with `self` and `secure` added to `body`,
 * which is consumed. Lets go of the lock. */
int trust_say(struct carrier *carrier, json_t *body, const int *fds, unsigned count, struct error *error);

/* Whether one of the names in a peer's certificate leads to its address: else -EACCES with a sentence. Lets
 * go of the lock. */
int trust_confirm(struct xend *xend, const json_t *names, const char *address, struct error *error);
