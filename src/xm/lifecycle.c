/* xm destroy, pause, unpause, shutdown and reboot. */
#include "base/cleanup.h"
#include "xm/command.h"
#include "xm/domain.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* A guest that boots loses the press of its button. */
#define PRESS_AGAIN_S 10
#define PATIENCE_S 30

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

static int press(struct xm *xm, long long id, bool reboots, struct error *error)
{
	char word[24];

	snprintf(word, sizeof(word), "%lld", id);
	return post(xm, word, reboots ? "/reboot" : "/shutdown", reboots ? "rebooted" : "shut down", error);
}

/* Those from the `first` on: they may just be ending. */
static void press_again(struct xm *xm, const json_t *domains, size_t first, bool reboots)
{
	struct domain domain;

	for (size_t i = first; i < json_array_size(domains); i++)
		if (domain_read(&domain, json_array_get(domains, i), NULL) >= 0 && domain.id)
			press(xm, domain.id, reboots, NULL);
}

/* What xend says at a domain's end; one that is stopped before says something else, or nothing. */
static int check_gone(struct transfer *transfer, const char *name, struct error *error)
{
	_cleanup_json_ json_t *answer =
		json_loadb((const char *)transfer->answer.data, transfer->answer.size, 0, NULL);
	const char *why = json_string_value(json_object_get(answer, "error"));
	int r = transfer_result(transfer, error);

	if (r < 0 || (json_is_object(answer) && !why))
		return r;
	return error_set(error, EIO, "Whether domain '%s' has ended is not known: %s", name,
		why ? why : "xend has ended its answer without saying it; see xm list.");
}

/* Waits until this one of the domains is no longer there. */
static int wait_gone(struct xm *xm, const json_t *domains, size_t at, bool reboots, struct error *error)
{
	_cleanup_transfer_ struct transfer transfer = {0};
	time_t begin = steady_seconds(), pressed = begin;
	struct domain domain;
	bool said = false;
	char path[64];
	int r = domain_read(&domain, json_array_get(domains, at), error);

	if (r < 0)
		return r;
	snprintf(path, sizeof(path), "/domains/%lld/gone", domain.id);
	r = transfer_start(&transfer, &xm->client, "GET", path, NULL, 0, NULL, NULL, NULL, error);
	while (r >= 0 && !transfer.ended) {
		r = client_wait(&xm->client, NULL, 0, 1000, error);
		if (r >= 0 && !transfer.ended && steady_seconds() - pressed >= PRESS_AGAIN_S) {
			press_again(xm, domains, at, reboots);
			pressed = steady_seconds();
		}
		if (!said && !transfer.ended && steady_seconds() - begin >= PATIENCE_S) {
			said = true;
			fflush(stdout);
			fprintf(stderr,
				"Domain %s has not shut down for %d s: it may be booting, or ignore its "
				"power "
				"button, which is pressed again every %d s. xm console %s shows what it "
				"does, "
				"xm destroy %s ends it.\n",
				domain.name, PATIENCE_S, PRESS_AGAIN_S, domain.name, domain.name);
		}
	}
	return r < 0 ? r : check_gone(&transfer, domain.name, error);
}

static const char *on_reboot(const struct domain *domain)
{
	const char *word = json_string_value(json_object_get(domain->config, "on_reboot"));

	return word ? word : "restart";
}

/* Waits until a domain of this name is there again under another ID, and has been started. */
static int wait_back(struct xm *xm, const struct domain *gone, struct error *error)
{
	bool said = false;

	for (;;) {
		_cleanup_json_ json_t *json = NULL;
		const char *busy, *trouble;
		struct domain domain;
		int r = domain_get(&xm->client, gone->name, &domain, &json, error);

		if (r == -ENOENT)
			return error_prefix(error, "Domain '%s' did not come back (its on_reboot is '%s'). ",
				gone->name, on_reboot(gone));
		if (r < 0)
			return error_prefix(error,
				"Domain '%s' has ended, and whether it came back is not known: ", gone->name);
		busy = json_string_value(json_object_get(json, "busy"));
		trouble = json_string_value(json_object_get(json, "trouble"));
		if (domain.id != gone->id && (!busy || strncmp(busy, "being started", 13) != 0))
			return 0;
		if (domain.id == gone->id && !busy)
			return error_set(error, ECANCELED,
				"Domain '%s' has ended and is kept (its on_reboot is '%s'); xm destroy %s "
				"takes it away.",
				gone->name, on_reboot(gone), gone->name);
		if (trouble && !said) {
			said = true;
			fprintf(stderr, "Warning: %s\n", trouble);
		}
		usleep(200 * 1000);
	}
}

/* The domain joins those that have been asked. */
static int press_first(struct xm *xm, const json_t *json, bool reboots, json_t *asked, struct error *error)
{
	_cleanup_json_ json_t *copy = json_copy((json_t *)json);
	struct domain domain;
	int r = domain_read(&domain, json, error);

	if (r < 0 || !domain.id)
		return r;
	r = press(xm, domain.id, reboots, error);
	if (r >= 0)
		json_array_append(asked, copy);
	return r;
}

static int wait_for_end(struct xm *xm, const json_t *asked, size_t at, bool reboots, struct error *error)
{
	struct domain domain;
	int r = domain_read(&domain, json_array_get(asked, at), error);

	if (r >= 0)
		r = wait_gone(xm, asked, at, reboots, error);
	if (r >= 0 && reboots)
		r = wait_back(xm, &domain, error);
	if (r >= 0)
		printf("Domain %s %s\n", domain.name, reboots ? "rebooted" : "terminated");
	fflush(stdout);
	return r;
}

/* One that cannot be asked keeps the others from nothing; the last sentence is the command's. */
static void note_failure(int *r, struct error *error, const struct error *failed)
{
	if (*r < 0)
		fprintf(stderr, "Error: %s\n", error->text);
	*error = *failed;
	*r = -failed->code;
}

/* Asks one domain, or with -a all, to power off or reboot, and waits with -w. */
static int end_domains(struct xm *xm, const struct arguments *arguments, bool reboots, struct error *error)
{
	const char *done = reboots ? "rebooted" : "shut down";
	_cleanup_json_ json_t *reply = NULL, *domains = NULL, *asked = json_array();
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
	for (size_t i = 0; i < json_array_size(domains); i++) {
		struct error failed;
		int pressed = press_first(xm, json_array_get(domains, i), reboots, asked, &failed);

		if (pressed < 0)
			note_failure(&r, error, &failed);
	}
	for (size_t i = 0; option_given(arguments, "wait") && i < json_array_size(asked); i++) {
		struct error failed;

		if (wait_for_end(xm, asked, i, reboots, &failed) < 0)
			note_failure(&r, error, &failed);
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
