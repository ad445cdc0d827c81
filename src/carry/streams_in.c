#include "carry/streams_in.h"
#include "base/cleanup.h"
#include "carry/clock.h"

#include <errno.h>
#include <openssl/crypto.h>
#include <poll.h>
#include <string.h>

#define LOOK_NS (100 * NS_PER_MS)
/* Longer than the source waits for its own connections. */
#define OPEN_MS 30000

_Static_assert(PEER_STREAMS_MAX <= CREW_MAX, "each connection has a thread");

/* ---- the threads ---- */

/* Only who was told the token over the control connection may bring memory. */
static int join(struct stream_in *stream, struct error *error)
{
	struct streams_in *all = stream->all;
	struct record record;
	uint8_t token[PEER_TOKEN_SIZE];
	struct iovec part = {.iov_base = token, .iov_len = sizeof(token)};
	int r;

	wire_limit(&stream->wire, PEER_HANDSHAKE_MS);
	r = wire_handshake(&stream->wire, error);
	if (r == 0)
		r = peer_expect(&stream->wire, RECORD_JOIN, &record, error);
	if (r == 0 && (record.argument != stream->number || record.length != sizeof(token)))
		r = peer_not_due(&stream->wire, &record, error);
	if (r == 0)
		r = wire_receive(&stream->wire, &part, 1, error);
	if (r == 0 && CRYPTO_memcmp(token, all->token, sizeof(token)) != 0)
		r = error_set(error, EACCES, "A data connection from %s does not belong to this relocation.",
			stream->wire.peer);
	wire_limit(&stream->wire, 0);
	if (r < 0)
		return r;
	crew_lock(&all->crew);
	stream->joined = true;
	crew_changed(&all->crew);
	crew_unlock(&all->crew);
	return peer_send(&stream->wire, RECORD_JOIN, stream->number, NULL, 0, error);
}

static int note(struct stream_in *stream, unsigned rounds, bool over)
{
	struct crew *crew = &stream->all->crew;

	crew_lock(crew);
	stream->rounds = rounds;
	stream->over = over;
	crew_changed(crew);
	crew_unlock(crew);
	return 0;
}

static int serve(void *context, struct error *error)
{
	struct stream_in *stream = context;
	struct wire *wire = &stream->wire;
	unsigned rounds = 0;
	int r = join(stream, error);

	if (r < 0) /* the source need not wait for an answer */
		wire_close(wire);
	while (r == 0) {
		struct record record;

		r = peer_receive(wire, &record, error);
		if (r < 0)
			return r;
		if (record.type == RECORD_PAGES)
			r = page_receiver_take(&stream->receiver, &record, error);
		else if (record.type == RECORD_ROUND && record.argument == rounds + 1)
			r = note(stream, ++rounds, false);
		else if (record.type == RECORD_END && record.argument == stream->receiver.digests.sum)
			return note(stream, rounds, true);
		else if (record.type == RECORD_END)
			r = error_set(error, EBADMSG, "The guest's memory was damaged on its way.");
		else
			r = peer_not_due(wire, &record, error);
	}
	return r;
}

/* ---- set-up ---- */

/* One more connection of the peer's, from xend. What does not fit is closed. */
static int take_connection(
	struct streams_in *streams, unsigned count, const struct page_receiver *pattern, struct error *error)
{
	_cleanup_message_ struct message message = {0};
	struct stream_in *stream;
	json_int_t number;
	int fd, r = channel_receive(streams->joins, &message, error);

	if (r < 0)
		return r;
	number = json_integer_value(json_object_get(message.body, "stream"));
	fd = message_take_fd(&message, message.body, "socket", error);
	stream = number >= 1 && number <= count ? &streams->each[number - 1] : NULL;
	if (fd < 0 || !stream || stream->all) {
		cleanup_close(&fd);
		return 0;
	}
	*stream = (struct stream_in){.all = streams, .number = (unsigned)number};
	stream->receiver = *pattern;
	stream->receiver.wire = &stream->wire;
	stream->receiver.stripe = (unsigned)number - 1;
	stream->receiver.stripes = count;
	r = wire_further(&stream->wire, streams->control, fd, error);
	stream->wire.stop = &streams->crew.stop;
	stream->wire.deaf_to_xend = true; /* it answers the control connection's thread */
	if (r == 0)
		crew_give(&streams->crew, stream->number - 1, serve, stream);
	return r;
}

static bool all_joined(struct streams_in *streams, unsigned count)
{
	unsigned joined = 0;

	crew_lock(&streams->crew);
	for (unsigned i = 0; i < count; i++)
		joined += streams->each[i].joined;
	crew_unlock(&streams->crew);
	return joined == count;
}

static void close_joins(struct streams_in *streams)
{
	cleanup_close(&streams->joins);
	streams->joins = -1;
}

static void end(struct streams_in *streams)
{
	crew_stop(&streams->crew);
	for (unsigned i = 0; i < PEER_STREAMS_MAX; i++) {
		struct stream_in *stream = &streams->each[i];

		page_receiver_end(&stream->receiver);
		if (stream->all)
			wire_close(&stream->wire);
	}
	close_joins(streams);
}

/* The source has said whether memory goes over the data connections. */
static int take_verdict(struct streams_in *streams, unsigned count, struct error *error)
{
	struct record record;
	int r = peer_expect(streams->control, RECORD_SPREAD, &record, error);

	if (r < 0)
		return r;
	if (record.argument != 0 && (record.argument != count || !all_joined(streams, count)))
		return peer_not_due(streams->control, &record, error);
	streams->count = (unsigned)record.argument;
	if (!streams->count) {
		end(streams);
		return 0;
	}
	streams->control->stop = &streams->crew.stop;
	close_joins(streams);
	return 0;
}

int streams_in_open(struct streams_in *streams, unsigned count, struct wire *control,
	const struct page_receiver *pattern, struct error *error)
{
	int64_t end = monotonic_ns() + OPEN_MS * NS_PER_MS;
	int r = 0;

	streams->control = control;
	while (r == 0 && !wire_heard(control)) {
		struct pollfd ready[] = {{.fd = control->fd, .events = POLLIN},
			{.fd = streams->joins, .events = POLLIN},
			{.fd = control->job->channel, .events = POLLIN}};
		int64_t left = (end - monotonic_ns()) / NS_PER_MS;

		if (left <= 0)
			return error_set(error, ETIMEDOUT,
				"No word from %s in time: the connection is given up.", control->peer);
		if (poll(ready, 3, (int)left) < 0 && errno != EINTR)
			return error_set(
				error, errno, "Unable to wait for %s: %s.", control->peer, strerror(errno));
		if (ready[1].revents)
			r = take_connection(streams, count, pattern, error);
		if (r == 0)
			r = job_cancelled(control->job, error);
	}
	return r == 0 ? take_verdict(streams, count, error) : r;
}

/* ---- receiving ---- */

/* With the crew's lock. */
static bool all_have_ended(const struct streams_in *streams, unsigned round)
{
	for (unsigned i = 0; i < streams->count; i++)
		if (streams->each[i].rounds < round && !streams->each[i].over)
			return false;
	return true;
}

int streams_in_round(struct streams_in *streams, unsigned number, struct error *error)
{
	struct crew *crew = &streams->crew;
	int64_t look_at = monotonic_ns() + LOOK_NS, alive_at = look_at + WIRE_ALIVE_MS * NS_PER_MS;
	int r = 0;

	crew_lock(crew);
	while (r == 0 && !all_have_ended(streams, number) && !crew_leaving(crew)) {
		if (crew_await(crew, look_at))
			continue;
		crew_unlock(crew);
		look_at = monotonic_ns() + LOOK_NS;
		r = job_cancelled(streams->control->job, error);
		if (r == 0 && monotonic_ns() >= alive_at) {
			r = peer_send(streams->control, RECORD_ALIVE, 0, NULL, 0, error);
			alive_at = monotonic_ns() + WIRE_ALIVE_MS * NS_PER_MS;
		}
		crew_lock(crew);
	}
	for (unsigned i = 0; r == 0 && !crew->failure.code && i < streams->count; i++)
		if (streams->each[i].rounds != number)
			r = error_set(error, EPROTO,
				"%s breaks the relocation protocol: a round did not end on each connection.",
				streams->control->peer);
	crew_unlock(crew);
	return r == 0 ? crew_failure(crew, error) : r;
}

int streams_in_finish(struct streams_in *streams, uint64_t *sum, struct error *error)
{
	int r = crew_wait(&streams->crew, error);

	streams->control->stop = NULL;
	for (unsigned i = 0; r == 0 && i < streams->count; i++)
		*sum += streams->each[i].receiver.digests.sum;
	return r;
}

uint64_t streams_in_received(const struct streams_in *streams)
{
	uint64_t received = 0;

	for (unsigned i = 0; i < streams->count; i++)
		received += atomic_load_explicit(&streams->each[i].receiver.received, memory_order_relaxed);
	return received;
}

void streams_in_end(struct streams_in *streams)
{
	end(streams);
	crew_end(&streams->crew);
}
