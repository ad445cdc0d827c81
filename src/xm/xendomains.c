/*
 * xendomains: what becomes of the guests when the host is stopped and started (xend(8)). `stop` shuts them
 * down or saves them, several at a time, and records what it did; `start` brings back what was recorded, and
 * starts what is in /etc/xen/auto. xend itself may come and go meanwhile: it does neither.
 */
#include "base/cleanup.h"
#include "base/surroundings.h"
#include "config/guest_config.h"
#include "xm/client.h"
#include "xm/domain.h"
#include "xm/job.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PARALLEL 4        /* guests that are shut down or saved at a time: an order, and soon done */
#define XEND_S 30         /* how long xend, which may just be starting, is waited for */
#define NETWORK_S 180     /* how long guests wait for the host's network, where they need it */
#define PRESS_AGAIN_S 20  /* a guest that boots does not notice its power button */
#define WAIT_MOST 1000000 /* seconds */

struct host {
	struct client client;
	const char *automatic, *saves; /* directories */
	char record[PATH_MAX];         /* the file */
	long wait_s;                   /* for a guest to shut down */
	const char *usual;             /* what is done with guests whose configuration does not say */
};

static const char *setting(const char *name, const char *usual)
{
	const char *value = getenv(name);

	return value && *value ? value : usual;
}

static const char *text_of(const json_t *object, const char *key)
{
	return json_string_value(json_object_get(object, key)) ?: "";
}

static const char *option_of(const json_t *domain, const char *key)
{
	return text_of(json_object_get(domain, "config"), key);
}

static void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void say(const char *format, ...)
{
	va_list values;

	va_start(values, format);
	vprintf(format, values);
	va_end(values);
	putchar('\n');
	fflush(stdout);
}

/* The record. */

static json_t *load_record(const struct host *host)
{
	json_t *record = json_load_file(host->record, 0, NULL);

	return json_is_array(record) ? record : json_array();
}

/* On the disk: the power may go next. */
static int keep_record(const struct host *host, const json_t *record, struct error *error)
{
	char new[PATH_MAX + 8];
	_cleanup_fclose_ FILE *file = NULL;
	_cleanup_close_ int directory = -1;

	snprintf(new, sizeof(new), "%s.new", host->record);
	file = fopen(new, "we");
	if (!file || json_dumpf(record, file, JSON_INDENT(1)) < 0 || fflush(file) != 0 ||
		fsync(fileno(file)) < 0 || rename(new, host->record) < 0)
		return error_set(error, errno, "Unable to write %s: %s.", host->record, strerror(errno));
	*strrchr(new, '/') = 0;
	directory = open(new, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (directory >= 0)
		fsync(directory);
	return 0;
}

/* xend's answer to who is here, Domain-0 left out. Waits for a xend that is just starting. */
static int list(struct host *host, json_t **domains, struct error *error)
{
	_cleanup_json_ json_t *reply = NULL;
	time_t until = steady_seconds() + XEND_S;
	int r;

	while ((r = client_call(&host->client, "GET", "/domains", NULL, &reply, error)) < 0 &&
		steady_seconds() < until)
		sleep(1);
	if (r < 0)
		return r;
	*domains = json_incref(json_object_get(reply, "domains"));
	if (!json_is_array(*domains))
		return error_set(error, EPROTO, "xend has not answered with a list of domains.");
	json_array_remove(*domains, 0);
	return 0;
}

/*
 * The guest of this uuid as it is now: with another ID where it has rebooted. NULL, with 0: it has gone, or
 * what is left of it does not run.
 */
static int look_again(struct host *host, const char *uuid, json_t **domain, struct error *error)
{
	_cleanup_json_ json_t *domains = NULL;
	int r = list(host, &domains, error);
	json_t *one;
	size_t i;

	*domain = NULL;
	json_array_foreach(domains, i, one) if (strcmp(text_of(one, "uuid"), uuid) == 0 &&
						!strpbrk(text_of(one, "state"), "scd")) *domain =
		json_incref(one);
	return r;
}

/* How a guest leaves. Each in a process of its own: what it does, one line after the other. */

enum way { SHUT_DOWN, SAVE, DESTROY, LEAVE };

static int post(struct host *host, const json_t *domain, const char *verb, struct error *error)
{
	_cleanup_json_ json_t *nothing = json_object();
	char path[128];

	snprintf(path, sizeof(path), "/domains/%lld/%s", json_integer_value(json_object_get(domain, "id")),
		verb);
	return client_call(&host->client, "POST", path, nothing, NULL, error);
}

static int shut_down(struct host *host, const json_t *asked, struct error *error)
{
	_cleanup_json_ json_t *domain = json_incref((json_t *)(uintptr_t)asked);
	time_t begin = steady_seconds(), left;
	int r = 0;

	say("%s: is shutting down.", text_of(domain, "name"));
	while ((left = begin + host->wait_s - steady_seconds()) > 0) {
		_cleanup_buffer_ struct buffer answer = {0};
		json_t *now;
		char path[128];

		snprintf(path, sizeof(path), "/domains/%lld/gone",
			json_integer_value(json_object_get(domain, "id")));
		r = post(host, domain, "shutdown", error);
		/* It may have been about to: then it is waited for like the others. */
		if (r < 0 && r != -EBUSY && r != -ENOENT)
			break;
		r = client_fetch(&host->client, "GET", path, NULL, &answer,
			(int)(left < PRESS_AGAIN_S ? left : PRESS_AGAIN_S), error);
		if (r >= 0 || r == -ENOENT) {
			/* It may have rebooted, and a xend that stops says nothing of anybody's end. */
			r = look_again(host, text_of(asked, "uuid"), &now, error);
			if (r < 0)
				break;
			if (now) {
				json_decref(domain);
				domain = now;
				sleep(1);
				continue;
			}
			say("%s: is down after %ld s.", text_of(domain, "name"),
				(long)(steady_seconds() - begin));
			return 0;
		}
		if (r != -ETIMEDOUT)
			break;
		say("%s: has not shut down for %ld s (of %ld).", text_of(domain, "name"),
			(long)(steady_seconds() - begin), host->wait_s);
	}
	return r == -ETIMEDOUT || r >= 0
		       ? error_set(error, ETIMEDOUT, "it has not shut down within %ld s", host->wait_s)
		       : r;
}

static int save(struct host *host, const json_t *domain, struct error *error)
{
	_cleanup_json_ json_t *body = json_pack("{s:s}", "file", text_of(domain, "checkpoint")), *done = NULL;
	const struct job job = {.doing = "Saving", .cancelled = "The guest runs on."};
	time_t begin = steady_seconds();
	char path[128];
	int r;

	snprintf(path, sizeof(path), "/domains/%lld/save", json_integer_value(json_object_get(domain, "id")));
	say("%s: is saved to %s.", text_of(domain, "name"), text_of(domain, "checkpoint"));
	r = job_run(&host->client, path, body, &job, &done, error);
	if (r >= 0)
		say("%s: is saved after %ld s.", text_of(domain, "name"), (long)(steady_seconds() - begin));
	return r;
}

static int destroy(struct host *host, const json_t *domain, struct error *error)
{
	say("%s: is destroyed.", text_of(domain, "name"));
	return post(host, domain, "destroy", error);
}

static enum way way_of(const struct host *host, const json_t *domain)
{
	const char *wish = option_of(domain, "on_xend_stop"), *state = text_of(domain, "state"),
		   *after = option_of(domain, "on_poweroff");

	if (json_object_get(domain, "doubt") || strpbrk(state, "scd"))
		return LEAVE;
	if (strcmp(wish, "destroy") == 0)
		return DESTROY;
	if (!*wish || strcmp(wish, "ignore") == 0)
		wish = host->usual;
	/* Who stands still cannot shut down, and who would be started again afterwards is not to. */
	if (strcmp(wish, "suspend") == 0 || strchr(state, 'p') || strstr(after, "restart"))
		return SAVE;
	return SHUT_DOWN;
}

/* One way, and where that fails the other: both are better than the power cut that follows. */
static int leave(struct host *host, const json_t *domain)
{
	enum way way = way_of(host, domain);
	struct error error = {0};
	int r;

	if (way == LEAVE) {
		if (json_object_get(domain, "doubt"))
			say("%s: is left as it is: %s", text_of(domain, "name"), text_of(domain, "doubt"));
		return 0;
	}
	r = way == DESTROY ? destroy(host, domain, &error)
	    : way == SAVE  ? save(host, domain, &error)
			   : shut_down(host, domain, &error);
	if (r >= 0 || way == DESTROY)
		return r;
	say("%s: %s", text_of(domain, "name"), error.text);
	r = way == SAVE ? shut_down(host, domain, &error) : save(host, domain, &error);
	if (r < 0)
		say("%s: %s It ends with the host.", text_of(domain, "name"), error.text);
	return r;
}

static int reap(void)
{
	int status;

	while (wait(&status) < 0)
		if (errno != EINTR)
			return 0;
	return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -1;
}

static int leave_all(struct host *host, const json_t *domains)
{
	unsigned running = 0;
	int r = 0;

	/* The last that was started leaves first. */
	for (size_t i = json_array_size(domains); i--;) {
		pid_t child;

		if (running == PARALLEL) {
			r |= reap();
			running--;
		}
		fflush(stdout);
		child = fork();
		if (child == 0)
			_exit(leave(host, json_array_get(domains, i)) < 0 ? 1 : 0);
		if (child < 0)
			r |= leave(host, json_array_get(domains, i));
		else
			running++;
	}
	for (; running; running--)
		r |= reap();
	return r;
}

/* What the record has of earlier and nobody has brought back is not forgotten, as long as there is a file of
 * it. */
static void add_earlier(const json_t *record, json_t *domains)
{
	size_t i, j;
	json_t *old, *domain;

	json_array_foreach(record, i, old)
	{
		bool here = false;

		json_array_foreach(domains, j, domain) here |=
			strcmp(text_of(old, "uuid"), text_of(domain, "uuid")) == 0;
		if (!here && access(text_of(old, "checkpoint"), F_OK) == 0)
			json_array_insert(domains, 0, old);
	}
}

/* A name that no file has had: one that is there afterwards is of this stop. */
static void name_checkpoint(const struct host *host, json_t *domain)
{
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s/%s-%lld.checkpt", host->saves, text_of(domain, "name"),
		(long long)time(NULL));
	json_object_set_new(domain, "checkpoint", json_string(path));
}

static int make_directory(const char *path, struct error *error)
{
	if (mkdir(path, 0700) < 0 && errno != EEXIST)
		return error_set(error, errno, "Unable to create directory %s: %s.", path, strerror(errno));
	return 0;
}

/* Who has gone to another host meanwhile is not to be started here. Whether there was one. */
static bool drop_moved(struct host *host, json_t *record)
{
	_cleanup_json_ json_t *reply = NULL;
	struct error ignored;
	json_t *move, *domain;
	size_t i, j;
	bool dropped = false;

	if (client_call(&host->client, "GET", "/migrations", NULL, &reply, &ignored) < 0)
		return false;
	json_array_foreach(json_object_get(reply, "migrations"), i, move)
	{
		if (strcmp(text_of(move, "state"), "done") != 0)
			continue;
		json_array_foreach(record, j,
			domain) if (json_equal(json_object_get(domain, "id"), json_object_get(move, "id")) &&
				    strcmp(text_of(domain, "name"), text_of(move, "name")) == 0)
		{
			json_array_remove(record, j);
			dropped = true;
			break;
		}
	}
	return dropped;
}

static int stop(struct host *host, struct error *error)
{
	_cleanup_json_ json_t *domains = NULL, *earlier = load_record(host), *record = NULL;
	int r = list(host, &domains, error), left;
	json_t *domain;
	size_t i;

	if (r >= 0)
		r = make_directory(host->saves, error);
	if (r < 0)
		return r;
	json_array_foreach(domains, i, domain) name_checkpoint(host, domain);
	record = json_array();
	/* Whose they are that go or come at the moment, another host says. */
	json_array_foreach(domains, i,
		domain) if (!strpbrk(text_of(domain, "state"), "scd") && !json_object_get(domain, "away"))
		json_array_append(record, domain);
	add_earlier(earlier, record);
	r = keep_record(host, record, error);
	if (r < 0) /* they are all the better shut down */
		say("%s", error->text);
	say("%zu guests are to be shut down or saved.", json_array_size(domains));
	left = leave_all(host, domains);
	if (drop_moved(host, record) && keep_record(host, record, error) < 0)
		say("%s", error->text);
	return left < 0 ? error_set(error, EIO, "Not all guests could be shut down or saved.") : r;
}

/* How it comes back. */

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

static bool is_saved(const json_t *domain)
{
	return access(text_of(domain, "checkpoint"), F_OK) == 0;
}

static bool stays_down(const json_t *domain)
{
	return !is_saved(domain) && (strcmp(option_of(domain, "on_xend_start"), "ignore") == 0 ||
					    strcmp(option_of(domain, "on_xend_stop"), "destroy") == 0);
}

/* 1: there is nothing to bring back. */
static int bring_back(struct host *host, const json_t *domain, const json_t *here, struct error *error)
{
	if (is_here(here, "uuid", text_of(domain, "uuid")) || stays_down(domain))
		return 1;
	if (is_saved(domain))
		return restore(host, domain, error);
	return create(host, json_object_get(domain, "config"), error);
}

/* *waiting: those that did not come. */
static int bring_all_back(struct host *host, const json_t *here, json_t **waiting, struct error *error)
{
	_cleanup_json_ json_t *record = load_record(host);
	int failed = 0;

	for (size_t i = 0; i < json_array_size(record);) {
		_cleanup_json_ json_t *domain = json_incref(json_array_get(record, i));
		const char *name = text_of(domain, "name");
		bool saved = is_saved(domain);
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
		r = keep_record(host, record, error);
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
	int r = list(host, &before, error), brought;

	if (r < 0)
		return r;
	brought = bring_all_back(host, before, &waiting, &first);
	r = list(host, &after, error);
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
static int start(struct host *host, struct error *error)
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

static int status(struct host *host, struct error *error)
{
	_cleanup_json_ json_t *record = load_record(host);
	json_t *domain;
	size_t i;

	(void)error;
	json_array_foreach(record, i, domain) if (!stays_down(domain))
		say("%s: is to be %s at the next start.", text_of(domain, "name"),
			is_saved(domain) ? "restored" : "started");
	return 0;
}

static int open_host(struct host *host, struct error *error)
{
	const char *wait = setting("XENDOMAINS_STOP_MAXWAIT", "300");
	char *end;

	host->automatic = setting("XENDOMAINS_AUTO", "/etc/xen/auto");
	host->saves = setting("XENDOMAINS_SAVE", "/var/lib/xend/save");
	host->usual = setting("XENDOMAINS_STOP", "shutdown");
	host->wait_s = strtol(wait, &end, 10);
	snprintf(host->record, sizeof(host->record), "%s/xendomains",
		setting("FERRY_STATEDIR", "/var/lib/xend"));
	if (*end || host->wait_s < 0 || host->wait_s > WAIT_MOST)
		return error_set(error, EINVAL,
			"XENDOMAINS_STOP_MAXWAIT is '%s': expected seconds, up to %d.", wait, WAIT_MOST);
	if (strcmp(host->usual, "shutdown") != 0 && strcmp(host->usual, "suspend") != 0)
		return error_set(
			error, EINVAL, "XENDOMAINS_STOP is '%s': expected shutdown or suspend.", host->usual);
	return client_open(&host->client, error);
}

int main(int count, char **words)
{
	static const struct {
		const char *word;
		int (*run)(struct host *host, struct error *error);
	} commands[] = {{"start", start}, {"stop", stop}, {"status", status}};
	struct host host = {0};
	struct error error = {0};

	surroundings_mend();
	for (size_t i = 0; i < ARRAY_SIZE(commands) && count == 2; i++) {
		int r;

		if (strcmp(commands[i].word, words[1]) != 0)
			continue;
		r = open_host(&host, &error);
		if (r >= 0)
			r = commands[i].run(&host, &error);
		client_close(&host.client);
		if (r < 0)
			fprintf(stderr, "Error: %s\n", error.text);
		return r < 0 ? 1 : 0;
	}
	fprintf(stderr, "Usage: xendomains start|stop|status\n");
	return 2;
}
