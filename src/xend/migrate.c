#include "xend/jobs.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "base/printable.h"
#include "xend/carrier.h"
#include "xend/dial.h"
#include "xend/filling.h"
#include "xend/guest.h"
#include "xend/handover.h"
#include "xend/lifecycle.h"
#include "xend/moves.h"
#include "xend/trust.h"
#include "xend/objections.h"
#include "xend/peers.h"
#include "xend/shared_memory.h"
#include "xend/uuid.h"

#include <errno.h>
#include <string.h>

/* The source's side of one migration. */
struct sending {
	struct domain *domain;
	const struct migrate_options *options;
	struct move *move;
	struct carrier carrier;
	char ticket[37];
	struct handover_peer peer;
	bool committed;
};

/* A host is known by what the carrier met, not by the name that led to it. */
static int meet(struct sending *sending, const json_t *received, struct error *error)
{
	struct handover_peer *peer = &sending->peer;
	const struct {
		const char *key;
		char *to;
		size_t size;
	} members[] = {{"address", peer->address, sizeof(peer->address)},
		{"fingerprint", peer->fingerprint, sizeof(peer->fingerprint)},
		{"records", peer->records, sizeof(peer->records)}};

	snprintf(peer->host, sizeof(peer->host), "%s", sending->options->host);
	peer->port = sending->options->port;
	for (unsigned i = 0; i < ARRAY_SIZE(members); i++) {
		const char *text = json_string_value(json_object_get(received, members[i].key));

		if (!text || strlen(text) >= members[i].size)
			return error_set(error, EPROTO, "The carrier does not say whom it has met.");
		snprintf(members[i].to, members[i].size, "%s", text);
	}
	return 0;
}

/* While it copies the carrier may want further connections. */
static int await_received(struct sending *sending, struct carrier *carrier, struct error *error)
{
	for (;;) {
		_cleanup_message_ struct message event = {0};
		int r = carrier_hear(carrier, &event, error);

		if (r < 0 || carrier_heard(&event, "received"))
			return r < 0 ? r : meet(sending, event.body, error);
		if (!carrier_heard(&event, "connect"))
			return error_set(
				error, EPROTO, "The carrier said something else where 'received' was due.");
		r = dial_for_carrier(carrier, &event, sending->options->host, sending->options->port, error);
		if (r < 0)
			return r;
	}
}

/* Up to `received`: after any failure until here the guest runs on. */
static int offer_and_copy(struct sending *sending, struct carrier *carrier, struct error *error)
{
	const struct migrate_options *options = sending->options;
	struct domain *domain = sending->domain;
	uint64_t max_downtime_ms = options->max_downtime_ms ? options->max_downtime_ms
							    : domain->xend->config.relocation_max_downtime;
	_cleanup_close_ int guest = guest_connect(domain, error);
	json_t *offer = domain_pack(domain);
	int r;

	if (guest < 0) {
		json_decref(offer);
		return guest;
	}
	objections_prepare(domain, options->accept, offer);
	if (domain->xend->config.relocation_server)
		json_object_set_new(offer, "relocation_port",
			json_integer((json_int_t)domain->xend->config.relocation_port));
	r = trust_say(carrier,
		json_pack("{s:s, s:{s:i}, s:s, s:i, s:o, s:s, s:b, s:I, s:I, s:i, s:s, s:s, s:I}", "do",
			"send", "guest", "fd", 0, "host", options->host, "port", (int)options->port, "domain",
			offer, "ticket", sending->ticket, "live", options->live, "rate_mbit",
			(json_int_t)options->rate_mbit, "max_downtime_ms", (json_int_t)max_downtime_ms,
			"timeout_s", (int)options->timeout_s, "on_stall", options->on_stall, "compress",
			options->compress, "connections",
			(json_int_t)domain->xend->config.relocation_connections),
		&guest, 1, error);
	return r < 0 ? r : await_received(sending, carrier, error);
}

/* The point of no return and what follows it. 0: the peer runs it; *done says how it went. */
static int commit(struct sending *sending, struct carrier *carrier, struct message *done, struct error *error)
{
	int r = handover_commit(sending->domain, sending->ticket, &sending->peer, error);

	if (r < 0) {
		carrier_say(carrier, json_pack("{s:s}", "do", "abort"), NULL, 0, NULL);
		return r;
	}
	sending->committed = true;
	carrier->cancel = -1;
	r = carrier_say(carrier, json_pack("{s:s}", "do", "commit"), NULL, 0, error);
	if (r >= 0)
		r = carrier_hear(carrier, done, error);
	if (r >= 0 && !carrier_heard(done, "done")) {
		const char *why = json_string_value(json_object_get(done->body, "error"));

		r = error_set(error, EIO, "%s", why ? why : "The line broke.");
		message_free(done);
	}
	return r;
}

static int run_send(struct sending *sending, struct message *done, struct error *error)
{
	struct move *move = sending->move;
	struct carrier *carrier = &sending->carrier;
	int r = filling_wait(sending->domain, move->ends, error);

	if (r >= 0)
		r = shared_memory_leave(sending->domain, error);
	if (r >= 0)
		r = carrier_start(carrier, sending->domain->xend, move->ends, NULL, error);
	if (r >= 0)
		r = offer_and_copy(sending, carrier, error);
	if (r >= 0)
		r = commit(sending, carrier, done, error);
	/* That of a guest who has left may take its time: it is waited for when all has been said. */
	if (r < 0)
		carrier_end(carrier);
	return r;
}

static void succeed(struct sending *sending, const struct message *done, struct reply *reply)
{
	json_t *line = done->body ? json_copy(done->body) : json_object();

	json_object_set_new(line, "event", json_string("done"));
	reply_line(reply, line);
	reply_end(reply);
	log_info(
		"Domain '%s' has been migrated to %s.", sending->domain->config.name, sending->options->host);
}

/* After COMMIT, without a word from the peer: ask until it is known. */
static void settle(struct sending *sending, const struct error *why, struct reply *reply)
{
	const struct migrate_options *options = sending->options;
	struct domain *domain = sending->domain;
	enum handover_end end;
	struct error error;

	log_warning("Domain '%s': the line to %s broke while control passed: %s", domain->config.name,
		options->host, why->text);
	move_end(sending->move, MOVE_UNCERTAIN, NULL, why->text);
	reply_line(reply, json_pack("{s:s, s:s, s:o}", "event", "progress", "phase", "uncertain", "error",
				  printable_sentence(why->text)));
	end = handover_settle(domain, sending->ticket, &sending->peer);
	if (end == HANDOVER_GONE) {
		struct message nothing = {0};

		move_end(sending->move, MOVE_DONE, NULL, NULL);
		succeed(sending, &nothing, reply);
		lifecycle_finish(domain);
		return;
	}
	if (end == HANDOVER_OPEN) {
		error_set(&error, ECANCELED,
			"xend is being stopped while it is open whether domain '%s' runs on %s (%s); once "
			"xend is started again it asks that host and settles it.",
			domain->config.name, options->host, why->text);
		reply_error(reply, &error);
		return;
	}
	error_set(&error, EIO,
		"Domain '%s' was not migrated to %s and runs on here: the line broke before the other host "
		"could take it "
		"(%s)",
		domain->config.name, options->host, why->text);
	move_end(sending->move, MOVE_FAILED, NULL, error.text);
	reply_error(reply, &error);
}

void job_migrate(struct domain *domain, const struct migrate_options *options, struct reply *reply)
{
	struct sending sending = {.domain = domain, .options = options};
	_cleanup_message_ struct message done = {0};
	struct error error;
	int r = uuid_draw(sending.ticket, &error);

	if (r >= 0)
		sending.move = move_begin(domain, options, reply, &error);
	if (!sending.move) {
		reply_error(reply, &error);
		return;
	}
	sending.carrier = (struct carrier){.told = move_progress, .context = sending.move};
	reply_stream(reply, "application/x-ndjson");
	r = run_send(&sending, &done, &error);
	if (sending.committed)
		peers_remember(domain->xend, options->host, sending.peer.address, options->port);
	if (r >= 0) {
		/* Before the guest's console ends: who watches it asks where it went. */
		move_end(sending.move, MOVE_DONE, done.body, NULL);
		/* Before the record is dropped: whoever finds the guest gone is told where it went. */
		moves_departed(domain, options->host);
		handover_gone(domain, sending.ticket);
		succeed(&sending, &done, reply);
		lifecycle_finish(domain);
		carrier_end(&sending.carrier);
	} else if (sending.committed) {
		settle(&sending, &error, reply);
	} else {
		domain_explain_end(domain, "migrated", &error);
		log_warning("Domain '%s' was not migrated to %s: %s", domain->config.name, options->host,
			error.text);
		/* What was not recorded needs no dropping: back without a ticket. */
		handover_back(domain, sending.ticket);
		move_end(sending.move, MOVE_FAILED, NULL, error.text);
		reply_error(reply, &error);
	}
}
