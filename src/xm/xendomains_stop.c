/* How guests leave when the host is stopped. */
#include "xm/xendomains.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PARALLEL 4       /* guests that are shut down or saved at a time: an order, and soon done */
#define PRESS_AGAIN_S 20 /* a guest that boots does not notice its power button */

/*
 * The guest of this uuid as it is now: with another ID where it has rebooted. NULL, with 0: it has gone, or
 * what is left of it does not run.
 */
static int look_again(struct host *host, const char *uuid, json_t **domain, struct error *error)
{
	_cleanup_json_ json_t *domains = NULL;
	int r = host_list(host, &domains, error);
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

int host_stop(struct host *host, struct error *error)
{
	_cleanup_json_ json_t *domains = NULL, *earlier = record_load(host), *record = NULL;
	int r = host_list(host, &domains, error), left;
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
	r = record_keep(host, record, error);
	if (r < 0) /* they are all the better shut down */
		say("%s", error->text);
	say("%zu guests are to be shut down or saved.", json_array_size(domains));
	left = leave_all(host, domains);
	if (drop_moved(host, record) && record_keep(host, record, error) < 0)
		say("%s", error->text);
	return left < 0 ? error_set(error, EIO, "Not all guests could be shut down or saved.") : r;
}
