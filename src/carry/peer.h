/*
 * The relocation protocol's messages (docs/relocation-protocol.md): HELLO, the clock
 * exchange and records. One table says what each record may look like; everything that
 * the peer says passes it.
 */
#pragma once

#include "base/buffer.h"
#include "base/error.h"
#include "carry/wire.h"

#include <stdint.h>

#define PEER_VERSION 1
#define PEER_HANDSHAKE_MS 10000
#define PEER_RUNS_MAX 256u
#define PEER_PAGES_MAX 1024u        /* with contents, of one PAGES record */
#define PEER_OBJECT_MAX (56u << 10) /* a question or its answer */
#define PEER_PROBE_SIZE (256u << 10)

/* Features. */
#define PEER_COMPRESSED 0x1u /* compressed pages */
#define PEER_STREAMS 0x2u    /* pages over data connections */
#define PEER_CLOCK 0x4u      /* the source's clock is asked for once more before RECEIVED */

#define PEER_STREAMS_MAX 8u    /* data connections of one relocation */
#define PEER_STRIPE_PAGES 256u /* neighbours that travel over the same one */
#define PEER_TOKEN_SIZE 32u

enum peer_purpose { PURPOSE_RELOCATE = 1, PURPOSE_ASK = 2, PURPOSE_QUERY = 3, PURPOSE_PAGES = 4 };

enum record_type {
	RECORD_CLOCK = 1,
	RECORD_TIME,
	RECORD_OFFER,
	RECORD_ACCEPT,
	RECORD_REFUSED,
	RECORD_PAGES,
	RECORD_ROUND,
	RECORD_STATE,
	RECORD_END,
	RECORD_RECEIVED,
	RECORD_COMMIT,
	RECORD_RUNNING,
	RECORD_ABORT,
	RECORD_ALIVE,
	RECORD_ASK,
	RECORD_ANSWER,
	RECORD_QUERY,
	RECORD_REPLY,
	RECORD_PROBE,
	RECORD_JOIN,
	RECORD_SPREAD,
	RECORD_TYPES
};

enum peer_answer { ANSWER_OWNED = 1, ANSWER_REFUSED, ANSWER_UNKNOWN };
extern const char *const peer_answer_names[ANSWER_UNKNOWN + 1]; /* "owned" …, as xend says them */

/* Of a run's kind the low byte; above it the bytes of a compressed run's contents. */
enum run_kind { RUN_CONTENTS = 0, RUN_ZERO = 1, RUN_COMPRESSED = 2 };
#define RUN_KIND(kind) ((kind)&0xffu)
#define RUN_SIZE(kind) ((kind) >> 8)

struct record {
	enum record_type type;
	uint64_t argument, length;
};

struct peer_run { /* 16 bytes, as on the wire (little-endian host) */
	uint64_t first;
	uint32_t count, kind;
};

struct hello {
	uint16_t lowest, highest, purpose, stream;
	uint32_t features;
	uint8_t ticket[16];
	uint8_t sender[16]; /* what identifies the sender's records; zero: it does not say */
};

#define RECORD_HEAD_SIZE 24
#define OFFER_DIGEST_SIZE 8 /* before an OFFER's JSON */
#define HELLO_SIZE 64

void hello_encode(const struct hello *hello, uint8_t bytes[HELLO_SIZE]);
/* -EPROTO with a sentence where the bytes are no HELLO. */
int hello_decode(struct hello *hello, const uint8_t bytes[HELLO_SIZE], struct error *error);

/* The source's side of the HELLOs: speaks first. Of the features that it wants, *features then has those that
 * the destination has as well; NULL: it wants none. */
int peer_greet(struct wire *wire, enum peer_purpose purpose, const uint8_t ticket[16], uint32_t *features,
	struct error *error);
/* The destination's: hears, answers; what the source wants, and the features of both, is in *hello. A data
 * connection's HELLO (PURPOSE_PAGES) comes before TLS, and is not answered. */
int peer_welcome(struct wire *wire, struct hello *hello, struct error *error);

/* The source's side of a data connection: HELLO and TLS. */
int peer_greet_stream(struct wire *wire, const uint8_t ticket[16], unsigned stream, struct error *error);

void record_encode(const struct record *record, uint8_t head[RECORD_HEAD_SIZE]);
int record_decode(struct record *record, const uint8_t head[RECORD_HEAD_SIZE], struct error *error);

int peer_send(struct wire *wire, enum record_type type, uint64_t argument, const void *payload, size_t length,
	struct error *error);
/*
 * The next record's head. ALIVE is passed over; ABORT gives -ECONNABORTED with the peer's sentence.
 * The payload is still to be read.
 */
int peer_receive(struct wire *wire, struct record *record, struct error *error);
/* Reads the payload, whose length the table has bounded. */
int peer_payload(struct wire *wire, const struct record *record, struct buffer *payload, struct error *error);
/* The next record, which must be of this type. */
int peer_expect(struct wire *wire, enum record_type type, struct record *record, struct error *error);
/* The sentence for a record that is not due. */
int peer_not_due(const struct wire *wire, const struct record *record, struct error *error);
/* While the peer should be silent (it receives): -ECONNABORTED when it has given up. */
int peer_listen(struct wire *wire, struct error *error);

/* Tells the peer that we are alive where nothing was sent for a while. */
int peer_keep_alive(struct wire *wire, struct error *error);
/* The same, and listens to the peer and to xend: for whoever has long to do without sending. */
int peer_attend(struct wire *wire, struct error *error);

/*
 * Waits for xend's next answer and tells the peer meanwhile that we are alive. A peer that goes away
 * or gives up ends it; one that says anything else does as well.
 */
int peer_wait_xend(struct wire *wire, struct message *answer, struct error *error);
/* The same while the peer may go on sending: nothing is read from it. */
int peer_hold_for_xend(struct wire *wire, struct message *answer, struct error *error);

/* A line that broke while we sent, or another of the relocation's, may have brought the peer's reason before,
 * or brings it within `milliseconds`: that then is the error. */
void peer_last_words(struct wire *wire, int failure, int milliseconds, struct error *error);
/* Tells the peer why this side gives up, unless the peer or the line did. Ends the conversation. */
void peer_abort(struct wire *wire, const struct error *why);

/* Our CLOCK_REALTIME minus the peer's, and how wrong that may be, either way. */
struct clock_offset {
	int64_t ns, error_ns;
};

/* When the peer was asked for its clock; ns of ours. */
struct clock_question {
	int64_t monotonic, realtime;
};

/* The destination asks for the source's clock, some times, of which the most exact one counts. */
int peer_measure_clock(struct wire *wire, struct clock_offset *offset, struct error *error);
int peer_tell_clock(struct wire *wire, struct error *error);
/* The same once, in two parts, between which other records may be sent. */
int peer_ask_clock(struct wire *wire, unsigned number, struct clock_question *asked, struct error *error);
int peer_hear_clock(struct wire *wire, const struct clock_question *asked, struct clock_offset *offset,
	struct error *error);
/* Answers a CLOCK that has just been heard. */
int peer_answer_clock(struct wire *wire, struct error *error);
/* What was measured later counts, but where it is less exact and allows for the earlier one. */
void clock_offset_renew(struct clock_offset *offset, const struct clock_offset *later);
