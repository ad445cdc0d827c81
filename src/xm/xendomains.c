#include "xm/xendomains.h"
#include "base/surroundings.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define XEND_S 30         /* how long xend, which may just be starting, is waited for */
#define WAIT_MOST 1000000 /* seconds */

static const char *setting(const char *name, const char *usual)
{
	const char *value = getenv(name);

	return value && *value ? value : usual;
}

const char *text_of(const json_t *object, const char *key)
{
	return json_string_value(json_object_get(object, key)) ?: "";
}

const char *option_of(const json_t *domain, const char *key)
{
	return text_of(json_object_get(domain, "config"), key);
}

void say(const char *format, ...)
{
	va_list values;

	va_start(values, format);
	vprintf(format, values);
	va_end(values);
	putchar('\n');
	fflush(stdout);
}

json_t *record_load(const struct host *host)
{
	json_t *record = json_load_file(host->record, 0, NULL);

	return json_is_array(record) ? record : json_array();
}

int record_keep(const struct host *host, const json_t *record, struct error *error)
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

int host_list(struct host *host, json_t **domains, struct error *error)
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

bool record_is_saved(const json_t *domain)
{
	return access(text_of(domain, "checkpoint"), F_OK) == 0;
}

bool record_stays_down(const json_t *domain)
{
	return !record_is_saved(domain) && (strcmp(option_of(domain, "on_xend_start"), "ignore") == 0 ||
						   strcmp(option_of(domain, "on_xend_stop"), "destroy") == 0);
}

static int status(struct host *host, struct error *error)
{
	_cleanup_json_ json_t *record = record_load(host);
	json_t *domain;
	size_t i;

	(void)error;
	json_array_foreach(record, i, domain) if (!record_stays_down(domain))
		say("%s: is to be %s at the next start.", text_of(domain, "name"),
			record_is_saved(domain) ? "restored" : "started");
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
	} commands[] = {{"start", host_start}, {"stop", host_stop}, {"status", status}};
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
