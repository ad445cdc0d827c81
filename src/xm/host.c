/* xm info and log. */
#include "base/buffer.h"
#include "base/cleanup.h"
#include "base/printable.h"
#include "xm/command.h"
#include "xm/domain.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

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

/* Whole lines, since a character may come in two pieces. */
#define LINE_MAX_SIZE (64u << 10)

static int print_lines(struct buffer *lines, size_t size, struct error *error)
{
	_cleanup_free_ char *shown = malloc(size * 10 + 1); /* more than any character may need */
	size_t length;

	if (!shown)
		return error_set(error, ENOMEM, "Out of memory.");
	length = printable((const char *)lines->data, size, PRINTABLE_LINES, shown, size * 10 + 1);
	if (fwrite(shown, 1, length, stdout) != length)
		return error_set(error, errno, "Unable to write the log: %s.", strerror(errno));
	memmove(lines->data, lines->data + size, lines->size - size);
	lines->size -= size;
	return 0;
}

static int take_log(void *context, const char *bytes, size_t size, struct error *error)
{
	struct buffer *lines = context;
	const char *end;

	buffer_append(lines, bytes, size);
	if (lines->failed)
		return error_set(error, ENOMEM, "Out of memory.");
	end = memrchr(lines->data, '\n', lines->size);
	if (!end && lines->size < LINE_MAX_SIZE)
		return 0;
	return print_lines(lines, end ? (size_t)(end + 1 - (const char *)lines->data) : lines->size, error);
}

static const char *member(const json_t *object, const char *key)
{
	const char *text = json_string_value(json_object_get(object, key));

	return text ? text : "";
}

static void print_member(const char *what, const char *text)
{
	if (*text)
		printf("%-8s: %s\n", what, text);
}

/* How a domain has ended that is not here any more, or the last time that it did. */
static int show_ending(struct xm *xm, const char *name, struct error *error)
{
	_cleanup_json_ json_t *ending = NULL;
	char path[256], when[64] = "";
	struct tm broken;
	time_t at;
	int r = domain_path(path, name, "/ending", error);

	if (r >= 0)
		r = client_call(&xm->client, "GET", path, NULL, &ending, error);
	if (r < 0)
		return r;
	at = json_integer_value(json_object_get(ending, "ended_at"));
	if (localtime_r(&at, &broken))
		strftime(when, sizeof(when), "%Y-%m-%d %H:%M:%S %z", &broken);
	printf("%-8s: %s (ID %lld)\n", "domain", member(ending, "name"),
		(long long)json_integer_value(json_object_get(ending, "id")));
	print_member("ended", when);
	print_member("state", member(ending, "state"));
	print_member("reason", member(ending, "reason"));
	print_member("exit", member(ending, "exit"));
	print_member("detail", member(ending, "detail"));
	print_member("then", member(ending, "then"));
	print_member("file", member(ending, "file"));
	if (*member(ending, "console"))
		printf("The last of its console:\n%s\n", member(ending, "console"));
	return 0;
}

static int show_log(struct xm *xm, const struct arguments *arguments, struct error *error)
{
	_cleanup_transfer_ struct transfer transfer = {0};
	_cleanup_buffer_ struct buffer lines = {0};
	int r;

	if (arguments->word_count)
		return show_ending(xm, arguments->words[0], error);
	r = transfer_start(&transfer, &xm->client, "GET", "/log", NULL, 0, NULL, take_log, &lines, error);

	while (r >= 0 && !transfer.ended)
		r = client_wait(&xm->client, NULL, 0, -1, error);
	if (r >= 0 && lines.size)
		r = print_lines(&lines, lines.size, error);
	return r < 0 ? r : transfer_result(&transfer, error);
}

const struct command host_commands[] = {
	{"info", NULL, "", "Print what is known of the host.",
		{{"config", 'c', NULL, "only the format of xend's configuration"}}, 0, 0, info},
	{"log", NULL, "[Domain]", "Print xend's log, or how a domain has ended.", {{0}}, 0, 1, show_log},
	{0},
};
