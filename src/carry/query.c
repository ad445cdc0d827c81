#include "carry/query.h"
#include "base/cleanup.h"
#include "carry/clock.h"
#include "carry/guest.h"
#include "carry/jobs.h"
#include "carry/page_digests.h"
#include "carry/peer.h"
#include "state/digest.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

/* The line is probed for this long and some round trips, or with this much. */
#define PROBE_NS (300 * NS_PER_MS)
#define PROBE_TRIPS 10
#define PROBE_NS_MOST (2 * NS_PER_S)
#define PROBES_MAX 512u
/* So that the line does not wait for an echo: so many at first, one more for each echo that is heard. */
#define PROBE_IN_FLIGHT 4u
#define PROBE_IN_FLIGHT_MOST 64u
#define TRIPS 5u /* there and back, before them; the first of which wakes everybody up */

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

/* How a line, with the hosts at its ends, carries memory. */
struct probed {
	uint64_t bytes;       /* that have come out at the other end */
	int64_t ns, waits_ns; /* it took; for the line */
	int64_t trip_ns;      /* there and back, without anything to carry */
	uint64_t digests;     /* of what was sent, as of pages */
};

static void digest_pages(const uint8_t *load, size_t size, uint64_t *sum)
{
	for (size_t at = 0; at + PAGE_SIZE <= size; at += PAGE_SIZE)
		*sum += page_digest(at / PAGE_SIZE, load + at);
}

static int probe_trips(struct wire *wire, struct probed *probed, struct error *error)
{
	int64_t began = 0;
	int r = 0;

	for (uint64_t i = 1; r == 0 && i <= TRIPS; i++) {
		began = i == 1 ? 0 : began ? began : monotonic_ns();
		r = peer_send(wire, RECORD_PROBE, i, NULL, 0, error);
		if (r == 0)
			r = hear_echo(wire, i, error);
	}
	probed->trip_ns = (monotonic_ns() - began) / (TRIPS - 1);
	return r;
}

/* What the hosts do with pages is done with probes: else a fast line would seem to carry what they cannot. */
static int probe(struct wire *wire, struct probed *probed, struct error *error)
{
	_cleanup_free_ uint8_t *load = calloc(1, PEER_PROBE_SIZE);
	uint64_t sent = TRIPS, heard = TRIPS;
	int64_t began, waited, most;
	int r = load ? probe_trips(wire, probed, error)
		     : error_set(error, ENOMEM, "Out of memory for a probe.");

	/* Nothing on the way may find it easy to make it smaller. */
	for (size_t i = 0; load && i < PEER_PROBE_SIZE; i += 8)
		memcpy(load + i, &(uint64_t){digest_of(&i, sizeof(i))}, 8);
	most = PROBE_NS + PROBE_TRIPS * probed->trip_ns;
	most = most < PROBE_NS_MOST ? most : PROBE_NS_MOST;
	began = monotonic_ns();
	waited = wire->waited_ns;
	while (r == 0 && (probed->ns < most || heard < sent) && heard < PROBES_MAX) {
		uint64_t room = PROBE_IN_FLIGHT + heard - TRIPS;
		bool more = probed->ns < most && sent < PROBES_MAX &&
			    sent - heard < (room < PROBE_IN_FLIGHT_MOST ? room : PROBE_IN_FLIGHT_MOST);

		if (more)
			digest_pages(load, PEER_PROBE_SIZE, &probed->digests);
		r = more ? peer_send(wire, RECORD_PROBE, ++sent, load, PEER_PROBE_SIZE, error)
			 : hear_echo(wire, ++heard, error);
		probed->ns = monotonic_ns() - began;
	}
	probed->bytes = (heard - TRIPS) * PEER_PROBE_SIZE;
	probed->waits_ns = wire->waited_ns - waited;
	return r;
}

static json_t *describe_line(const struct probed *probed, int64_t greeting_ns, int64_t setup_ns)
{
	double ns = probed->ns > 0 ? (double)probed->ns : 1, bytes = (double)probed->bytes;

	return json_pack("{s:I, s:f, s:I, s:I, s:I}", "bytes_per_second", (json_int_t)(bytes * NS_PER_S / ns),
		"busy_ns_per_byte", bytes > 0 ? (ns - (double)probed->waits_ns) / bytes : 0, "round_trip_ns",
		(json_int_t)probed->trip_ns, "greeting_ns", (json_int_t)greeting_ns, "setup_ns",
		(json_int_t)setup_ns);
}

int query_job(struct job *job, confine_function *confine, struct error *error)
{
	static const uint8_t no_ticket[16];
	_cleanup_wire_ struct wire wire = {.fd = -1, .job = job};
	_cleanup_json_ json_t *reply = NULL;
	const char *host = job_text(job, "host");
	int64_t began = monotonic_ns(), greeting_ns, setup_ns;
	struct probed probed = {0};
	json_t *line = NULL;
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
	greeting_ns = monotonic_ns() - began;
	if (r == 0)
		r = send_object(&wire, RECORD_QUERY, json_object_get(job->request.body, "query"), error);
	if (r == 0)
		r = hear_object(&wire, RECORD_REPLY, &reply, error);
	setup_ns = monotonic_ns() - began;
	if (r == 0 && job_flag(job, "probe"))
		r = probe(&wire, &probed, error);
	if (r < 0)
		return r;
	if (job_flag(job, "probe"))
		line = describe_line(&probed, greeting_ns, setup_ns);
	return job_event(job, "reply", json_pack("{s:O, s:o*}", "reply", reply, "line", line), error);
}

static int take_probe(
	struct wire *wire, const struct record *record, struct buffer *load, struct error *error)
{
	int r = peer_payload(wire, record, load, error);
	uint64_t sum = 0;
	void *room;

	if (r < 0)
		return r;
	/* As pages are: memory that is not there yet takes them, and they are verified. */
	room = load->size ? mmap(NULL, load->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
			  : MAP_FAILED;
	if (room != MAP_FAILED) {
		memcpy(room, load->data, load->size);
		digest_pages(room, load->size, &sum);
		munmap(room, load->size);
	}
	return peer_send(wire, RECORD_PROBE, record->argument, NULL, 0, error);
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
