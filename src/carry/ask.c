#include "base/cleanup.h"
#include "carry/jobs.h"
#include "carry/peer.h"
#include "state/description.h"

#include <errno.h>
#include <stdio.h>

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
	snprintf(port, sizeof(port), "%lld", (long long)job_number(job, "port"));
	r = wire_connect(&wire, job, host, port, error);
	if (r == 0 && confine)
		r = confine(error);
	if (r == 0)
		r = peer_greet(&wire, PURPOSE_ASK, ticket, NULL, error);
	if (r == 0)
		r = peer_send(&wire, RECORD_ASK, 0, NULL, 0, error);
	if (r == 0)
		r = peer_expect(&wire, RECORD_ANSWER, &record, error);
	if (r == 0)
		r = job_event(job, "answer", json_pack("{s:s}", "state", peer_answer_names[record.argument]),
			error);
	return r;
}
