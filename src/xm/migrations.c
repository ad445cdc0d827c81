#include "xm/migrations.h"

#include "base/cleanup.h"
#include "xm/domain.h"
#include "xm/job.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int get_migrations(struct client *client, json_t **reply, struct error *error)
{
	return client_call(client, "GET", "/migrations", NULL, reply, error);
}

static const char *member(const json_t *migration, const char *key)
{
	const char *text = json_string_value(json_object_get(migration, key));

	return text ? text : "";
}

static void time_text(const json_t *migration, const char *key, char text[32])
{
	time_t at = json_integer_value(json_object_get(migration, key));
	struct tm local;

	*text = '\0';
	if (localtime_r(&at, &local))
		strftime(text, 32, "%Y-%m-%d %H:%M:%S", &local);
}

/* In one line, however many the sentence has. */
static void print_reason(const char *sentence)
{
	while (*sentence) {
		size_t length = strcspn(sentence, "\n");

		printf("%.*s", (int)length, sentence);
		sentence += length;
		sentence += strspn(sentence, "\n ");
		if (*sentence)
			putchar(' ');
	}
	putchar('\n');
}

/* What has become of it, or how far it is. */
static void print_state(const json_t *migration)
{
	const char *state = member(migration, "state");
	const json_t *progress = json_object_get(migration, "progress"),
		     *result = json_object_get(migration, "result");
	char line[512];

	if (!strcmp(state, "running") && json_is_object(progress)) {
		job_progress_line(line, sizeof(line), "under way", progress, 0);
		printf("%s\n", line);
	} else if (!strcmp(state, "running")) {
		printf("begun\n");
	} else if (!strcmp(state, "done") && json_is_object(result)) {
		printf("done in %.1f s, downtime %lld ms\n",
			json_number_value(json_object_get(result, "milliseconds")) / 1e3,
			(long long)json_integer_value(json_object_get(result, "downtime_ms")));
	} else if (!strcmp(state, "done")) {
		printf("done\n");
	} else {
		printf("%s: ", state);
		print_reason(member(migration, "error"));
	}
}

static void print_migration(const json_t *migration)
{
	char began[32];

	time_text(migration, "began_at", began);
	printf("%-19s  %-24s %5lld  %-20s  ", began, member(migration, "name"),
		(long long)json_integer_value(json_object_get(migration, "id")), member(migration, "host"));
	print_state(migration);
}

static bool is_of(const json_t *migration, const char *name_or_id)
{
	char id[32];

	snprintf(id, sizeof(id), "%lld", (long long)json_integer_value(json_object_get(migration, "id")));
	return !name_or_id || !strcmp(member(migration, "name"), name_or_id) || !strcmp(id, name_or_id);
}

int migrations_status(struct xm *xm, const struct arguments *arguments, struct error *error)
{
	const char *domain = arguments->word_count ? arguments->words[0] : NULL;
	_cleanup_json_ json_t *reply = NULL;
	const json_t *list;
	size_t shown = 0;
	int r = get_migrations(&xm->client, &reply, error);

	if (r < 0)
		return r;
	list = json_object_get(reply, "migrations");
	for (size_t i = 0; i < json_array_size(list); i++)
		if (is_of(json_array_get(list, i), domain)) {
			if (!shown++)
				printf("%-19s  %-24s %5s  %-20s  %s\n", "Begun", "Name", "ID", "To", "State");
			print_migration(json_array_get(list, i));
		}
	if (!shown && domain)
		return error_set(error, ENOENT,
			"Domain '%s' is not among those whose migrations from here are remembered, the "
			"latest 64.",
			domain);
	return 0;
}

/* What was cancelled ends soon, unless it was past that point. */
static int wait_until_free(struct xm *xm, const char *name, struct error *error)
{
	for (;;) {
		_cleanup_json_ json_t *json = NULL;
		const char *busy, *doubt;
		struct domain domain;

		if (domain_get(&xm->client, name, &domain, &json, error) < 0)
			return error_prefix(error, "It was too late to cancel that. ");
		busy = json_string_value(json_object_get(json, "busy"));
		doubt = json_string_value(json_object_get(json, "doubt"));
		if (!busy)
			return 0;
		if (doubt)
			return error_set(error, EBUSY, "It was too late to cancel that. %s", doubt);
		usleep(100 * 1000);
	}
}

int migrations_cancel(struct xm *xm, const struct arguments *arguments, struct error *error)
{
	char path[256];
	int r = domain_path(path, arguments->words[0], "/cancel", error);

	if (r >= 0)
		r = client_call(&xm->client, "POST", path, NULL, NULL, error);
	return r < 0 ? r : wait_until_free(xm, arguments->words[0], error);
}

void migrations_tell_destination(struct client *client, long long id)
{
	_cleanup_json_ json_t *reply = NULL;
	const json_t *list;

	if (get_migrations(client, &reply, NULL) < 0)
		return;
	list = json_object_get(reply, "migrations");
	for (size_t i = 0; i < json_array_size(list); i++) {
		const json_t *migration = json_array_get(list, i);

		if (json_integer_value(json_object_get(migration, "id")) == id &&
			!strcmp(member(migration, "state"), "done"))
			fprintf(stderr, "%s was migrated to %s; there, xm console %s goes on.\n",
				member(migration, "name"), member(migration, "host"),
				member(migration, "name"));
	}
}
