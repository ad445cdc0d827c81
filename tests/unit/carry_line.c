/* Who may speak with a carrier at all: names and addresses, strangers, and the secured line's keys. */
#include "fake_guest.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "carry/allow.h"
#include "carry/clock.h"
#include "carry/peer.h"
#include "carry/tls.h"
#include "secured.h"

#include <errno.h>
#include <netinet/in.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/socket.h>
#include <cmocka.h>

#define TICKET "0123abcd-10a1-e6d0-3c92-19b0ea021f21"
#define HERE "127.0.0.1"

/* A peer that says `bytes` and then waits; what the receiving carrier makes of it. */
static void stranger(const void *bytes, size_t size, const char *expected, size_t answer_size)
{
	struct carrier_thread dest;
	struct message failed;
	char answer[256];
	ssize_t answered = 0, n;
	int pair[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	carrier_thread_begin(&dest, receive_job);
	carrier_say(&dest, json_pack("{s:s, s:{s:i}, s:[]}", "do", "receive", "socket", "fd", 0, "allow"),
		&pair[1], 1);
	close(pair[1]);
	assert_int_equal(write(pair[0], bytes, size), (ssize_t)size);
	shutdown(pair[0], SHUT_WR);
	failed = carrier_event(&dest, "failed");
	assert_non_null(strstr(json_string_value(json_object_get(failed.body, "error")), expected));
	message_free(&failed);
	while ((n = read(pair[0], answer, sizeof(answer))) > 0)
		answered += n;
	assert_int_equal(answered, answer_size);
	close(pair[0]);
	carrier_thread_end(&dest);
}

static void strangers_get_nothing(void **state)
{
	static const char http[] = "GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: a scanner of ports, "
				   "with a long name indeed\r\n\r\n";
	uint8_t bytes[HELLO_SIZE];
	struct hello future = {.lowest = 2, .highest = 9, .purpose = PURPOSE_RELOCATE};

	(void)state;
	stranger("", 0, "closed the connection", 0);
	stranger(http, sizeof(http) - 1, "does not speak", 0);
	hello_encode(&future, bytes);
	bytes[17] ^= 1;
	stranger(bytes, sizeof(bytes), "does not speak", 0);
	hello_encode(&future, bytes);
	stranger(bytes, sizeof(bytes), "update the older one", HELLO_SIZE);
}

static void names_and_addresses_are_matched(void **state)
{
	static const struct {
		const char *patterns, *name, *address;
		bool allowed;
	} cases[] = {
		{"[]", "", "10.0.0.2", true},
		{"[\"^localhost$\", \"^.*\\\\.our-network\\\\.mil$\", \"10.0.0.2\"]", "", "10.0.0.2", true},
		{"[\"^localhost$\", \"^.*\\\\.our-network\\\\.mil$\"]", "a.our-network.mil", "10.0.0.9",
			true},
		{"[\"^localhost$\", \"^.*\\\\.our-network\\\\.mil$\"]", "a.our-network.mil.evil.org",
			"10.0.0.9", false},
		{"[\"10.0.0.2\"]", "", "110.0.0.2", false},
		{"[\"10.0.0.2\"]", "", "10.0.0.20", false},
		{"[\"10.0.0.2\"]", "", "10.0.0.254", false},
		{"[\"10.0.0.2\"]", "10x0.0.2", "10.9.0.2", false},
		{"[\"10\\\\.0\\\\.0\\\\.2\"]", "", "10.0.0.20", false},
		{"[\"10\\\\.0\\\\.0\\\\.2.*\"]", "", "10.0.0.20", true},
		{"[\"host1\"]", "host1", "10.0.0.2", true},
		{"[\"host1\"]", "HOST1", "10.0.0.2", true},
		{"[\"host1\"]", "host10", "10.0.0.2", false},
		{"[\"host1\"]", "host1.evil.org", "10.0.0.2", false},
		{"[\"a|a\\\\.b\"]", "a.b", "10.0.0.2", true},
		{"[\"a|b\"]", "ab", "10.0.0.2", false},
		{"[\"10.0.0.0/24\"]", "", "10.0.0.255", true},
		{"[\"10.0.0.0/24\"]", "", "10.0.1.0", false},
		{"[\"10.0.0.9/29\"]", "", "10.0.0.15", true},
		{"[\"10.0.0.9/29\"]", "", "10.0.0.16", false},
		{"[\"0.0.0.0/0\"]", "", "192.168.7.7", true},
		{"[\"0.0.0.0/0\"]", "", "fd00::1", false},
		{"[\"fd00::/64\"]", "", "fd00::1:2:3:4", true},
		{"[\"fd00::/64\"]", "", "fd00:0:0:1::1", false},
		{"[\"FD00:0::1\"]", "", "fd00::1", true},
		{"[\"fe80::/10\"]", "", "fe80::1%eth0", true},
		{"[\"::ffff:10.0.0.2\"]", "", "10.0.0.2", true},
		{"[\"::ffff:10.0.0.0/120\"]", "", "10.0.0.7", true},
		{"[\"::/0\"]", "", "10.0.0.2", false},
		{"[\"10.0.0.0/33\"]", "", "10.0.0.0", false},
		{"[\"^localhost$\"]", "", "10.0.0.2", false},
		{"[\"(unbalanced\"]", "", "10.0.0.2", false},
		{"[\"\"]", "", "10.0.0.2", false},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		_cleanup_json_ json_t *patterns = json_loads(cases[i].patterns, 0, NULL);
		int r = allow_check(patterns, cases[i].name, cases[i].address, NULL);

		if ((r == 0) != cases[i].allowed)
			fail_msg("%s: %s (%s) is %s", cases[i].patterns, cases[i].name, cases[i].address,
				r == 0 ? "admitted" : "refused");
	}
}

/* ---- keys ---- */

/* How one side of a question is set up. */
struct side {
	const struct test_host *host; /* NULL: clear text */
	json_t *trusted;              /* used up; NULL: nobody */
	const char *authority;
	bool denies; /* that the names in the source's certificate lead to its address */
};

static struct message run_to_end(struct carrier_thread *carrier)
{
	struct message event;

	assert_int_equal(channel_receive(carrier->channel, &event, NULL), 0);
	return event;
}

static void say_secured(
	struct carrier_thread *carrier, json_t *job, int *fds, unsigned count, struct side side)
{
	if (side.host) {
		json_object_set_new(job, "secure", json_pack("{s:i}", "fd", (int)count));
		fds[count] = secure_fd(side.host, side.trusted ? side.trusted : json_array(), side.authority);
	}
	carrier_say(carrier, job, fds, count + !!side.host);
	if (side.host)
		close(fds[count]);
}

static void expect_text(struct message *event, const char *const *expected)
{
	const char *text = json_string_value(json_object_get(event->body, "error"));

	for (; *expected; expected++)
		if (!text || !strstr(text, *expected))
			fail_msg("'%s' is not in '%s'", *expected, text ? text : "(no error)");
	message_free(event);
}

/* One asks the other about a ticket. What both then say, or NULL where it must be answered. */
static void ask(
	struct side source, struct side dest, const char *const *source_says, const char *const *dest_says)
{
	struct carrier_thread asks, hears;
	struct message event;
	int port, listener = listen_here(&port), fds[2] = {-1};

	carrier_thread_begin(&asks, ask_job);
	say_secured(&asks,
		json_pack("{s:s, s:s, s:i, s:s}", "do", "ask", "host", HERE, "port", port, "ticket", TICKET),
		fds, 0, source);
	fds[0] = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	carrier_thread_begin(&hears, receive_job);
	say_secured(&hears, json_pack("{s:s, s:{s:i}, s:[]}", "do", "receive", "socket", "fd", 0, "allow"),
		fds, 1, dest);
	close(fds[0]);
	event = run_to_end(&hears);
	if (strcmp(json_string_value(json_object_get(event.body, "event")), "confirm") == 0) {
		assert_string_equal(json_string_value(json_object_get(event.body, "address")), HERE);
		assert_string_equal(
			json_string_value(json_array_get(json_object_get(event.body, "names"), 0)),
			"elsewhere.test");
		message_free(&event);
		carrier_say(&hears,
			dest.denies ? json_pack("{s:s, s:s}", "do", "abort", "why", "It is not elsewhere.")
				    : json_pack("{s:s}", "do", "confirmed"),
			NULL, 0);
		event = run_to_end(&hears);
	}
	if (dest_says) {
		expect_text(&event, dest_says);
	} else {
		assert_string_equal(json_string_value(json_object_get(event.body, "event")), "ask");
		message_free(&event);
		carrier_say(&hears, json_pack("{s:s, s:s}", "do", "answer", "state", "owned"), NULL, 0);
	}
	event = run_to_end(&asks);
	if (source_says) {
		expect_text(&event, source_says);
	} else {
		assert_string_equal(json_string_value(json_object_get(event.body, "state")), "owned");
		message_free(&event);
	}
	carrier_thread_end(&asks);
	carrier_thread_end(&hears);
	close(listener);
}

struct keys {
	struct test_host one, two, three;
};

static int make_keys(void **state)
{
	struct keys *keys = calloc(1, sizeof(*keys));

	test_host_begin(&keys->one);
	test_host_begin(&keys->two);
	test_host_begin(&keys->three);
	*state = keys;
	return 0;
}

static int drop_keys(void **state)
{
	struct keys *keys = *state;

	test_host_end(&keys->one);
	test_host_end(&keys->two);
	test_host_end(&keys->three);
	free(keys);
	return 0;
}

static json_t *only(const char *host, const char *address, const struct test_host *whose)
{
	return json_pack("[o]", trusted(host, address, whose->fingerprint));
}

static void hosts_that_trust_each_other_speak(void **state)
{
	struct keys *k = *state;

	ask((struct side){&k->one, only(HERE, "", &k->two), NULL},
		(struct side){&k->two, only(HERE, "", &k->one), NULL}, NULL, NULL);
	/* Under another name, but with the address that it was known to have; at the destination the key is
	 * enough. */
	ask((struct side){&k->one, only("two", HERE, &k->two), NULL},
		(struct side){&k->two, only("one.elsewhere", "", &k->one), NULL}, NULL, NULL);
}

static void who_is_not_trusted_learns_what_to_type(void **state)
{
	struct keys *k = *state;

	/* The destination's key is unknown here. */
	ask((struct side){&k->one, NULL, NULL}, (struct side){&k->two, only(HERE, "", &k->one), NULL},
		(const char *const[]){"is not trusted by this host", k->two.fingerprint,
			"Type on this host: xm trust " HERE, NULL},
		(const char *const[]){HERE, NULL});
	/* Ours is unknown there. */
	ask((struct side){&k->one, only(HERE, "", &k->two), NULL}, (struct side){&k->two, NULL, NULL},
		(const char *const[]){"does not trust this host. Type on " HERE ": xm trust " HERE,
			k->one.fingerprint, NULL},
		(const char *const[]){k->one.fingerprint, "Type on this host: xm trust " HERE, NULL});
}

static void a_changed_key_is_refused(void **state)
{
	struct keys *k = *state;

	ask((struct side){&k->one, only(HERE, "", &k->three), NULL},
		(struct side){&k->two, only(HERE, "", &k->one), NULL},
		(const char *const[]){"The key of " HERE " has changed", k->three.fingerprint,
			k->two.fingerprint, "type on this host: xm trust --forget " HERE " && xm trust " HERE,
			NULL},
		(const char *const[]){HERE, NULL});
	ask((struct side){&k->one, only(HERE, "", &k->two), NULL},
		(struct side){&k->two, only(HERE, "", &k->three), NULL},
		(const char *const[]){
			"knows this host by another key", "Type on " HERE ": xm trust --forget " HERE, NULL},
		(const char *const[]){"has changed", k->one.fingerprint, NULL});
	/* A trusted host in another one's place: its key is good for who comes, not for whom we mean. */
	ask((struct side){&k->one,
		    json_pack("[o, o]", trusted("ten", "10.0.0.10", k->two.fingerprint),
			    trusted(HERE, "", k->three.fingerprint)),
		    NULL},
		(struct side){&k->two, only(HERE, "", &k->one), NULL},
		(const char *const[]){"has changed", k->three.fingerprint, NULL},
		(const char *const[]){HERE, NULL});
	/* The same where it is trusted by the address that the other's name leads to now. */
	ask((struct side){&k->one,
		    json_pack("[o, o]", trusted("ten", HERE, k->two.fingerprint),
			    trusted(HERE, "", k->three.fingerprint)),
		    NULL},
		(struct side){&k->two, only(HERE, "", &k->one), NULL},
		(const char *const[]){"has changed", k->three.fingerprint, NULL},
		(const char *const[]){HERE, NULL});
}

static void both_hosts_need_the_same_mode(void **state)
{
	struct keys *k = *state;

	ask((struct side){NULL}, (struct side){&k->two, only(HERE, "", &k->one), NULL},
		(const char *const[]){"xend-relocation-clear-text", NULL},
		(const char *const[]){"does not speak TLS", "xend-relocation-clear-text", NULL});
	ask((struct side){&k->one, only(HERE, "", &k->two), NULL}, (struct side){NULL},
		(const char *const[]){"xend-relocation-clear-text", NULL},
		(const char *const[]){"It speaks TLS", "xend-relocation-clear-text", NULL});
}

static void a_key_is_learnt_without_trust(void **state)
{
	struct keys *k = *state;
	struct carrier_thread asks, hears;
	struct message event;
	int port, listener = listen_here(&port), fds[2] = {-1};

	carrier_thread_begin(&asks, identify_job);
	say_secured(&asks, json_pack("{s:s, s:s, s:i}", "do", "identify", "host", "localhost", "port", port),
		fds, 0, (struct side){&k->one, NULL, NULL});
	fds[0] = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	carrier_thread_begin(&hears, receive_job);
	say_secured(&hears, json_pack("{s:s, s:{s:i}, s:[]}", "do", "receive", "socket", "fd", 0, "allow"),
		fds, 1, (struct side){&k->two, NULL, NULL});
	close(fds[0]);
	event = carrier_event(&asks, "identified");
	assert_string_equal(
		json_string_value(json_object_get(event.body, "fingerprint")), k->two.fingerprint);
	assert_string_equal(json_string_value(json_object_get(event.body, "address")), HERE);
	message_free(&event);
	carrier_thread_end(&asks);
	event = carrier_event(&hears, "failed");
	message_free(&event);
	carrier_thread_end(&hears);
	close(listener);
}

/* ---- an authority ---- */

static X509 *make_certificate(const char *name, EVP_PKEY *key, X509 *issuer, EVP_PKEY *issuer_key)
{
	X509 *certificate = X509_new();
	X509V3_CTX context;
	X509_EXTENSION *extension;

	X509_set_version(certificate, X509_VERSION_3);
	ASN1_INTEGER_set(X509_get_serialNumber(certificate), issuer ? 2 : 1);
	X509_NAME_add_entry_by_txt(X509_get_subject_name(certificate), "CN", MBSTRING_UTF8,
		(const unsigned char *)name, -1, -1, 0);
	X509_set_issuer_name(certificate, X509_get_subject_name(issuer ? issuer : certificate));
	X509_gmtime_adj(X509_getm_notBefore(certificate), -3600);
	X509_gmtime_adj(X509_getm_notAfter(certificate), 3600);
	X509_set_pubkey(certificate, key);
	X509V3_set_ctx(&context, issuer ? issuer : certificate, certificate, NULL, NULL, 0);
	extension = issuer ? X509V3_EXT_conf_nid(NULL, &context, NID_subject_alt_name, name)
			   : X509V3_EXT_conf_nid(NULL, &context, NID_basic_constraints, "critical,CA:TRUE");
	assert_non_null(extension);
	X509_add_ext(certificate, extension, -1);
	X509_EXTENSION_free(extension);
	assert_true(X509_sign(certificate, issuer_key, NULL) > 0);
	return certificate;
}

static char *pem_of(EVP_PKEY *key, X509 *certificate)
{
	BIO *out = BIO_new(BIO_s_mem());
	char *text, *copy;
	long size;

	if (key)
		PEM_write_bio_PrivateKey(out, key, NULL, NULL, 0, NULL, NULL);
	PEM_write_bio_X509(out, certificate);
	size = BIO_get_mem_data(out, &text);
	copy = strndup(text, (size_t)size);
	BIO_free(out);
	return copy;
}

static struct test_host certified_host(const char *name, X509 *issuer, EVP_PKEY *issuer_key)
{
	EVP_PKEY *key = EVP_PKEY_Q_keygen(NULL, NULL, "ED25519");
	X509 *certificate = make_certificate(name, key, issuer, issuer_key);
	struct test_host host = {.pem = pem_of(key, certificate)};

	EVP_PKEY_free(key);
	X509_free(certificate);
	assert_int_equal(identity_fingerprint(host.pem, host.fingerprint, NULL), 0);
	return host;
}

static void an_authority_certifies_hosts(void **state)
{
	struct keys *k = *state;
	EVP_PKEY *key = EVP_PKEY_Q_keygen(NULL, NULL, "ED25519");
	X509 *authority = make_certificate("The authority", key, NULL, key);
	char *pem = pem_of(NULL, authority);
	struct test_host here = certified_host("IP:" HERE, authority, key),
			 elsewhere = certified_host("DNS:elsewhere.test", authority, key),
			 nobody = certified_host("IP:10.9.9.9,email:user@host.test", authority, key),
			 wild = certified_host("DNS:*.test", authority, key);

	ask((struct side){&elsewhere, NULL, pem}, (struct side){&here, NULL, pem}, NULL, NULL);
	ask((struct side){&elsewhere, NULL, pem}, (struct side){&here, NULL, pem, .denies = true},
		(const char *const[]){"It is not elsewhere.", NULL},
		(const char *const[]){"It is not elsewhere.", NULL});
	ask((struct side){&nobody, NULL, pem}, (struct side){&here, NULL, pem},
		(const char *const[]){HERE, NULL},
		(const char *const[]){"its certificate is for another name or address", NULL});
	ask((struct side){&wild, NULL, pem}, (struct side){&here, NULL, pem},
		(const char *const[]){HERE, NULL},
		(const char *const[]){"its certificate is for another name or address", NULL});
	ask((struct side){&here, NULL, pem}, (struct side){&elsewhere, NULL, pem},
		(const char *const[]){"its certificate is for another name", NULL},
		(const char *const[]){HERE, NULL});
	ask((struct side){&k->one, only(HERE, "", &here), NULL}, (struct side){&here, NULL, pem},
		(const char *const[]){"does not trust this host", NULL},
		(const char *const[]){"xend-relocation-ca-file", k->one.fingerprint, NULL});
	/* Beside certificates, keys that a person has trusted count. */
	ask((struct side){&k->one, only(HERE, "", &here), NULL},
		(struct side){&here, only("one", "", &k->one), pem}, NULL, NULL);
	test_host_end(&here);
	test_host_end(&elsewhere);
	test_host_end(&nobody);
	test_host_end(&wild);
	free(pem);
	X509_free(authority);
	EVP_PKEY_free(key);
}

/* ---- the line itself ---- */

struct ends {
	struct wire source, dest;
	struct job source_job, dest_job;
	int channels[2];
};

static void *greet(void *context)
{
	struct ends *ends = context;

	return wire_handshake(&ends->source, NULL) == 0 ? ends : NULL;
}

static void ends_begin(struct ends *ends, struct keys *k)
{
	pthread_t thread;
	void *good;
	int pair[2];

	/* A unix socket: both addresses are localhost. */
	*ends = (struct ends){.source_job = {.channel = -1}, .dest_job = {.channel = -1}};
	ends->source_job.secure =
		json_pack("{s:s, s:o}", "identity", k->one.pem, "trusted", only("localhost", "", &k->two));
	ends->dest_job.secure =
		json_pack("{s:s, s:o}", "identity", k->two.pem, "trusted", only("localhost", "", &k->one));
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair), 0);
	ends->source = (struct wire){.fd = pair[0], .job = &ends->source_job};
	assert_int_equal(tls_prepare(&ends->source.tls, ends->source_job.secure, pair[0],
				 &(struct tls_peer){.host = "localhost"}, NULL),
		0);
	assert_int_equal(wire_adopt(&ends->dest, &ends->dest_job, pair[1], "localhost", NULL), 0);
	pthread_create(&thread, NULL, greet, ends);
	assert_int_equal(wire_handshake(&ends->dest, NULL), 0);
	pthread_join(thread, &good);
	assert_non_null(good);
}

static void ends_end(struct ends *ends)
{
	wire_close(&ends->source);
	wire_close(&ends->dest);
	json_decref(ends->source_job.secure);
	json_decref(ends->dest_job.secure);
}

#define SENDINGS 40u
#define MIXTURE 300000u

/* Parts of every size, from nothing to several records. */
static unsigned cut_up(uint8_t *bytes, struct iovec parts[64], unsigned seed)
{
	unsigned count = 0;
	size_t at = 0;

	while (at < MIXTURE && count < 64) {
		size_t size = (seed * 7919u + count * 104729u) % (count % 3 ? 9000u : 50000u);

		if (size > MIXTURE - at || count == 63)
			size = MIXTURE - at;
		parts[count++] = (struct iovec){.iov_base = bytes + at, .iov_len = size};
		at += size;
	}
	return count;
}

static void *send_mixture(void *context)
{
	struct ends *ends = context;
	uint8_t *bytes = malloc(MIXTURE);
	struct iovec parts[64];
	int r = 0;

	for (unsigned i = 0; i < SENDINGS && r == 0; i++) {
		memset(bytes, (int)i + 1, MIXTURE);
		bytes[i] = 0;
		r = wire_send(&ends->source, parts, cut_up(bytes, parts, i), NULL);
	}
	free(bytes);
	return r == 0 ? ends : NULL;
}

static void bytes_arrive_whatever_their_pieces_and_keys(void **state)
{
	uint8_t *bytes = malloc(MIXTURE), *expected = malloc(MIXTURE);
	struct iovec parts[64];
	struct ends ends;
	pthread_t thread;
	void *good;

	ends_begin(&ends, *state);
	tls_renew_after(ends.source.tls, 100000);
	pthread_create(&thread, NULL, send_mixture, &ends);
	for (unsigned i = 0; i < SENDINGS; i++) {
		memset(expected, (int)i + 1, MIXTURE);
		expected[i] = 0;
		assert_int_equal(wire_receive(&ends.dest, parts, cut_up(bytes, parts, i + 17), NULL), 0);
		assert_memory_equal(bytes, expected, MIXTURE);
	}
	pthread_join(thread, &good);
	assert_non_null(good);
	assert_int_equal(ends.source.sent_bytes, (uint64_t)SENDINGS * MIXTURE);
	assert_false(wire_heard(&ends.dest));
	ends_end(&ends);
	free(bytes);
	free(expected);
}

static void what_is_read_ahead_is_heard(void **state)
{
	struct iovec part = {.iov_base = (char[]){"two words"}, .iov_len = 9};
	char word[8];
	struct ends ends;

	ends_begin(&ends, *state);
	assert_false(wire_heard(&ends.dest));
	assert_int_equal(wire_wait(&ends.dest, 20, NULL), 0);
	assert_int_equal(wire_send(&ends.source, &part, 1, NULL), 0);
	for (unsigned i = 0; i < 3; i++) { /* of one TLS record */
		assert_int_equal(wire_wait(&ends.dest, 60000, NULL), 1);
		assert_true(wire_heard(&ends.dest));
		part = (struct iovec){.iov_base = word, .iov_len = 3};
		assert_int_equal(wire_receive(&ends.dest, &part, 1, NULL), 0);
	}
	assert_false(wire_heard(&ends.dest));
	wire_close(&ends.source);
	assert_int_equal(wire_wait(&ends.dest, 60000, NULL), 1);
	part = (struct iovec){.iov_base = word, .iov_len = 3};
	assert_int_equal(wire_receive(&ends.dest, &part, 1, NULL), -EPIPE);
	ends_end(&ends);
}

/* Somebody in the middle who changes a byte. */
static void a_changed_byte_ends_the_line(void **state)
{
	struct keys *k = *state;
	struct ends ends;
	struct iovec part = {.iov_base = (char[]){"words"}, .iov_len = 5};
	char word[8], record[256];
	ssize_t size;

	ends_begin(&ends, k);
	assert_int_equal(wire_send(&ends.source, &part, 1, NULL), 0);
	size = recv(ends.dest.fd, record, sizeof(record), 0);
	assert_true(size > 20);
	record[size - 3] ^= 1;
	assert_int_equal(send(ends.source.fd, record, (size_t)size, 0), size);
	part = (struct iovec){.iov_base = word, .iov_len = 5};
	assert_int_equal(wire_receive(&ends.dest, &part, 1, NULL), -EPROTO);
	ends_end(&ends);
}

static void a_silent_stranger_is_cut_off(void **state)
{
	struct keys *k = *state;
	struct job job = {.channel = -1};
	struct error error = {0};
	struct wire wire;
	int64_t began = monotonic_ns();
	int pair[2];

	job.secure = json_pack("{s:s, s:[]}", "identity", k->one.pem, "trusted");
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	assert_int_equal(wire_adopt(&wire, &job, pair[0], "localhost", NULL), 0);
	wire_limit(&wire, 300);
	/* The beginning of a ClientHello, a byte at a time. */
	assert_int_equal(write(pair[1], "\x16\x03\x01", 3), 3);
	assert_int_equal(wire_handshake(&wire, &error), -ETIMEDOUT);
	assert_in_range((monotonic_ns() - began) / NS_PER_MS, 290, WIRE_SILENCE_MS - 1);
	wire_close(&wire);
	close(pair[1]);
	json_decref(job.secure);
}

static void fingerprints_are_told_from_other_words(void **state)
{
	struct keys *k = *state;
	char longer[FINGERPRINT_SIZE + 1];

	assert_true(fingerprint_valid(k->one.fingerprint));
	assert_false(fingerprint_valid(k->one.fingerprint + 1));
	assert_false(fingerprint_valid("SHA256:"));
	assert_false(fingerprint_valid(""));
	snprintf(longer, sizeof(longer), "%s=", k->one.fingerprint);
	assert_false(fingerprint_valid(longer));
	assert_int_equal(identity_fingerprint("no key", longer, NULL), -EINVAL);
}

#define WITH_KEYS(test) cmocka_unit_test_setup_teardown(test, make_keys, drop_keys)

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(names_and_addresses_are_matched),
		cmocka_unit_test(strangers_get_nothing),
		WITH_KEYS(hosts_that_trust_each_other_speak),
		WITH_KEYS(who_is_not_trusted_learns_what_to_type),
		WITH_KEYS(a_changed_key_is_refused),
		WITH_KEYS(both_hosts_need_the_same_mode),
		WITH_KEYS(a_key_is_learnt_without_trust),
		WITH_KEYS(an_authority_certifies_hosts),
		WITH_KEYS(bytes_arrive_whatever_their_pieces_and_keys),
		WITH_KEYS(what_is_read_ahead_is_heard),
		WITH_KEYS(a_changed_byte_ends_the_line),
		WITH_KEYS(a_silent_stranger_is_cut_off),
		WITH_KEYS(fingerprints_are_told_from_other_words),
	};

	log_open("carry-line", LOG_WARNING_);
	signal(SIGPIPE, SIG_IGN); /* as the carrier does */
	return cmocka_run_group_tests(tests, NULL, NULL);
}
