#include "base/cleanup.h"
#include "base/log.h"
#include "base/sentences.h"
#include "carry/clock.h"
#include "carry/compress.h"
#include "carry/copy.h"
#include "carry/jobs.h"
#include "carry/page_digests.h"
#include "carry/peer.h"
#include "carry/rate.h"
#include "state/description.h"
#include "state/digest.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

#define BATCH_PAGES                                                                                          \
	COPY_CHUNK_PAGES /* a PAGES record goes out when it has this many: they are still in the cache */

/* A peer as the sink of the copy engine. */
struct peer_sink {
	struct sink sink;
	struct wire *wire;
	const struct guest *guest;
	struct page_digests digests;
	struct rate_limit rate;
	/* The PAGES record that is being gathered: its runs, and the contents of those that have any. */
	struct peer_run runs[PEER_RUNS_MAX];
	struct iovec contents[PEER_RUNS_MAX];
	unsigned run_count, content_count;
	uint64_t page_count, contents_size;
	struct compressor compressor;
	uint8_t *compressed; /* owned: the compressed contents among them, one after the other; NULL: none are
			      */
	size_t compressed_size;
};

/* A hand-over under way, seen from the source. */
struct send {
	struct job *job;
	struct guest guest;
	struct wire wire;
	struct peer_sink sink;
	struct copy copy;
	enum compression compression;
	uint8_t ticket[16];
	int64_t began, copied_at, sent_at, received_at, committed_at; /* monotonic ns */
	bool committed;                                               /* COMMIT may have reached the peer */
};

#define _cleanup_send_ __attribute__((cleanup(send_free)))

static void send_free(struct send *send)
{
	wire_close(&send->wire);
	guest_close(&send->guest);
	page_digests_free(&send->sink.digests);
	compressor_end(&send->sink.compressor);
	free(send->sink.compressed);
}

/* Waits as the rate limit says, unless xend or the peer interrupts. */
static int keep_rate(struct peer_sink *peer, uint64_t bytes, struct error *error)
{
	int64_t began = monotonic_ns();
	int64_t wait_ns = peer->sink.hurry ? 0 : rate_take(&peer->rate, bytes, began), end = began + wait_ns;

	while (wait_ns >= NS_PER_MS) {
		int r = wire_wait(peer->wire, (int)(wait_ns / NS_PER_MS), error);

		if (r == 2)
			r = job_cancelled(peer->wire->job, error);
		else if (r == 1)
			r = peer_listen(peer->wire, error);
		if (r < 0)
			return r;
		wait_ns = end - monotonic_ns();
	}
	peer->wire->waited_ns += monotonic_ns() - began;
	return 0;
}

static int send_batch(struct peer_sink *peer, struct error *error)
{
	uint8_t head[RECORD_HEAD_SIZE];
	struct iovec parts[2 + PEER_RUNS_MAX];
	size_t runs_size = peer->run_count * sizeof(peer->runs[0]);
	uint64_t length = runs_size + peer->contents_size, pages = peer->page_count;
	int64_t waited = peer->wire->waited_ns;
	int r;

	if (peer->run_count == 0)
		return 0;
	record_encode(
		&(struct record){.type = RECORD_PAGES, .argument = peer->run_count, .length = length}, head);
	parts[0] = (struct iovec){.iov_base = head, .iov_len = sizeof(head)};
	parts[1] = (struct iovec){.iov_base = peer->runs, .iov_len = runs_size};
	memcpy(parts + 2, peer->contents, peer->content_count * sizeof(parts[0]));
	r = wire_send(peer->wire, parts, 2 + peer->content_count, error);
	peer->run_count = peer->content_count = 0;
	peer->page_count = peer->contents_size = peer->compressed_size = 0;
	if (r == 0)
		r = peer_listen(peer->wire, error);
	if (r == 0)
		r = keep_rate(peer, length, error);
	compressor_measure(
		&peer->compressor, pages * PAGE_SIZE, length, peer->wire->waited_ns - waited, monotonic_ns());
	return r;
}

/* Room for one more run; the next add_run is to be given to the same record. */
static int make_room(struct peer_sink *peer, struct error *error)
{
	bool full = peer->run_count == PEER_RUNS_MAX || peer->page_count >= BATCH_PAGES;

	return full ? send_batch(peer, error) : 0;
}

static void add_run(struct peer_sink *peer, uint64_t first, uint64_t count, uint32_t kind)
{
	peer->runs[peer->run_count++] =
		(struct peer_run){.first = first, .count = (uint32_t)count, .kind = kind};
}

static int send_pages(struct sink *sink, uint64_t first, uint64_t count, struct error *error)
{
	struct peer_sink *peer = CONTAINER_OF(sink, struct peer_sink, sink);
	uint8_t *contents = peer->guest->ram + first * PAGE_SIZE;
	struct iovec part = {.iov_base = contents, .iov_len = count * PAGE_SIZE};
	size_t compressed = 0;
	int r = make_room(peer, error);

	if (r < 0)
		return r;
	page_digests_set(&peer->digests, first, count, contents);
	if (peer->compressor.on) {
		uint8_t *room = peer->compressed + peer->compressed_size;

		compressed = compressor_pages(&peer->compressor, contents, count, room);
		if (compressed)
			part = (struct iovec){.iov_base = room, .iov_len = compressed};
		peer->compressed_size += compressed;
	}
	add_run(peer, first, count, compressed ? RUN_COMPRESSED | (uint32_t)compressed << 8 : RUN_CONTENTS);
	peer->contents[peer->content_count++] = part;
	peer->page_count += count;
	peer->contents_size += part.iov_len;
	return 0;
}

static int send_zeros(struct sink *sink, uint64_t first, uint64_t count, struct error *error)
{
	struct peer_sink *peer = CONTAINER_OF(sink, struct peer_sink, sink);

	int r = make_room(peer, error);

	for (uint64_t page = first; page < first + count; page++)
		page_digests_clear(&peer->digests, page);
	if (r == 0)
		add_run(peer, first, count, RUN_ZERO);
	return r;
}

/* The peer says when it has put a round's pages in place. */
static int await_round(struct wire *wire, unsigned number, struct error *error)
{
	struct record record;
	int r = peer_expect(wire, RECORD_ROUND, &record, error);

	return r == 0 && record.argument != number ? peer_not_due(wire, &record, error) : r;
}

static int send_round(struct sink *sink, unsigned number, struct error *error)
{
	struct peer_sink *peer = CONTAINER_OF(sink, struct peer_sink, sink);
	int r = send_batch(peer, error);
	int64_t waited = peer->wire->waited_ns;

	if (r == 0)
		r = peer_send(peer->wire, RECORD_ROUND, number, NULL, 0, error);
	if (r == 0 && !sink->last)
		r = await_round(peer->wire, number, error);
	compressor_measure(&peer->compressor, 0, 0, peer->wire->waited_ns - waited, monotonic_ns());
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
	text = json_dumps(description, JSON_COMPACT);
	buffer_u64(&payload, text ? digest_of(text, strlen(text)) : 0);
	buffer_append(&payload, text, text ? strlen(text) : 0);
	if (!text || payload.failed)
		return error_set(error, ENOMEM, "Out of memory while offering the guest.");
	r = peer_send(&send->wire, RECORD_OFFER, send->guest.size, payload.data, payload.size, error);
	if (r == 0)
		r = peer_receive(&send->wire, &record, error);
	if (r < 0)
		return r;
	if (record.type == RECORD_REFUSED)
		return refused(&send->wire, &record, error);
	return record.type == RECORD_ACCEPT ? 0 : peer_not_due(&send->wire, &record, error);
}

static int send_state(struct send *send, struct error *error)
{
	_cleanup_buffer_ struct buffer state = {0};
	int r = guest_save_state(&send->guest, &state, error);

	if (r == 0)
		r = peer_send(&send->wire, RECORD_STATE, digest_of(state.data, state.size), state.data,
			state.size, error);
	if (r == 0)
		r = peer_send(&send->wire, RECORD_END, send->sink.digests.sum, NULL, 0, error);
	return r;
}

static int begin_compression(struct send *send, uint32_t features, struct error *error)
{
	struct peer_sink *peer = &send->sink;
	enum compression wanted = send->compression;

	if (!(features & PEER_COMPRESSED) && wanted == COMPRESSION_YES)
		return error_set(error, EPROTONOSUPPORT,
			"%s cannot take compressed pages: update Ferry there, or leave --compress yes away.",
			send->wire.peer);
	if (!(features & PEER_COMPRESSED))
		wanted = COMPRESSION_NO;
	else
		peer->compressed = malloc((size_t)(BATCH_PAGES + COPY_CHUNK_PAGES) * PAGE_SIZE);
	if (!compressor_begin(&peer->compressor, wanted, monotonic_ns()) ||
		(!peer->compressed && wanted != COMPRESSION_NO))
		return error_set(error, ENOMEM, "Out of memory for compressing pages.");
	return 0;
}

/* Up to RECEIVED: after it the peer has all, verified, and xend decides. */
static int send_guest(struct send *send, struct error *error)
{
	struct record record;
	uint32_t features = send->compression == COMPRESSION_NO ? 0 : PEER_COMPRESSED;
	int r = peer_greet(&send->wire, PURPOSE_RELOCATE, send->ticket, &features, error);

	if (r == 0)
		r = begin_compression(send, features, error);
	if (r == 0)
		r = peer_tell_clock(&send->wire, error);
	if (r == 0)
		r = offer(send, error);
	/* Where the guest is to stay rather than be late, a line that hangs is not waited for either. */
	if (send->copy.may_not_stall)
		send->wire.deadline = send->copy.deadline;
	if (r == 0)
		r = copy_guest(&send->copy, error);
	wire_limit(&send->wire, 0);
	if (r == -ETIMEDOUT && send->copy.may_not_stall && send->copy.deadline &&
		monotonic_ns() >= send->copy.deadline)
		r = copy_overdue(&send->copy, error);
	send->copied_at = monotonic_ns();
	if (r == 0)
		r = send_state(send, error);
	send->sent_at = monotonic_ns();
	if (r == 0)
		r = await_round(&send->wire, send->copy.rounds, error);
	if (r == 0)
		r = peer_expect(&send->wire, RECORD_RECEIVED, &record, error);
	send->received_at = monotonic_ns();
	return r == 0 ? job_event(send->job, "received", NULL, error) : r;
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
	now = monotonic_ns();
	log_downtime(send, now);
	return job_event(send->job, "done",
		json_pack("{s:I, s:i, s:I, s:I, s:i, s:I, s:I}", "milliseconds",
			(json_int_t)((now - send->began) / NS_PER_MS), "rounds", (int)send->copy.rounds,
			"bytes", (json_int_t)send->wire.sent_bytes, "downtime_ms",
			(json_int_t)((now - send->copy.paused_at) / NS_PER_MS), "slowed_percent",
			(int)send->copy.slowed, "memory_bytes",
			(json_int_t)(send->copy.sent_pages * PAGE_SIZE), "remote_id",
			(json_int_t)running.argument),
		error);
}

/* A line that breaks while we send may have brought the peer's reason before. */
static void hear_last_words(struct wire *wire, int failure, struct error *error)
{
	struct error reason = {0};

	if ((failure == -EPIPE || failure == -ECONNRESET) && wire->fd >= 0 &&
		peer_listen(wire, &reason) == -ECONNABORTED)
		*error = reason;
}

static int send_begin(struct send *send, struct error *error)
{
	struct job *job = send->job;
	const char *host = job_text(job, "host");
	int channel = job_take_fd(job, "guest", error);
	char port[16];

	if (channel < 0)
		return channel;
	send->guest.channel = channel;
	if (!host || uuid_from_text(job_text(job, "ticket"), send->ticket) < 0)
		return error_set(error, EINVAL, "The job for the carrier has no host or no ticket.");
	snprintf(port, sizeof(port), "%lld", (long long)job_number(job, "port"));
	return wire_connect(&send->wire, job, host, port, error);
}

static int send_prepare(struct send *send, struct error *error)
{
	struct job *job = send->job;
	int channel = send->guest.channel;
	int64_t timeout_s = job_number(job, "timeout_s");
	const char *on_stall = job_text(job, "on_stall");
	int r = guest_open(&send->guest, channel, GUEST_CARRY, error);

	if (r == 0)
		r = compression_from_text(job_text(job, "compress"), &send->compression, error);
	if (r < 0)
		return r;
	if (!page_digests_begin(&send->sink.digests, send->guest.pages))
		return error_set(error, ENOMEM, "Out of memory for the digests of the guest's pages.");
	send->sink.sink = (struct sink){.pages = send_pages, .zeros = send_zeros, .round = send_round};
	send->sink.wire = &send->wire;
	send->sink.guest = &send->guest;
	rate_begin(&send->sink.rate, (uint64_t)job_number(job, "rate_mbit"), monotonic_ns());
	send->copy = (struct copy){.job = job,
		.guest = &send->guest,
		.sink = &send->sink.sink,
		.live = job_flag(job, "live"),
		.max_downtime_ms = job_number(job, "max_downtime_ms"),
		.may_slow = true,
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
		return job_event(job, "uncertain", json_pack("{s:s}", "error", error->text), error);
	if (r < 0) {
		hear_last_words(&send.wire, r, error);
		peer_abort(&send.wire, error);
	}
	return r;
}
