#include "carry/authority.h"
#include "base/identity.h"

#include <errno.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <string.h>

#define NAMES_MAX 8u
#define NAME_MAX_LENGTH 253 /* characters of a host's name (RFC 1035, section 2.3.4) */

int authority_read(X509_STORE *store, const char *pem, struct error *error)
{
	BIO *text = BIO_new_mem_buf(pem, -1);
	X509 *certificate;
	bool any = false;

	while (text && (certificate = PEM_read_bio_X509(text, NULL, NULL, NULL))) {
		any |= X509_STORE_add_cert(store, certificate) == 1;
		X509_free(certificate);
	}
	BIO_free(text);
	ERR_clear_error(); /* the end of the text is one of OpenSSL's errors */
	return any ? 0 : error_set(error, EINVAL, "There is no certificate in xend-relocation-ca-file.");
}

int authority_read_revoked(X509_STORE *store, const char *pem, struct error *error)
{
	BIO *text = BIO_new_mem_buf(pem, -1);
	X509_CRL *list;
	bool any = false;

	while (text && (list = PEM_read_bio_X509_CRL(text, NULL, NULL, NULL))) {
		any |= X509_STORE_add_crl(store, list) == 1;
		X509_CRL_free(list);
	}
	BIO_free(text);
	ERR_clear_error();
	X509_STORE_set_flags(store, X509_V_FLAG_CRL_CHECK | X509_V_FLAG_CRL_CHECK_ALL);
	return any ? 0
		   : error_set(error, EINVAL,
			     "There is no list of revoked certificates in xend-relocation-crl-file.");
}

/* A list of the authority that signed the host's certificate there must be; of those above it, there may. */
static int judge_error(int good, X509_STORE_CTX *check)
{
	return good || (X509_STORE_CTX_get_error(check) == X509_V_ERR_UNABLE_TO_GET_CRL &&
			       X509_STORE_CTX_get_error_depth(check) > 0);
}

bool authority_signed(X509_STORE_CTX *check, const char **why)
{
	X509_STORE_CTX_set_verify_cb(check, judge_error);
	if (X509_verify_cert(check) == 1)
		return true;
	*why = X509_verify_cert_error_string(X509_STORE_CTX_get_error(check));
	return false;
}

bool authority_is_for(X509 *certificate, const char *host)
{
	return X509_check_ip_asc(certificate, host, 0) == 1 ||
	       X509_check_host(certificate, host, 0,
		       X509_CHECK_FLAG_NO_WILDCARDS | X509_CHECK_FLAG_NEVER_CHECK_SUBJECT, NULL) == 1;
}

json_t *authority_names(const X509 *certificate)
{
	GENERAL_NAMES *names = X509_get_ext_d2i(certificate, NID_subject_alt_name, NULL, NULL);
	json_t *found = json_array();

	for (int i = 0; i < sk_GENERAL_NAME_num(names) && json_array_size(found) < NAMES_MAX; i++) {
		const GENERAL_NAME *name = sk_GENERAL_NAME_value(names, i);
		const ASN1_IA5STRING *text = name->type == GEN_DNS ? name->d.dNSName : NULL;
		size_t length = text ? (size_t)ASN1_STRING_length(text) : 0;
		const char *bytes = text ? (const char *)ASN1_STRING_get0_data(text) : "";

		if (length > 0 && length <= NAME_MAX_LENGTH && !memchr(bytes, 0, length) &&
			!memchr(bytes, '*', length))
			json_array_append_new(found, json_stringn(bytes, length));
	}
	GENERAL_NAMES_free(names);
	return found;
}
