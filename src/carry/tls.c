#include "carry/tls.h"
#include "base/address.h"
#include "base/cleanup.h"
#include "carry/authority.h"

#include <errno.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CERTIFICATES_MAX 16384 /* bytes of a peer's certificate chain */
#define CHAIN_DEPTH 4
#define READ_AHEAD 65536 /* bytes that one system call may bring: four records */
/* A key serves 2^24.5 full records of AES-GCM (RFC 8446, section 5.5), some 380 GiB. */
#define RENEW_AFTER (UINT64_C(64) << 30)

struct tls {
	SSL_CTX *context;
	SSL *line;
	const json_t *trusted; /* borrowed from the job: [{"host", "address", "fingerprint"}, …] */
	char *host;            /* whom the source means; NULL at the destination */
	bool any, authority;
	struct error no_list; /* why the authority's list of revoked certificates cannot be used */
	json_t *claims;       /* owned: names in the certificate, of which one has to lead to `there` */
	char own[FINGERPRINT_SIZE], theirs[FINGERPRINT_SIZE];
	char wanted[FINGERPRINT_SIZE]; /* the one key that will do; "": any that is trusted */
	bool further;                  /* another connection to a peer that was judged at the first */
	char here[ADDRESS_SIZE], there[ADDRESS_SIZE]; /* this connection's two addresses */
	struct error refusal;                         /* why the peer is not trusted */
	uint64_t renew_after, sent;                   /* bytes; since the key was last renewed */
};

/* ---- who they are ---- */

static const char *member(const json_t *entry, const char *key)
{
	const char *text = json_string_value(json_object_get(entry, key));

	return text ? text : "";
}

static bool is_of_name(const struct tls *tls, const json_t *entry)
{
	return tls->host && strcasecmp(member(entry, "host"), tls->host) == 0;
}

static bool is_of_address(const struct tls *tls, const json_t *entry)
{
	return strcmp(member(entry, "host"), tls->there) == 0 ||
	       strcmp(member(entry, "address"), tls->there) == 0;
}

/* What was trusted in the peer's place, NULL where nothing was: by its name, else by the address that it has
 * now. A name that leads elsewhere does not make another host of the one that is trusted by it. */
static const json_t *known_as(const struct tls *tls)
{
	const json_t *by_address = NULL;

	for (size_t i = 0; i < json_array_size(tls->trusted); i++) {
		const json_t *entry = json_array_get(tls->trusted, i);

		if (is_of_name(tls, entry))
			return entry;
		if (!by_address && is_of_address(tls, entry))
			by_address = entry;
	}
	return by_address;
}

/* The source trusts a key for the host it means, by name or address, or by that very key; the destination
 * trusts every key that it knows. */
static bool pinned(const struct tls *tls)
{
	const json_t *known = known_as(tls);
	bool by_name = known && is_of_name(tls, known);

	for (size_t i = 0; i < json_array_size(tls->trusted); i++) {
		const json_t *entry = json_array_get(tls->trusted, i);

		if (strcmp(member(entry, "fingerprint"), tls->theirs) == 0 &&
			(!tls->host || *tls->wanted ||
				(by_name ? is_of_name(tls, entry) : is_of_address(tls, entry))))
			return true;
	}
	return false;
}

/* Which commands to type where, for a peer that is not trusted. */
static void refuse(struct tls *tls)
{
	const json_t *entry = known_as(tls);
	const char *peer = tls->host ? tls->host : tls->there, *known = entry ? member(entry, "host") : "";

	if (entry)
		error_set(&tls->refusal, EACCES,
			"The key of %s has changed: trusted was %s, now it is %s. Either xend was set up "
			"anew there, "
			"or another machine answers in its place. If you know that it is right, type on this "
			"host: xm trust --forget %s && xm trust %s",
			peer, member(entry, "fingerprint"), tls->theirs, known, known);
	else
		error_set(&tls->refusal, EACCES,
			"%s is not trusted by this host: its key %s is unknown here. Type on this host: xm "
			"trust %s",
			peer, tls->theirs, peer);
}

/*
 * Certified by an authority of ours, and for who shows it: whom the source means; at the destination whoever
 * has that address, or, as others have to find out (tls_claims), one of those names.
 */
static bool certified(struct tls *tls, X509_STORE_CTX *check)
{
	X509 *certificate = X509_STORE_CTX_get0_cert(check);
	const char *peer = tls->host ? tls->host : tls->there, *why;

	if (!tls->authority)
		return false;
	if (tls->no_list.code) {
		error_set(&tls->refusal, EACCES, "%s is not trusted: %s", peer, tls->no_list.text);
		return false;
	}
	if (!authority_signed(check, &why)) {
		error_set(&tls->refusal, EACCES,
			"%s is not trusted: its certificate is not one of the authority's in "
			"xend-relocation-ca-file that counts (%s), and its key %s is unknown here. To trust "
			"that key, type on this host: xm trust %s",
			peer, why, tls->theirs, peer);
		return false;
	}
	if (*tls->wanted || authority_is_for(certificate, peer))
		return true;
	if (!tls->host)
		tls->claims = authority_names(certificate);
	if (json_array_size(tls->claims))
		return true;
	error_set(&tls->refusal, EACCES, "%s is not trusted: its certificate is for another name%s.", peer,
		tls->host ? ". Use the name that it was made for" : " or address");
	return false;
}

/* Whoever else is trusted does not stand for the host that is meant. */
static bool is_wanted(struct tls *tls, X509_STORE_CTX *check)
{
	const char *peer = tls->host ? tls->host : tls->there;

	if (!*tls->wanted || strcmp(tls->theirs, tls->wanted) == 0)
		return true;
	if (tls->further)
		error_set(&tls->refusal, EACCES, "A further connection of %s has another key than the first.",
			peer);
	else
		error_set(&tls->refusal, EACCES,
			"Another host answers at %s: its key is %s, and the one that is meant has %s.", peer,
			tls->theirs, tls->wanted);
	X509_STORE_CTX_set_error(check, X509_V_ERR_CERT_REJECTED);
	return false;
}

/* OpenSSL asks once for the peer's certificate; that its sender has the key is proved by the handshake. */
static int judge(X509_STORE_CTX *check, void *nothing)
{
	const SSL *line = X509_STORE_CTX_get_ex_data(check, SSL_get_ex_data_X509_STORE_CTX_idx());
	struct tls *tls = SSL_get_app_data(line);
	X509 *certificate = X509_STORE_CTX_get0_cert(check);

	(void)nothing;
	if (!certificate || fingerprint_of(certificate, tls->theirs, &tls->refusal) < 0)
		return 0;
	if (!is_wanted(tls, check))
		return 0;
	if (tls->further || tls->any || pinned(tls) || certified(tls, check))
		return 1;
	if (!tls->refusal.code)
		refuse(tls);
	/* The alert that the peer gets tells it which of the two it is (see refused_by_peer). */
	X509_STORE_CTX_set_error(
		check, known_as(tls) ? X509_V_ERR_CERT_REJECTED : X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT);
	return 0;
}

/* ---- preparation ---- */

/* AES where the processor has instructions for it. The source's order counts. */
static const char *cipher_suites(void)
{
	return __builtin_cpu_supports("aes") && __builtin_cpu_supports("pclmul")
		       ? "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
		       : "TLS_CHACHA20_POLY1305_SHA256:TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384";
}

static int use_identity(struct tls *tls, const char *pem, struct error *error)
{
	STACK_OF(X509) *more = NULL;
	X509 *certificate = NULL;
	EVP_PKEY *key = NULL;
	int r = identity_read(pem, &key, &certificate, &more, error);

	if (r == 0)
		r = fingerprint_of(certificate, tls->own, error);
	if (r == 0 && SSL_CTX_use_cert_and_key(tls->context, certificate, key, more, 1) != 1)
		r = error_set(error, EINVAL, "This host's certificate cannot be used: %s.", crypto_reason());
	EVP_PKEY_free(key);
	X509_free(certificate);
	sk_X509_pop_free(more, X509_free);
	return r;
}

/* Without a usable list nobody is certified; who is trusted by key does not need it. */
static int use_authority(struct tls *tls, const json_t *secure, struct error *error)
{
	const char *pem = json_string_value(json_object_get(secure, "authority")),
		   *revoked = json_string_value(json_object_get(secure, "revoked")),
		   *no_list = json_string_value(json_object_get(secure, "no_list"));
	X509_STORE *store = SSL_CTX_get_cert_store(tls->context);
	int r = pem ? authority_read(store, pem, error) : 0;

	tls->authority = pem && r == 0;
	if (no_list)
		error_set(&tls->no_list, EACCES, "%s", no_list);
	else if (revoked)
		authority_read_revoked(store, revoked, &tls->no_list);
	return r;
}

static bool make_context(struct tls *tls)
{
	SSL_CTX *context;

	/* No configuration of the host's: what is spoken here is said here. */
	if (!OPENSSL_init_ssl(OPENSSL_INIT_NO_LOAD_CONFIG, NULL))
		return false;
	context = tls->context = SSL_CTX_new(tls->host ? TLS_client_method() : TLS_server_method());
	if (!context || !SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) ||
		!SSL_CTX_set_ciphersuites(context, cipher_suites()) || !SSL_CTX_set_num_tickets(context, 0))
		return false;
	SSL_CTX_set_options(context, SSL_OP_NO_TICKET);
	SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
	SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
	SSL_CTX_set_max_cert_list(context, CERTIFICATES_MAX);
	SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
	SSL_CTX_set_verify_depth(context, CHAIN_DEPTH);
	SSL_CTX_set_cert_verify_callback(context, judge, NULL);
	return true;
}

/* What is read from the socket passes a buffer: OpenSSL asks for each record's head and body alone. */
static bool make_line(struct tls *tls, int fd)
{
	BIO *buffer = BIO_new(BIO_f_buffer()), *socket = BIO_new_socket(fd, BIO_NOCLOSE);

	tls->line = SSL_new(tls->context);
	if (!tls->line || !buffer || !socket || !BIO_set_read_buffer_size(buffer, READ_AHEAD) ||
		!SSL_set_wfd(tls->line, fd)) {
		BIO_free(buffer);
		BIO_free(socket);
		return false;
	}
	SSL_set0_rbio(tls->line, BIO_push(buffer, socket));
	SSL_set_app_data(tls->line, tls);
	if (tls->host)
		SSL_set_connect_state(tls->line);
	else
		SSL_set_accept_state(tls->line);
	return true;
}

int tls_prepare(
	struct tls **result, const json_t *secure, int fd, const struct tls_peer *peer, struct error *error)
{
	struct tls *tls = calloc(1, sizeof(*tls));
	int r = 0;

	*result = tls;
	if (!tls || (peer && !(tls->host = strdup(peer->host))))
		return error_set(error, ENOMEM, "Out of memory.");
	tls->any = peer && peer->any;
	if (peer && peer->fingerprint)
		snprintf(tls->wanted, sizeof(tls->wanted), "%s", peer->fingerprint);
	tls->renew_after = RENEW_AFTER;
	tls->trusted = json_object_get(secure, "trusted");
	address_of_own_end(fd, tls->here);
	address_of_peer(fd, tls->there);
	if (!make_context(tls))
		return error_set(error, EIO, "TLS cannot be prepared: %s.", crypto_reason());
	r = use_identity(tls, member(secure, "identity"), error);
	if (r == 0)
		r = use_authority(tls, secure, error);
	if (r == 0 && !make_line(tls, fd))
		r = error_set(error, EIO, "TLS cannot be prepared: %s.", crypto_reason());
	return r;
}

int tls_further(struct tls **result, const struct tls *first, int fd, struct error *error)
{
	struct tls *tls = calloc(1, sizeof(*tls));

	*result = tls;
	if (!tls || (first->host && !(tls->host = strdup(first->host))))
		return error_set(error, ENOMEM, "Out of memory.");
	SSL_CTX_up_ref(first->context);
	tls->context = first->context;
	tls->renew_after = first->renew_after;
	tls->further = true;
	memcpy(tls->own, first->own, sizeof(tls->own));
	memcpy(tls->wanted, first->theirs, sizeof(tls->wanted));
	memcpy(tls->here, first->here, sizeof(tls->here));
	memcpy(tls->there, first->there, sizeof(tls->there));
	return make_line(tls, fd) ? 0 : error_set(error, EIO, "TLS cannot be prepared: %s.", crypto_reason());
}

void tls_free(struct tls *tls)
{
	if (!tls)
		return;
	SSL_free(tls->line);
	SSL_CTX_free(tls->context);
	json_decref(tls->claims);
	free(tls->host);
	free(tls);
}

/* ---- talking ---- */

/* The destination judges the source after the source has done its part: its verdict comes as an alert. */
static int refused_by_peer(const struct tls *tls, int reason, struct error *error)
{
	const char *peer = tls->host ? tls->host : tls->there;

	if (reason == SSL_R_TLSV1_ALERT_UNKNOWN_CA)
		return error_set(error, EACCES,
			"%s does not trust this host. Type on %s: xm trust %s (this host's key is %s).", peer,
			peer, tls->here, tls->own);
	return error_set(error, EACCES,
		"%s knows this host by another key than its present one, %s. Type on %s: xm trust --forget "
		"%s && xm "
		"trust %s",
		peer, tls->own, peer, tls->here, tls->here);
}

static int cut(const struct tls *tls, int code, struct error *error)
{
	const char *peer = tls->host ? tls->host : tls->there;

	/* Its EPIPE is what peer_greet knows a refusal at the door by. */
	return code ? error_set(error, code, "The connection to %s was cut: %s.", peer, strerror(code))
		    : error_set(error, EPIPE, "%s closed the connection.", peer);
}

static int broken(struct tls *tls, struct error *error)
{
	int reason = ERR_GET_REASON(ERR_peek_error());
	const char *peer = tls->host ? tls->host : tls->there;

	if (tls->refusal.code) {
		ERR_clear_error();
		return error_set(error, tls->refusal.code, "%s", tls->refusal.text);
	}
	switch (reason) {
	case SSL_R_TLSV1_ALERT_UNKNOWN_CA:
	case SSL_R_SSLV3_ALERT_BAD_CERTIFICATE:
		ERR_clear_error();
		return refused_by_peer(tls, reason, error);
	case SSL_R_UNEXPECTED_EOF_WHILE_READING:
		ERR_clear_error();
		return cut(tls, 0, error);
	case SSL_R_WRONG_VERSION_NUMBER:
	case SSL_R_HTTP_REQUEST:
	case SSL_R_BAD_RECORD_TYPE:
	case SSL_R_PACKET_LENGTH_TOO_LONG:
		ERR_clear_error();
		return error_set(error, EPROTO,
			"%s does not speak TLS. Ferry in clear text does not either: then both hosts need "
			"the same "
			"(xend-relocation-clear-text …).",
			peer);
	default:
		return error_set(
			error, EPROTO, "The secured connection to %s failed: %s.", peer, crypto_reason());
	}
}

/* What an unsuccessful call of OpenSSL's means. */
static int outcome(struct tls *tls, int result, short *events, struct error *error)
{
	int code = errno;

	switch (SSL_get_error(tls->line, result)) {
	case SSL_ERROR_WANT_READ:
		*events = POLLIN;
		return -EAGAIN;
	case SSL_ERROR_WANT_WRITE:
		*events = POLLOUT;
		return -EAGAIN;
	case SSL_ERROR_ZERO_RETURN:
		return cut(tls, 0, error);
	case SSL_ERROR_SYSCALL:
		ERR_clear_error();
		return cut(tls, code, error);
	default:
		return broken(tls, error);
	}
}

int tls_handshake(struct tls *tls, short *events, struct error *error)
{
	int r;

	ERR_clear_error();
	r = SSL_do_handshake(tls->line);
	return r == 1 ? 0 : outcome(tls, r, events, error);
}

/* The next thing sent tells the peer that a new key follows. */
static void renew_key(struct tls *tls, size_t sent)
{
	tls->sent += sent;
	if (tls->sent < tls->renew_after)
		return;
	SSL_key_update(tls->line, SSL_KEY_UPDATE_NOT_REQUESTED);
	tls->sent = 0;
}

ssize_t tls_send(struct tls *tls, const void *data, size_t size, short *events, struct error *error)
{
	size_t sent = 0;
	int r;

	ERR_clear_error();
	r = SSL_write_ex(tls->line, data, size, &sent);
	if (r != 1)
		return outcome(tls, r, events, error);
	renew_key(tls, sent);
	return (ssize_t)sent;
}

ssize_t tls_receive(struct tls *tls, void *data, size_t size, short *events, struct error *error)
{
	size_t received = 0;
	int r;

	ERR_clear_error();
	r = SSL_read_ex(tls->line, data, size, &received);
	return r == 1 ? (ssize_t)received : outcome(tls, r, events, error);
}

bool tls_heard(struct tls *tls)
{
	char byte;
	int r, why;

	ERR_clear_error();
	r = SSL_peek(tls->line, &byte, 1);
	if (r > 0)
		return true;
	why = SSL_get_error(tls->line, r);
	return why != SSL_ERROR_WANT_READ && why != SSL_ERROR_WANT_WRITE;
}

void tls_finish(struct tls *tls)
{
	ERR_clear_error();
	SSL_shutdown(tls->line);
	ERR_clear_error();
}

const char *tls_fingerprint(const struct tls *tls)
{
	return tls->theirs;
}

const json_t *tls_claims(const struct tls *tls)
{
	return tls->claims;
}

const char *tls_address(const struct tls *tls)
{
	return tls->there;
}

void tls_renew_after(struct tls *tls, uint64_t bytes)
{
	tls->renew_after = bytes;
}
