#include "carry/query.h"
#include "base/cleanup.h"
#include "carry/clock.h"
#include "carry/jobs.h"
#include "carry/peer.h"
#include "state/digest.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* The line is probed for this long, or with this much. */
#define PROBE_NS (300 * NS_PER_MS)
#define PROBES_MAX 512u
#define PROBE_IN_FLIGHT 4u /* so that the line never waits for an echo */

/* A QUERY or REPLY: its argument is the digest of the JSON object that it carries. */
static int send_object(struct wire *wire, enum record_type type, const json_t *object, struct error *error)
{
	_cleanup_free_ char *text = object ? json_dumps(object, JSON_COMPACT) : NULL;

	if (!text)
		return error_set(error, ENOMEM, "Out of memory for a question.");
	if (strlen(text) > PEER_OBJECT_MAX)
		return error_set(error, E2BIG, "A question to %s, or its answer, is too long.", wire->peer);
	return peer_send(wire, type, digest_of(text, strlen(text)), text, strlen(text), error);
}

static int hear_object(struct wire *wire, enum record_type type, json_t **object, struct error *error)
{
	_cleanup_buffer_ struct buffer text = {0};
	struct record record;
	int r = peer_expect(wire, type, &record, error);

	if (r == 0)
		r = peer_payload(wire, &record, &text, error);
	if (r < 0)
		return r;
	if (digest_of(text.data, text.size) != record.argument)
		return error_set(error, EBADMSG, "What %s says was damaged on its way.", wire->peer);
	*object = json_loadb((const char *)text.data, text.size, JSON_REJECT_DUPLICATES, NULL);
	if (json_is_object(*object))
		return 0;
	json_decref(*object);
	*object = NULL;
	return error_set(error, EPROTO, "What %s says is not understood.", wire->peer);
}

static int hear_echo(struct wire *wire, uint64_t number, struct error *error)
{
	struct record record;
	int r = peer_expect(wire, RECORD_PROBE, &record, error);

	if (r == 0 && (record.length || record.argument != number))
		return peer_not_due(wire, &record, error);
	return r;
}

/* How many bytes a second come out of the line at the other end. */
static int probe(struct wire *wire, uint64_t *bytes_per_second, struct error *error)
{
	_cleanup_free_ uint8_t *load = calloc(1, PEER_PROBE_SIZE);
	int64_t began = monotonic_ns(), took = 0;
	uint64_t sent = 0, heard = 0;
	int r = 0;

	if (!load)
		return error_set(error, ENOMEM, "Out of memory for a probe.");
	/* Nothing on the way may find it easy to make it smaller. */
	for (size_t i = 0; i < PEER_PROBE_SIZE; i += 8)
		memcpy(load + i, &(uint64_t){digest_of(&i, sizeof(i))}, 8);
	while (r == 0 && (took < PROBE_NS || heard < sent) && heard < PROBES_MAX) {
		bool more = took < PROBE_NS && sent < PROBES_MAX && sent - heard < PROBE_IN_FLIGHT;

		r = more ? peer_send(wire, RECORD_PROBE, ++sent, load, PEER_PROBE_SIZE, error)
			 : hear_echo(wire, ++heard, error);
		took = monotonic_ns() - began;
	}
	*bytes_per_second =
		took > 0 ? (uint64_t)((double)(heard * PEER_PROBE_SIZE) * NS_PER_S / (double)took) : 0;
	return r;
}

int query_job(struct job *job, confine_function *confine, struct error *error)
{
	static const uint8_t no_ticket[16];
	_cleanup_wire_ struct wire wire = {.fd = -1, .job = job};
	_cleanup_json_ json_t *reply = NULL;
	const char *host = job_text(job, "host");
	uint64_t bytes_per_second = 0;
	char port[16];
	int r;

	if (!host)
		return error_set(error, EINVAL, "The job for the carrier has no host.");
	snprintf(port, sizeof(port), "%lld", (long long)job_number(job, "port"));
	r = job_event(job, "connecting", NULL, error);
	if (r == 0)
		r = wire_connect(&wire, job, host, port, error);
	if (r == 0)
		r = job_event(job, "connected", NULL, error);
	if (r == 0 && confine)
		r = confine(error);
	if (r == 0)
		r = peer_greet(&wire, PURPOSE_QUERY, no_ticket, NULL, error);
	if (r == 0)
		r = send_object(&wire, RECORD_QUERY, json_object_get(job->request.body, "query"), error);
	if (r == 0)
		r = hear_object(&wire, RECORD_REPLY, &reply, error);
	if (r == 0 && job_flag(job, "probe"))
		r = probe(&wire, &bytes_per_second, error);
	if (r < 0)
		return r;
	return job_event(job, "reply",
		json_pack("{s:O, s:I}", "reply", reply, "bytes_per_second", (json_int_t)bytes_per_second),
		error);
}

static int take_probe(
	struct wire *wire, const struct record *record, struct buffer *load, struct error *error)
{
	int r = peer_payload(wire, record, load, error);

	return r < 0 ? r : peer_send(wire, RECORD_PROBE, record->argument, NULL, 0, error);
}

/* Until the source leaves, which is how a question ends. */
static int take_probes(struct wire *wire, struct error *error)
{
	_cleanup_buffer_ struct buffer load = {0};

	wire_limit(wire, PEER_HANDSHAKE_MS);
	for (unsigned i = 0; i <= PROBES_MAX; i++) {
		struct record record;
		int r = peer_expect(wire, RECORD_PROBE, &record, error);

		if (r == -EPIPE || r == -ECONNRESET)
			return 0;
		if (r == 0)
			r = take_probe(wire, &record, &load, error);
		if (r < 0)
			return r;
	}
	return error_set(error, EPROTO, "%s sends probes without end.", wire->peer);
}

int query_serve(struct job *job, struct wire *wire, const char *peer, struct error *error)
{
	_cleanup_json_ json_t *query = NULL;
	_cleanup_message_ struct message answer = {0};
	int r;

	wire_limit(wire, PEER_HANDSHAKE_MS);
	r = hear_object(wire, RECORD_QUERY, &query, error);
	wire_limit(wire, 0);
	if (r == 0)
		r = job_event(job, "query", json_pack("{s:s, s:O}", "peer", peer, "query", query), error);
	if (r == 0)
		r = peer_wait_xend(wire, &answer, error);
	if (r == 0 && strcmp(job_verb(&answer), "reply") != 0)
		return error_set(error, EPROTO, "xend did not answer 'reply' to 'query'.");
	if (r == 0)
		r = send_object(wire, RECORD_REPLY, json_object_get(answer.body, "reply"), error);
	if (r == 0)
		r = take_probes(wire, error);
	return r == 0 ? job_event(job, "done", NULL, error) : r;
}
