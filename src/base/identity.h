/*
 * Who a host is to other hosts: a private key and a certificate for it, as PEM text, made by
 * the host itself, and the fingerprint by which people compare and hosts remember it:
 * "SHA256:" and the base64 form (RFC 4648, without padding) of the SHA-256 digest of the
 * certificate's SubjectPublicKeyInfo (RFC 5280, section 4.1) in DER. It belongs to the key,
 * so it stays when a certificate is renewed.
 */
#pragma once

#include "base/error.h"

#include <openssl/x509.h>
#include <stdbool.h>

#define FINGERPRINT_SIZE 51 /* "SHA256:", 43 characters, NUL */

/* A new Ed25519 key and a self-signed certificate in that host's name; *pem is owned by the caller. */
int identity_make(const char *host, char **pem, struct error *error);

/* Reads key and certificates (its own first, then those between it and an authority) from PEM text, and
 * checks that they belong together. The caller frees all three; pass NULL for what is not wanted. */
int identity_read(
	const char *pem, EVP_PKEY **key, X509 **certificate, STACK_OF(X509) * *more, struct error *error);

/* The fingerprint of the identity in this PEM text. */
int identity_fingerprint(const char *pem, char fingerprint[FINGERPRINT_SIZE], struct error *error);

/* The fingerprint of a certificate's key. */
int fingerprint_of(const X509 *certificate, char fingerprint[FINGERPRINT_SIZE], struct error *error);

/* Whether the text has the form of a fingerprint. */
bool fingerprint_valid(const char *text);

/* What OpenSSL's error queue says went wrong last, and clears it; never NULL. */
const char *crypto_reason(void);
