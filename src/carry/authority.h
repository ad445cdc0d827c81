/*
 * Certificates that an authority has signed (xend-relocation-ca-file), what it has revoked
 * (xend-relocation-crl-file), and whom a certificate is for: the addresses and names in its
 * subjectAltName (RFC 5280, section 4.2.1.6). A common name says nothing, and a wildcard no host.
 */
#pragma once

#include "base/error.h"

#include <jansson.h>
#include <openssl/x509.h>
#include <stdbool.h>

/* Puts the authorities of the PEM text into the store, and their lists of revoked certificates. */
int authority_read(X509_STORE *store, const char *pem, struct error *error);
int authority_read_revoked(X509_STORE *store, const char *pem, struct error *error);

/* Whether the certificate that is being checked is one of theirs, and not revoked; *why says why not. */
bool authority_signed(X509_STORE_CTX *check, const char **why);

/* Whether it is for this name or numeric address. */
bool authority_is_for(X509 *certificate, const char *host);

/* An array of the names that it is for, at most 8: one of them has to lead to who shows it. */
json_t *authority_names(const X509 *certificate);
