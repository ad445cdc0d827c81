#include "config/xend_config.h"

#include "base/address.h"
#include "base/cleanup.h"
#include "config/sxp.h"

#include <errno.h>
#include <regex.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

enum setting_kind {
	SETTING_TEXT,
	SETTING_PATH,     /* absolute */
	SETTING_FLAG,     /* yes or no */
	SETTING_NUMBER,   /* up to `most` */
	SETTING_LEVEL,    /* of the log */
	SETTING_PATTERNS, /* hosts-allow */
	SETTING_IGNORED,  /* Xen's, with nothing behind it in Ferry; may stand several times */
};

static const struct setting {
	const char *name;
	enum setting_kind kind;
	size_t offset;
	uint64_t most;
	const char *fallback; /* what the file could have said */
	const char *
		without_effect; /* why another value changes nothing (the end of a warning); NULL: it works */
	uint64_t least;
} settings[] = {
#define AT(member) offsetof(struct xend_config, member)
	{"logfile", SETTING_PATH, AT(logfile), 0, "/var/log/xen/xend.log"},
	{"logfile-limit", SETTING_NUMBER, AT(logfile_limit), 1048576, "10"},
	{"loglevel", SETTING_LEVEL, AT(loglevel), 0, "DEBUG"},
	{"xend-unix-server", SETTING_FLAG, AT(unix_server), 0, "yes",
		"xm needs the socket, so it is always there"},
	{"xend-unix-path", SETTING_PATH, AT(unix_path), 0, "/var/lib/xend/xend-socket"},
	{"xend-http-server", SETTING_FLAG, AT(http_server), 0, "no", "xend serves its unix socket only"},
	{"xend-port", SETTING_NUMBER, AT(port), 65535, "8000"},
	{"xend-address", SETTING_TEXT, AT(address), 0, ""},
	{"xend-relocation-server", SETTING_FLAG, AT(relocation_server), 0, "no"},
	{"xend-relocation-port", SETTING_NUMBER, AT(relocation_port), 65535, "8002"},
	{"xend-relocation-address", SETTING_TEXT, AT(relocation_address), 0, ""},
	{"xend-relocation-hosts-allow", SETTING_PATTERNS, AT(relocation_hosts_allow), 0, ""},
	{"xend-relocation-clear-text", SETTING_FLAG, AT(relocation_clear_text), 0, "no"},
	{"xend-relocation-ca-file", SETTING_TEXT, AT(relocation_ca_file), 0, ""},
	{"xend-relocation-crl-file", SETTING_TEXT, AT(relocation_crl_file), 0, ""},
	{"xend-relocation-server-ssl-cert-file", SETTING_TEXT, AT(relocation_cert_file), 0, ""},
	{"xend-relocation-server-ssl-key-file", SETTING_TEXT, AT(relocation_key_file), 0, ""},
	{"xend-relocation-connections", SETTING_NUMBER, AT(relocation_connections), 8, "0"},
	{"xend-relocation-max-downtime", SETTING_NUMBER, AT(relocation_max_downtime), 60000, "50"},
	{"storage-timeout", SETTING_NUMBER, AT(storage_timeout), 86400, "60"},
	{"console-limit", SETTING_NUMBER, AT(console_limit), 16384, "1024", .least = 1},
	{"network-script", SETTING_TEXT, AT(network_script), 0, ""},
	{"vif-script", SETTING_TEXT, AT(vif_script), 0, "vif-bridge"},
	{"dom0-min-mem", SETTING_NUMBER, AT(dom0_min_mem), UINT64_C(1) << 30, "0"},
	{"dom0-cpus", SETTING_NUMBER, AT(dom0_cpus), 65535, "0", "the host keeps all its CPUs"},
	{"enable-dump", SETTING_FLAG, AT(enable_dump), 0, "no", "no cores are dumped"},
	{"external-migration-tool", SETTING_TEXT, AT(external_migration_tool), 0, "",
		"no tool is run at migrations"},
	{"vnc-listen", SETTING_TEXT, AT(vnc_listen), 0, "127.0.0.1"},
	{"vncpasswd", SETTING_TEXT, AT(vncpasswd), 0, ""},
#undef AT
	{"device-model", SETTING_IGNORED},
	{"dom0-vcpus", SETTING_IGNORED},
	{"enable-dom0-ballooning", SETTING_IGNORED},
	{"keymap", SETTING_IGNORED},
	{"pci-passthrough-strict-check", SETTING_IGNORED},
	{"resource-label-change-script", SETTING_IGNORED},
	{"vnc-tls", SETTING_IGNORED},
	{"vnc-x509-cert-dir", SETTING_IGNORED},
	{"vnc-x509-verify", SETTING_IGNORED},
	{"xen-api-server", SETTING_IGNORED},
	{"xend-domains-lock-path", SETTING_IGNORED},
	{"xend-domains-path", SETTING_IGNORED},
	{"xend-relocation-ssl", SETTING_IGNORED},
	{"xend-relocation-ssl-server", SETTING_IGNORED},
	{"xend-relocation-ssl-port", SETTING_IGNORED},
	{"xend-tcp-xmlrpc-server", SETTING_IGNORED},
	{"xend-tcp-xmlrpc-server-address", SETTING_IGNORED},
	{"xend-tcp-xmlrpc-server-port", SETTING_IGNORED},
	{"xend-tcp-xmlrpc-server-ssl-cert-file", SETTING_IGNORED},
	{"xend-tcp-xmlrpc-server-ssl-key-file", SETTING_IGNORED},
	{"xend-udev-event-server", SETTING_IGNORED},
	{"xend-unix-xmlrpc-server", SETTING_IGNORED},
	{"xend-wait-for-devices", SETTING_IGNORED},
};

const char *xend_config_path(void)
{
	const char *path = getenv("XEND_CONFIG");

	return path && *path ? path : "/etc/xen/xend-config.sxp";
}

void xend_config_free(struct xend_config *config)
{
	for (size_t i = 0; i < ARRAY_SIZE(settings); i++)
		switch (settings[i].kind) {
		case SETTING_TEXT:
		case SETTING_PATH:
		case SETTING_LEVEL:
		case SETTING_PATTERNS:
			free(*(char **)((char *)config + settings[i].offset));
			break;
		case SETTING_FLAG:
		case SETTING_NUMBER:
		case SETTING_IGNORED:
			break;
		}
	for (size_t i = 0; i < config->allow_count; i++)
		free(config->allow[i]);
	free(config->allow);
	*config = (struct xend_config){0};
}

static int expected(
	const struct setting *setting, const struct value *value, const char *what, struct error *error)
{
	return place_error(
		error, &value->place, "%s: expected %s, found '%.80s'.", setting->name, what, value->text);
}

static int set_text(char **member, const char *text, struct error *error)
{
	char *copy = strdup(text);

	if (!copy)
		return error_set(error, ENOMEM, "Out of memory.");
	free(*member);
	*member = copy;
	return 0;
}

static int set_flag(
	const struct setting *setting, bool *member, const struct value *value, struct error *error)
{
	static const char *const words[2][5] = {
		{"no", "off", "false", "0", "n"}, {"yes", "on", "true", "1", "y"}};

	for (size_t yes = 0; yes < 2; yes++)
		for (size_t i = 0; i < ARRAY_SIZE(words[yes]); i++)
			if (!strcasecmp(value->text, words[yes][i])) {
				*member = yes;
				return 0;
			}
	return expected(setting, value, "yes or no", error);
}

static int set_number(
	const struct setting *setting, uint64_t *member, const struct value *value, struct error *error)
{
	char what[64];
	unsigned long number = strtoul(value->text, NULL, 10);

	if (setting->least)
		snprintf(what, sizeof(what), "a whole number from %lu to %lu", setting->least, setting->most);
	else
		snprintf(what, sizeof(what), "a whole number up to %lu", setting->most);
	if (!*value->text || strspn(value->text, "0123456789") != strlen(value->text) ||
		strlen(value->text) > 18 || number < setting->least || number > setting->most)
		return expected(setting, value, what, error);
	*member = number;
	return 0;
}

static int set_level(
	const struct setting *setting, char **member, const struct value *value, struct error *error)
{
	static const char *const levels[] = {"DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"};

	for (size_t i = 0; i < ARRAY_SIZE(levels); i++)
		if (!strcasecmp(value->text, levels[i]))
			return set_text(member, levels[i], error);
	return expected(setting, value, "DEBUG, INFO, WARNING, ERROR or CRITICAL", error);
}

/* One that nothing is wrong with: src/carry/allow.h says what they are. */
static int check_pattern(const char *word, const struct place *place, struct error *error)
{
	struct network network;
	regex_t regex;
	char why[128];
	int r;

	if (network_parse(word, &network))
		return 0;
	if (strchr(word, '/'))
		return place_error(error, place,
			"xend-relocation-hosts-allow: '%.80s' is no network, as 10.0.0.0/24 and fd00::/64 "
			"are.",
			word);
	r = regcomp(&regex, word, REG_EXTENDED | REG_ICASE | REG_NOSUB);
	if (r) {
		regerror(r, &regex, why, sizeof(why));
		return place_error(error, place,
			"xend-relocation-hosts-allow: '%.80s' is not a regular expression: %s.", word, why);
	}
	regfree(&regex);
	return 0;
}

/* Splits hosts-allow at its blanks. */
static int set_patterns(struct xend_config *config, const struct value *value, struct error *error)
{
	_cleanup_free_ char *copy = strdup(value->text);
	char *rest = copy, *word;

	if (!copy)
		return error_set(error, ENOMEM, "Out of memory.");
	for (size_t i = 0; i < config->allow_count; i++)
		free(config->allow[i]);
	free(config->allow);
	config->allow_count = 0;
	config->allow = calloc(strlen(copy) / 2 + 1, sizeof(*config->allow));
	if (!config->allow)
		return error_set(error, ENOMEM, "Out of memory.");
	while ((word = strsep(&rest, " \t\r\n"))) {
		int r = *word ? check_pattern(word, &value->place, error) : 0;

		if (!*word)
			continue;
		if (r < 0)
			return r;
		config->allow[config->allow_count] = strdup(word);
		if (!config->allow[config->allow_count])
			return error_set(error, ENOMEM, "Out of memory.");
		config->allow_count++;
	}
	return set_text(&config->relocation_hosts_allow, value->text, error);
}

static int set(const struct setting *setting, struct xend_config *config, const struct value *value,
	struct error *error)
{
	void *member = (char *)config + setting->offset;

	switch (setting->kind) {
	case SETTING_TEXT:
		return set_text(member, value->text, error);
	case SETTING_PATH:
		if (*value->text != '/')
			return expected(setting, value, "a path that begins with '/'", error);
		return set_text(member, value->text, error);
	case SETTING_FLAG:
		return set_flag(setting, member, value, error);
	case SETTING_NUMBER:
		return set_number(setting, member, value, error);
	case SETTING_LEVEL:
		return set_level(setting, member, value, error);
	case SETTING_PATTERNS:
		return set_patterns(config, value, error);
	case SETTING_IGNORED:
		return 0;
	}
	return 0;
}

static int set_defaults(struct xend_config *config, struct error *error)
{
	for (size_t i = 0; i < ARRAY_SIZE(settings); i++) {
		_cleanup_free_ char *text = settings[i].fallback ? strdup(settings[i].fallback) : NULL;
		struct value value = {.kind = VALUE_STRING, .text = text};
		int r = settings[i].fallback ? set(&settings[i], config, &value, error) : 0;

		if (r < 0)
			return r;
	}
	return 0;
}

static int unknown_setting(const struct value *name, struct error *error)
{
	const char *names[ARRAY_SIZE(settings)];
	const char *nearest;

	for (size_t i = 0; i < ARRAY_SIZE(settings); i++)
		names[i] = settings[i].name;
	nearest = nearest_name(name->text, names, ARRAY_SIZE(names));
	return place_error(error, &name->place, "unknown option '%.80s'%s%s%s", name->text,
		nearest ? ": did you mean '" : "", nearest ? nearest : "", nearest ? "'?" : ".");
}

/* One (option value). */
static int read_setting(struct xend_config *config, const struct value *entry, struct error *error)
{
	const struct setting *setting = NULL;
	const struct value *name = entry->items;

	if (entry->kind != VALUE_LIST)
		return place_error(
			error, &entry->place, "expected '(' before an option, found '%.80s'.", entry->text);
	if (!entry->count || name->kind != VALUE_STRING)
		return place_error(error, &entry->place, "expected the name of an option after '('.");
	for (size_t i = 0; i < ARRAY_SIZE(settings) && !setting; i++)
		if (!strcmp(settings[i].name, name->text))
			setting = &settings[i];
	if (!setting)
		return unknown_setting(name, error);
	if (setting->kind == SETTING_IGNORED)
		return 0;
	if (entry->count < 2)
		return place_error(
			error, &entry->place, "%s: expected a value after the name, found ')'.", name->text);
	if (entry->count > 2)
		return place_error(error, &entry->items[2].place,
			"%s: expected ')' after one value; a value with blanks belongs in quotes.",
			name->text);
	if (entry->items[1].kind != VALUE_STRING)
		return place_error(
			error, &entry->items[1].place, "%s: expected a value, found '('.", name->text);
	return set(setting, config, &entry->items[1], error);
}

int xend_config_parse(
	struct xend_config *config, const char *source, const char *text, size_t size, struct error *error)
{
	_cleanup_value_ struct value list = {0};
	int r = set_defaults(config, error);

	if (r >= 0)
		r = sxp_parse(&list, source, text, size, error);
	for (size_t i = 0; r >= 0 && i < list.count; i++)
		r = read_setting(config, &list.items[i], error);
	if (r < 0)
		xend_config_free(config);
	return r;
}

/* Whether the setting is what it would be without the file. */
static bool is_fallback(const struct setting *setting, const struct xend_config *config)
{
	const void *member = (const char *)config + setting->offset;

	switch (setting->kind) {
	case SETTING_FLAG:
		return *(const bool *)member == !strcmp(setting->fallback, "yes");
	case SETTING_NUMBER:
		return *(const uint64_t *)member == strtoul(setting->fallback, NULL, 10);
	case SETTING_TEXT:
	case SETTING_PATH:
	case SETTING_LEVEL:
	case SETTING_PATTERNS:
		return !strcmp(*(char *const *)member, setting->fallback);
	case SETTING_IGNORED:
		break;
	}
	return true;
}

json_t *xend_config_warnings(const struct xend_config *config)
{
	json_t *warnings = json_array();

	for (size_t i = 0; warnings && i < ARRAY_SIZE(settings); i++)
		if (settings[i].without_effect && !is_fallback(&settings[i], config))
			json_array_append_new(
				warnings, json_sprintf("The option '%s' has no effect: %s.", settings[i].name,
						  settings[i].without_effect));
	return warnings;
}

int xend_config_load(struct xend_config *config, const char *path, struct error *error)
{
	_cleanup_free_ char *text = NULL;
	size_t size = 0;
	int r = text_load(path, &text, &size, error);

	if (r == -ENOENT)
		return xend_config_parse(config, path, "", 0, error);
	return r < 0 ? r : xend_config_parse(config, path, text, size, error);
}
