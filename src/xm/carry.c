/* xm save, restore and migrate. */
#include "base/cleanup.h"
#include "config/guest_config.h"
#include "xm/command.h"
#include "xm/domain.h"
#include "xm/handover.h"
#include "xm/job.h"
#include "xm/migrations.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define GUEST_PAGE 4096 /* bytes; what xend counts a guest's memory in */

/* xend has another working directory: its file names are absolute. */
static int absolute_path(char **path, const char *file, struct error *error)
{
	_cleanup_free_ char *directory = *file == '/' ? strdup("") : getcwd(NULL, 0);

	*path = NULL;
	if (!*file)
		return error_set(error, EINVAL, "The name of the checkpoint file is empty.");
	if (!directory)
		return error_set(
			error, errno, "Unable to find out the current directory: %s.", strerror(errno));
	if (asprintf(path, "%s%s%s", !strcmp(directory, "/") ? "" : directory, *file == '/' ? "" : "/",
		    file) < 0) {
		*path = NULL;
		return error_set(error, ENOMEM, "Out of memory.");
	}
	return 0;
}

static int save(struct xm *xm, const struct arguments *arguments, struct error *error)
{
	const char *domain = arguments->words[0];
	_cleanup_free_ char *file = NULL, *doing = NULL, *cancelled = NULL, *left = NULL;
	_cleanup_json_ json_t *body = NULL, *done = NULL;
	char path[256], cancel[256];
	int r = domain_is_guest(domain, "saved", error);

	if (r >= 0)
		r = domain_path(path, domain, "/save", error);
	if (r >= 0)
		r = domain_path(cancel, domain, "/cancel", error);
	if (r >= 0)
		r = absolute_path(&file, arguments->words[1], error);
	if (r < 0)
		return r;
	body = json_pack("{s:s, s:b, s:b, s:b, s:b}", "file", file, "keep",
		option_given(arguments, "checkpoint"), "live", option_given(arguments, "live"), "force",
		option_given(arguments, "force"), "compress", option_given(arguments, "compress"));
	if (!body)
		return error_set(error, EINVAL, "The file name %s is not UTF-8.", file);
	if (asprintf(&doing, "Saving %s", domain) < 0 ||
		asprintf(&cancelled, "Interrupted: the save is cancelled and %s is as before.", domain) < 0 ||
		asprintf(&left,
			"Interrupted: the save is cancelled and %s runs on, unless it had just been "
			"completed (xm list "
			"shows).",
			domain) < 0)
		return error_set(error, ENOMEM, "Out of memory.");
	return job_run(&xm->client, path, body, &(struct job){doing, cancelled, left, cancel}, &done, error);
}

/* --accept WHAT,WHAT: xend knows the words. */
static int add_accepted(const struct arguments *arguments, json_t *body, struct error *error)
{
	const char *given = option_value(arguments, "accept");
	_cleanup_free_ char *copy = given ? strdup(given) : NULL;
	json_t *words = given ? json_array() : NULL;
	char *rest = copy, *word;

	if (!given)
		return 0;
	while (copy && (word = strsep(&rest, ",")))
		json_array_append_new(words, json_string(word));
	if (!copy || json_object_set_new(body, "accept", words) < 0)
		return error_set(error, ENOMEM, "Out of memory.");
	return 0;
}

/* disk= and vif= of a clone, read as in a configuration file. */
static int add_devices(json_t *body, const char *const *words, size_t count, struct error *error)
{
	_cleanup_guest_config_ struct guest_config config = {0};
	_cleanup_json_ json_t *read = NULL;
	int r;

	for (size_t i = 0; i < count; i++)
		if (strncmp(words[i], "disk=", 5) != 0 && strncmp(words[i], "vif=", 4) != 0)
			return error_set(error, EINVAL,
				"xm restore: expected disk=[…] or vif=[…] after the file, found %s.",
				words[i]);
	r = guest_config_from_text(&config, "command line", "", 0, words, count, error);
	if (r < 0)
		return r;
	read = guest_config_to_json(&config);
	if (json_object_get(read, "disk"))
		json_object_set(body, "disk", json_object_get(read, "disk"));
	if (json_object_get(read, "vif"))
		json_object_set(body, "vif", json_object_get(read, "vif"));
	return read ? 0 : error_set(error, ENOMEM, "Out of memory.");
}

static int restore(struct xm *xm, const struct arguments *arguments, struct error *error)
{
	const char *name = option_value(arguments, "name");
	_cleanup_free_ char *file = NULL, *doing = NULL;
	_cleanup_json_ json_t *body = NULL, *done = NULL;
	int r = absolute_path(&file, arguments->words[0], error);

	if (r >= 0 && arguments->word_count > 1 && !name)
		r = error_set(error, EINVAL,
			"xm restore: '%s' behind the file is for clones, which --name=NEW makes: only they "
			"get disks "
			"and network devices other than those that were saved.",
			arguments->words[1]);
	if (r < 0) {
		xm->wrong_arguments = r == -EINVAL;
		return r;
	}
	body = json_pack("{s:s, s:b, s:b, s:s*}", "file", file, "paused", option_given(arguments, "paused"),
		"eager", option_given(arguments, "eager"), "name", name);
	if (!body)
		return error_set(error, EINVAL, "The file name %s is not UTF-8.", file);
	r = add_devices(body, arguments->words + 1, arguments->word_count - 1, error);
	if (r >= 0)
		r = add_accepted(arguments, body, error);
	if (r < 0)
		return r;
	if (asprintf(&doing, "Restoring %s", arguments->words[0]) < 0)
		return error_set(error, ENOMEM, "Out of memory.");
	return job_run(&xm->client, "/restore", body,
		&(struct job){doing,
			"Interrupted: the restore is cancelled, unless it had just been completed (xm list "
			"shows)."},
		&done, error);
}

static void print_migration(const char *domain, const char *host, const json_t *done)
{
	long long rounds = json_integer_value(json_object_get(done, "rounds"));
	double bytes = json_number_value(json_object_get(done, "bytes"));
	double memory = json_number_value(json_object_get(done, "memory_bytes"));
	long long slowed = json_integer_value(json_object_get(done, "slowed_percent"));

	if (!rounds) { /* the line broke at the end: the peer said only that it runs the domain */
		printf("Migrated %s to %s.\n", domain, host);
		return;
	}
	printf("Migrated %s to %s in %.1f s: %lld round%s, %.1f MB, downtime %lld ms", domain, host,
		json_number_value(json_object_get(done, "milliseconds")) / 1e3, rounds,
		rounds == 1 ? "" : "s", bytes / 1e6,
		(long long)json_number_value(json_object_get(done, "downtime_ms")));
	if (memory >= bytes * 1.05)
		printf(", compressed from %.1f MB", memory / 1e6);
	if (slowed)
		printf(", slowed by up to %lld %%", slowed);
	if (json_is_true(json_object_get(done, "late")))
		printf(", later than --timeout gives");
	printf(".\n");
}

/* A migration's options as xend takes them; those that were not given are left to it. */
static int migration_body(const struct arguments *arguments, json_t **body, struct error *error)
{
	static const struct {
		const char *option, *member;
		unsigned long least, most;
	} numbers[] = {
		{"port", "port", 1, 65535},
		{"resource", "rate_mbit", 0, 1000000},
		{"max-downtime", "max_downtime_ms", 1, 86400000},
		{"timeout", "timeout_s", 1, 86400},
	};
	static const struct {
		const char *option, *member, *choices[4], *wanted;
	} words[] = {
		{"on-stall", "on_stall", {"stop", "cancel"}, "stop or cancel"},
		{"compress", "compress", {"yes", "no", "auto"}, "yes, no or auto"},
	};
	const char *host = arguments->words[1];

	*body = json_pack("{s:s, s:b}", "host", host, "live", option_given(arguments, "live"));
	if (*body && option_given(arguments, "detach"))
		json_object_set_new(*body, "detach", json_true());
	if (!*body || !*host)
		return error_set(error, EINVAL, "'%s' is no host's name or address.", host);
	for (size_t i = 0; i < ARRAY_SIZE(numbers); i++) {
		unsigned long number;
		int r = option_number(
			arguments, numbers[i].option, numbers[i].least, numbers[i].most, 0, &number, error);

		if (r < 0)
			return r;
		if (option_given(arguments, numbers[i].option))
			json_object_set_new(*body, numbers[i].member, json_integer((json_int_t)number));
	}
	for (size_t i = 0; i < ARRAY_SIZE(words); i++) {
		const char *word = option_value(arguments, words[i].option);
		bool known = !word;

		for (size_t j = 0; !known && words[i].choices[j]; j++)
			known = strcmp(word, words[i].choices[j]) == 0;
		if (!known)
			return error_set(error, EINVAL, "xm migrate: --%s takes %s, found '%s'.",
				words[i].option, words[i].wanted, word);
		if (word)
			json_object_set_new(*body, words[i].member, json_string(word));
	}
	return add_accepted(arguments, *body, error);
}

/* What xm migrate --dryrun has found out. */
static void print_forecast(const char *domain, const char *host, const json_t *done)
{
	long long slowed = json_integer_value(json_object_get(done, "slowed"));
	long long rounds = json_integer_value(json_object_get(done, "rounds"));

	const json_t *writes = json_object_get(done, "written_pages_per_second");
	double written = json_number_value(writes) * GUEST_PAGE / 1e6;

	if (json_is_true(json_object_get(done, "stays")))
		printf("%s would take %s, but with --timeout and --on-stall as they are it would be given "
		       "up, and "
		       "%s stay here: it needs about %.1f s, with a downtime of about %lld ms.\n",
			host, domain, domain, json_number_value(json_object_get(done, "milliseconds")) / 1e3,
			(long long)json_integer_value(json_object_get(done, "downtime_ms")));
	else
		printf("%s would take %s: about %.1f s in %lld round%s, downtime about %lld ms.\n", host,
			domain, json_number_value(json_object_get(done, "milliseconds")) / 1e3, rounds,
			rounds == 1 ? "" : "s",
			(long long)json_integer_value(json_object_get(done, "downtime_ms")));
	printf("It uses %.1f MB of its memory, ",
		json_number_value(json_object_get(done, "memory_bytes")) / 1e6);
	if (writes)
		printf("writes to %.1f MB of it a second, ", written > 0 && written < 0.1 ? 0.1 : written);
	printf("and the line carries %.0f MB/s.\n",
		json_number_value(json_object_get(done, "bytes_per_second")) / 1e6);
	if (slowed)
		printf("It writes faster than the line carries and would be slowed by %lld %% at the end.\n",
			slowed);
	if (json_is_false(json_object_get(done, "fits")))
		printf("Its downtime would be longer than it may be (--max-downtime).\n");
}

static int migrate_to(struct xm *xm, const struct arguments *arguments, struct error *error)
{
	const char *domain = arguments->words[0], *host = arguments->words[1];
	_cleanup_free_ char *doing = NULL, *cancelled = NULL, *left = NULL;
	_cleanup_json_ json_t *body = NULL, *done = NULL;
	bool dryrun = option_given(arguments, "dryrun");
	char path[256], cancel[256];
	int r = domain_is_guest(domain, "migrated", error);

	if (r >= 0)
		r = migration_body(arguments, &body, error);
	if (r >= 0)
		r = domain_path(path, domain, "/migrate", error);
	if (r >= 0)
		r = domain_path(cancel, domain, "/cancel", error);
	if (r < 0)
		return r;
	if (asprintf(&doing, "Migrating %s to %s", domain, host) < 0 ||
		asprintf(&cancelled, "Interrupted: the migration is cancelled and %s stays here.", domain) <
			0 ||
		asprintf(&left,
			"Interrupted: the migration is cancelled and %s runs on here, unless it had just "
			"been completed "
			"(xm list shows).",
			domain) < 0)
		return error_set(error, ENOMEM, "Out of memory.");
	if (dryrun)
		json_object_set_new(body, "dryrun", json_true());
	r = job_run(&xm->client, path, body,
		&(struct job){doing, cancelled, left, cancel, .lines = true,
			.detach = option_given(arguments, "detach") && !dryrun},
		&done, error);
	if (r >= 0 && done)
		(dryrun ? print_forecast : print_migration)(domain, host, done);
	else if (r >= 0)
		printf("%s goes on by itself: xm migrate --status %s tells how far it is.\n", doing, domain);
	return r;
}

static int migrate(struct xm *xm, const struct arguments *arguments, struct error *error)
{
	if (option_given(arguments, "status") && arguments->word_count <= 1)
		return migrations_status(xm, arguments, error);
	if (arguments->word_count == 0) {
		xm->wrong_arguments = true;
		return error_set(error, EINVAL, "xm migrate: expected <Domain> <Host>, found no word.");
	}
	if (option_given(arguments, "resolve") || option_given(arguments, "keep") ||
		option_given(arguments, "forget"))
		return handover_resolve(xm, arguments, error);
	if (option_given(arguments, "cancel") && arguments->word_count == 1)
		return migrations_cancel(xm, arguments, error);
	if (arguments->word_count == 2)
		return migrate_to(xm, arguments, error);
	xm->wrong_arguments = true;
	return error_set(error, EINVAL, "xm migrate: expected <Domain> <Host>, found %zu word.",
		arguments->word_count);
}

const struct command carry_commands[] = {
	{"save", NULL, "<Domain> <File>", "Save a domain's whole state to a file and end it here.",
		{{"checkpoint", 'c', NULL, "let the domain run on after it was saved"},
			{"live", 'l', NULL, "let the domain run while most of its memory is written"},
			{"compress", 'z', NULL, "make the file smaller (zstd); takes more processor time"},
			{"force", 'f', NULL, "overwrite the file if it exists"}},
		2, 2, save},
	{"restore", NULL, "<File> [vars]", "Restore a domain from a file that xm save wrote.",
		{{"paused", 'p', NULL, "do not unpause the domain afterwards"},
			{"eager", 0, NULL, "read and verify all of its memory before it runs"},
			{"accept", 0, "WHAT",
				"take a difference to when it was saved as it is: kernel, clock, disks"},
			{"name", 'n', "NEW",
				"make a clone of this name: new uuid and MACs, disk=[…] of its own"}},
		1, 3, restore},
	{"migrate", NULL, "<Domain> <Host> | --status [Domain] | --cancel <Domain> | --resolve <Domain>",
		"Move a domain to another host.",
		{{"live", 'l', NULL, "let the domain run while its memory is copied"},
			{"port", 'p', "PORT", "port of the other host's xend (xend-relocation-port)"},
			{"resource", 'r', "MBIT", "copy at most this many megabits per second; 0: no limit"},
			{"max-downtime", 0, "MS",
				"let a live domain stand still for at most this many milliseconds "
				"(xend-relocation-max-downtime)"},
			{"timeout", 0, "S",
				"be there this many seconds after the copying has begun, see --on-stall"},
			{"on-stall", 0, "stop|cancel",
				"what to do with a domain that writes faster than can be copied, or when "
				"time is up: stop "
				"it for as long as it takes, or let it stay"},
			{"compress", 0, "yes|no|auto",
				"compress memory on its way (lz4); auto, the default: where that is faster"},
			{"dryrun", 'n', NULL,
				"only ask the other host whether it would take the domain, and tell how long "
				"that "
				"would take"},
			{"accept", 0, "WHAT", "take a difference between the hosts as it is: kernel, clock"},
			{"detach", 'd', NULL, "leave it alone once memory is being copied"},
			{"status", 0, NULL, "tell how far migrations are, and what became of the latest"},
			{"cancel", 0, NULL, "end a migration that is under way; the domain runs on here"},
			{"resolve", 0, NULL,
				"tell what each side knows of a hand-over that the other host has not "
				"confirmed"},
			{"keep", 0, NULL,
				"with --resolve: the other host is gone for ever and the domain goes on "
				"here"},
			{"forget", 0, NULL,
				"with --resolve: the domain runs there, or nowhere, and is ended here"}},
		0, 2, migrate},
	{0},
};
