#include "config/guest_options.h"

#include "base/cleanup.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const char *const action_names[] = {
	[ACTION_DESTROY] = "destroy",
	[ACTION_RESTART] = "restart",
	[ACTION_PRESERVE] = "preserve",
	[ACTION_RENAME_RESTART] = "rename-restart",
	[ACTION_COREDUMP_DESTROY] = "coredump-destroy",
	[ACTION_COREDUMP_RESTART] = "coredump-restart",
};

const char *guest_action_name(enum guest_action action)
{
	return (size_t)action < ARRAY_SIZE(action_names) ? action_names[action] : "destroy";
}

static char **text_of(const struct guest_option *option, const struct guest_config *config)
{
	return (char **)((char *)config + option->offset);
}

static uint64_t *number_of(const struct guest_option *option, const struct guest_config *config)
{
	return (uint64_t *)((char *)config + option->offset);
}

static enum guest_action *action_of(const struct guest_option *option, const struct guest_config *config)
{
	return (enum guest_action *)((char *)config + option->offset);
}

void guest_options_free(struct guest_config *config)
{
	for (size_t i = 0; i < guest_option_count; i++)
		switch (guest_options[i].kind) {
		case OPTION_NAME:
		case OPTION_UUID:
		case OPTION_TEXT:
		case OPTION_WORD:
		case OPTION_PATH:
		case OPTION_CPUS:
		case OPTION_ADDRESS:
			free(*text_of(&guest_options[i], config));
			break;
		case OPTION_NUMBER:
		case OPTION_ACTION:
		case OPTION_DISKS:
		case OPTION_VIFS:
		case OPTION_NICS:
		case OPTION_KEPT:
			break;
		}
}

void guest_options_defaults(struct guest_config *config)
{
	for (size_t i = 0; i < guest_option_count; i++) {
		if (guest_options[i].kind == OPTION_NUMBER)
			*number_of(&guest_options[i], config) = guest_options[i].fallback;
		else if (guest_options[i].kind == OPTION_ACTION)
			*action_of(&guest_options[i], config) = (enum guest_action)guest_options[i].fallback;
	}
}

static int expected(
	const struct guest_option *option, const struct value *value, const char *what, struct error *error)
{
	if (value->kind == VALUE_STRING)
		return place_error(error, &value->place, "%s: expected %s, found '%.80s'.", option->name,
			what, value->text);
	if (value->kind == VALUE_NUMBER)
		return place_error(error, &value->place, "%s: expected %s, found %ld.", option->name, what,
			value->number);
	return place_error(error, &value->place, "%s: expected %s, found %s.", option->name, what,
		value_describe(value));
}

/* Whole-word membership in "one|two|three". */
static bool is_choice(const char *choices, const char *word)
{
	size_t length = strlen(word);

	for (const char *at = choices; *at; at += strcspn(at, "|"), at += *at == '|')
		if (strcspn(at, "|") == length && !strncmp(at, word, length))
			return true;
	return false;
}

/* "one, two or three" from "one|two|three". */
static void list_choices(char *out, size_t size, const char *choices)
{
	int used = 0;

	*out = '\0';
	for (const char *at = choices; *at; at += strcspn(at, "|"), at += *at == '|') {
		int length = (int)strcspn(at, "|");

		if ((size_t)(used + length) + 5 > size)
			break;
		used += sprintf(out + used, "%s%.*s", !used ? "" : at[length] ? ", " : " or ", length, at);
	}
}

static int check_uuid(char *text)
{
	size_t i = 0;

	for (; text[i]; i++) {
		if (i == 8 || i == 13 || i == 18 || i == 23 ? text[i] != '-'
							    : !isxdigit((unsigned char)text[i]))
			return -EINVAL;
		text[i] = (char)tolower((unsigned char)text[i]);
	}
	return i == 36 ? 0 : -EINVAL;
}

/* Gives the text of a string or number; a number is written into `digits`. NULL for other kinds. */
static const char *text_from(const struct value *value, char digits[static 24])
{
	if (value->kind == VALUE_STRING)
		return value->text;
	if (value->kind != VALUE_NUMBER)
		return NULL;
	snprintf(digits, 24, "%ld", value->number);
	return digits;
}

static int check_text(
	const struct guest_option *option, const struct value *value, char *text, struct error *error)
{
	struct in_addr address;
	char what[256];

	for (const char *c = text; *c; c++)
		if ((unsigned char)*c < ' ' || *c == 0x7f)
			return place_error(error, &value->place,
				"%s: expected text in one line, found the control character 0x%02x in it.",
				option->name, (unsigned char)*c);
	if (option->most && strlen(text) > option->most)
		return place_error(error, &value->place, "%s: expected at most %lu bytes, found %zu.",
			option->name, option->most, strlen(text));
	if (option->choices && !is_choice(option->choices, text)) {
		list_choices(what, sizeof(what), option->choices);
		return expected(option, value, what, error);
	}
	switch (option->kind) {
	case OPTION_PATH:
		if (*text != '/' || strlen(text) > 4000)
			return expected(option, value, "a path that begins with '/'", error);
		return 0;
	case OPTION_WORD:
		return strchr(text, ' ') ? expected(option, value, "a word without blanks", error) : 0;
	case OPTION_ADDRESS:
		return inet_pton(AF_INET, text, &address) == 1
			       ? 0
			       : expected(option, value, "an IP address such as 10.0.0.5", error);
	case OPTION_UUID:
		return check_uuid(text) < 0
			       ? expected(option, value,
					 "a uuid such as cc0029f5-10a1-e6d0-3c92-19b0ea021f21", error)
			       : 0;
	case OPTION_CPUS:
		return strspn(text, "0123456789,-^ ") == strlen(text) || !strcmp(text, "all")
			       ? 0
			       : expected(option, value, "CPU numbers such as 0-3,^1", error);
	default:
		return 0;
	}
}

static int set_text(const struct guest_option *option, struct guest_config *config, const struct value *value,
	struct error *error)
{
	char **member = text_of(option, config), digits[24];
	const char *given = text_from(value, digits);
	_cleanup_free_ char *text = NULL;
	int r;

	if (!given)
		return expected(option, value, "a string", error);
	if (*given) {
		text = strdup(given);
		if (!text)
			return error_set(error, ENOMEM, "Out of memory.");
		r = check_text(option, value, text, error);
		if (r < 0)
			return r;
	}
	free(*member);
	*member = take_pointer(text);
	return 0;
}

static int set_name(const struct guest_option *option, struct guest_config *config, const struct value *value,
	struct error *error)
{
	char digits[24];
	const char *given = text_from(value, digits);
	struct error why = {0};

	if (!given)
		return expected(option, value, "a string", error);
	if (guest_name_check(given, &why) < 0)
		return place_error(error, &value->place, "%s", why.text);
	return set_text(option, config, value, error);
}

/* cpus = "0-3", 2, or ["0", "2"]. */
static int set_cpus(const struct guest_option *option, struct guest_config *config, const struct value *value,
	struct error *error)
{
	_cleanup_buffer_ struct buffer joined = {0};
	struct value text;

	if (value->kind != VALUE_LIST)
		return set_text(option, config, value, error);
	for (size_t i = 0; i < value->count; i++) {
		char digits[24];
		const char *item = text_from(&value->items[i], digits);

		if (!item)
			return expected(option, &value->items[i], "a string or a number", error);
		if (i)
			buffer_u8(&joined, ',');
		buffer_append(&joined, item, strlen(item));
	}
	buffer_u8(&joined, 0);
	if (joined.failed)
		return error_set(error, ENOMEM, "Out of memory.");
	text = (struct value){.kind = VALUE_STRING, .place = value->place, .text = (char *)joined.data};
	return set_text(option, config, &text, error);
}

/* A whole number, also as a string of digits: memory = "64". */
static int take_number(
	const struct guest_option *option, uint64_t *number, const struct value *value, struct error *error)
{
	char what[128];
	char *end = NULL;
	long long given = value->number;

	snprintf(what, sizeof(what), "a whole number from %lu to %lu", option->least, option->most);
	if (value->kind == VALUE_STRING) {
		errno = 0;
		given = strtoll(value->text, &end, 10);
		if (errno || end == value->text || end[strspn(end, " ")] || !isdigit((unsigned char)end[-1]))
			return expected(option, value, what, error);
	} else if (value->kind != VALUE_NUMBER) {
		return expected(option, value, what, error);
	}
	if (given < 0 || (uint64_t)given < option->least || (uint64_t)given > option->most)
		return expected(option, value, what, error);
	*number = (uint64_t)given;
	return 0;
}

static int set_action(const struct guest_option *option, struct guest_config *config,
	const struct value *value, struct error *error)
{
	for (size_t i = 0; value->kind == VALUE_STRING && i < ARRAY_SIZE(action_names); i++)
		if (!strcmp(value->text, action_names[i])) {
			*action_of(option, config) = (enum guest_action)i;
			return 0;
		}
	return expected(option, value,
		"destroy, restart, preserve, rename-restart, coredump-destroy or coredump-restart", error);
}

/* The strings of disk or vif: a list, or one string that stands for a list of one. */
static int device_texts(const struct guest_option *option, const struct value *value, size_t most,
	const struct value **items, size_t *count, struct error *error)
{
	*items = value->kind == VALUE_LIST ? value->items : value;
	*count = value->kind == VALUE_LIST ? value->count : 1;
	if (value->kind == VALUE_STRING && !*value->text)
		*count = 0;
	if (*count > most)
		return place_error(error, &value->place, "%s: expected at most %zu entries, found %zu.",
			option->name, most, *count);
	for (size_t i = 0; i < *count; i++)
		if ((*items)[i].kind != VALUE_STRING)
			return expected(option, &(*items)[i],
				value->kind == VALUE_LIST ? "strings in the list" : "a list of strings",
				error);
	return 0;
}

static int set_disks(const struct guest_option *option, struct guest_config *config,
	const struct value *value, struct error *error)
{
	const struct value *items;
	size_t count;
	int r = device_texts(option, value, GUEST_DISKS_MAX, &items, &count, error);

	if (r < 0)
		return r;
	for (size_t i = 0; i < config->disk_count; i++)
		guest_disk_free(&config->disks[i]);
	free(config->disks);
	config->disk_count = 0;
	config->disks = calloc(count ? count : 1, sizeof(*config->disks));
	if (!config->disks)
		return error_set(error, ENOMEM, "Out of memory.");
	for (size_t i = 0; i < count; i++) {
		struct error why = {0};

		if (guest_disk_parse(&config->disks[i], items[i].text, &why) < 0)
			return place_error(error, &items[i].place, "%s", why.text);
		config->disk_count++;
	}
	return 0;
}

static int set_vifs(const struct guest_option *option, struct guest_config *config, const struct value *value,
	struct error *error)
{
	const struct value *items;
	size_t count;
	int r = device_texts(option, value, GUEST_VIFS_MAX, &items, &count, error);

	if (r < 0)
		return r;
	for (size_t i = 0; i < config->vif_count; i++)
		guest_vif_free(&config->vifs[i]);
	free(config->vifs);
	config->vif_count = 0;
	config->vifs = calloc(GUEST_VIFS_MAX, sizeof(*config->vifs)); /* room for nics= */
	if (!config->vifs)
		return error_set(error, ENOMEM, "Out of memory.");
	for (size_t i = 0; i < count; i++) {
		struct error why = {0};

		if (guest_vif_parse(&config->vifs[i], items[i].text, &why) < 0)
			return place_error(error, &items[i].place, "%s", why.text);
		config->vif_count++;
	}
	return 0;
}

static int set_nics(const struct guest_option *option, struct guest_config *config, const struct value *value,
	struct error *error)
{
	uint64_t count = 0;
	int r = take_number(option, &count, value, error);

	if (r < 0)
		return r;
	if (!config->vifs)
		config->vifs = calloc(GUEST_VIFS_MAX, sizeof(*config->vifs));
	if (!config->vifs)
		return error_set(error, ENOMEM, "Out of memory.");
	if (config->vif_count < count)
		config->vif_count = count;
	return 0;
}

static int set_kept(const struct guest_option *option, struct guest_config *config, const struct value *value,
	struct error *error)
{
	if (!config->kept)
		config->kept = json_object();
	if (!config->kept || json_object_set_new(config->kept, option->name, value_to_json(value)) < 0)
		return error_set(error, ENOMEM, "Out of memory.");
	return 0;
}

int guest_option_set(const struct guest_option *option, struct guest_config *config,
	const struct value *value, struct error *error)
{
	if (value->kind == VALUE_NONE)
		return 0;
	switch (option->kind) {
	case OPTION_NAME:
		return set_name(option, config, value, error);
	case OPTION_UUID:
	case OPTION_TEXT:
	case OPTION_WORD:
	case OPTION_PATH:
	case OPTION_ADDRESS:
		return set_text(option, config, value, error);
	case OPTION_CPUS:
		return set_cpus(option, config, value, error);
	case OPTION_NUMBER:
		return take_number(option, number_of(option, config), value, error);
	case OPTION_ACTION:
		return set_action(option, config, value, error);
	case OPTION_DISKS:
		return set_disks(option, config, value, error);
	case OPTION_VIFS:
		return set_vifs(option, config, value, error);
	case OPTION_NICS:
		return set_nics(option, config, value, error);
	case OPTION_KEPT:
		return set_kept(option, config, value, error);
	}
	return error_set(error, EINVAL, "%s: unknown kind of option.", option->name);
}

static json_t *disks_json(const struct guest_config *config)
{
	json_t *list = config->disk_count ? json_array() : NULL;

	for (size_t i = 0; list && i < config->disk_count; i++) {
		_cleanup_free_ char *text = guest_disk_text(&config->disks[i]);

		json_array_append_new(list, json_string(text));
	}
	return list;
}

static json_t *vifs_json(const struct guest_config *config)
{
	json_t *list = config->vif_count ? json_array() : NULL;

	for (size_t i = 0; list && i < config->vif_count; i++) {
		_cleanup_free_ char *text = guest_vif_text(&config->vifs[i]);

		json_array_append_new(list, json_string(text));
	}
	return list;
}

json_t *guest_option_json(const struct guest_option *option, const struct guest_config *config)
{
	switch (option->kind) {
	case OPTION_NAME:
	case OPTION_UUID:
	case OPTION_TEXT:
	case OPTION_WORD:
	case OPTION_PATH:
	case OPTION_ADDRESS:
	case OPTION_CPUS:
		return json_string(*text_of(option, config)); /* NULL for NULL */
	case OPTION_NUMBER:
		return *number_of(option, config) ? json_integer((json_int_t)*number_of(option, config))
						  : NULL;
	case OPTION_ACTION:
		return json_string(guest_action_name(*action_of(option, config)));
	case OPTION_DISKS:
		return disks_json(config);
	case OPTION_VIFS:
		return vifs_json(config);
	case OPTION_NICS:
		return NULL; /* vif says it */
	case OPTION_KEPT:
		return json_incref(json_object_get(config->kept, option->name));
	}
	return NULL;
}

bool guest_option_is_ineffective(const struct guest_option *option, const struct guest_config *config)
{
	_cleanup_json_ json_t *json = option->without_effect ? guest_option_json(option, config) : NULL;
	_cleanup_value_ struct value value = {0};

	if (option->kind == OPTION_NUMBER && *number_of(option, config) == option->fallback)
		return false;
	if (json_is_string(json) && option->choices) /* the first choice is what happens anyway */
		return strncmp(option->choices, json_string_value(json), json_string_length(json)) != 0;
	if (json && option->kind != OPTION_KEPT)
		return true;
	return json && value_from_json(&value, option->name, json, NULL) >= 0 && value_is_set(&value);
}
