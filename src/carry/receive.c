#include "base/cleanup.h"
#include "base/log.h"
#include "base/status.h"
#include "carry/allow.h"
#include "carry/clock.h"
#include "carry/guest.h"
#include "carry/jobs.h"
#include "carry/query.h"
#include "carry/receive.h"
#include "carry/streams_out.h"
#include "carry/tls.h"
#include "state/description.h"
#include "state/digest.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>

/* A hand-over under way, seen from the destination. */
struct receive {
	struct job *job;
	struct wire wire;
	int ram_fd;         /* owned: the guest's memory, which is there before the guest */
	struct guest guest; /* met when a first round is here */
	struct reception reception;
	struct streams_in streams;
	struct hello hello;
	json_t *description; /* owned */
	uint64_t ram_size;
	struct clock_offset clock_offset;
	char ticket[UUID_TEXT_SIZE], peer[PEER_NAME_MAX];
};

#define _cleanup_receive_ __attribute__((cleanup(receive_free)))

static void receive_free(struct receive *receive)
{
	streams_in_end(&receive->streams);
	wire_close(&receive->wire);
	guest_close(&receive->guest);
	cleanup_close(&receive->ram_fd);
	reception_end(&receive->reception);
	json_decref(receive->description);
}

/* ---- memory ---- */

int reception_begin(
	struct reception *reception, struct wire *wire, int ram_fd, uint64_t pages, struct error *error)
{
	*reception = (struct reception){
		.wire = wire, .receiver = {.wire = wire, .ram_fd = ram_fd, .pages = pages}};
	if (!page_digests_begin(&reception->receiver.digests, pages))
		return error_set(error, ENOMEM, "Out of memory for the digests of the guest's pages.");
	return 0;
}

void reception_end(struct reception *reception)
{
	page_receiver_end(&reception->receiver);
	page_digests_free(&reception->receiver.digests);
	buffer_free(&reception->state);
}

static unsigned stream_count(const struct reception *reception)
{
	return reception->streams ? reception->streams->count : 0;
}

static int receive_state(struct reception *reception, const struct record *record, struct error *error)
{
	int r;

	if (reception->state.size || !record->length)
		return peer_not_due(reception->wire, record, error);
	r = peer_payload(reception->wire, record, &reception->state, error);
	if (r == 0 && digest_of(reception->state.data, reception->state.size) != record->argument)
		return error_set(error, EBADMSG, "The guest's device state was damaged on its way.");
	return r;
}

static void tell_progress(struct reception *reception, struct job *job)
{
	uint64_t pages = reception->receiver.received +
			 (stream_count(reception) ? streams_in_received(reception->streams) : 0);
	uint64_t bytes = pages * PAGE_SIZE;
	int64_t ns = monotonic_ns() - reception->began;

	job_progress(job,
		&(struct progress){.round = reception->rounds + 1,
			.sent_bytes = bytes,
			.total_bytes = reception->receiver.pages * PAGE_SIZE,
			.bytes_per_second = ns > 0 ? (uint64_t)((double)bytes * NS_PER_S / (double)ns) : 0},
		false);
}

/* Answers once all of the round's pages are in their place, whichever way they came. */
static int end_round(struct reception *reception, struct error *error)
{
	unsigned number = ++reception->rounds;
	int r = stream_count(reception) ? streams_in_round(reception->streams, number, error) : 0;

	if (r == 0 && number == 1 && reception->meet_guest)
		r = reception->meet_guest(reception, error);
	return r == 0 ? peer_send(reception->wire, RECORD_ROUND, number, NULL, 0, error) : r;
}

static int verify(struct reception *reception, uint64_t expected, struct error *error)
{
	uint64_t sum = reception->receiver.digests.sum;
	int r = stream_count(reception) ? streams_in_finish(reception->streams, &sum, error) : 0;

	if (r < 0)
		return r;
	return sum == expected ? 0 : error_set(error, EBADMSG, "The guest's memory was damaged on its way.");
}

static int receive_memory(struct reception *reception, struct job *job, struct error *error)
{
	reception->began = monotonic_ns();
	for (;;) {
		struct record record;
		int r = peer_receive(reception->wire, &record, error);

		if (r < 0)
			return r;
		if (record.type == RECORD_PAGES && !reception->state.size && !stream_count(reception))
			r = page_receiver_take(&reception->receiver, &record, error);
		else if (record.type == RECORD_ROUND && record.argument == reception->rounds + 1)
			r = end_round(reception, error);
		else if (record.type == RECORD_STATE && reception->rounds)
			r = receive_state(reception, &record, error);
		else if (record.type == RECORD_END && reception->state.size)
			return verify(reception, record.argument, error);
		else
			r = peer_not_due(reception->wire, &record, error);
		if (r == 0)
			r = job_cancelled(job, error);
		if (r < 0)
			return r;
		tell_progress(reception, job);
	}
}

int reception_run(struct reception *reception, struct job *job, struct error *error)
{
	int r = receive_memory(reception, job, error);

	return reception->streams && reception->streams->count
		       ? crew_judge(&reception->streams->crew, r, error)
		       : r;
}

/* ---- the hand-over ---- */

static int hear_offer(struct receive *receive, struct error *error)
{
	_cleanup_buffer_ struct buffer payload = {0};
	struct record record;
	struct cursor text;
	int r;

	wire_limit(&receive->wire, PEER_HANDSHAKE_MS);
	r = peer_expect(&receive->wire, RECORD_OFFER, &record, error);
	if (r == 0)
		r = peer_payload(&receive->wire, &record, &payload, error);
	wire_limit(&receive->wire, 0);
	if (r < 0)
		return r;
	if (record.argument % PAGE_SIZE)
		return error_set(
			error, EPROTO, "%s offers a guest of an impossible size.", receive->wire.peer);
	receive->ram_size = record.argument;
	text = cursor_over(payload.data, payload.size);
	if (cursor_u64(&text) != digest_of(payload.data + text.at, cursor_left(&text)) || text.failed)
		return error_set(
			error, EBADMSG, "The offer from %s was damaged on its way.", receive->wire.peer);
	receive->description = description_parse(
		(const char *)text.data + text.at, cursor_left(&text), receive->ram_size, error);
	return receive->description ? 0 : -error->code;
}

/* Passes xend's objections on to the peer. */
static int refuse(struct receive *receive, json_t *why, struct error *error)
{
	_cleanup_json_ json_t *list = json_is_array(why) ? json_incref(why) : json_array();
	_cleanup_free_ char *text = json_dumps(list, JSON_COMPACT);
	const char *first = json_string_value(json_array_get(list, 0));
	size_t length = text ? strlen(text) : 0;
	int r = length && length <= 16 << 10
			? peer_send(&receive->wire, RECORD_REFUSED, 0, text, length, error)
			: peer_send(&receive->wire, RECORD_REFUSED, 0, "[]", 2, error);

	if (r < 0)
		return r;
	wire_finish(&receive->wire);
	wire_close(&receive->wire);
	return error_set(
		error, EPERM, "The guest from %s was refused: %s", receive->peer, first ? first : "");
}

/* While its first round was on its way the guest's process has built the machine. */
static int meet_guest(struct reception *reception, struct error *error)
{
	struct receive *receive = CONTAINER_OF(reception, struct receive, reception);
	_cleanup_message_ struct message answer = {0};
	int channel, r = job_event(receive->job, "guest", NULL, error);

	/* A source that does not wait for rounds sends the state now. */
	if (r == 0)
		r = peer_hold_for_xend(&receive->wire, &answer, error);
	if (r < 0)
		return r;
	channel = message_take_fd(&answer, answer.body, "guest", error);
	if (channel < 0)
		return error_set(error, EPROTO, "xend has made a guest and shows none.");
	r = guest_open(&receive->guest, channel, GUEST_FILL, error);
	if (r < 0)
		return r;
	receive->guest.peer = &receive->wire;
	if (receive->guest.size != receive->ram_size)
		return error_set(
			error, EPROTO, "xend made the guest with another memory size than was offered.");
	return description_match_regions(receive->description, receive->guest.regions, error);
}

static int take_memory(struct receive *receive, struct message *answer, struct error *error)
{
	struct stat ram;
	int r;

	receive->ram_fd = message_take_fd(answer, answer->body, "ram", error);
	if (receive->ram_fd < 0 || status_of(receive->ram_fd, &ram) < 0 ||
		(uint64_t)ram.st_size != receive->ram_size)
		return error_set(error, EPROTO, "xend accepted the guest without the memory for it.");
	r = reception_begin(
		&receive->reception, &receive->wire, receive->ram_fd, receive->ram_size / PAGE_SIZE, error);
	receive->reception.meet_guest = meet_guest;
	receive->reception.receiver.compressed = receive->hello.features & PEER_COMPRESSED;
	return r;
}

/* How many data connections the source is offered: at most what it wants, none where either side has no use
 * for them. */
static unsigned streams_offered(const struct receive *receive)
{
	json_int_t wanted = json_integer_value(json_object_get(receive->description, "connections"));
	unsigned most = receive->streams.joins < 0 ? 0 : receive->streams.most;

	if (!(receive->hello.features & PEER_STREAMS) || wanted < 2 || most < 2)
		return 0;
	return wanted < most ? (unsigned)wanted : most;
}

static int accept_guest(struct receive *receive, struct error *error)
{
	struct streams_in *streams = &receive->streams;
	unsigned count = streams_offered(receive);
	int r;

	if (count == 0)
		return peer_send(&receive->wire, RECORD_ACCEPT, 0, NULL, 0, error);
	if (getrandom(streams->token, sizeof(streams->token), 0) != sizeof(streams->token))
		return error_set(error, EIO, "There is no randomness for the relocation's token.");
	receive->reception.streams = streams;
	r = peer_send(&receive->wire, RECORD_ACCEPT, count, streams->token, sizeof(streams->token), error);
	return r == 0 ? streams_in_open(streams, count, &receive->wire, &receive->reception.receiver, error)
		      : r;
}

static int accept_offer(struct receive *receive, struct error *error)
{
	_cleanup_message_ struct message answer = {0};
	int r = hear_offer(receive, error);

	if (r == 0)
		r = job_event(receive->job, "offer",
			json_pack("{s:s, s:s, s:O, s:I, s:b}", "peer", receive->peer, "ticket",
				receive->ticket, "domain", json_object_get(receive->description, "domain"),
				"memory_mib", (json_int_t)(receive->ram_size >> 20), "live",
				json_is_true(json_object_get(receive->description, "live"))),
			error);
	if (r == 0)
		r = peer_wait_xend(&receive->wire, &answer, error);
	if (r < 0)
		return r;
	if (strcmp(job_verb(&answer), "refuse") == 0)
		return refuse(receive, json_object_get(answer.body, "why"), error);
	if (strcmp(job_verb(&answer), "accept") != 0)
		return error_set(error, EPROTO, "xend answered neither accept nor refuse.");
	r = take_memory(receive, &answer, error);
	return r == 0 ? accept_guest(receive, error) : r;
}

/* Tells xend of `event` and waits for its answer `verb`. */
static int agree(struct receive *receive, const char *event, json_t *body, const char *verb,
	struct message *answer, struct error *error)
{
	int r = job_event(receive->job, event, body, error);

	if (r == 0)
		r = peer_wait_xend(&receive->wire, answer, error);
	if (r == 0 && strcmp(job_verb(answer), verb) != 0)
		return error_set(error, EPROTO, "xend did not answer '%s' to '%s'.", verb, event);
	return r;
}

/* What the end of a hand-over was spent on here; monotonic ns. */
struct stages {
	int64_t verified, loaded, recorded, committed;
};

static double in_ms(int64_t from, int64_t to)
{
	return (double)(to - from) / (double)NS_PER_MS;
}

/* The guest is ours: from now on a line that breaks, or a peer that gives up, changes nothing. */
static int take_over(struct receive *receive, struct stages *stages, struct error *error)
{
	_cleanup_message_ struct message running = {0};
	int r;

	stages->committed = monotonic_ns();
	r = job_event(receive->job, "commit", NULL, error);
	if (r == 0)
		r = job_answer(receive->job, &running, error);
	if (r < 0)
		return r;
	if (strcmp(job_verb(&running), "running") != 0)
		return error_set(error, EPROTO, "xend did not answer 'running' to 'commit'.");
	if (peer_send(&receive->wire, RECORD_RUNNING,
		    (uint64_t)json_integer_value(json_object_get(running.body, "id")), NULL, 0, NULL) == 0)
		wire_finish(&receive->wire);
	log_info("Taken over: %.1f ms to load the device state, %.1f to record it, %.1f until the peer "
		 "committed, %.1f "
		 "until the guest ran.",
		in_ms(stages->verified, stages->loaded), in_ms(stages->loaded, stages->recorded),
		in_ms(stages->recorded, stages->committed), in_ms(stages->committed, monotonic_ns()));
	return job_event(receive->job, "done", NULL, error);
}

/*
 * The guest's process has it in its state how far our clock is ahead: whoever lets it run, whenever, need not
 * know. Asked for together with RECEIVED, so that nobody waits for it, and told before COMMIT.
 */
static int tell_received(struct receive *receive, struct error *error)
{
	struct wire *wire = &receive->wire;
	struct clock_offset known = receive->clock_offset, later;
	bool asks = receive->hello.features & PEER_CLOCK;
	struct clock_question asked;
	int r = asks ? peer_ask_clock(wire, 0, &asked, error) : 0;

	if (r == 0)
		r = peer_send(wire, RECORD_RECEIVED, 0, NULL, 0, error);
	if (r == 0 && asks)
		r = peer_hear_clock(wire, &asked, &later, error);
	if (r == 0 && asks)
		clock_offset_renew(&receive->clock_offset, &later);
	if (r == 0 && receive->clock_offset.ns != known.ns)
		log_info("The clock of %s is %.3f ms behind this host's; at the beginning it was %.3f ms.",
			receive->peer, (double)receive->clock_offset.ns / (double)NS_PER_MS,
			(double)known.ns / (double)NS_PER_MS);
	return r == 0 ? guest_translate_clock(&receive->guest, receive->clock_offset.ns, error) : r;
}

/* All memory is here and right: from here to COMMIT, any failure refuses the ticket. */
static int hand_over(struct receive *receive, struct error *error)
{
	_cleanup_message_ struct message answer = {0};
	struct stages stages = {.verified = monotonic_ns()};
	struct record record;
	int r = guest_load_state(&receive->guest, &receive->reception.state, error);

	stages.loaded = monotonic_ns();
	if (r == 0)
		r = agree(receive, "received", NULL, "received", &answer, error);
	stages.recorded = monotonic_ns();
	if (r == 0)
		r = tell_received(receive, error);
	if (r == 0)
		r = peer_expect(&receive->wire, RECORD_COMMIT, &record, error);
	return r == 0 ? take_over(receive, &stages, error) : r;
}

static int answer_question(struct receive *receive, struct error *error)
{
	_cleanup_message_ struct message answer = {0};
	const char *state;
	struct record record;
	int r = peer_expect(&receive->wire, RECORD_ASK, &record, error);

	if (r == 0)
		r = agree(receive, "ask",
			json_pack("{s:s, s:s}", "peer", receive->peer, "ticket", receive->ticket), "answer",
			&answer, error);
	if (r < 0)
		return r;
	state = json_string_value(json_object_get(answer.body, "state"));
	for (unsigned i = ANSWER_OWNED; state && i <= ANSWER_UNKNOWN; i++) {
		if (strcmp(state, peer_answer_names[i]) != 0)
			continue;
		r = peer_send(&receive->wire, RECORD_ANSWER, i, NULL, 0, error);
		wire_finish(&receive->wire);
		return r == 0 ? job_event(receive->job, "done", NULL, error) : r;
	}
	return error_set(error, EPROTO, "xend answered '%s' about a ticket.", state ? state : "");
}

/* A further connection of a source: xend hands it to the carrier that receives the guest. */
static int pass_on(struct receive *receive, struct error *error)
{
	return job_event(receive->job, "join",
		json_pack("{s:s, s:s, s:i}", "peer", receive->peer, "ticket", receive->ticket, "stream",
			(int)receive->hello.stream),
		error);
}

/* The threads for data connections, where xend has a way to hand those over. */
static int prepare_streams(struct receive *receive, struct error *error)
{
	struct streams_in *streams = &receive->streams;

	streams->joins = message_take_fd(&receive->job->request, receive->job->request.body, "joins", error);
	if (streams->joins < 0)
		return streams->joins == -ENOENT ? 0 : streams->joins;
	streams->most = streams_wanted(receive->job);
	return crew_begin(&streams->crew, streams->most, error);
}

static int receive_begin(struct receive *receive, confine_function *confine, struct error *error)
{
	_cleanup_close_ int socket = job_take_fd(receive->job, "socket", error);
	int r;

	if (socket < 0)
		return socket;
	r = prepare_streams(receive, error);
	if (r == 0)
		r = allow_peer(
			socket, json_object_get(receive->job->request.body, "allow"), receive->peer, error);
	if (r == 0)
		r = wire_adopt(&receive->wire, receive->job, take_fd(&socket), receive->peer, error);
	if (r == 0 && confine)
		r = confine(error);
	if (r == 0)
		r = peer_welcome(&receive->wire, &receive->hello, error);
	uuid_to_text(receive->hello.ticket, receive->ticket);
	return r;
}

/* xend finds out whether the peer is one of those that its certificate is for. Nothing is read from it
 * before. */
static int confirm(struct receive *receive, struct error *error)
{
	const json_t *claims = receive->wire.tls ? tls_claims(receive->wire.tls) : NULL;
	_cleanup_message_ struct message answer = {0};
	int r;

	if (!claims)
		return 0;
	r = job_event(receive->job, "confirm",
		json_pack("{s:s, s:s, s:O}", "peer", receive->peer, "address", tls_address(receive->wire.tls),
			"names", claims),
		error);
	if (r == 0)
		r = peer_hold_for_xend(&receive->wire, &answer, error);
	if (r == 0 && strcmp(job_verb(&answer), "confirmed") != 0)
		return error_set(error, EPROTO, "xend did not answer 'confirmed' to 'confirm'.");
	return r;
}

int receive_job(struct job *job, confine_function *confine, struct error *error)
{
	_cleanup_receive_ struct receive receive = {.job = job,
		.wire = {.fd = -1, .job = job},
		.streams = {.joins = -1},
		.ram_fd = -1,
		.guest = {.channel = -1, .ram_fd = -1}};
	int r = receive_begin(&receive, confine, error);
	/* A stranger who does not even greet right gets no answer. */
	bool greeted = r == 0;

	if (r == 0)
		r = confirm(&receive, error);
	if (r == 0 && receive.hello.purpose == PURPOSE_ASK) {
		r = answer_question(&receive, error);
	} else if (r == 0 && receive.hello.purpose == PURPOSE_QUERY) {
		r = query_serve(job, &receive.wire, receive.peer, error);
	} else if (r == 0 && receive.hello.purpose == PURPOSE_PAGES) {
		return pass_on(&receive, error);
	} else if (r == 0) {
		r = peer_measure_clock(&receive.wire, &receive.clock_offset, error);
		if (r == 0)
			r = accept_offer(&receive, error);
		if (r == 0)
			r = reception_run(&receive.reception, job, error);
		if (r == 0)
			r = hand_over(&receive, error);
	}
	if (r < 0 && receive.streams.count)
		peer_last_words(&receive.wire, r, WIRE_LAST_WORDS_MS, error);
	if (r < 0 && greeted)
		peer_abort(&receive.wire, error);
	return r;
}
