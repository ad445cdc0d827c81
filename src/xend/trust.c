#include "xend/trust.h"
#include "base/address.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "xend/peers.h"
#include "xend/store.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define PEM_MAX (1 << 20)
#define HOST_MAX 253 /* characters of a host's name (RFC 1035, section 2.3.4) */

/* ---- this host's key ---- */

static int read_pem(const char *path, char **text, struct error *error)
{
	_cleanup_close_ int file = open(path, O_RDONLY | O_CLOEXEC);
	_cleanup_free_ char *bytes = calloc(1, PEM_MAX + 1);
	ssize_t size = file < 0 || !bytes ? -1 : pread(file, bytes, PEM_MAX + 1, 0);

	if (size < 0)
		return error_set(error, errno, "Unable to read file %s: %s.", path, strerror(errno));
	if (size > PEM_MAX)
		return error_set(error, EFBIG, "The file %s is too large for a key or certificates.", path);
	*text = take_pointer(bytes);
	return 0;
}

/* Whole and on disk under its name, or not there. */
static int write_key(const char *path, const char *text, struct error *error)
{
	_cleanup_free_ char *unfinished = NULL, *directory = strdup(path);
	_cleanup_close_ int file = -1, parent = -1;
	size_t size = strlen(text);

	if (!directory || asprintf(&unfinished, "%s.new", path) < 0)
		return error_set(error, ENOMEM, "Out of memory.");
	*strrchr(directory, '/') = 0;
	unlink(unfinished);
	file = open(unfinished, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	parent = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (file < 0 || parent < 0 || write(file, text, size) != (ssize_t)size || fsync(file) < 0 ||
		rename(unfinished, path) < 0 || fsync(parent) < 0)
		return error_set(error, errno ? errno : ENOSPC, "Unable to write this host's key %s: %s.",
			path, strerror(errno ? errno : ENOSPC));
	return 0;
}

static int make_key(const char *path, char **identity, struct error *error)
{
	char host[256] = "host";
	int r;

	gethostname(host, sizeof(host) - 1);
	r = identity_make(host, identity, error);
	if (r == 0)
		r = write_key(path, *identity, error);
	return r;
}

static int own_key(const struct xend *xend, char **identity, struct error *error)
{
	_cleanup_free_ char *path = NULL;
	int r;

	if (asprintf(&path, "%s/relocation.pem", xend->paths.state) < 0)
		return error_set(error, ENOMEM, "Out of memory.");
	r = read_pem(path, identity, error);
	if (r == -ENOENT)
		return make_key(path, identity, error);
	/* Not replaced by itself: other hosts trust the key that is in it. */
	if (r == 0 && identity_fingerprint(*identity, (char[FINGERPRINT_SIZE]){0}, error) < 0)
		return error_prefix(error,
			"This host's key %s cannot be used; put back a copy, or remove the file to have a "
			"new one "
			"made, which other hosts then have to trust. ",
			path);
	return r;
}

/* The administrator's own: key and certificate may be in one file. */
static int configured_key(const struct xend_config *config, char **identity, struct error *error)
{
	_cleanup_free_ char *key = NULL, *certificate = NULL;
	int r = read_pem(config->relocation_cert_file, &certificate, error);

	if (r == 0 && *config->relocation_key_file)
		r = read_pem(config->relocation_key_file, &key, error);
	if (r < 0)
		return r;
	if (asprintf(identity, "%s\n%s", key ? key : "", certificate) < 0) {
		*identity = NULL;
		return error_set(error, ENOMEM, "Out of memory.");
	}
	return 0;
}

static int open_identity(struct xend *xend, struct trust *trust, struct error *error)
{
	const struct xend_config *config = &xend->config;
	_cleanup_free_ char *identity = NULL;
	int r = *config->relocation_cert_file ? configured_key(config, &identity, error)
					      : own_key(xend, &identity, error);

	if (r == 0)
		r = identity_fingerprint(identity, trust->fingerprint, error);
	if (r < 0 && *config->relocation_cert_file)
		error_prefix(
			error, "xend-relocation-server-ssl-cert-file %s: ", config->relocation_cert_file);
	if (r == 0 && *config->relocation_ca_file)
		r = read_pem(config->relocation_ca_file, &trust->authority, error);
	if (r == 0)
		trust->identity = take_pointer(identity);
	return r;
}

struct trust *trust_open(struct xend *xend)
{
	struct trust *trust = calloc(1, sizeof(*trust));

	/* Why there is none, the caller tells. */
	if (trust && open_identity(xend, trust, &trust->unusable) >= 0) {
		trust->unusable =
			(struct error){0}; /* that there was no key before one was made is no trouble */
		log_info("This host's key has the fingerprint %s.", trust->fingerprint);
	}
	if (xend->config.relocation_clear_text)
		log_warning("Guests move in clear text, from and to anybody who is in "
			    "xend-relocation-hosts-allow "
			    "(xend-relocation-clear-text yes).");
	return trust;
}

/* ---- jobs ---- */

static int add_trusted(void *context, const struct trusted_host *host)
{
	return json_array_append_new(context, json_pack("{s:s, s:s, s:s}", "host", host->host, "address",
						      host->address, "fingerprint", host->fingerprint)) < 0
		       ? -ENOMEM
		       : 0;
}

static json_t *trusted_hosts(struct xend *xend, struct error *error)
{
	_cleanup_json_ json_t *hosts = json_array();
	int r = hosts ? store_each_trusted(xend->store, add_trusted, hosts, error)
		      : error_set(error, ENOMEM, "Out of memory.");

	return r < 0 ? NULL : take_pointer(hosts);
}

/* Read each time, since what is revoked today was not yesterday. Nobody is certified while it cannot be. Lets
 * go of the lock: it may lie where nobody answers. */
static void add_revoked(struct xend *xend, json_t *secure)
{
	const char *path = xend->config.relocation_crl_file;
	_cleanup_free_ char *revoked = NULL;
	struct error error;
	int r;

	xend_unlock(xend);
	r = read_pem(path, &revoked, &error);
	xend_lock(xend);
	if (r >= 0 && json_object_set_new(secure, "revoked", json_string(revoked)) < 0)
		r = error_set(&error, EINVAL, "%s is no text in UTF-8.", path);
	if (r >= 0)
		return;
	log_error("xend-relocation-crl-file: %s", error.text);
	json_object_set_new(secure, "no_list",
		json_sprintf("What its authority has revoked is not known (xend-relocation-crl-file: %s)",
			error.text));
}

/* A memfd with what a carrier needs to know of keys. */
static int secure_fd(struct xend *xend, struct error *error)
{
	const struct trust *trust = xend->trust;
	json_t *hosts;
	_cleanup_json_ json_t *secure = NULL;
	_cleanup_free_ char *text = NULL;
	_cleanup_close_ int file = -1;

	if (!trust || !trust->identity)
		return error_set(error, ENOKEY, "%s", trust ? trust->unusable.text : "Out of memory.");
	hosts = trusted_hosts(xend, error);
	if (!hosts)
		return -error->code;
	secure = json_pack("{s:s, s:o, s:s*}", "identity", trust->identity, "trusted", hosts, "authority",
		trust->authority);
	if (secure && *xend->config.relocation_crl_file)
		add_revoked(xend, secure);
	text = secure ? json_dumps(secure, JSON_COMPACT) : NULL;
	file = text ? memfd_create("secure", MFD_CLOEXEC) : -1;
	if (file < 0 || write(file, text, strlen(text)) != (ssize_t)strlen(text))
		return error_set(error, ENOMEM, "Unable to hand this host's key to the carrier.");
	return take_fd(&file);
}

int trust_say(struct carrier *carrier, json_t *body, const int *fds, unsigned count, struct error *error)
{
	struct xend *xend = carrier->xend;
	int all[CHANNEL_FDS_MAX];
	_cleanup_close_ int secure = -1;

	if (body)
		json_object_set_new(body, "self", json_string(store_records(xend->store)));
	if (xend->config.relocation_clear_text)
		return carrier_say(carrier, body, fds, count, error);
	secure = secure_fd(xend, error);
	if (secure < 0 || !body ||
		json_object_set_new(body, "secure", json_pack("{s:i}", "fd", (int)count)) < 0) {
		json_decref(body);
		return secure < 0 ? secure : error_set(error, ENOMEM, "Out of memory.");
	}
	for (unsigned i = 0; i < count; i++)
		all[i] = fds[i];
	all[count] = secure;
	return carrier_say(carrier, body, all, count + 1, error);
}

int trust_confirm(struct xend *xend, const json_t *names, const char *address, struct error *error)
{
	_cleanup_free_ char *list = NULL;
	bool found = false;

	xend_unlock(xend);
	for (size_t i = 0; !found && i < json_array_size(names); i++) {
		const char *name = json_string_value(json_array_get(names, i));

		found = name && address_is_of(name, address);
	}
	xend_lock(xend);
	if (found)
		return 0;
	list = json_dumps(names, JSON_COMPACT);
	return error_set(error, EACCES,
		"%s is not trusted: its certificate is for %s, and none of these names leads to that "
		"address.",
		address, list ? list : "other hosts");
}

/* ---- the API ---- */

/* The host that the request is about; NULL where it names none, which is answered then. */
static const char *call_host(struct call *call)
{
	const char *host = json_string_value(json_object_get(call->body, "host"));
	struct error error;

	if (host && *host && strlen(host) <= HOST_MAX)
		return host;
	error_set(&error, EINVAL, "The request names no host.");
	reply_error(call->reply, &error);
	return NULL;
}

struct search {
	const char *host;
	char fingerprint[FINGERPRINT_SIZE];
};

static int compare(void *context, const struct trusted_host *host)
{
	struct search *search = context;

	if (strcasecmp(host->host, search->host) == 0)
		snprintf(search->fingerprint, sizeof(search->fingerprint), "%s", host->fingerprint);
	return 0;
}

static int add_described(void *context, const struct trusted_host *host)
{
	return json_array_append_new(context,
		       json_pack("{s:s, s:s, s:s, s:I}", "host", host->host, "address", host->address,
			       "fingerprint", host->fingerprint, "since", (json_int_t)host->since)) < 0
		       ? -ENOMEM
		       : 0;
}

void trust_show(struct call *call)
{
	struct xend *xend = call->xend;
	_cleanup_json_ json_t *hosts = json_array();
	struct error error;

	if (!xend->trust || !xend->trust->identity) {
		error_set(&error, ENOKEY, "%s", xend->trust ? xend->trust->unusable.text : "Out of memory.");
		reply_error(call->reply, &error);
	} else if (store_each_trusted(xend->store, add_described, hosts, &error) < 0) {
		reply_error(call->reply, &error);
	} else {
		reply_json(call->reply, 200,
			json_pack("{s:s, s:b, s:b, s:O}", "fingerprint", xend->trust->fingerprint,
				"clear_text", xend->config.relocation_clear_text, "authority",
				xend->trust->authority != NULL, "hosts", hosts));
	}
}

/* Asks a host for its key. */
static int identify(
	struct call *call, const char *host, int port, struct message *identified, struct error *error)
{
	_cleanup_carrier_ struct carrier carrier = {0};
	int r = carrier_start(&carrier, call->xend, reply_cancel_fd(call->reply), NULL, error);

	if (r >= 0)
		r = trust_say(&carrier,
			json_pack("{s:s, s:s, s:i}", "do", "identify", "host", host, "port", port), NULL, 0,
			error);
	return r < 0 ? r : carrier_expect(&carrier, "identified", identified, error);
}

void trust_identify(struct call *call)
{
	const char *host = call_host(call);
	json_int_t port = json_integer_value(json_object_get(call->body, "port"));
	_cleanup_message_ struct message identified = {0};
	struct search search = {.host = host};
	struct error error;
	int r;

	if (!host)
		return;
	if (call->xend->config.relocation_clear_text)
		r = error_set(&error, EINVAL,
			"Guests move in clear text here, without keys (xend-relocation-clear-text yes).");
	else if (port < 0 || port > 65535)
		r = error_set(&error, EINVAL, "The host's port is not one.");
	else
		r = identify(call, host, port ? (int)port : (int)call->xend->config.relocation_port,
			&identified, &error);
	if (r >= 0)
		r = store_each_trusted(call->xend->store, compare, &search, &error);
	if (r < 0) {
		reply_error(call->reply, &error);
		return;
	}
	reply_json(call->reply, 200,
		json_pack("{s:O, s:O, s:s}", "fingerprint", json_object_get(identified.body, "fingerprint"),
			"address", json_object_get(identified.body, "address"), "trusted",
			search.fingerprint));
}

/* The address that a name has now: a guest may also be sent to that. "" where it has none. Lets go of the
 * lock. */
static void resolve(struct xend *xend, const char *host, char address[HOST_MAX + 1])
{
	const struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_ADDRCONFIG};
	struct addrinfo *found = NULL;

	address[0] = 0;
	xend_unlock(xend);
	if (getaddrinfo(host, NULL, &hints, &found) == 0) {
		getnameinfo(
			found->ai_addr, found->ai_addrlen, address, HOST_MAX + 1, NULL, 0, NI_NUMERICHOST);
		freeaddrinfo(found);
	}
	xend_lock(xend);
}

void trust_add(struct call *call)
{
	const char *host = call_host(call);
	const char *address = json_string_value(json_object_get(call->body, "address"));
	const char *fingerprint = json_string_value(json_object_get(call->body, "fingerprint"));
	const json_t *port = json_object_get(call->body, "port");
	char resolved[HOST_MAX + 1];
	struct error error;

	if (!host)
		return;
	if (json_integer_value(port) < 0 || json_integer_value(port) > 65535) {
		error_set(&error, EINVAL, "The host's port is not one.");
		reply_error(call->reply, &error);
		return;
	}
	if (!fingerprint || !fingerprint_valid(fingerprint) || (address && strlen(address) > HOST_MAX)) {
		error_set(&error, EINVAL,
			"'%.60s' is no fingerprint of a key, like SHA256:… of 43 characters.",
			fingerprint ? fingerprint : "");
		reply_error(call->reply, &error);
		return;
	}
	if (!address || !*address) {
		resolve(call->xend, host, resolved);
		address = resolved;
	}
	if (store_trust(call->xend->store,
		    &(struct trusted_host){.host = host, .address = address, .fingerprint = fingerprint},
		    &error) < 0) {
		reply_error(call->reply, &error);
		return;
	}
	log_info("%s is trusted with the key %s.", host, fingerprint);
	/* It may have guests that are about to be started here as well. */
	if (port)
		peers_remember(call->xend, host, address,
			(unsigned)(json_integer_value(port)
					   ? json_integer_value(port)
					   : (json_int_t)call->xend->config.relocation_port));
	reply_json(call->reply, 200, json_object());
}

void trust_forget(struct call *call)
{
	const char *host = call_host(call);
	_cleanup_json_ json_t *names = json_array();
	struct error error;
	int r;

	if (!host)
		return;
	r = store_distrust(call->xend->store, host, names, &error);
	if (r < 0) {
		reply_error(call->reply, &error);
		return;
	}
	for (size_t i = 0; i < json_array_size(names); i++)
		log_info("%s is no longer trusted.", json_string_value(json_array_get(names, i)));
	reply_json(call->reply, 200, json_pack("{s:O}", "forgotten", names));
}
