#include "base/cleanup.h"
#include "carry/jobs.h"
#include "carry/peer.h"
#include "state/description.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* A peer that does not tell its records by a name of their own (an older Ferry) is known by its key alone. */
static int is_meant(const struct job *job, const struct wire *wire, struct error *error)
{
	const char *records = job_text(job, "records");
	uint8_t meant[16];

	if (!records || !*records)
		return 0;
	if (uuid_from_text(records, meant) < 0)
		return error_set(error, EINVAL, "The job for the carrier has no usable 'records'.");
	if (memcmp(meant, wire->peer_self, sizeof(meant)) == 0)
		return 0;
	return error_set(error, ESTALE,
		"What answers at %s has other records than the host that the guest was handed over to: it is "
		"another host, or it has lost its database (xend.db) since.",
		wire->peer);
}

int ask_job(struct job *job, confine_function *confine, struct error *error)
{
	_cleanup_wire_ struct wire wire = {.fd = -1, .job = job};
	const char *host = job_text(job, "host");
	struct record record;
	uint8_t ticket[16];
	char port[16];
	int r;

	if (!host || uuid_from_text(job_text(job, "ticket"), ticket) < 0)
		return error_set(error, EINVAL, "The job for the carrier has no host or no ticket.");
	if (job_text(job, "fingerprint") && *job_text(job, "fingerprint"))
		job->only_peer = job_text(job, "fingerprint");
	snprintf(port, sizeof(port), "%lld", (long long)job_number(job, "port"));
	r = wire_connect(&wire, job, host, port, error);
	if (r == 0 && confine)
		r = confine(error);
	if (r == 0)
		r = peer_greet(&wire, PURPOSE_ASK, ticket, NULL, error);
	if (r == 0)
		r = is_meant(job, &wire, error);
	if (r == 0)
		r = peer_send(&wire, RECORD_ASK, 0, NULL, 0, error);
	if (r == 0)
		r = peer_expect(&wire, RECORD_ANSWER, &record, error);
	if (r == 0)
		r = job_event(job, "answer", json_pack("{s:s}", "state", peer_answer_names[record.argument]),
			error);
	return r;
}
