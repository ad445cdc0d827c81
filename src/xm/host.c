/* xm info and log. */
#include "base/cleanup.h"
#include "xm/command.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* One line of xm info. */
static void print_pair(const char *key, const json_t *value)
{
	_cleanup_free_ char *text = NULL;

	if (!json_is_string(value))
		text = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT);
	printf("%-23s: %s\n", key, text ? text : json_is_string(value) ? json_string_value(value) : "");
}

static int info(struct xm *xm, const struct arguments *arguments, struct error *error)
{
	_cleanup_json_ json_t *reply = NULL;
	int r = client_call(&xm->client, "GET", "/info", NULL, &reply, error);
	const char *key;
	json_t *value;

	if (r < 0)
		return r;
	json_object_foreach(reply, key, value)
	{ /* jansson keeps the order of the text */
		if (!option_given(arguments, "config") || !strcmp(key, "xend_config_format"))
			print_pair(key, value);
	}
	return 0;
}

static int print_log(void *context, const char *bytes, size_t size, struct error *error)
{
	(void)context;
	if (fwrite(bytes, 1, size, stdout) != size)
		return error_set(error, errno, "Unable to write the log: %s.", strerror(errno));
	return 0;
}

static int show_log(struct xm *xm, const struct arguments *arguments, struct error *error)
{
	_cleanup_transfer_ struct transfer transfer = {0};
	int r = transfer_start(&transfer, &xm->client, "GET", "/log", NULL, 0, NULL, print_log, NULL, error);

	(void)arguments;
	while (r >= 0 && !transfer.ended)
		r = client_wait(&xm->client, NULL, 0, -1, error);
	return r < 0 ? r : transfer_result(&transfer, error);
}

const struct command host_commands[] = {
	{"info", NULL, "", "Print what is known of the host.",
		{{"config", 'c', NULL, "only the format of xend's configuration"}}, 0, 0, info},
	{"log", NULL, "", "Print xend's log.", {{0}}, 0, 0, show_log},
	{0},
};
