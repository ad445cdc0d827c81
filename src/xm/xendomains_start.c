/* How they come back when it is started. */
#include "xm/xendomains.h"
#include "config/guest_config.h"

#include <dirent.h>
#include <errno.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define NETWORK_S 180 /* how long guests wait for the host's network, where they need it */

static bool is_here(const json_t *domains, const char *key, const char *value)
{
	json_t *domain;
	size_t i;

	json_array_foreach(domains, i, domain) if (strcmp(text_of(domain, key), value) == 0) return true;
	return false;
}

static int restore(struct host *host, const json_t *domain, struct error *error)
{
	const char *file = text_of(domain, "checkpoint");
	_cleanup_json_ json_t *body = json_pack("{s:s}", "file", file), *done = NULL;
	const struct job job = {.doing = "Restoring", .cancelled = "It was not restored."};
	int r = job_run(&host->client, "/restore", body, &job, &done, error);

	if (r < 0)
		return error_prefix(error, "It is in %s, and can be restored with xm restore: ", file);
	if (unlink(file) < 0)
		say("%s: %s cannot be removed: %s. Do not restore from it.", text_of(domain, "name"), file,
			strerror(errno));
	return 0;
}

static int create(struct host *host, const json_t *config, struct error *error)
{
	_cleanup_json_ json_t *body = json_pack("{s:O}", "config", config);

	return client_call(&host->client, "POST", "/domains", body, NULL, error);
}

/* 1: there is nothing to bring back. */
static int bring_back(struct host *host, const json_t *domain, const json_t *here, struct error *error)
{
	if (is_here(here, "uuid", text_of(domain, "uuid")) || record_stays_down(domain))
		return 1;
	if (record_is_saved(domain))
		return restore(host, domain, error);
	return create(host, json_object_get(domain, "config"), error);
}

/* *waiting: those that did not come. */
static int bring_all_back(struct host *host, const json_t *here, json_t **waiting, struct error *error)
{
	_cleanup_json_ json_t *record = record_load(host);
	int failed = 0;

	for (size_t i = 0; i < json_array_size(record);) {
		_cleanup_json_ json_t *domain = json_incref(json_array_get(record, i));
		const char *name = text_of(domain, "name");
		bool saved = record_is_saved(domain);
		int r = bring_back(host, domain, here, error);

		if (r == 0)
			say("%s: is %s.", name, saved ? "restored" : "started");
		if (r < 0) {
			fprintf(stderr, "%s: %s\n", name, error->text);
			failed = r;
			i++;
			continue;
		}
		json_array_remove(record, i);
		/* Before the next one: what has been brought back is not brought back twice. */
		r = record_keep(host, record, error);
		if (r < 0) {
			fprintf(stderr, "%s\n", error->text);
			failed = r;
		}
	}
	*waiting = json_incref(record);
	return failed ? error_set(error, -failed, "Not all guests could be brought back.") : 0;
}

/* The configuration of a file, as xm create reads it. */
static int read_file(const char *path, json_t **json, struct error *error)
{
	_cleanup_guest_config_ struct guest_config config = {0};
	int r = guest_config_from_file(&config, path, NULL, 0, error);

	if (r >= 0)
		r = guest_config_name_after(&config, path, error);
	if (r >= 0)
		*json = guest_config_to_json(&config);
	return r;
}

/* Who is still to be brought back is not begun anew: its checkpoint, or its place elsewhere, would be lost.
 */
static int start_automatic(struct host *host, const json_t *here, const json_t *waiting, struct error *error)
{
	struct dirent **entries = NULL;
	int count = scandir(host->automatic, &entries, NULL, alphasort), failed = 0;

	for (int i = 0; i < count; i++) {
		_cleanup_free_ struct dirent *entry = entries[i];
		_cleanup_json_ json_t *config = NULL;
		char path[PATH_MAX];
		int r;

		snprintf(path, sizeof(path), "%s/%s", host->automatic, entry->d_name);
		if (entry->d_name[0] == '.' || entry->d_name[strlen(entry->d_name) - 1] == '~')
			continue;
		r = read_file(path, &config, error);
		if (r >= 0 && is_here(here, "name", text_of(config, "name")))
			continue;
		if (r >= 0 && is_here(waiting, "name", text_of(config, "name"))) {
			say("%s: is not begun anew (%s) while it is to be brought back.",
				text_of(config, "name"), path);
			continue;
		}
		if (r >= 0)
			r = create(host, config, error);
		if (r >= 0)
			say("%s: is started (%s).", text_of(config, "name"), path);
		else
			fprintf(stderr, "%s: %s\n", path, error->text);
		failed = r < 0 ? r : failed;
	}
	free(entries);
	return failed ? error_set(error, -failed, "Not all guests of %s could be started.", host->automatic)
		      : 0;
}

static int bring_back_and_start(struct host *host, struct error *error)
{
	_cleanup_json_ json_t *before = NULL, *after = NULL, *waiting = NULL;
	struct error first;
	int r = host_list(host, &before, error), brought;

	if (r < 0)
		return r;
	brought = bring_all_back(host, before, &waiting, &first);
	r = host_list(host, &after, error);
	if (r >= 0)
		r = start_automatic(host, after, waiting, error);
	return brought < 0 ? error_set(error, first.code, "%s", first.text) : r;
}

/* What xend has against the host's network so far; false: nothing. */
static bool network_is_late(struct host *host, struct error *why)
{
	_cleanup_json_ json_t *info = NULL;

	if (client_call(&host->client, "GET", "/info", NULL, &info, why) < 0 ||
		!json_object_get(info, "network_trouble"))
		return false;
	error_set(why, EBUSY, "%s", text_of(info, "network_trouble"));
	return true;
}

/* A host that has just started may be slow: xend goes on trying to set its network up. */
int host_start(struct host *host, struct error *error)
{
	int r = bring_back_and_start(host, error);
	time_t begin = steady_seconds();
	struct error why;

	if (r >= 0 || !network_is_late(host, &why))
		return r;
	say("The host's network is not set up for guests yet; they wait for it, up to %d s. %s", NETWORK_S,
		why.text);
	while (network_is_late(host, &why) && steady_seconds() - begin < NETWORK_S)
		sleep(1);
	return bring_back_and_start(host, error);
}
