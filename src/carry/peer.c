#include "carry/peer.h"
#include "base/printable.h"
#include "carry/clock.h"
#include "state/description.h"
#include "state/checkpoint.h"
#include "state/digest.h"

#include <errno.h>
#include <poll.h>
#include <string.h>

#define HELLO_DIGEST_AT 56
#define CLOCK_EXCHANGES 3
/* How a TLS record with a ClientHello begins (RFC 8446, section 5.1). */
#define TLS_HANDSHAKE 22
#define TLS_MAJOR 3
#define PAGES_LENGTH_MAX                                                                                     \
	(PEER_RUNS_MAX * sizeof(struct peer_run) + (uint64_t)PEER_PAGES_MAX * CHECKPOINT_PAGE)

const char *const peer_answer_names[ANSWER_UNKNOWN + 1] = {
	[ANSWER_OWNED] = "owned", [ANSWER_REFUSED] = "refused", [ANSWER_UNKNOWN] = "unknown"};

static const char hello_magic[8] = "FERRYREL";

struct record_rule {
	const char *name;
	uint64_t longest;     /* bytes of payload */
	uint64_t least, most; /* argument */
};

static const struct record_rule record_rules[RECORD_TYPES] = {
	[RECORD_CLOCK] = {"CLOCK", 0, 0, CLOCK_EXCHANGES - 1},
	[RECORD_TIME] = {"TIME", 0, 0, INT64_MAX},
	[RECORD_OFFER] = {"OFFER", OFFER_DIGEST_SIZE + DESCRIPTION_MAX, CHECKPOINT_PAGE, CHECKPOINT_RAM_MAX},
	[RECORD_ACCEPT] = {"ACCEPT", PEER_TOKEN_SIZE, 0, PEER_STREAMS_MAX},
	[RECORD_REFUSED] = {"REFUSED", 16 << 10, 0, 0},
	[RECORD_PAGES] = {"PAGES", PAGES_LENGTH_MAX, 1, PEER_RUNS_MAX},
	[RECORD_ROUND] = {"ROUND", 0, 1, UINT32_MAX},
	[RECORD_STATE] = {"STATE", CHECKPOINT_STATE_MAX, 0, UINT64_MAX},
	[RECORD_END] = {"END", 0, 0, UINT64_MAX},
	[RECORD_RECEIVED] = {"RECEIVED", 0, 0, 0},
	[RECORD_COMMIT] = {"COMMIT", 0, 0, 0},
	[RECORD_RUNNING] = {"RUNNING", 0, 0, INT32_MAX},
	[RECORD_ABORT] = {"ABORT", 1 << 10, 0, INT32_MAX},
	[RECORD_ALIVE] = {"ALIVE", 0, 0, 0},
	[RECORD_ASK] = {"ASK", 0, 0, 0},
	[RECORD_ANSWER] = {"ANSWER", 0, ANSWER_OWNED, ANSWER_UNKNOWN},
	[RECORD_QUERY] = {"QUERY", PEER_OBJECT_MAX, 0, UINT64_MAX},
	[RECORD_REPLY] = {"REPLY", PEER_OBJECT_MAX, 0, UINT64_MAX},
	[RECORD_PROBE] = {"PROBE", PEER_PROBE_SIZE, 1, UINT32_MAX},
	[RECORD_JOIN] = {"JOIN", PEER_TOKEN_SIZE, 1, PEER_STREAMS_MAX},
	[RECORD_SPREAD] = {"SPREAD", 0, 0, PEER_STREAMS_MAX},
};

/* ---- HELLO ---- */

void hello_encode(const struct hello *hello, uint8_t bytes[HELLO_SIZE])
{
	struct buffer out = {.data = bytes, .capacity = HELLO_SIZE}; /* never grows */

	buffer_append(&out, hello_magic, sizeof(hello_magic));
	buffer_u16(&out, hello->lowest);
	buffer_u16(&out, hello->highest);
	buffer_u32(&out, hello->features);
	buffer_u16(&out, hello->purpose);
	buffer_u16(&out, hello->stream);
	buffer_u32(&out, 0);
	buffer_append(&out, hello->ticket, sizeof(hello->ticket));
	buffer_append(&out, hello->sender, sizeof(hello->sender));
	buffer_extend(&out, HELLO_DIGEST_AT - out.size);
	buffer_u64(&out, digest_of(bytes, HELLO_DIGEST_AT));
}

int hello_decode(struct hello *hello, const uint8_t bytes[HELLO_SIZE], struct error *error)
{
	struct cursor in = cursor_over(bytes, HELLO_SIZE), seal = cursor_over(bytes + HELLO_DIGEST_AT, 8);

	if (bytes[0] == TLS_HANDSHAKE && bytes[1] == TLS_MAJOR)
		return error_set(error, EPROTO,
			"It speaks TLS, and this host clear text: (xend-relocation-clear-text …) must be the "
			"same "
			"on both.");
	if (memcmp(cursor_take(&in, sizeof(hello_magic)), hello_magic, sizeof(hello_magic)) != 0 ||
		cursor_u64(&seal) != digest_of(bytes, HELLO_DIGEST_AT))
		return error_set(error, EPROTO, "It does not speak Ferry's relocation protocol.");
	hello->lowest = cursor_u16(&in);
	hello->highest = cursor_u16(&in);
	hello->features = cursor_u32(&in);
	hello->purpose = cursor_u16(&in);
	hello->stream = cursor_u16(&in);
	cursor_u32(&in);
	memcpy(hello->ticket, cursor_take(&in, sizeof(hello->ticket)), sizeof(hello->ticket));
	memcpy(hello->sender, cursor_take(&in, sizeof(hello->sender)), sizeof(hello->sender));
	return 0;
}

static int send_hello(struct wire *wire, const struct hello *hello, bool clear, struct error *error)
{
	uint8_t bytes[HELLO_SIZE];
	struct iovec part = {.iov_base = bytes, .iov_len = sizeof(bytes)};

	hello_encode(hello, bytes);
	return clear ? wire_send_clear(wire, &part, 1, error) : wire_send(wire, &part, 1, error);
}

static int receive_hello(struct wire *wire, struct hello *hello, bool clear, struct error *error)
{
	uint8_t bytes[HELLO_SIZE];
	struct iovec part = {.iov_base = bytes, .iov_len = sizeof(bytes)};
	int r;

	wire_limit(wire, PEER_HANDSHAKE_MS);
	r = clear ? wire_receive_clear(wire, &part, 1, error) : wire_receive(wire, &part, 1, error);
	wire_limit(wire, 0);
	if (r == 0 && hello_decode(hello, bytes, error) < 0)
		return error_prefix(error, "%s is not what was expected. ", wire->peer);
	return r;
}

static int no_common_version(const struct wire *wire, const struct hello *theirs, struct error *error)
{
	return error_set(error, EPROTONOSUPPORT,
		"%s speaks versions %u to %u of the relocation protocol, this Ferry only %u: update the "
		"older one.",
		wire->peer, theirs->lowest, theirs->highest, PEER_VERSION);
}

int peer_greet(struct wire *wire, enum peer_purpose purpose, const uint8_t ticket[16], uint32_t *features,
	struct error *error)
{
	struct hello ours = {.lowest = PEER_VERSION,
			     .highest = PEER_VERSION,
			     .purpose = (uint16_t)purpose,
			     .features = features ? *features : 0},
		     theirs;
	int r;

	memcpy(ours.ticket, ticket, sizeof(ours.ticket));
	memcpy(ours.sender, wire->job->self, sizeof(ours.sender));
	wire_limit(wire, PEER_HANDSHAKE_MS);
	r = wire_handshake(wire, error);
	if (r == 0)
		r = send_hello(wire, &ours, false, error);
	/* A peer that does not trust us may have closed before HELLO went out: why is still to be read. */
	if (r == 0 || r == -EPIPE || r == -ECONNRESET)
		r = receive_hello(wire, &theirs, false, error);
	if (r == -EPIPE || r == -ECONNRESET)
		return error_set(error, -r,
			"%s closed the connection at once, and its log says why (xm log there): this host "
			"may "
			"not be in its xend-relocation-hosts-allow, its xend-relocation-clear-text not be "
			"the "
			"same as here (%s), or its own key or certificates not be usable.",
			wire->peer, wire->tls ? "no" : "yes");
	if (r < 0)
		return r;
	if (theirs.lowest != PEER_VERSION || theirs.highest != PEER_VERSION)
		return no_common_version(wire, &theirs, error);
	if (theirs.purpose != purpose || memcmp(theirs.ticket, ticket, sizeof(theirs.ticket)) != 0)
		return error_set(error, EPROTO, "%s answered for another hand-over.", wire->peer);
	if (features)
		*features &= theirs.features;
	memcpy(wire->peer_self, theirs.sender, sizeof(wire->peer_self));
	return 0;
}

int peer_greet_stream(struct wire *wire, const uint8_t ticket[16], unsigned stream, struct error *error)
{
	struct hello ours = {.lowest = PEER_VERSION,
		.highest = PEER_VERSION,
		.purpose = PURPOSE_PAGES,
		.stream = (uint16_t)stream};
	int r;

	memcpy(ours.ticket, ticket, sizeof(ours.ticket));
	wire_limit(wire, PEER_HANDSHAKE_MS);
	r = send_hello(wire, &ours, true, error);
	return r == 0 ? wire_handshake(wire, error) : r;
}

/* What a peer says whose first byte is not TLS's: only a data connection does so where lines are secured. */
static int hear_clear(struct wire *wire, struct hello *hello, struct error *error)
{
	int r = receive_hello(wire, hello, true, error);

	if (r == 0 && hello->purpose == PURPOSE_PAGES &&
		(hello->lowest > PEER_VERSION || hello->highest < PEER_VERSION || hello->stream < 1 ||
			hello->stream > PEER_STREAMS_MAX))
		return error_set(error, EPROTO, "%s breaks the relocation protocol: no such data connection.",
			wire->peer);
	if (r < 0 || !wire->tls || hello->purpose == PURPOSE_PAGES)
		return r;
	return error_set(error, EPROTO,
		"%s does not speak TLS, as this host does: both need the same (xend-relocation-clear-text "
		"…).",
		wire->peer);
}

static int hear_secured(struct wire *wire, struct hello *hello, struct error *error)
{
	int r = wire_handshake(wire, error);

	if (r < 0)
		wire_finish(wire); /* so that the peer hears why */
	return r == 0 ? receive_hello(wire, hello, false, error) : r;
}

int peer_welcome(struct wire *wire, struct hello *hello, struct error *error)
{
	struct hello ours;
	uint8_t first;
	bool common;
	int r;

	wire_limit(wire, PEER_HANDSHAKE_MS);
	r = wire_peek_clear(wire, &first, error);
	if (r == 0)
		r = wire->tls && first != (uint8_t)hello_magic[0] ? hear_secured(wire, hello, error)
								  : hear_clear(wire, hello, error);
	if (r < 0 || (hello->purpose == PURPOSE_PAGES && first == (uint8_t)hello_magic[0]))
		return r;
	common = hello->lowest <= PEER_VERSION && hello->highest >= PEER_VERSION;
	ours = *hello;
	ours.lowest = ours.highest = PEER_VERSION;
	ours.features = hello->features &= PEER_COMPRESSED | PEER_STREAMS | PEER_CLOCK;
	memcpy(ours.sender, wire->job->self, sizeof(ours.sender));
	r = send_hello(wire, &ours, false, error);
	if (r == 0 && !common)
		return no_common_version(wire, hello, error);
	if (r == 0 && (hello->purpose < PURPOSE_RELOCATE || hello->purpose > PURPOSE_QUERY))
		return error_set(error, EPROTO,
			"%s wants something that this Ferry does not know (purpose %u).", wire->peer,
			hello->purpose);
	return r;
}

/* ---- records ---- */

static uint32_t head_check(const uint8_t head[RECORD_HEAD_SIZE])
{
	uint8_t copy[RECORD_HEAD_SIZE];

	memcpy(copy, head, sizeof(copy));
	memset(copy + 4, 0, 4);
	return (uint32_t)digest_of(copy, sizeof(copy));
}

void record_encode(const struct record *record, uint8_t head[RECORD_HEAD_SIZE])
{
	struct buffer out = {.data = head, .capacity = RECORD_HEAD_SIZE}; /* never grows */

	buffer_u32(&out, record->type);
	buffer_u32(&out, 0);
	buffer_u64(&out, record->argument);
	buffer_u64(&out, record->length);
	buffer_patch_u32(&out, 4, head_check(head));
}

int record_decode(struct record *record, const uint8_t head[RECORD_HEAD_SIZE], struct error *error)
{
	struct cursor in = cursor_over(head, RECORD_HEAD_SIZE);
	uint32_t type = cursor_u32(&in), check = cursor_u32(&in);
	const struct record_rule *rule;

	if (check != head_check(head))
		return error_set(error, EPROTO, "A record's head is damaged.");
	if (type == 0 || type >= RECORD_TYPES)
		return error_set(error, EPROTO, "A record is of an unknown type (%u).", type);
	rule = &record_rules[type];
	record->type = (enum record_type)type;
	record->argument = cursor_u64(&in);
	record->length = cursor_u64(&in);
	if (record->length > rule->longest || record->argument < rule->least || record->argument > rule->most)
		return error_set(error, EPROTO, "A record (%s) is out of bounds.", rule->name);
	return 0;
}

int peer_send(struct wire *wire, enum record_type type, uint64_t argument, const void *payload, size_t length,
	struct error *error)
{
	uint8_t head[RECORD_HEAD_SIZE];
	struct iovec parts[2] = {{.iov_base = head, .iov_len = sizeof(head)},
		{.iov_base = (void *)(uintptr_t)payload, .iov_len = length}};

	record_encode(&(struct record){.type = type, .argument = argument, .length = length}, head);
	return wire_send(wire, parts, 2, error);
}

/* The peer's last words. */
static int aborted(struct wire *wire, const struct record *record, struct error *error)
{
	_cleanup_buffer_ struct buffer text = {0};
	int r = peer_payload(wire, record, &text, error);
	char shown[2048];

	if (r < 0)
		return r;
	printable(text.size ? (const char *)text.data : "", text.size, PRINTABLE_LINE, shown, sizeof(shown));
	return error_set(error, ECONNABORTED, "%s gave up: %s", wire->peer, shown);
}

int peer_receive(struct wire *wire, struct record *record, struct error *error)
{
	for (;;) {
		uint8_t head[RECORD_HEAD_SIZE];
		struct iovec part = {.iov_base = head, .iov_len = sizeof(head)};
		int r = wire_receive(wire, &part, 1, error);

		if (r < 0)
			return r;
		r = record_decode(record, head, error);
		if (r < 0)
			return error_prefix(error, "%s breaks the relocation protocol. ", wire->peer);
		if (record->type == RECORD_ABORT)
			return aborted(wire, record, error);
		if (record->type != RECORD_ALIVE)
			return 0;
	}
}

int peer_payload(struct wire *wire, const struct record *record, struct buffer *payload, struct error *error)
{
	struct iovec part;

	buffer_clear(payload);
	if (record->length && !buffer_extend(payload, record->length))
		return error_set(error, ENOMEM, "Out of memory while hearing %s.", wire->peer);
	part = (struct iovec){.iov_base = payload->data, .iov_len = payload->size};
	return wire_receive(wire, &part, 1, error);
}

int peer_not_due(const struct wire *wire, const struct record *record, struct error *error)
{
	return error_set(error, EPROTO, "%s breaks the relocation protocol: %s is not due now.", wire->peer,
		record_rules[record->type].name);
}

int peer_expect(struct wire *wire, enum record_type type, struct record *record, struct error *error)
{
	int r = peer_receive(wire, record, error);

	return r == 0 && record->type != type ? peer_not_due(wire, record, error) : r;
}

int peer_listen(struct wire *wire, struct error *error)
{
	uint8_t head[RECORD_HEAD_SIZE];
	struct iovec part = {.iov_base = head, .iov_len = sizeof(head)};
	struct record record;
	int r;

	while (wire_heard(wire)) {
		r = wire_receive(wire, &part, 1, error);
		if (r == 0)
			r = record_decode(&record, head, error);
		if (r == 0 && record.type != RECORD_ALIVE)
			r = record.type == RECORD_ABORT ? aborted(wire, &record, error)
							: peer_not_due(wire, &record, error);
		if (r < 0)
			return r;
		part = (struct iovec){.iov_base = head, .iov_len = sizeof(head)};
	}
	return 0;
}

int peer_keep_alive(struct wire *wire, struct error *error)
{
	if (monotonic_ns() - wire->sent_at < WIRE_ALIVE_MS * NS_PER_MS)
		return 0;
	return peer_send(wire, RECORD_ALIVE, 0, NULL, 0, error);
}

int peer_attend(struct wire *wire, struct error *error)
{
	int r = peer_listen(wire, error);

	if (r == 0)
		r = peer_keep_alive(wire, error);
	return r == 0 ? wire_cancelled(wire, error) : r;
}

int peer_wait_xend(struct wire *wire, struct message *answer, struct error *error)
{
	int64_t alive_at = monotonic_ns() + WIRE_ALIVE_MS * NS_PER_MS;

	for (;;) {
		int64_t left = (alive_at - monotonic_ns()) / NS_PER_MS;
		int r = left > 0 ? wire_wait(wire, (int)left, error) : 0;

		if (r == 2)
			return job_answer(wire->job, answer, error);
		if (r == 1)
			r = peer_listen(wire, error);
		else if (r == 0) {
			r = peer_send(wire, RECORD_ALIVE, 0, NULL, 0, error);
			alive_at = monotonic_ns() + WIRE_ALIVE_MS * NS_PER_MS;
		}
		if (r < 0)
			return r;
	}
}

int peer_hold_for_xend(struct wire *wire, struct message *answer, struct error *error)
{
	struct pollfd xend = {.fd = wire->job->channel, .events = POLLIN};
	int r = 0;

	while (r == 0) {
		int n = poll(&xend, 1, WIRE_ALIVE_MS);

		if (n < 0 && errno != EINTR)
			return error_set(error, errno, "Unable to wait for xend: %s.", strerror(errno));
		if (n > 0)
			return job_answer(wire->job, answer, error);
		if (n == 0)
			r = peer_send(wire, RECORD_ALIVE, 0, NULL, 0, error);
	}
	return r;
}

void peer_last_words(struct wire *wire, int failure, int milliseconds, struct error *error)
{
	struct error reason = {0};

	wire->stop = NULL;
	if ((failure != -EPIPE && failure != -ECONNRESET) || wire->fd < 0)
		return;
	if (milliseconds)
		wire_wait(wire, milliseconds, NULL);
	if (peer_listen(wire, &reason) == -ECONNABORTED)
		*error = reason;
}

void peer_abort(struct wire *wire, const struct error *why)
{
	uint8_t head[RECORD_HEAD_SIZE];
	size_t length = strlen(why->text);
	struct iovec parts[2];

	/* A job that was given up has its channel readable, so this goes out without waiting, as far as it
	 * goes. */
	struct job nobody = {.channel = -1};

	if (wire->fd < 0 || why->code == ECONNABORTED)
		return;
	if (length > record_rules[RECORD_ABORT].longest)
		length = record_rules[RECORD_ABORT].longest;
	record_encode(
		&(struct record){.type = RECORD_ABORT, .argument = (uint64_t)why->code, .length = length},
		head);
	parts[0] = (struct iovec){.iov_base = head, .iov_len = sizeof(head)};
	parts[1] = (struct iovec){.iov_base = (void *)(uintptr_t)why->text, .iov_len = length};
	wire->job = &nobody;
	wire->stop = NULL;
	wire_limit(wire, 1000);
	if (wire_send(wire, parts, 2, NULL) == 0)
		wire_finish(wire);
	wire_close(wire);
}

/* ---- clocks ---- */

int peer_ask_clock(struct wire *wire, unsigned number, struct clock_question *asked, struct error *error)
{
	*asked = (struct clock_question){.monotonic = monotonic_ns(), .realtime = realtime_ns()};
	return peer_send(wire, RECORD_CLOCK, number, NULL, 0, error);
}

int peer_hear_clock(struct wire *wire, const struct clock_question *asked, struct clock_offset *offset,
	struct error *error)
{
	struct record record;
	int r = peer_expect(wire, RECORD_TIME, &record, error);

	offset->error_ns = (monotonic_ns() - asked->monotonic) / 2;
	if (r == 0)
		offset->ns = asked->realtime + offset->error_ns - (int64_t)record.argument;
	return r;
}

int peer_answer_clock(struct wire *wire, struct error *error)
{
	return peer_send(wire, RECORD_TIME, (uint64_t)realtime_ns(), NULL, 0, error);
}

void clock_offset_renew(struct clock_offset *offset, const struct clock_offset *later)
{
	int64_t change;

	if (later->error_ns <= offset->error_ns || __builtin_sub_overflow(later->ns, offset->ns, &change) ||
		change > later->error_ns || change < -later->error_ns)
		*offset = *later;
}

int peer_measure_clock(struct wire *wire, struct clock_offset *offset, struct error *error)
{
	offset->error_ns = INT64_MAX;
	for (unsigned i = 0; i < CLOCK_EXCHANGES; i++) {
		struct clock_question asked;
		struct clock_offset found;
		int r;

		wire_limit(wire, PEER_HANDSHAKE_MS);
		r = peer_ask_clock(wire, i, &asked, error);
		if (r == 0)
			r = peer_hear_clock(wire, &asked, &found, error);
		wire_limit(wire, 0);
		if (r < 0)
			return r;
		if (found.error_ns < offset->error_ns)
			*offset = found;
	}
	return 0;
}

int peer_tell_clock(struct wire *wire, struct error *error)
{
	for (unsigned i = 0; i < CLOCK_EXCHANGES; i++) {
		struct record record;
		int r;

		wire_limit(wire, PEER_HANDSHAKE_MS);
		r = peer_expect(wire, RECORD_CLOCK, &record, error);
		if (r == 0)
			r = peer_answer_clock(wire, error);
		wire_limit(wire, 0);
		if (r < 0)
			return r;
	}
	return 0;
}
