#include "config/guest_config.h"

#include "base/cleanup.h"
#include "config/guest_options.h"
#include "config/python.h"
#include "config/sxp.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define COMMAND_LINE "the command line"

void guest_config_free(struct guest_config *config)
{
	guest_options_free(config);
	for (size_t i = 0; i < config->disk_count; i++)
		guest_disk_free(&config->disks[i]);
	for (size_t i = 0; i < config->vif_count; i++)
		guest_vif_free(&config->vifs[i]);
	free(config->disks);
	free(config->vifs);
	json_decref(config->kept);
	*config = (struct guest_config){0};
}

int guest_name_check(const char *name, struct error *error)
{
	size_t length = strlen(name);

	if (!length || length > GUEST_NAME_MAX)
		return error_set(error, EINVAL, "A domain's name has 1 to %d characters, '%.40s%s' has %zu.",
			GUEST_NAME_MAX, name, length > 40 ? "…" : "", length);
	for (const char *c = name; *c; c++)
		if (!isalnum((unsigned char)*c) && !strchr("_-.+:", *c))
			return error_set(error, EINVAL,
				"A domain's name is made of letters, digits and _ - . + : only; '%s' is not.",
				name);
	if (strspn(name, "0123456789") == length)
		return error_set(error, EINVAL,
			"A domain's name cannot be a number, as '%s' is: that would be an ID.", name);
	if (!strcmp(name, "Domain-0") || *name == '-' || *name == '.')
		return error_set(error, EINVAL, "A domain's name cannot be '%s'%s.", name,
			*name == 'D' ? ": that is the host" : ": it begins with a dash or a dot");
	return 0;
}

static int unknown_option(const char *name, const struct place *place, struct error *error)
{
	const char *names[128];
	const char *nearest;

	_Static_assert(sizeof(names) / sizeof(*names) >= 100, "room for all names of guest_options");
	for (size_t i = 0; i < guest_option_count && i < ARRAY_SIZE(names); i++)
		names[i] = guest_options[i].name;
	nearest = nearest_name(name, names, guest_option_count);
	return place_error(error, place, "unknown option '%.80s'%s%s%s", name,
		nearest ? ": did you mean '" : "", nearest ? nearest : "", nearest ? "'?" : ".");
}

/* The value of `var=value`: Python where it looks like it, digits as a number, else the text itself. */
static int override_value(struct value *value, const char *text, struct error *error)
{
	struct place place = {COMMAND_LINE, 0, 0};

	if (*text == '[' || *text == '(' || *text == '\'' || *text == '"')
		return python_parse_value(value, COMMAND_LINE, text, strlen(text), error);
	for (const char *at = text; *at;) {
		size_t length = utf8_length(at, strlen(at));

		if (!length)
			return place_error(error, &place, "expected UTF-8 text, found '%s'.", text);
		at += length;
	}
	*value = (struct value){.kind = VALUE_STRING, .place = place, .text = strdup(text)};
	if (!value->text)
		return error_set(error, ENOMEM, "Out of memory.");
	if (*text && strspn(text, "0123456789") == strlen(text) && strlen(text) < 18) {
		value->kind = VALUE_NUMBER;
		value->number = strtol(text, NULL, 10);
		free(take_pointer(value->text));
	}
	return 0;
}

/* A second disk= or vif= on the command line adds to the first. */
static int merge_list(struct value *value, struct value *earlier, struct error *error)
{
	_cleanup_value_ struct value list = {.kind = VALUE_LIST, .place = value->place};
	size_t budget = VALUE_BUDGET;
	int r = 0;

	if (earlier->kind == VALUE_LIST) {
		list = *earlier;
		*earlier = (struct value){0};
	} else {
		r = value_append(&list, earlier, &budget, error);
	}
	for (size_t i = 0; r >= 0 && value->kind == VALUE_LIST && i < value->count; i++)
		r = value_append(&list, &value->items[i], &budget, error);
	if (r >= 0 && value->kind != VALUE_LIST)
		r = value_append(&list, value, &budget, error);
	if (r < 0)
		return r;
	value_free(value);
	*value = list;
	list = (struct value){0};
	return 0;
}

static int parse_overrides(
	struct python_file *file, const char *const *overrides, size_t count, struct error *error)
{
	struct place place = {COMMAND_LINE, 0, 0};

	file->budget = VALUE_BUDGET;
	for (size_t i = 0; i < count; i++) {
		_cleanup_value_ struct value value = {0};
		size_t length = strcspn(overrides[i], "=");
		_cleanup_free_ char *name = strndup(overrides[i], length);
		const struct guest_option *option;
		struct python_binding *earlier;
		int r;

		if (!name)
			return error_set(error, ENOMEM, "Out of memory.");
		if (!length || !overrides[i][length])
			return place_error(error, &place, "expected NAME=VALUE, found '%s'.", overrides[i]);
		r = override_value(&value, overrides[i] + length + 1, error);
		option = guest_option_find(name);
		earlier = python_find(file, name);
		if (r >= 0 && earlier && option &&
			(option->kind == OPTION_DISKS || option->kind == OPTION_VIFS))
			r = merge_list(&value, &earlier->value, error);
		if (r >= 0)
			r = python_define(file, name, &place, &value, error);
		if (r < 0)
			return r;
	}
	return 0;
}

static int define_copies(struct python_file *to, const struct python_file *from, struct error *error)
{
	for (size_t i = 0; i < from->count; i++) {
		_cleanup_value_ struct value value = {0};
		int r = value_copy(&value, &from->bindings[i].value, &to->budget, error);

		if (r >= 0)
			r = python_define(
				to, from->bindings[i].name, &from->bindings[i].place, &value, error);
		if (r < 0)
			return r;
	}
	return 0;
}

static int read_text(struct guest_config *config, const char *source, const char *text, size_t size,
	const char *const *overrides, size_t override_count, struct error *error)
{
	_cleanup_python_ struct python_file file = {.budget = VALUE_BUDGET}, given = {0};
	int r = parse_overrides(&given, overrides, override_count, error);

	/* The file may use what the command line says, and the command line wins in the end. */
	if (r >= 0)
		r = define_copies(&file, &given, error);
	if (r >= 0)
		r = python_parse(&file, source, text, size, error);
	if (r >= 0)
		r = define_copies(&file, &given, error);
	if (r < 0)
		return r;
	for (size_t i = 0; i < file.count; i++) {
		const struct python_binding *binding = &file.bindings[i];

		if (!guest_option_find(binding->name) && !binding->used && *binding->name != '_')
			return unknown_option(binding->name, &binding->place, error);
	}
	for (size_t i = 0; i < guest_option_count; i++) { /* in the table's order: nics adds to vif */
		const struct python_binding *binding = python_find(&file, guest_options[i].name);

		r = binding ? guest_option_set(&guest_options[i], config, &binding->value, error) : 0;
		if (r < 0)
			return r;
	}
	return 0;
}

int guest_config_from_text(struct guest_config *config, const char *source, const char *text, size_t size,
	const char *const *overrides, size_t override_count, struct error *error)
{
	int r;

	guest_options_defaults(config);
	r = read_text(config, source, text, size, overrides, override_count, error);
	if (r < 0)
		guest_config_free(config);
	return r;
}

int guest_config_from_file(struct guest_config *config, const char *path, const char *const *overrides,
	size_t override_count, struct error *error)
{
	_cleanup_free_ char *text = NULL;
	size_t size;
	int r = text_load(path, &text, &size, error);

	if (r >= 0 && text_keep_bytes(&text, &size) < 0)
		r = error_set(error, ENOMEM, "Out of memory.");
	return r < 0 ? r : guest_config_from_text(config, path, text, size, overrides, override_count, error);
}

int guest_config_name_after(struct guest_config *config, const char *path, struct error *error)
{
	const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path;
	size_t length = strlen(base);
	_cleanup_free_ char *name = NULL;

	if (config->name)
		return 0;
	if (length > 4 && (!strcmp(base + length - 4, ".cfg") || !strcmp(base + length - 4, ".sxp")))
		length -= 4;
	name = strndup(base, length);
	if (!name)
		return error_set(error, ENOMEM, "Out of memory.");
	if (guest_name_check(name, NULL) < 0)
		return error_set(
			error, EINVAL, "%s: the guest configuration has no name: add name = \"…\".", path);
	config->name = take_pointer(name);
	return 0;
}

static int read_json(struct guest_config *config, const json_t *json, struct error *error)
{
	struct place nowhere = {0};
	const char *name;
	json_t *member;

	if (!json_is_object(json))
		return error_set(error, EINVAL, "A guest configuration is a JSON object of options.");
	json_object_foreach((json_t *)json, name, member)
	{
		if (!guest_option_find(name))
			return unknown_option(name, &nowhere, error);
	}
	for (size_t i = 0; i < guest_option_count; i++) {
		_cleanup_value_ struct value value = {0};
		int r;

		member = json_object_get(json, guest_options[i].name);
		if (!member)
			continue;
		r = value_from_json(&value, guest_options[i].name, member, error);
		if (r >= 0)
			r = guest_option_set(&guest_options[i], config, &value, error);
		if (r < 0)
			return r;
	}
	return 0;
}

int guest_config_from_json(struct guest_config *config, const json_t *json, struct error *error)
{
	int r;

	guest_options_defaults(config);
	r = read_json(config, json, error);
	if (r < 0)
		guest_config_free(config);
	return r;
}

json_t *guest_config_to_json(const struct guest_config *config)
{
	_cleanup_json_ json_t *json = json_object();

	for (size_t i = 0; json && i < guest_option_count; i++) {
		json_t *member = guest_option_json(&guest_options[i], config);

		if (member && json_object_set_new(json, guest_options[i].name, member) < 0)
			return NULL;
	}
	return take_pointer(json);
}

static int draw(void *bytes, size_t size, struct error *error)
{
	return getrandom(bytes, size, 0) == (ssize_t)size
		       ? 0
		       : error_set(error, errno, "The kernel gives no random numbers: %s.", strerror(errno));
}

static int draw_uuid(char **uuid, struct error *error)
{
	uint8_t b[16];
	int r = draw(b, sizeof(b), error);

	if (r < 0)
		return r;
	b[6] = (uint8_t)((b[6] & 0x0f) | 0x40); /* version 4, variant 1: RFC 4122, section 4.4 */
	b[8] = (uint8_t)((b[8] & 0x3f) | 0x80);
	if (asprintf(uuid, "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", b[0], b[1],
		    b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14],
		    b[15]) < 0) {
		*uuid = NULL;
		return error_set(error, ENOMEM, "Out of memory.");
	}
	return 0;
}

/* 00:16:3e is Xen's; its tools draw from the lower half of the range. */
static int draw_mac(struct guest_vif *vif, struct error *error)
{
	uint8_t drawn[3];
	int r = draw(drawn, sizeof(drawn), error);

	if (r < 0)
		return r;
	memcpy(vif->mac, (const uint8_t[]){0x00, 0x16, 0x3e, drawn[0] & 0x7f, drawn[1], drawn[2]}, 6);
	vif->has_mac = true;
	return 0;
}

static int check_agreement(const struct guest_config *config, struct error *error)
{
	if (!config->name)
		return error_set(error, EINVAL, "The guest configuration has no name: add name = \"…\".");
	if (config->maxmem && config->maxmem < config->memory)
		return error_set(error, EINVAL, "maxmem is %lu MiB, less than memory, %lu MiB.",
			config->maxmem, config->memory);
	for (size_t i = 0; i < config->disk_count; i++)
		for (size_t j = 0; j < i; j++)
			if (!strcmp(config->disks[i].device, config->disks[j].device))
				return error_set(error, EINVAL, "disk: two entries are for the device %s.",
					config->disks[i].device);
	for (size_t i = 0; i < config->vif_count; i++)
		for (size_t j = 0; j < i; j++)
			if (!memcmp(config->vifs[i].mac, config->vifs[j].mac, 6))
				return error_set(error, EINVAL,
					"vif: two interfaces have the MAC address "
					"%02x:%02x:%02x:%02x:%02x:%02x.",
					config->vifs[i].mac[0], config->vifs[i].mac[1],
					config->vifs[i].mac[2], config->vifs[i].mac[3],
					config->vifs[i].mac[4], config->vifs[i].mac[5]);
	return 0;
}

int guest_config_complete(struct guest_config *config, struct error *error)
{
	int r = config->uuid ? 0 : draw_uuid(&config->uuid, error);

	for (size_t i = 0; r >= 0 && i < config->vif_count; i++)
		if (!config->vifs[i].has_mac)
			r = draw_mac(&config->vifs[i], error);
	return r < 0 ? r : check_agreement(config, error);
}

static bool is_as_without(const struct guest_option *option, const struct guest_config *config)
{
	if (option->offset == offsetof(struct guest_config, maxmem) && option->kind == OPTION_NUMBER)
		return config->maxmem <= config->memory;
	if (option->offset == offsetof(struct guest_config, vcpu_avail) && option->kind == OPTION_NUMBER)
		return config->vcpu_avail ==
		       (config->vcpus < 63 ? (UINT64_C(1) << config->vcpus) - 1 : (uint64_t)INT64_MAX);
	return false;
}

static void warn(json_t *warnings, const char *what, const char *why)
{
	json_array_append_new(warnings, json_sprintf("%s has no effect: %s.", what, why));
}

json_t *guest_config_warnings(const struct guest_config *config)
{
	const enum guest_action actions[] = {config->on_poweroff, config->on_reboot, config->on_crash};
	json_t *warnings = json_array();
	bool dumps = false, limits = false, keeps = false, writes = false;
	char what[64];

	for (size_t i = 0; warnings && i < guest_option_count; i++) {
		const struct guest_option *option = &guest_options[i];

		snprintf(what, sizeof(what), "The option '%s'", option->name);
		if (guest_option_is_ineffective(option, config) && !is_as_without(option, config))
			warn(warnings, what, option->without_effect);
	}
	for (size_t i = 0; i < ARRAY_SIZE(actions); i++)
		dumps = dumps || actions[i] == ACTION_COREDUMP_DESTROY ||
			actions[i] == ACTION_COREDUMP_RESTART;
	for (size_t i = 0; i < ARRAY_SIZE(actions); i++)
		keeps = keeps || actions[i] == ACTION_RENAME_RESTART;
	for (size_t i = 0; i < config->disk_count; i++)
		writes = writes || config->disks[i].mode == DISK_WRITE;
	for (size_t i = 0; i < config->vif_count; i++)
		limits = limits || config->vifs[i].rate;
	if (warnings && dumps)
		warn(warnings, "The word 'coredump'",
			"no core is dumped, only the rest of the action is done");
	if (warnings && keeps && writes)
		warn(warnings, "The word 'rename-restart'",
			"whoever is started again needs the disks that are written (w), so that what has "
			"ended is not kept");
	if (warnings && limits)
		warn(warnings, "The word 'rate=' of vif", "the interface is not limited");
	return warnings;
}

static void line(struct buffer *out, const char *text)
{
	buffer_append(out, text, strlen(text));
}

/* (name value) of all options of a section, each after `indent`. */
static void section_to_sxp(const struct guest_config *config, enum option_section section, const char *indent,
	struct buffer *out)
{
	for (size_t i = 0; i < guest_option_count; i++) {
		const struct guest_option *option = &guest_options[i];
		_cleanup_json_ json_t *json =
			option->section == section ? guest_option_json(option, config) : NULL;
		char number[24] = "";

		if (!json)
			continue;
		if (json_is_integer(json))
			snprintf(number, sizeof(number), "%lld", (long long)json_integer_value(json));
		line(out, indent);
		sxp_pair(out, option->shown_as ? option->shown_as : option->name,
			*number ? number : json_string_value(json));
		line(out, "\n");
	}
}

static void disk_to_sxp(const struct guest_disk *disk, struct buffer *out)
{
	_cleanup_free_ char *uname = guest_disk_uname(disk);
	char device[32];

	snprintf(device, sizeof(device), "%s:%s", disk->device, disk->cdrom ? "cdrom" : "disk");
	line(out, "    (device (vbd ");
	sxp_pair(out, "uname", uname);
	line(out, " ");
	sxp_pair(out, "dev", device);
	line(out, " ");
	sxp_pair(out, "mode", disk->mode == DISK_READ_ONLY ? "r" : disk->mode == DISK_WRITE ? "w" : "w!");
	line(out, "))\n");
}

static void vif_to_sxp(const struct guest_vif *vif, struct buffer *out)
{
	const struct {
		const char *name, *value;
	} words[] = {{"bridge", vif->bridge}, {"ip", vif->ip}, {"script", vif->script},
		{"vifname", vif->vifname}, {"model", vif->model}, {"type", vif->type}, {"rate", vif->rate}};
	char mac[24];

	snprintf(mac, sizeof(mac), "%02x:%02x:%02x:%02x:%02x:%02x", vif->mac[0], vif->mac[1], vif->mac[2],
		vif->mac[3], vif->mac[4], vif->mac[5]);
	line(out, "    (device (vif");
	if (vif->has_mac) {
		line(out, " ");
		sxp_pair(out, "mac", mac);
	}
	for (size_t i = 0; i < ARRAY_SIZE(words); i++)
		if (words[i].value) {
			line(out, " ");
			sxp_pair(out, words[i].name, words[i].value);
		}
	line(out, "))\n");
}

void guest_config_to_sxp(const struct guest_config *config, struct buffer *out)
{
	section_to_sxp(config, SHOWN_IN_DOMAIN, "    ", out);
	line(out, "    (image\n        (linux\n");
	section_to_sxp(config, SHOWN_IN_IMAGE, "            ", out);
	line(out, "        )\n    )\n");
	for (size_t i = 0; i < config->vif_count; i++)
		vif_to_sxp(&config->vifs[i], out);
	for (size_t i = 0; i < config->disk_count; i++)
		disk_to_sxp(&config->disks[i], out);
}

void guest_config_help(struct buffer *out)
{
	char text[512];

	for (size_t i = 0; i < guest_option_count; i++) {
		const struct guest_option *option = &guest_options[i];

		snprintf(text, sizeof(text), "%-14s %s", option->name, option->help);
		line(out, text);
		if (option->kind == OPTION_NUMBER) {
			if (option->most >= INT64_MAX)
				snprintf(text, sizeof(text), " (at least %lu", option->least);
			else
				snprintf(text, sizeof(text), " (%lu to %lu", option->least, option->most);
			line(out, text);
			snprintf(text, sizeof(text), option->fallback ? ", default %lu)" : ")",
				option->fallback);
			line(out, text);
		} else if (option->kind == OPTION_ACTION) {
			for (unsigned action = 0; action <= ACTION_COREDUMP_RESTART; action++) {
				snprintf(text, sizeof(text), "%s%s", action ? ", " : " (",
					guest_action_name((enum guest_action)action));
				line(out, text);
			}
			snprintf(text, sizeof(text), "; default %s)",
				guest_action_name((enum guest_action)option->fallback));
			line(out, text);
		} else if (option->choices) {
			snprintf(text, sizeof(text), " (%s)", option->choices);
			line(out, text);
		}
		if (option->without_effect) {
			snprintf(text, sizeof(text), " (no effect: %s)", option->without_effect);
			line(out, text);
		}
		line(out, "\n");
	}
}
