/* xm create. */
#include "base/cleanup.h"
#include "config/guest_config.h"
#include "xm/command.h"
#include "xm/console.h"
#include "xm/domain.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define HELP_NAME 14 /* columns of an option's name */
#define SEARCH_PATH ".:/etc/xen"

/* A name without / is looked for in the directories of the path, as the shell does. */
static int find_file(char **found, const char *name, const char *directories, struct error *error)
{
	_cleanup_free_ char *copy = strdup(directories), *file = NULL;
	char *rest = copy, *directory;

	if (!copy)
		return error_set(error, ENOMEM, "Out of memory.");
	if (strchr(name, '/')) {
		*found = strdup(name);
		return *found ? 0 : error_set(error, ENOMEM, "Out of memory.");
	}
	while ((directory = strsep(&rest, ":"))) {
		free(take_pointer(file));
		if (asprintf(&file, "%s/%s", *directory ? directory : ".", name) < 0) {
			file = NULL;
			return error_set(error, ENOMEM, "Out of memory.");
		}
		if (access(file, F_OK) == 0) {
			*found = take_pointer(file);
			return 0;
		}
	}
	return error_set(error, ENOENT, "Unable to read file %s: it is in none of the directories %s.", name,
		directories);
}

static void print_warnings(const struct guest_config *config, const char *file)
{
	_cleanup_json_ json_t *warnings = guest_config_warnings(config);

	for (size_t i = 0; i < json_array_size(warnings); i++)
		fprintf(stderr, "Warning: %s: %s\n", file, json_string_value(json_array_get(warnings, i)));
}

/* What xend has to say of a guest that it has started all the same. */
static void tell_warnings(const json_t *started)
{
	const json_t *warnings = json_object_get(started, "warnings");

	for (size_t i = 0; i < json_array_size(warnings); i++)
		fprintf(stderr, "Warning: %s\n", json_string_value(json_array_get(warnings, i)) ?: "");
}

static int print_help_config(void)
{
	_cleanup_buffer_ struct buffer out = {0};
	char *rest, *line;

	guest_config_help(&out);
	buffer_u8(&out, '\0');
	if (out.failed)
		return -ENOMEM;
	rest = (char *)out.data;
	while ((line = strsep(&rest, "\n"))) {
		int name = (int)strcspn(line, " ");

		if (*line)
			print_wrapped(
				stdout, printf("%-*.*s ", HELP_NAME, name, line), HELP_NAME + 1, line + name);
	}
	return 0;
}

/* The configuration file and var=value words of the command line. */
static int read_config(
	struct guest_config *config, char **file, const struct arguments *arguments, struct error *error)
{
	const char *name = option_value(arguments, "defconfig"), *path = option_value(arguments, "path");
	size_t first = 0;
	int r;

	if (!name && arguments->word_count && !strchr(arguments->words[0], '='))
		name = arguments->words[first++];
	if (!name)
		return error_set(error, EINVAL, "xm create: expected <ConfigFile>, found %s.",
			arguments->word_count ? arguments->words[0] : "nothing");
	r = find_file(file, name, path ? path : SEARCH_PATH, error);
	if (r < 0)
		return r;
	if (!option_given(arguments, "quiet"))
		printf("Using config file \"%s\".\n", *file);
	fflush(stdout);
	r = guest_config_from_file(
		config, *file, arguments->words + first, arguments->word_count - first, error);
	return r < 0 ? r : guest_config_name_after(config, *file, error);
}

/* Posts the configuration; what xend makes of it is in `json` and `domain`. */
static int start(struct xm *xm, const struct arguments *arguments, const struct guest_config *config,
	struct domain *domain, json_t **json, struct error *error)
{
	_cleanup_json_ json_t *settings = guest_config_to_json(config);
	_cleanup_json_ json_t *body = json_pack("{s:O, s:b, s:b}", "config", settings, "paused",
		option_given(arguments, "paused") || option_given(arguments, "console_autoconnect"), "dryrun",
		option_given(arguments, "dryrun"));
	int r;

	if (!body)
		return error_set(error, ENOMEM, "Out of memory.");
	r = client_call(&xm->client, "POST", "/domains", body, json, error);
	if (r < 0 || option_given(arguments, "dryrun"))
		return r;
	return domain_read(domain, *json, error);
}

static int print_dry_run(const struct guest_config *config)
{
	_cleanup_buffer_ struct buffer out = {0};

	guest_config_to_sxp(config, &out);
	printf("(domain\n%.*s)\n", (int)out.size, out.data);
	return 0;
}

static int create(struct xm *xm, const struct arguments *arguments, struct error *error)
{
	_cleanup_guest_config_ struct guest_config config = {0};
	_cleanup_free_ char *file = NULL;
	_cleanup_json_ json_t *json = NULL;
	struct domain domain = {0};
	char unpause[64];
	int r;

	if (option_given(arguments, "help_config"))
		return print_help_config();
	r = read_config(&config, &file, arguments, error);
	if (r < 0) {
		xm->wrong_arguments = !file && r == -EINVAL;
		return r;
	}
	if (!option_given(arguments, "quiet"))
		print_warnings(&config, file);
	r = start(xm, arguments, &config, &domain, &json, error);
	if (r < 0)
		return r;
	if (option_given(arguments, "dryrun"))
		return print_dry_run(&config);
	if (!option_given(arguments, "quiet")) {
		tell_warnings(json);
		printf("Started domain %s\n", domain.name);
	}
	if (!option_given(arguments, "console_autoconnect"))
		return 0;
	snprintf(unpause, sizeof(unpause), "/domains/%lld/unpause", domain.id);
	return console_attach(
		&xm->client, domain.id, true, option_given(arguments, "paused") ? NULL : unpause, error);
}

const struct command start_commands[] = {
	{"create", NULL, "<ConfigFile> [vars]", "Start a domain as a configuration file says.",
		{{"help_config", 0, NULL, "list the options of configuration files"},
			{"dryrun", 'n', NULL, "check everything, print the configuration, start nothing"},
			{"paused", 'p', NULL, "leave the domain paused"},
			{"console_autoconnect", 'c', NULL, "attach to the console"},
			{"quiet", 'q', NULL, "print nothing but errors"},
			{"path", 0, "PATH", "directories to look for the file in (" SEARCH_PATH ")"},
			{"defconfig", 'f', "FILE", "the configuration file"}},
		0, 10000, create},
	{0},
};
