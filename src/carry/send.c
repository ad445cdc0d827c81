#include "base/cleanup.h"
#include "base/log.h"
#include "base/printable.h"
#include "base/sentences.h"
#include "base/status.h"
#include "carry/clock.h"
#include "carry/copy.h"
#include "carry/jobs.h"
#include "carry/page_sender.h"
#include "carry/proof.h"
#include "carry/streams_out.h"
#include "carry/tls.h"
#include "state/description.h"
#include "state/digest.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* Memory that one more connection is worth being set up for. */
#define MEMORY_OF_ONE (UINT64_C(256) << 20)

/* So much longer than it would anyway a guest may stand still until its memory is proven. */
#define PROOF_NS (5 * NS_PER_MS)

/* A hand-over under way, seen from the source. */
struct send {
	struct job *job;
	struct guest guest;
	struct wire wire;
	struct sink sink;
	struct page_sending sending;
	struct page_digests digests;
	struct proof proof;
	struct page_sender sender; /* of the control connection */
	struct streams_out streams;
	unsigned connections; /* wanted for memory; 0: the control connection does */
	struct copy copy;
	uint8_t ticket[16];
	int64_t began, copied_at, sent_at, received_at, committed_at; /* monotonic ns */
	bool all_sent;                                                /* every page, and the last ROUND */
	bool committed;                                               /* COMMIT may have reached the peer */
	bool tells_clock;                                             /* once more, when the peer asks */
};

#define _cleanup_send_ __attribute__((cleanup(send_free)))

static void send_free(struct send *send)
{
	streams_out_end(&send->streams);
	wire_close(&send->wire);
	guest_close(&send->guest);
	page_sender_end(&send->sender);
	proof_end(&send->proof);
	page_digests_free(&send->digests);
}

static bool has_streams(const struct send *send)
{
	return send->streams.count > 0;
}

static int send_pages(struct sink *sink, uint64_t first, uint64_t count, struct error *error)
{
	struct send *send = CONTAINER_OF(sink, struct send, sink);

	proof_sent_again(&send->proof, first, count);
	return has_streams(send) ? streams_out_run(&send->streams, first, count, false, error)
				 : page_sender_pages(&send->sender, first, count, error);
}

static int send_zeros(struct sink *sink, uint64_t first, uint64_t count, struct error *error)
{
	struct send *send = CONTAINER_OF(sink, struct send, sink);

	proof_sent_again(&send->proof, first, count);
	return has_streams(send) ? streams_out_run(&send->streams, first, count, true, error)
				 : page_sender_zeros(&send->sender, first, count, error);
}

/* Once the last round is sent, what the peer says is its answer, which is heard in its place. */
static int send_attend(struct sink *sink, struct error *error)
{
	struct send *send = CONTAINER_OF(sink, struct send, sink);
	int r;

	if (!send->all_sent)
		return peer_attend(&send->wire, error);
	r = peer_keep_alive(&send->wire, error);
	return r == 0 ? wire_cancelled(&send->wire, error) : r;
}

/* The proof goes on for as long as the peer lets us wait. */
static int prove_meanwhile(struct send *send, bool still, struct error *error)
{
	int r = 0;

	while (r == 0 && send->proof.left && !wire_heard(&send->wire))
		r = proof_step(&send->proof, still, error);
	return r;
}

/* The peer says when it has put a round's pages in place. */
static int await_round(struct send *send, unsigned number, bool still, struct error *error)
{
	struct wire *wire = &send->wire;
	struct record record;
	int r = prove_meanwhile(send, still, error);

	if (r == 0)
		r = peer_expect(wire, RECORD_ROUND, &record, error);
	return r == 0 && record.argument != number ? peer_not_due(wire, &record, error) : r;
}

/* Once while the guest runs all memory is looked at, in the time for which the peer is waited for. */
static int await_running_round(struct send *send, unsigned number, struct error *error)
{
	if (number == 1)
		proof_lap(&send->proof);
	return await_round(send, number, false, error);
}

static int send_round(struct sink *sink, unsigned number, struct error *error)
{
	struct send *send = CONTAINER_OF(sink, struct send, sink);
	int64_t waited;
	int r = has_streams(send) ? streams_out_round(&send->streams, number, sink->last, error)
				  : page_sender_flush(&send->sender, error);

	waited = send->wire.waited_ns;
	if (r == 0)
		r = peer_send(&send->wire, RECORD_ROUND, number, NULL, 0, error);
	send->all_sent = sink->last;
	if (r == 0 && !sink->last)
		r = await_running_round(send, number, error);
	else if (r == 0 && has_streams(send))
		r = streams_out_finish(&send->streams, &send->sender.digests.sum, error);
	if (!has_streams(send))
		page_sender_waited(&send->sender, send->wire.waited_ns - waited);
	return r;
}

static int refused(struct wire *wire, const struct record *record, struct error *error)
{
	_cleanup_buffer_ struct buffer text = {0};
	_cleanup_json_ json_t *list = NULL;
	int r = peer_payload(wire, record, &text, error);

	if (r < 0)
		return r;
	list = json_loadb((const char *)text.data, text.size, 0, NULL);
	return sentences_refused(error, wire->peer, list);
}

/* The destination takes the guest, and, where the record says so, its memory over several connections. */
static int begin_memory(struct send *send, const struct record *accept, struct error *error)
{
	struct streams_out *streams = &send->streams;
	unsigned count = (unsigned)accept->argument;
	struct iovec token = {.iov_base = streams->token, .iov_len = sizeof(streams->token)};
	int r = page_sender_begin(&send->sender, &send->wire, &send->sending, send->digests.of_page, error);

	if (r < 0 || (count == 0 && accept->length == 0))
		return r;
	if (count < 2 || count > send->connections || accept->length != sizeof(streams->token))
		return peer_not_due(&send->wire, accept, error);
	r = wire_receive(&send->wire, &token, 1, error);
	return r == 0 ? streams_out_open(streams, count, &send->wire, send->ticket, &send->sending,
				send->digests.of_page, error)
		      : r;
}

static int offer(struct send *send, struct error *error)
{
	_cleanup_json_ json_t *description =
		description_new(json_object_get(send->job->request.body, "domain"), send->guest.regions,
			send->guest.size, error);
	_cleanup_free_ char *text = NULL;
	_cleanup_buffer_ struct buffer payload = {0};
	struct record record;
	int r;

	if (!description)
		return -error->code;
	json_object_set_new(description, "live", json_boolean(send->copy.live));
	if (send->connections)
		json_object_set_new(description, "connections", json_integer(send->connections));
	text = json_dumps(description, JSON_COMPACT);
	buffer_u64(&payload, text ? digest_of(text, strlen(text)) : 0);
	buffer_append(&payload, text, text ? strlen(text) : 0);
	if (!text || payload.failed)
		return error_set(error, ENOMEM, "Out of memory while offering the guest.");
	r = peer_send(&send->wire, RECORD_OFFER, send->guest.size, payload.data, payload.size, error);
	/* Takes a moment with much memory: one in which the peer has to see about the offer anyway. */
	if (r == 0 && send->copy.live)
		r = guest_track(&send->guest, true, error);
	if (r == 0)
		r = peer_receive(&send->wire, &record, error);
	if (r < 0)
		return r;
	if (record.type == RECORD_REFUSED)
		return refused(&send->wire, &record, error);
	return record.type == RECORD_ACCEPT ? begin_memory(send, &record, error)
					    : peer_not_due(&send->wire, &record, error);
}

static int send_state(struct send *send, struct error *error)
{
	_cleanup_buffer_ struct buffer state = {0};
	int r = guest_save_state(&send->guest, &state, error);

	if (r == 0)
		r = peer_send(&send->wire, RECORD_STATE, digest_of(state.data, state.size), state.data,
			state.size, error);
	if (r == 0)
		r = peer_send(&send->wire, RECORD_END, send->sender.digests.sum, NULL, 0, error);
	return r;
}

static int agree_on_compression(struct send *send, uint32_t features, struct error *error)
{
	if (!(features & PEER_COMPRESSED) && send->sending.compression == COMPRESSION_YES)
		return error_set(error, EPROTONOSUPPORT,
			"%s cannot take compressed pages: update Ferry there, or leave --compress yes away.",
			send->wire.peer);
	if (!(features & PEER_COMPRESSED))
		send->sending.compression = COMPRESSION_NO;
	return 0;
}

/* Who it is that has the guest now: whose word alone counts should the line break. */
static int tell_received(const struct send *send, struct error *error)
{
	const struct wire *wire = &send->wire;
	static const uint8_t unknown[16];
	char records[UUID_TEXT_SIZE] = "";

	if (memcmp(wire->peer_self, unknown, sizeof(unknown)) != 0)
		uuid_to_text(wire->peer_self, records);
	return job_event(send->job, "received",
		json_pack("{s:s, s:s, s:s}", "address", wire->address, "fingerprint",
			wire->tls ? tls_fingerprint(wire->tls) : "", "records", records),
		error);
}

/* The peer asks for our clock right before: the guest has stood still since its time stopped, and long rounds
 * lie between that and the handshake. */
static int expect_received(struct send *send, struct error *error)
{
	struct wire *wire = &send->wire;
	struct record record;
	int r = peer_receive(wire, &record, error);

	if (r == 0 && record.type == RECORD_CLOCK && send->tells_clock) {
		send->tells_clock = false;
		r = peer_answer_clock(wire, error);
		if (r == 0)
			r = peer_receive(wire, &record, error);
	}
	return r == 0 && record.type != RECORD_RECEIVED ? peer_not_due(wire, &record, error) : r;
}

/*
 * Everything was sent, and the guest stands still: while the peer puts it in place, verifies, loads and
 * records, its memory is read again here. What is left of that once the peer is done is not waited for where
 * it takes long.
 */
static int await_received(struct send *send, struct error *error)
{
	struct proof *proof = &send->proof;
	int64_t end;
	int r = proof_clear(proof, error);

	proof_lap(proof);
	if (r == 0)
		r = await_round(send, send->copy.rounds, true, error);
	if (r == 0)
		r = prove_meanwhile(send, true, error);
	if (r == 0)
		r = expect_received(send, error);
	end = monotonic_ns() + PROOF_NS;
	while (r == 0 && proof->left && monotonic_ns() + proof_left_ns(proof) <= end)
		r = proof_step(proof, true, error);
	if (r == 0)
		log_info("Of %llu pages %llu were compared with what was sent while the guest stood still.",
			(unsigned long long)send->guest.pages,
			(unsigned long long)(send->guest.pages - proof->left));
	return r;
}

/* Up to RECEIVED: after it the peer has all, verified, and xend decides. */
static int send_guest(struct send *send, struct error *error)
{
	uint32_t features = PEER_CLOCK | (send->sending.compression == COMPRESSION_NO ? 0 : PEER_COMPRESSED) |
			    (send->connections ? PEER_STREAMS : 0);
	int r = peer_greet(&send->wire, PURPOSE_RELOCATE, send->ticket, &features, error);

	if (r == 0)
		r = agree_on_compression(send, features, error);
	if (!(features & PEER_STREAMS))
		send->connections = 0;
	send->tells_clock = features & PEER_CLOCK;
	if (r == 0)
		r = peer_tell_clock(&send->wire, error);
	if (r == 0)
		r = offer(send, error);
	/* Where the guest is to stay rather than be late, a line that hangs is not waited for either. */
	if (send->copy.may_not_stall) {
		send->wire.deadline = send->copy.deadline;
		streams_out_deadline(&send->streams, send->copy.deadline);
	}
	if (r == 0)
		r = copy_guest(&send->copy, error);
	wire_limit(&send->wire, 0);
	if (send->streams.count)
		r = crew_judge(&send->streams.crew, r, error);
	send->wire.stop = NULL;
	if (r == -ETIMEDOUT && send->copy.may_not_stall && send->copy.deadline &&
		monotonic_ns() >= send->copy.deadline)
		r = copy_overdue(&send->copy, error);
	send->copied_at = monotonic_ns();
	if (r == 0)
		r = send_state(send, error);
	send->sent_at = monotonic_ns();
	if (r == 0)
		r = await_received(send, error);
	send->received_at = monotonic_ns();
	return r == 0 ? tell_received(send, error) : r;
}

static double in_ms(int64_t from, int64_t to)
{
	return (double)(to - from) / (double)NS_PER_MS;
}

/* What the downtime was spent on, for whoever wants it shorter. */
static void log_downtime(const struct send *send, int64_t running_at)
{
	const struct copy *copy = &send->copy;

	log_info("Downtime %.1f ms: %.1f to stop the guest, %.1f for the last round of %llu pages, %.1f for "
		 "the device "
		 "state, %.1f until the peer had verified and loaded it, %.1f to record the hand-over, %.1f "
		 "until it "
		 "ran there.",
		in_ms(copy->paused_at, running_at), in_ms(copy->paused_at, copy->stopped_at),
		in_ms(copy->stopped_at, send->copied_at), (unsigned long long)copy->last_pages,
		in_ms(send->copied_at, send->sent_at), in_ms(send->sent_at, send->received_at),
		in_ms(send->received_at, send->committed_at), in_ms(send->committed_at, running_at));
}

static int commit(struct send *send, struct error *error)
{
	_cleanup_message_ struct message answer = {0};
	struct record running;
	int64_t now;
	int r = peer_wait_xend(&send->wire, &answer, error);

	if (r < 0)
		return r;
	if (strcmp(job_verb(&answer), "commit") != 0)
		return error_set(error, EPROTO, "xend answered neither commit nor abort.");
	send->committed = true;
	send->committed_at = monotonic_ns();
	r = peer_send(&send->wire, RECORD_COMMIT, 0, NULL, 0, error);
	if (r == 0)
		r = peer_expect(&send->wire, RECORD_RUNNING, &running, error);
	if (r < 0)
		return r;
	send->guest.left = true;
	now = monotonic_ns();
	log_downtime(send, now);
	return job_event(send->job, "done",
		json_pack("{s:I, s:i, s:I, s:I, s:i, s:I, s:I, s:b}", "milliseconds",
			(json_int_t)((now - send->began) / NS_PER_MS), "rounds", (int)send->copy.rounds,
			"bytes", (json_int_t)(send->wire.sent_bytes + streams_out_bytes(&send->streams)),
			"downtime_ms", (json_int_t)((now - send->copy.paused_at) / NS_PER_MS),
			"slowed_percent", (int)send->copy.slowed, "memory_bytes",
			(json_int_t)(send->copy.sent_pages * PAGE_SIZE), "remote_id",
			(json_int_t)running.argument, "late",
			send->copy.deadline && now > send->copy.deadline),
		error);
}

static int send_begin(struct send *send, struct error *error)
{
	struct job *job = send->job;
	const char *host = job_text(job, "host");
	int channel = job_take_fd(job, "guest", error), r;
	char port[16];

	if (channel < 0)
		return channel;
	send->guest.channel = channel;
	if (!host || uuid_from_text(job_text(job, "ticket"), send->ticket) < 0)
		return error_set(error, EINVAL, "The job for the carrier has no host or no ticket.");
	r = crew_begin(&send->streams.crew, streams_wanted(job), error);
	if (r < 0)
		return r;
	snprintf(port, sizeof(port), "%lld", (long long)job_number(job, "port"));
	return wire_connect(&send->wire, job, host, port, error);
}

/* A guest that has touched little is there before further connections are set up. */
static void choose_connections(struct send *send)
{
	struct stat ram;
	uint64_t worth;

	send->connections = send->streams.crew.count;
	if (job_number(send->job, "connections") || status_of(send->guest.ram_fd, &ram) < 0)
		return;
	worth = (uint64_t)ram.st_blocks * 512 / MEMORY_OF_ONE;
	if (worth < send->connections)
		send->connections = worth < 2 ? 0 : (unsigned)worth;
}

static int send_prepare(struct send *send, struct error *error)
{
	struct job *job = send->job;
	int channel = send->guest.channel;
	int64_t timeout_s = job_number(job, "timeout_s");
	const char *on_stall = job_text(job, "on_stall");
	int r = guest_open(&send->guest, channel, GUEST_CARRY, error);

	if (r == 0)
		r = compression_from_text(job_text(job, "compress"), &send->sending.compression, error);
	if (r < 0)
		return r;
	if (!page_digests_begin(&send->digests, send->guest.pages))
		return error_set(error, ENOMEM, "Out of memory for the digests of the guest's pages.");
	r = proof_begin(&send->proof, &send->guest, send->digests.of_page, error);
	if (r < 0)
		return r;
	send->sink = (struct sink){
		.pages = send_pages, .zeros = send_zeros, .round = send_round, .attend = send_attend};
	send->guest.peer = &send->wire;
	send->sending.guest = &send->guest;
	rate_begin(&send->sending.rate, (uint64_t)job_number(job, "rate_mbit"), monotonic_ns());
	choose_connections(send);
	send->copy = (struct copy){.job = job,
		.guest = &send->guest,
		.sink = &send->sink,
		.live = job_flag(job, "live"),
		.max_downtime_ms = job_number(job, "max_downtime_ms"),
		.may_slow = true,
		.began = send->began,
		.deadline = timeout_s > 0 ? send->began + timeout_s * NS_PER_S : 0,
		.may_not_stall = on_stall && strcmp(on_stall, "cancel") == 0};
	return 0;
}

int send_job(struct job *job, confine_function *confine, struct error *error)
{
	_cleanup_send_ struct send send = {.job = job,
		.guest = {.channel = -1, .ram_fd = -1},
		.wire = {.fd = -1, .job = job},
		.began = monotonic_ns()};
	int r = send_begin(&send, error);

	if (r == 0 && confine)
		r = confine(error);
	if (r == 0)
		r = send_prepare(&send, error);
	if (r == 0)
		r = send_guest(&send, error);
	if (r == 0)
		r = commit(&send, error);
	if (r < 0 && send.committed)
		return job_event(job, "uncertain",
			json_pack("{s:o}", "error", printable_sentence(error->text)), error);
	if (r < 0) {
		peer_last_words(&send.wire, r, send.streams.count ? WIRE_LAST_WORDS_MS : 0, error);
		peer_abort(&send.wire, error);
	}
	return r;
}
