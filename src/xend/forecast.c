#include "base/cleanup.h"
#include "base/log.h"
#include "base/sentences.h"
#include "xend/carrier.h"
#include "xend/filling.h"
#include "xend/guest.h"
#include "xend/jobs.h"
#include "xend/objections.h"
#include "xend/peers.h"

/* What the other host has against the guest, and how fast the line to it is. */
static int ask_peer(struct domain *domain, const struct migrate_options *options, int cancel, json_t **line,
	struct error *error)
{
	_cleanup_json_ json_t *reply = NULL;
	json_t *offer = domain_pack(domain);
	const json_t *objections;
	int r;

	objections_prepare(domain, options->accept, offer);
	r = peers_query(domain->xend, options->host, options->port,
		json_pack("{s:s, s:o}", "query", "objections", "domain", offer), cancel, &reply, line, error);
	if (r < 0)
		return r;
	objections = json_object_get(reply, "objections");
	return json_array_size(objections) ? sentences_refused(error, options->host, objections) : 0;
}

static int measure(struct domain *domain, const struct migrate_options *options, int cancel,
	const json_t *line, struct message *measured, struct error *error)
{
	_cleanup_carrier_ struct carrier carrier = {0};
	_cleanup_close_ int guest = guest_connect(domain, error);
	uint64_t max_downtime_ms = options->max_downtime_ms ? options->max_downtime_ms
							    : domain->xend->config.relocation_max_downtime;
	int r = guest < 0 ? guest : carrier_start(&carrier, domain->xend, cancel, NULL, error);

	if (r >= 0)
		r = carrier_say(&carrier,
			json_pack("{s:s, s:{s:i}, s:b, s:O, s:I, s:I, s:I, s:s, s:s, s:I}", "do", "measure",
				"guest", "fd", 0, "live", options->live, "line", line, "rate_mbit",
				(json_int_t)options->rate_mbit, "max_downtime_ms",
				(json_int_t)max_downtime_ms, "timeout_s", (json_int_t)options->timeout_s,
				"on_stall", options->on_stall, "compress", options->compress, "connections",
				(json_int_t)domain->xend->config.relocation_connections),
			&guest, 1, error);
	return r < 0 ? r : carrier_expect(&carrier, "measured", measured, error);
}

void job_forecast(struct domain *domain, const struct migrate_options *options, struct reply *reply)
{
	_cleanup_message_ struct message measured = {0};
	int cancel = reply_cancel_fd(reply);
	_cleanup_json_ json_t *line = NULL;
	struct error error, after;
	int r = domain_begin_job(domain, "being measured for a migration", cancel, &error);

	if (r < 0) {
		reply_error(reply, &error);
		return;
	}
	reply_stream(reply, "application/x-ndjson");
	r = filling_wait(domain, cancel, &error);
	if (r >= 0)
		r = ask_peer(domain, options, cancel, &line, &error);
	if (r >= 0)
		r = measure(domain, options, cancel, line, &measured, &error);
	/* Should the carrier have died, the dirty log is still on. */
	if (guest_carry_on(domain, &after) < 0)
		log_error("Domain '%s' could not go on: %s", domain->config.name, after.text);
	domain_end_job(domain);
	if (r < 0) {
		reply_error(reply, &error);
		return;
	}
	json_object_set_new(measured.body, "event", json_string("done"));
	json_object_set(measured.body, "bytes_per_second", json_object_get(line, "bytes_per_second"));
	reply_line(reply, json_incref(measured.body));
	reply_end(reply);
}
