#include "base/cleanup.h"
#include "carry/jobs.h"
#include "carry/peer.h"
#include "carry/tls.h"

#include <errno.h>
#include <stdio.h>

/* Whose key is at the other end: a handshake with whoever answers, and then nothing. */
int identify_job(struct job *job, confine_function *confine, struct error *error)
{
	_cleanup_wire_ struct wire wire = {.fd = -1, .job = job};
	const char *host = job_text(job, "host");
	char port[16];
	int r;

	if (!host || !job->secure)
		return error_set(error, EINVAL, "The job for the carrier has no host or no 'secure'.");
	job->any_peer = true;
	snprintf(port, sizeof(port), "%lld", (long long)job_number(job, "port"));
	r = wire_connect(&wire, job, host, port, error);
	if (r == 0 && confine)
		r = confine(error);
	if (r < 0)
		return r;
	wire_limit(&wire, PEER_HANDSHAKE_MS);
	r = wire_handshake(&wire, error);
	if (r == -EPIPE || r == -ECONNRESET)
		return error_set(error, -r,
			"%s closed the connection at once, and its log says why (xm log there): this host "
			"may "
			"not be in its xend-relocation-hosts-allow, it may have (xend-relocation-clear-text "
			"yes), or its own key or certificates may not be usable.",
			host);
	if (r < 0)
		return r;
	return job_event(job, "identified",
		json_pack("{s:s, s:s}", "fingerprint", tls_fingerprint(wire.tls), "address",
			tls_address(wire.tls)),
		error);
}
