#include "base/identity.h"
#include "base/cleanup.h"

#include <errno.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <string.h>

#define PREFIX "SHA256:"
#define DIGEST_SIZE 32
#define BASE64_CHARACTERS 43 /* of 32 bytes, without padding */

static void free_bio(BIO **bio)
{
	BIO_free_all(*bio);
}

static void free_key(EVP_PKEY **key)
{
	EVP_PKEY_free(*key);
}

static void free_certificate(X509 **certificate)
{
	X509_free(*certificate);
}

static void free_certificates(STACK_OF(X509) * *list)
{
	sk_X509_pop_free(*list, X509_free);
}

static void free_number(BIGNUM **number)
{
	BN_free(*number);
}

const char *crypto_reason(void)
{
	unsigned long code = ERR_peek_last_error();
	const char *reason = code ? ERR_reason_error_string(code) : NULL;

	ERR_clear_error();
	return reason ? reason : "no reason is known";
}

/* A certificate says little here: peers know the key. It never ends, since what ends is trust in the key. */
static bool fill_in(X509 *certificate, EVP_PKEY *key, const char *host)
{
	X509_NAME *name = X509_get_subject_name(certificate);
	uint8_t serial[16];
	_cleanup_(free_number) BIGNUM *number = NULL;

	if (getentropy(serial, sizeof(serial)) < 0)
		return false;
	serial[0] &= 0x7f;
	number = BN_bin2bn(serial, sizeof(serial), NULL);
	return number && X509_set_version(certificate, X509_VERSION_3) &&
	       BN_to_ASN1_INTEGER(number, X509_get_serialNumber(certificate)) &&
	       X509_NAME_add_entry_by_txt(
		       name, "CN", MBSTRING_UTF8, (const unsigned char *)host, -1, -1, 0) &&
	       X509_set_issuer_name(certificate, name) &&
	       ASN1_TIME_set_string_X509(X509_getm_notBefore(certificate), "20000101000000Z") &&
	       ASN1_TIME_set_string_X509(X509_getm_notAfter(certificate), "99991231235959Z") &&
	       X509_set_pubkey(certificate, key) && X509_sign(certificate, key, NULL) > 0;
}

int identity_make(const char *host, char **pem, struct error *error)
{
	_cleanup_(free_key) EVP_PKEY *key = EVP_PKEY_Q_keygen(NULL, NULL, "ED25519");
	_cleanup_(free_certificate) X509 *certificate = X509_new();
	_cleanup_(free_bio) BIO *out = BIO_new(BIO_s_mem());
	char *text = NULL, name[65]; /* a common name has at most 64 characters (RFC 5280, appendix A.1) */
	long size = 0;

	*pem = NULL;
	snprintf(name, sizeof(name), "%s", host);
	if (key && certificate && out && fill_in(certificate, key, name) &&
		PEM_write_bio_PrivateKey(out, key, NULL, NULL, 0, NULL, NULL) &&
		PEM_write_bio_X509(out, certificate))
		size = BIO_get_mem_data(out, &text);
	if (size > 0)
		*pem = strndup(text, (size_t)size);
	return *pem ? 0 : error_set(error, EIO, "Unable to make a key for this host: %s.", crypto_reason());
}

int identity_read(
	const char *pem, EVP_PKEY **key, X509 **certificate, STACK_OF(X509) * *more, struct error *error)
{
	_cleanup_(free_bio) BIO *keys = BIO_new_mem_buf(pem, -1), *certificates = BIO_new_mem_buf(pem, -1);
	_cleanup_(free_key) EVP_PKEY *read_key =
		keys ? PEM_read_bio_PrivateKey(keys, NULL, NULL, (void *)"") : NULL;
	_cleanup_(free_certificate) X509 *first =
		certificates ? PEM_read_bio_X509(certificates, NULL, NULL, NULL) : NULL;
	_cleanup_(free_certificates) STACK_OF(X509) *rest = sk_X509_new_null();
	X509 *next;

	if (!read_key)
		return error_set(
			error, EINVAL, "There is no usable private key in it (%s).", crypto_reason());
	if (!first || !rest)
		return error_set(
			error, EINVAL, "There is no usable certificate in it (%s).", crypto_reason());
	if (!X509_check_private_key(first, read_key))
		return error_set(error, EINVAL, "Its key and its certificate do not belong together.");
	while ((next = PEM_read_bio_X509(certificates, NULL, NULL, NULL)))
		sk_X509_push(rest, next);
	ERR_clear_error(); /* the end of the text is one of OpenSSL's errors */
	if (key)
		*key = take_pointer(read_key);
	if (certificate)
		*certificate = take_pointer(first);
	if (more)
		*more = take_pointer(rest);
	return 0;
}

int fingerprint_of(const X509 *certificate, char fingerprint[FINGERPRINT_SIZE], struct error *error)
{
	unsigned char *key = NULL, digest[DIGEST_SIZE], text[BASE64_CHARACTERS + 2];
	int size = i2d_X509_PUBKEY(X509_get_X509_PUBKEY(certificate), &key);
	bool good = size > 0 && EVP_Digest(key, (size_t)size, digest, NULL, EVP_sha256(), NULL);

	OPENSSL_free(key);
	if (!good)
		return error_set(error, EIO, "A certificate's key cannot be told: %s.", crypto_reason());
	EVP_EncodeBlock(text, digest, DIGEST_SIZE);
	snprintf(fingerprint, FINGERPRINT_SIZE, PREFIX "%.*s", BASE64_CHARACTERS, (const char *)text);
	return 0;
}

int identity_fingerprint(const char *pem, char fingerprint[FINGERPRINT_SIZE], struct error *error)
{
	_cleanup_(free_certificate) X509 *certificate = NULL;
	int r = identity_read(pem, NULL, &certificate, NULL, error);

	return r < 0 ? r : fingerprint_of(certificate, fingerprint, error);
}

bool fingerprint_valid(const char *text)
{
	static const char base64[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	size_t prefix = sizeof(PREFIX) - 1;

	return strncmp(text, PREFIX, prefix) == 0 && strlen(text) == prefix + BASE64_CHARACTERS &&
	       strspn(text + prefix, base64) == BASE64_CHARACTERS;
}
