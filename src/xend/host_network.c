#include "xend/host_network.h"
#include "base/log.h"
#include "xend/network.h"

#include <string.h>
#include <unistd.h>

/* An attempt, and the pause after it: longer from one to the next. */
#define FIRST_LIMIT_S 30
#define LONGEST_LIMIT_S 240
#define FIRST_PAUSE_S 1
#define LONGEST_PAUSE_S 60
#define START_MS 40000 /* that xend's start waits */

static bool bridge_is_there(const struct xend *xend)
{
	char name[16], path[64];

	network_bridge(xend->config.network_script, name);
	snprintf(path, sizeof(path), "/sys/class/net/%s/bridge", name);
	return access(path, F_OK) == 0;
}

static void note_failure(struct xend *xend, const struct error *error)
{
	char *failure = xend->network.failure, before[sizeof(xend->network.failure)];

	memcpy(before, failure, sizeof(before));
	snprintf(failure, sizeof(xend->network.failure), "%.500s", error->text);
	if (strcmp(before, failure) != 0)
		log_error("The host's network is not set up for guests: %s This is tried again until it is.",
			failure);
}

static void note_success(struct xend *xend)
{
	if (*xend->network.failure)
		log_info("The host's network is set up for guests now.");
	*xend->network.failure = 0;
	xend->network.awaited = false;
}

static void wait_a_while(struct xend *xend, int seconds)
{
	long long until = monotonic_ms() + seconds * 1000LL, left;

	while (!xend->stopping && (left = until - monotonic_ms()) > 0)
		xend_wait(xend, (int)left);
}

static void set_up(void *argument)
{
	struct xend *xend = argument;
	int limit_s = FIRST_LIMIT_S, pause_s = FIRST_PAUSE_S, r = -1;

	while (r < 0 && !xend->stopping) {
		struct error error;

		/* A bridge that is made otherwise may be used, whatever the script has against it. */
		xend->network.awaited = !bridge_is_there(xend);
		xend_unlock(xend);
		r = network_start(xend->paths.scripts, xend->config.network_script, limit_s, &error);
		xend_lock(xend);
		if (r < 0)
			note_failure(xend, &error);
		else
			note_success(xend);
		xend->network.tried = true;
		xend_changed(xend);
		if (r < 0)
			wait_a_while(xend, pause_s);
		limit_s = limit_s * 2 < LONGEST_LIMIT_S ? limit_s * 2 : LONGEST_LIMIT_S;
		pause_s = pause_s * 2 < LONGEST_PAUSE_S ? pause_s * 2 : LONGEST_PAUSE_S;
	}
}

const char *host_network_failure(const struct xend *xend)
{
	if (!*xend->config.network_script || (xend->network.tried && !*xend->network.failure))
		return NULL;
	return *xend->network.failure ? xend->network.failure : "Its script is still at work.";
}

const char *host_network_trouble(const struct xend *xend)
{
	return xend->network.awaited ? host_network_failure(xend) : NULL;
}

void host_network_begin(struct xend *xend)
{
	long long until = monotonic_ms() + START_MS, left;
	struct error error;

	if (!*xend->config.network_script)
		return;
	if (xend_worker(xend, set_up, xend, &error) < 0) {
		note_failure(xend, &error);
		return;
	}
	while (!xend->network.tried && (left = until - monotonic_ms()) > 0)
		xend_wait(xend, (int)left);
}
