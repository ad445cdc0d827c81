/* xm destroy, pause, unpause, shutdown and reboot. */
#include "base/cleanup.h"
#include "xm/command.h"
#include "xm/domain.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define REBOOT_WAIT_S 60 /* for the domain to be there again */

static int post(struct xm *xm, const char *domain, const char *verb, const char *done, struct error *error)
{
	char path[256];
	int r = domain_is_guest(domain, done, error);

	if (r >= 0)
		r = domain_path(path, domain, verb, error);
	return r < 0 ? r : client_call(&xm->client, "POST", path, NULL, NULL, error);
}

static int destroy(struct xm *xm, const struct arguments *arguments, struct error *error)
{
	return post(xm, arguments->words[0], "/destroy", "destroyed", error);
}

static int pause_domain(struct xm *xm, const struct arguments *arguments, struct error *error)
{
	return post(xm, arguments->words[0], "/pause", "paused", error);
}

static int unpause(struct xm *xm, const struct arguments *arguments, struct error *error)
{
	return post(xm, arguments->words[0], "/unpause", "unpaused", error);
}

/* Waits until the domain with this ID is no longer there. */
static int wait_gone(struct xm *xm, long long id, struct error *error)
{
	_cleanup_buffer_ struct buffer answer = {0};
	char path[64];

	snprintf(path, sizeof(path), "/domains/%lld/gone", id);
	return client_fetch(&xm->client, "GET", path, NULL, &answer, 0, error);
}

/* Waits until a domain of this name is there again under another ID. */
static int wait_back(struct xm *xm, const char *name, long long id, struct error *error)
{
	time_t end = time(NULL) + REBOOT_WAIT_S;

	for (;;) {
		_cleanup_json_ json_t *json = NULL;
		struct domain domain;

		if (domain_get(&xm->client, name, &domain, &json, NULL) >= 0 && domain.id != id)
			return 0;
		if (time(NULL) > end)
			return error_set(error, ETIMEDOUT,
				"Domain '%s' did not come back within %d s (see xm log).", name,
				REBOOT_WAIT_S);
		usleep(200 * 1000);
	}
}

/* Asks one domain, or with -a all, to power off or reboot, and waits with -w. */
static int end_domains(struct xm *xm, const struct arguments *arguments, bool reboots, struct error *error)
{
	const char *done = reboots ? "rebooted" : "shut down";
	_cleanup_json_ json_t *reply = NULL, *domains = NULL;
	int r = 0;

	if (option_given(arguments, "all") == (arguments->word_count > 0)) {
		xm->wrong_arguments = true;
		return error_set(error, EINVAL, "xm %s: expected <Domain> or -a%s.", arguments->command->name,
			arguments->word_count ? ", found both" : ", found nothing");
	}
	if (option_given(arguments, "all")) {
		r = client_call(&xm->client, "GET", "/domains", NULL, &reply, error);
		domains = json_incref(json_object_get(reply, "domains"));
	} else {
		_cleanup_json_ json_t *json = NULL;
		struct domain domain;

		r = domain_is_guest(arguments->words[0], done, error);
		if (r >= 0)
			r = domain_get(&xm->client, arguments->words[0], &domain, &json, error);
		domains = json_array();
		if (r >= 0)
			json_array_append(domains, json);
	}
	for (int waits = 0; waits <= option_given(arguments, "wait"); waits++)
		for (size_t i = 0; r >= 0 && i < json_array_size(domains); i++) {
			struct domain domain;
			char id[24];

			r = domain_read(&domain, json_array_get(domains, i), error);
			if (r < 0 || !domain.id)
				continue;
			snprintf(id, sizeof(id), "%lld", domain.id);
			if (!waits) {
				r = post(xm, id, reboots ? "/reboot" : "/shutdown", done, error);
				continue;
			}
			r = wait_gone(xm, domain.id, error);
			if (r >= 0 && reboots)
				r = wait_back(xm, domain.name, domain.id, error);
			if (r >= 0)
				printf("Domain %s %s\n", domain.name, reboots ? "rebooted" : "terminated");
			fflush(stdout);
		}
	if (r >= 0 && option_given(arguments, "wait"))
		printf("All domains %s\n", reboots ? "rebooted" : "terminated");
	return r;
}

static int shutdown_domain(struct xm *xm, const struct arguments *arguments, struct error *error)
{
	return end_domains(xm, arguments, option_given(arguments, "reboot"), error);
}

static int reboot(struct xm *xm, const struct arguments *arguments, struct error *error)
{
	return end_domains(xm, arguments, true, error);
}

const struct command stop_commands[] = {
	{"destroy", NULL, "<Domain>", "End a domain at once, without asking it.", {{0}}, 1, 1, destroy},
	{"shutdown", NULL, "<Domain>", "Ask a domain to shut down.",
		{{"wait", 'w', NULL, "return when it has"}, {"all", 'a', NULL, "all domains but Domain-0"},
			{"reboot", 'R', NULL, "ask it to reboot"},
			{"halt", 'H', NULL, "ask it to halt (as without -R)"}},
		0, 1, shutdown_domain},
	{"reboot", NULL, "<Domain>", "Ask a domain to reboot.",
		{{"wait", 'w', NULL, "return when it has"}, {"all", 'a', NULL, "all domains but Domain-0"}},
		0, 1, reboot},
	{"pause", NULL, "<Domain>", "Stop a domain's CPUs.", {{0}}, 1, 1, pause_domain},
	{"unpause", NULL, "<Domain>", "Let a paused domain run on.", {{0}}, 1, 1, unpause},
	{0},
};
