#include "carry/streams_out.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "carry/clock.h"
#include "carry/copy.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

/* What waits for one connection, beside what is being sent: more would only be on its way for longer. */
#define QUEUE_PAGES PEER_STRIPE_PAGES
#define LOOK_NS (20 * NS_PER_MS)
#define XEND_MS 15000 /* its own patience is shorter (src/xend/dial.c) */
#define JOIN_MS 5000
/* A connection's thread is worth having where it finds a processor that nobody else wants: the guest wants
 * some, too. */
#define PROCESSORS_OF_ONE 2
#define CHOSEN_MOST 4

_Static_assert(PEER_STRIPE_PAGES % COPY_CHUNK_PAGES == 0, "a chunk is within one stripe");
_Static_assert(PEER_STREAMS_MAX <= CREW_MAX, "each connection has a thread");

unsigned streams_wanted(const struct job *job)
{
	int64_t wanted = job_number(job, "connections");
	long processors = sysconf(_SC_NPROCESSORS_ONLN);

	if (wanted == 0)
		wanted = processors / PROCESSORS_OF_ONE < CHOSEN_MOST ? processors / PROCESSORS_OF_ONE
								      : CHOSEN_MOST;
	return wanted < 2 ? 0 : wanted < PEER_STREAMS_MAX ? (unsigned)wanted : PEER_STREAMS_MAX;
}

/* ---- the threads ---- */

static int join(struct stream_out *stream, struct error *error)
{
	struct streams_out *all = stream->all;
	struct record record;
	int r = peer_greet_stream(&stream->wire, all->ticket, stream->number, error);

	if (r == 0)
		r = peer_send(
			&stream->wire, RECORD_JOIN, stream->number, all->token, sizeof(all->token), error);
	if (r == 0)
		r = peer_expect(&stream->wire, RECORD_JOIN, &record, error);
	if (r == 0 && (record.argument != stream->number || record.length))
		r = peer_not_due(&stream->wire, &record, error);
	wire_limit(&stream->wire, 0);
	if (r < 0)
		return r;
	crew_lock(&all->crew);
	stream->joined = true;
	crew_changed(&all->crew);
	crew_unlock(&all->crew);
	return 0;
}

enum duty { SEND_RUN, END_ROUND, SAY_ALIVE, LEAVE };

/* The next thing to do. */
static enum duty next_duty(struct stream_out *stream, struct queued_run *run)
{
	struct crew *crew = &stream->all->crew;
	int64_t alive_at = monotonic_ns() + WIRE_ALIVE_MS * NS_PER_MS;
	bool in_time = true;
	enum duty duty;

	crew_lock(crew);
	while (!stream->queue_length && !stream->round && !crew_leaving(crew) && in_time)
		in_time = crew_await(crew, alive_at);
	if (crew_leaving(crew)) {
		duty = LEAVE;
	} else if (stream->queue_length) {
		duty = SEND_RUN;
		*run = stream->queue[stream->queue_begin];
		stream->queue_begin = (stream->queue_begin + 1) % STREAM_QUEUE;
		/* Who waits for room has waited for a full queue. */
		if (stream->queue_length-- == STREAM_QUEUE || stream->queued_pages >= QUEUE_PAGES)
			crew_changed(crew);
		stream->queued_pages -= run->count;
	} else {
		duty = stream->round ? END_ROUND : SAY_ALIVE;
	}
	crew_unlock(crew);
	return duty;
}

static int end_round(struct stream_out *stream, bool *last, struct error *error)
{
	struct crew *crew = &stream->all->crew;
	unsigned number;
	int r;

	crew_lock(crew);
	number = stream->round;
	*last = stream->last;
	stream->round = 0;
	crew_unlock(crew);
	r = page_sender_flush(&stream->sender, error);
	return r == 0 ? peer_send(&stream->wire, RECORD_ROUND, number, NULL, 0, error) : r;
}

static int serve(void *context, struct error *error)
{
	struct stream_out *stream = context;
	struct page_sender *sender = &stream->sender;
	int64_t ended_at = 0;
	bool last = false;
	int r = join(stream, error);

	while (r == 0) {
		struct queued_run run;

		switch (next_duty(stream, &run)) {
		case SEND_RUN:
			if (ended_at)
				page_sender_waited(sender, monotonic_ns() - ended_at);
			ended_at = 0;
			r = run.zero ? page_sender_zeros(sender, run.first, run.count, error)
				     : page_sender_pages(sender, run.first, run.count, error);
			break;
		case END_ROUND:
			r = end_round(stream, &last, error);
			ended_at = monotonic_ns();
			if (r == 0 && last)
				return peer_send(
					&stream->wire, RECORD_END, sender->digests.sum, NULL, 0, error);
			break;
		case SAY_ALIVE:
			r = peer_send(&stream->wire, RECORD_ALIVE, 0, NULL, 0, error);
			break;
		case LEAVE:
			return 0;
		}
	}
	return r;
}

/* ---- set-up ---- */

/* What xend answers, unless the peer leaves before. */
static int hear_xend(struct wire *control, struct message *answer, struct error *error)
{
	int r;

	do {
		r = wire_wait(control, XEND_MS, error);
		if (r == 1 && peer_listen(control, error) < 0)
			return -error->code;
	} while (r == 1);
	if (r == 0)
		return error_set(error, ETIMEDOUT, "xend does not answer.");
	return r < 0 ? r : job_answer(control->job, answer, error);
}

/* Asks xend, since the sandbox has no call to connect with. Fewer than were asked for are none. */
static int ask_for_sockets(struct streams_out *streams, unsigned count, struct error *error)
{
	_cleanup_message_ struct message answer = {0};
	struct wire *control = streams->control;
	const json_t *sockets;
	int r = job_event(control->job, "connect",
		json_pack("{s:i, s:s}", "count", (int)count, "address", control->address), error);

	if (r == 0)
		r = hear_xend(control, &answer, error);
	if (r < 0)
		return r;
	sockets = json_object_get(answer.body, "sockets");
	if (json_array_size(sockets) != count)
		return 0;
	for (unsigned i = 0; r == 0 && i < count; i++) {
		struct stream_out *stream = &streams->each[i];
		int fd = message_take_fd(&answer, json_array_get(sockets, i), "socket", error);

		streams->opened += fd >= 0;
		r = fd < 0 ? fd : wire_further(&stream->wire, control, fd, error);
		stream->wire.stop = &streams->crew.stop;
		streams->count += r == 0;
	}
	return r;
}

static bool all_joined(const struct streams_out *streams)
{
	for (unsigned i = 0; i < streams->count; i++)
		if (!streams->each[i].joined)
			return false;
	return true;
}

/* Whether all have joined; what the peer or xend say meanwhile ends it. */
static bool await_joined(struct streams_out *streams)
{
	struct crew *crew = &streams->crew;
	int64_t end = monotonic_ns() + JOIN_MS * NS_PER_MS;
	bool joined = false, wait = true;

	while (!joined && wait) {
		crew_lock(crew);
		joined = all_joined(streams);
		if (!joined && !crew_leaving(crew))
			crew_await(crew, monotonic_ns() + LOOK_NS);
		wait = !crew_leaving(crew) && monotonic_ns() < end;
		crew_unlock(crew);
		wait = wait && !wire_heard(streams->control) &&
		       job_cancelled(streams->control->job, NULL) == 0;
	}
	return joined;
}

static int prepare(
	struct streams_out *streams, struct page_sending *sending, uint64_t *digests, struct error *error)
{
	for (unsigned i = 0; i < streams->count; i++) {
		struct stream_out *stream = &streams->each[i];
		int r = page_sender_begin(&stream->sender, &stream->wire, sending, digests, error);

		if (r < 0)
			return r;
		stream->all = streams;
		stream->number = i + 1;
	}
	return 0;
}

static void close_all(struct streams_out *streams)
{
	while (streams->opened) {
		struct stream_out *stream = &streams->each[--streams->opened];

		page_sender_end(&stream->sender);
		wire_close(&stream->wire);
	}
	streams->count = 0;
}

int streams_out_open(struct streams_out *streams, unsigned count, struct wire *control, const uint8_t *ticket,
	struct page_sending *sending, uint64_t *digests, struct error *error)
{
	struct error why = {0};
	int r;

	streams->control = control;
	streams->ticket = ticket;
	r = ask_for_sockets(streams, count, error);
	if (r == 0)
		r = prepare(streams, sending, digests, error);
	if (r < 0)
		return r;
	for (unsigned i = 0; i < streams->count; i++)
		crew_give(&streams->crew, i, serve, &streams->each[i]);
	if (streams->count && await_joined(streams)) {
		control->stop = &streams->crew.stop;
	} else {
		crew_failure(&streams->crew, &why);
		log_info("Memory goes over one connection: %s",
			why.code ? why.text : "more of them cannot be made in time.");
		crew_stop(&streams->crew);
		close_all(streams);
	}
	return peer_send(control, RECORD_SPREAD, streams->count, NULL, 0, error);
}

void streams_out_deadline(struct streams_out *streams, int64_t deadline)
{
	for (unsigned i = 0; i < streams->count; i++)
		streams->each[i].wire.deadline = deadline;
}

/* ---- sending ---- */

static bool is_full(const struct stream_out *stream)
{
	return stream->queue_length == STREAM_QUEUE || stream->queued_pages >= QUEUE_PAGES;
}

/* With the crew's lock. */
static void enqueue(struct stream_out *stream, const struct queued_run *run)
{
	stream->queue[(stream->queue_begin + stream->queue_length) % STREAM_QUEUE] = *run;
	stream->queued_pages += run->count;
	if (stream->queue_length++ == 0)
		crew_changed(&stream->all->crew);
}

int streams_out_run(
	struct streams_out *streams, uint64_t first, uint64_t count, bool zero, struct error *error)
{
	struct stream_out *stream = &streams->each[first / PEER_STRIPE_PAGES % streams->count];
	const struct queued_run run = {.first = first, .count = (uint32_t)count, .zero = zero};
	struct crew *crew = &streams->crew;
	bool queued = false;

	streams->unattended += (unsigned)count;
	while (!queued) {
		bool leaving;
		int r;

		if (streams->unattended >= PEER_STRIPE_PAGES) {
			streams->unattended = 0;
			r = peer_attend(streams->control, error);
			if (r < 0)
				return r;
		}
		crew_lock(crew);
		if (is_full(stream) && !crew_leaving(crew) && !crew_await(crew, monotonic_ns() + LOOK_NS))
			streams->unattended = PEER_STRIPE_PAGES;
		leaving = crew_leaving(crew);
		queued = !leaving && !is_full(stream);
		if (queued)
			enqueue(stream, &run);
		crew_unlock(crew);
		if (leaving)
			return crew_failure(crew, error);
	}
	return 0;
}

int streams_out_round(struct streams_out *streams, unsigned number, bool last, struct error *error)
{
	struct crew *crew = &streams->crew;

	crew_lock(crew);
	for (unsigned i = 0; i < streams->count; i++) {
		streams->each[i].round = number;
		streams->each[i].last = last;
	}
	crew_changed(crew);
	crew_unlock(crew);
	return peer_attend(streams->control, error);
}

int streams_out_finish(struct streams_out *streams, uint64_t *sum, struct error *error)
{
	int r = crew_wait(&streams->crew, error);

	for (unsigned i = 0; r == 0 && i < streams->count; i++)
		*sum += streams->each[i].sender.digests.sum;
	return r;
}

uint64_t streams_out_bytes(const struct streams_out *streams)
{
	uint64_t bytes = 0;

	for (unsigned i = 0; i < streams->count; i++)
		bytes += streams->each[i].wire.sent_bytes;
	return bytes;
}

void streams_out_end(struct streams_out *streams)
{
	crew_end(&streams->crew);
	close_all(streams);
}
