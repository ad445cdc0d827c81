/* xm trust: whose keys this host trusts when guests move. */
#include "base/cleanup.h"
#include "xm/command.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <time.h>
#include <unistd.h>

static const char *text_of(const json_t *object, const char *key)
{
	const char *text = json_string_value(json_object_get(object, key));

	return text ? text : "";
}

static void print_host(const json_t *host)
{
	time_t since = (time_t)json_integer_value(json_object_get(host, "since"));
	struct tm when;
	char day[16] = "";

	if (localtime_r(&since, &when))
		strftime(day, sizeof(day), "%Y-%m-%d", &when);
	printf("%-24s %-51s %s\n", text_of(host, "host"), text_of(host, "fingerprint"), day);
}

static int list(struct xm *xm, struct error *error)
{
	_cleanup_json_ json_t *reply = NULL;
	const json_t *hosts;
	int r = client_call(&xm->client, "GET", "/trust", NULL, &reply, error);

	if (r < 0)
		return r;
	hosts = json_object_get(reply, "hosts");
	printf("This host's key: %s\n", text_of(reply, "fingerprint"));
	if (json_is_true(json_object_get(reply, "clear_text")))
		printf("Guests move in clear text, without keys (xend-relocation-clear-text yes).\n");
	if (json_is_true(json_object_get(reply, "authority")))
		printf("Hosts that the authority in xend-relocation-ca-file has certified are trusted as "
		       "well.\n");
	if (!json_array_size(hosts)) {
		printf("No other host is trusted yet: xm trust <Host>\n");
		return 0;
	}
	printf("%-24s %-51s %s\n", "Trusted host", "Key", "Since");
	for (size_t i = 0; i < json_array_size(hosts); i++)
		print_host(json_array_get(hosts, i));
	return 0;
}

static int forget(struct xm *xm, const char *host, struct error *error)
{
	_cleanup_json_ json_t *body = json_pack("{s:s}", "host", host), *reply = NULL;
	const json_t *names;
	int r;

	if (!body)
		return error_set(error, EINVAL, "'%s' is no host's name or address.", host);
	r = client_call(&xm->client, "POST", "/trust/forget", body, &reply, error);
	names = json_object_get(reply, "forgotten");
	for (size_t i = 0; i < json_array_size(names); i++) {
		const char *name = json_string_value(json_array_get(names, i));

		if (name && strcasecmp(name, host) != 0)
			printf("%s is not trusted any more either: it is the same key.\n", name);
	}
	return r;
}

/* `port`: where its xend is, 0: as is usual, -1: nobody has said. */
static int remember(struct xm *xm, const char *host, long port, const char *address, const char *fingerprint,
	struct error *error)
{
	_cleanup_json_ json_t *body =
		json_pack("{s:s, s:s, s:s}", "host", host, "address", address, "fingerprint", fingerprint);

	if (!body)
		return error_set(error, EINVAL, "'%s' is no host's name or address.", host);
	if (port >= 0)
		json_object_set_new(body, "port", json_integer(port));
	return client_call(&xm->client, "POST", "/trust", body, NULL, error);
}

/* 0 when the person at the terminal says yes. */
static int consent(const char *host, struct error *error)
{
	char answer[16];

	if (!isatty(STDIN_FILENO))
		return error_set(error, EPERM,
			"Nobody can be asked here. After comparing the fingerprint, type: xm trust --accept "
			"%s, or "
			"give it at once with --fingerprint.",
			host);
	printf("Trust this host with all guests (yes/no)? ");
	fflush(stdout);
	if (!fgets(answer, sizeof(answer), stdin) ||
		(strcasecmp(answer, "yes\n") != 0 && strcasecmp(answer, "y\n") != 0))
		return error_set(error, EPERM, "%s is not trusted.", host);
	return 0;
}

/* Fetches the host's key, shows it and asks. */
static int meet(struct xm *xm, const char *host, unsigned long port, bool accept, struct error *error)
{
	_cleanup_json_ json_t *reply = NULL,
			      *body = json_pack("{s:s, s:I}", "host", host, "port", (json_int_t)port);
	const char *known, *fingerprint;
	int r = body ? client_call(&xm->client, "POST", "/trust/identify", body, &reply, error)
		     : error_set(error, EINVAL, "'%s' is no host's name or address.", host);

	if (r < 0)
		return r;
	known = text_of(reply, "trusted");
	fingerprint = text_of(reply, "fingerprint");
	if (*known && strcmp(known, fingerprint) == 0) {
		printf("%s is trusted already: %s\n", host, known);
		return 0;
	}
	if (*known)
		return error_set(error, EEXIST,
			"The key of %s has changed: trusted was %s, now it is %s. Either xend was set up "
			"anew there, or "
			"another machine answers in its place. If you know that it is right: xm trust "
			"--forget %s && xm "
			"trust %s",
			host, known, fingerprint, host, host);
	printf("%s has the key %s.\n", host, fingerprint);
	if (!accept) {
		printf("It must be the one that xm trust shows there as \"This host's key\".\n");
		r = consent(host, error);
	}
	if (r == 0)
		r = remember(xm, host, (long)port, text_of(reply, "address"), fingerprint, error);
	if (r == 0)
		printf("%s is trusted now. It must trust this host as well: xm trust there.\n", host);
	return r;
}

static int trust(struct xm *xm, const struct arguments *arguments, struct error *error)
{
	const char *host = arguments->word_count ? arguments->words[0] : NULL,
		   *fingerprint = option_value(arguments, "fingerprint");
	bool change = option_given(arguments, "forget") || option_given(arguments, "accept") || fingerprint;
	unsigned long port;
	int r = option_number(arguments, "port", 1, 65535, 0, &port, error);

	if (r < 0)
		return r;
	if (!host && !change)
		return list(xm, error);
	if (!host || !*host) {
		xm->wrong_arguments = true;
		return error_set(error, EINVAL, "xm trust: a host's name or address is missing.");
	}
	if (option_given(arguments, "forget"))
		return forget(xm, host, error);
	if (fingerprint)
		return remember(xm, host, port ? (long)port : -1, "", fingerprint, error);
	return meet(xm, host, port, option_given(arguments, "accept"), error);
}

const struct command trust_commands[] = {
	{"trust", NULL, "[Host]", "Show, or say, which hosts may send guests here and be sent guests.",
		{{"accept", 'y', NULL, "trust the key that the host shows, without asking"},
			{"fingerprint", 'k', "KEY",
				"trust this key, as xm trust shows it there; nobody is connected to"},
			{"forget", 0, NULL, "trust the host no longer"},
			{"port", 'p', "PORT", "port of the other host's xend (xend-relocation-port)"}},
		0, 1, trust},
	{0},
};
