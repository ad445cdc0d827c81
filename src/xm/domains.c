/* xm list, domid, domname and rename. */
#include "base/cleanup.h"
#include "xm/command.h"
#include "xm/domain.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static const struct {
	const char *name;
	char letter;
} states[] = {{"running", 'r'}, {"blocked", 'b'}, {"paused", 'p'}, {"shutdown", 's'}, {"halted", 's'},
	{"crashed", 'c'}, {"dying", 'd'}};

/* The letter that --state asks for, 0 for all. */
static int wanted_state(const struct arguments *arguments, char *letter, struct error *error)
{
	const char *name = option_value(arguments, "state");

	*letter = 0;
	if (!name || !strcmp(name, "all"))
		return 0;
	for (size_t i = 0; i < ARRAY_SIZE(states); i++)
		if (!strcmp(states[i].name, name))
			*letter = states[i].letter;
	return *letter ? 0
		       : error_set(error, EINVAL,
				 "--state takes all, running, blocked, paused, shutdown, crashed or dying, "
				 "found '%s'.",
				 name);
}

/* The domains that were named, or all: a new array of API domains. Of those named that are not there the
 * others are there all the same: -ENOENT, and all is said but the last sentence. */
static int gather(struct xm *xm, const struct arguments *arguments, json_t **domains, struct error *error)
{
	_cleanup_json_ json_t *list = NULL, *reply = NULL;
	int r;

	if (!arguments->word_count) {
		r = client_call(&xm->client, "GET", "/domains", NULL, &reply, error);
		if (r < 0)
			return r;
		list = json_incref(json_object_get(reply, "domains"));
		if (!json_is_array(list))
			return error_set(error, EPROTO,
				"xend's answer is no list of domains: do xm and xend fit together?");
		*domains = take_pointer(list);
		return 0;
	}
	list = json_array();
	r = 0;
	for (size_t i = 0; i < arguments->word_count; i++) {
		_cleanup_json_ json_t *json = NULL;
		struct domain domain;
		struct error missing;

		if (domain_get(&xm->client, arguments->words[i], &domain, &json, &missing) >= 0) {
			json_array_append(list, json);
			continue;
		}
		if (r < 0)
			fprintf(stderr, "Error: %s\n", error->text);
		*error = missing;
		r = -missing.code;
	}
	*domains = take_pointer(list);
	return r;
}

/* Beside the table, so that whatever reads it finds domains only. */
static void warn_of_doubts(const json_t *domains)
{
	static const char *const keys[] = {"doubt", "trouble", "waits", "lockless"};

	fflush(stdout);
	for (size_t i = 0; i < json_array_size(domains); i++)
		for (size_t j = 0; j < ARRAY_SIZE(keys); j++) {
			const char *doubt =
				json_string_value(json_object_get(json_array_get(domains, i), keys[j]));

			if (doubt)
				fprintf(stderr, "Warning: %s\n", doubt);
		}
}

static int list(struct xm *xm, const struct arguments *arguments, struct error *error)
{
	_cleanup_json_ json_t *domains = NULL;
	bool in_full = option_given(arguments, "long");
	char letter;
	int r = wanted_state(arguments, &letter, error);

	if (r >= 0)
		r = gather(xm, arguments, &domains, error);
	if (json_array_size(domains) && !in_full)
		domain_print_header(stdout);
	for (size_t i = 0; i < json_array_size(domains); i++) {
		struct domain domain;
		int shown = domain_read(&domain, json_array_get(domains, i), error);

		if (shown >= 0 && letter && !strchr(domain.state, letter))
			continue;
		if (shown >= 0 && in_full)
			shown = domain_print_long(stdout, &domain, error);
		else if (shown >= 0)
			domain_print_row(stdout, &domain);
		if (shown < 0)
			return shown;
	}
	if (json_array_size(domains))
		warn_of_doubts(domains);
	return r;
}

static int domid(struct xm *xm, const struct arguments *arguments, struct error *error)
{
	_cleanup_json_ json_t *json = NULL;
	struct domain domain;
	int r = domain_get(&xm->client, arguments->words[0], &domain, &json, error);

	if (r >= 0)
		printf("%lld\n", domain.id);
	return r;
}

static int domname(struct xm *xm, const struct arguments *arguments, struct error *error)
{
	_cleanup_json_ json_t *json = NULL;
	struct domain domain;
	int r = domain_get(&xm->client, arguments->words[0], &domain, &json, error);

	if (r >= 0)
		printf("%s\n", domain.name);
	return r;
}

static int rename_domain(struct xm *xm, const struct arguments *arguments, struct error *error)
{
	_cleanup_json_ json_t *body = json_pack("{s:s}", "name", arguments->words[1]);
	char path[256];
	int r = domain_is_guest(arguments->words[0], "renamed", error);

	if (r >= 0)
		r = domain_path(path, arguments->words[0], "/rename", error);
	if (r < 0)
		return r;
	if (!body)
		return error_set(error, EINVAL, "The new name is not UTF-8.");
	return client_call(&xm->client, "POST", path, body, NULL, error);
}

const struct command domain_commands[] = {
	{"list", "ls", "[Domain...]", "List the host and its domains, or those named.",
		{{"long", 'l', NULL, "print all that is known of them, as S-expressions"},
			{"state", 0, "STATE",
				"only domains that are running, blocked, paused, shutdown (or halted), "
				"crashed "
				"or dying; all: as without it"}},
		0, 10000, list},
	{"domid", NULL, "<Domain>", "Print the ID of a domain.", {{0}}, 1, 1, domid},
	{"domname", NULL, "<Domain>", "Print the name of a domain.", {{0}}, 1, 1, domname},
	{"rename", NULL, "<Domain> <NewName>", "Give a domain another name.", {{0}}, 2, 2, rename_domain},
	{0},
};
