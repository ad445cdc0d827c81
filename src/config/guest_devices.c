/* Entries of disk=[…] and vif=[…]. */
#include "config/guest_config.h"

#include "base/cleanup.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define SCRIPTS_DIRECTORY "/etc/xen/scripts/"
#define FIELDS_MAX 32

static const struct {
	const char *prefix;
	enum disk_kind kind;
	bool absolute; /* else the path is below /dev where it has no / */
} disk_prefixes[] = {
	{"file:", DISK_FILE, true},
	{"phy:", DISK_PHY, false},
	{"tap:aio:", DISK_TAP, true},
	{"tap:sync:", DISK_TAP, true},
	{"tap2:aio:", DISK_TAP, true},
	{"tap2:sync:", DISK_TAP, true},
};

static const char *const disk_modes[] = {
	[DISK_READ_ONLY] = "r", [DISK_WRITE] = "w", [DISK_WRITE_SHARED] = "w!"};

static int no_memory(struct error *error)
{
	return error_set(error, ENOMEM, "Out of memory.");
}

static int check_line(const char *what, const char *text, struct error *error)
{
	for (const char *c = text; *c; c++)
		if ((unsigned char)*c < ' ' || *c == 0x7f)
			return error_set(error, EINVAL,
				"%s: expected text in one line, found the control character 0x%02x in it.",
				what, (unsigned char)*c);
	return strlen(text) <= 4096 ? 0
				    : error_set(error, EINVAL, "%s: expected at most 4096 bytes, found %zu.",
					      what, strlen(text));
}

/* Cuts the text at its commas, in place, and the blanks around each piece. */
static size_t split(char *text, char *fields[static FIELDS_MAX])
{
	size_t count = 0;

	while (text && count < FIELDS_MAX) {
		char *field = strsep(&text, ",");
		size_t size;

		while (*field == ' ')
			field++;
		size = strlen(field);
		while (size && field[size - 1] == ' ')
			field[--size] = '\0';
		fields[count++] = field;
	}
	return text ? FIELDS_MAX + 1 : count;
}

static char *trim(char *field)
{
	size_t size;

	while (*field == ' ')
		field++;
	size = strlen(field);
	while (size && field[size - 1] == ' ')
		field[--size] = '\0';
	return field;
}

static bool is_this_host(const char *field)
{
	return strcmp(field, "0") == 0 || strcmp(field, "Domain-0") == 0;
}

/*
 * The words of a disk, in place: target, device, mode and perhaps the domain that has it. A path may have
 * commas, so that they are counted from the end.
 */
static size_t split_disk(char *text, char *fields[static 4])
{
	char *words[4] = {NULL};
	size_t count = 0, wanted = 3;

	for (char *comma; count < wanted && (comma = strrchr(text, ',')); count++) {
		*comma = '\0';
		words[count] = trim(comma + 1);
		if (count == 0 && !is_this_host(words[0]))
			wanted = 2;
	}
	fields[0] = trim(text);
	for (size_t i = 0; i < count; i++)
		fields[i + 1] = words[count - 1 - i];
	return count + 1;
}

/* A path in quotes, with backslashes as in Python, in place. */
static int unquote(char *path, const char *text, struct error *error)
{
	char quote = *path, *to = path;
	const char *from = path + 1;

	while (*from && *from != quote) {
		if (*from == '\\' && from[1])
			from++;
		*to++ = *from++;
	}
	if (*from != quote || from[1])
		return error_set(error, EINVAL,
			"disk '%s': expected %c at the end of the path and only there.", text, quote);
	*to = '\0';
	return 0;
}

/* PREFIX:TARGET */
static int parse_target(struct guest_disk *disk, char *field, const char *text, struct error *error)
{
	char *target = NULL;
	bool absolute = true;

	for (size_t i = 0; i < ARRAY_SIZE(disk_prefixes) && !target; i++)
		if (!strncmp(field, disk_prefixes[i].prefix, strlen(disk_prefixes[i].prefix))) {
			target = field + strlen(disk_prefixes[i].prefix);
			disk->kind = disk_prefixes[i].kind;
			absolute = disk_prefixes[i].absolute;
		}
	if (!target && (!strncmp(field, "tap:", 4) || !strncmp(field, "tap2:", 5)))
		return error_set(error, EINVAL,
			"disk '%s': expected tap:aio:, found '%s': only raw images can be used (qemu-img "
			"convert -O raw "
			"makes one).",
			text, field);
	if (!target)
		return error_set(error, EINVAL,
			"disk '%s': expected file:, phy: or tap:aio: before the path, found '%s'.", text,
			field);
	if (*target == '"' || *target == '\'') {
		int r = unquote(target, text, error);

		if (r < 0)
			return r;
	}
	if (!*target)
		return error_set(error, EINVAL, "disk '%s': expected a path after '%s'.", text, field);
	if (*target != '/' && absolute)
		return error_set(error, EINVAL,
			"disk '%s': expected a path that begins with '/', found '%s'.", text, target);
	if (asprintf(&disk->target, "%s%s", *target == '/' ? "" : "/dev/", target) < 0) {
		disk->target = NULL;
		return no_memory(error);
	}
	return 0;
}

static bool is_device_name(const char *name)
{
	static const char *const families[] = {"xvd", "sd", "hd", "vd"};

	for (size_t i = 0; i < ARRAY_SIZE(families); i++) {
		size_t at = strlen(families[i]), letters, digits;

		if (strncmp(name, families[i], at) != 0)
			continue;
		letters = strspn(name + at, "abcdefghijklmnopqrstuvwxyz");
		digits = strspn(name + at + letters, "0123456789");
		return letters >= 1 && letters <= 2 && digits <= 2 && !name[at + letters + digits];
	}
	return false;
}

/* VDEV[:cdrom] */
static int parse_device(struct guest_disk *disk, char *field, const char *text, struct error *error)
{
	char *kind = strchr(field, ':');

	if (!strncmp(field, "ioemu:", 6)) { /* hvm guests' way to say that QEMU emulates it */
		field += 6;
		kind = strchr(field, ':');
	}
	if (kind)
		*kind++ = '\0';
	if (kind && strcmp(kind, "cdrom") != 0 && strcmp(kind, "disk") != 0)
		return error_set(error, EINVAL, "disk '%s': expected cdrom or disk after '%s:', found '%s'.",
			text, field, kind);
	if (!strncmp(field, "/dev/", 5))
		field += 5;
	if (!is_device_name(field))
		return error_set(error, EINVAL,
			"disk '%s': expected a device such as xvda, sda1 or hdc as the second word, found "
			"'%s'.",
			text, field);
	disk->cdrom = kind && !strcmp(kind, "cdrom");
	disk->device = strdup(field);
	return disk->device ? 0 : no_memory(error);
}

static int parse_mode(struct guest_disk *disk, const char *field, const char *text, struct error *error)
{
	static const char *const others[] = {"ro", "rw", "w+"}; /* as xend has always read them */

	for (size_t i = 0; i < ARRAY_SIZE(disk_modes); i++)
		if (!strcmp(field, disk_modes[i]) || !strcmp(field, others[i])) {
			disk->mode = (enum disk_mode)i;
			return 0;
		}
	return error_set(error, EINVAL,
		"disk '%s': expected the mode r, w or w! as the third word, found '%s'.", text, field);
}

/* A drive that is empty. */
static int no_medium(struct guest_disk *disk, struct error *error)
{
	disk->kind = DISK_PHY;
	disk->target = strdup("");
	return disk->target ? 0 : no_memory(error);
}

int guest_disk_parse(struct guest_disk *disk, const char *text, struct error *error)
{
	_cleanup_free_ char *copy = strdup(text);
	_cleanup_(guest_disk_free) struct guest_disk parsed = {0};
	char *fields[4];
	size_t count;
	int r;

	if (!copy)
		return no_memory(error);
	r = check_line("disk", text, error);
	if (r < 0)
		return r;
	count = split_disk(copy, fields);
	if (count < 3)
		return error_set(error, EINVAL,
			"disk '%s': expected three words with commas between them, as in "
			"phy:/dev/vg/guest,xvda,w; found %zu.",
			text, count);
	r = *fields[0] ? parse_target(&parsed, fields[0], text, error) : no_medium(&parsed, error);
	if (r >= 0)
		r = parse_device(&parsed, fields[1], text, error);
	if (r >= 0)
		r = parse_mode(&parsed, fields[2], text, error);
	if (r >= 0 && !*parsed.target && (!parsed.cdrom || parsed.mode != DISK_READ_ONLY))
		r = error_set(error, EINVAL,
			"disk '%s': expected file:, phy: or tap:aio: and a path before the device; only a "
			"drive that is "
			"empty, as in ,xvdb:cdrom,r, has none.",
			text);
	if (r < 0)
		return r;
	*disk = parsed;
	parsed = (struct guest_disk){0};
	return 0;
}

static const char *const prefixes[] = {[DISK_FILE] = "file:", [DISK_PHY] = "phy:", [DISK_TAP] = "tap:aio:"};

char *guest_disk_text(const struct guest_disk *disk)
{
	bool plain = !strpbrk(disk->target, ",\"'\\") &&
		     (!*disk->target || disk->target[strlen(disk->target) - 1] != ' ');
	_cleanup_buffer_ struct buffer out = {0};

	if (*disk->target)
		buffer_append(&out, prefixes[disk->kind], strlen(prefixes[disk->kind]));
	if (!plain)
		buffer_u8(&out, '"');
	for (const char *c = disk->target; *c; c++) {
		if (!plain && (*c == '"' || *c == '\\'))
			buffer_u8(&out, '\\');
		buffer_u8(&out, (uint8_t)*c);
	}
	if (!plain)
		buffer_u8(&out, '"');
	buffer_u8(&out, ',');
	buffer_append(&out, disk->device, strlen(disk->device));
	if (disk->cdrom)
		buffer_append(&out, ":cdrom", 6);
	buffer_u8(&out, ',');
	buffer_append(&out, disk_modes[disk->mode], strlen(disk_modes[disk->mode]) + 1);
	return out.failed ? NULL : (char *)take_pointer(out.data);
}

char *guest_disk_uname(const struct guest_disk *disk)
{
	char *uname;

	return asprintf(&uname, "%s%s", *disk->target ? prefixes[disk->kind] : "", disk->target) < 0 ? NULL
												     : uname;
}

void guest_disk_free(struct guest_disk *disk)
{
	free(disk->target);
	free(disk->device);
	*disk = (struct guest_disk){0};
}

static int bad_word(
	const char *text, const char *key, const char *expected, const char *found, struct error *error)
{
	return error_set(
		error, EINVAL, "vif '%s': expected %s after %s=, found '%s'.", text, expected, key, found);
}

/* Six bytes in hexadecimal; not a group address and not all zero. */
static int parse_mac(struct guest_vif *vif, const char *word, const char *text, struct error *error)
{
	const char *at = word;
	bool any = false;

	for (size_t i = 0; i < 6; i++) {
		unsigned byte = 0, digits = 0;

		for (; digits < 2 && isxdigit((unsigned char)*at); digits++, at++)
			byte = byte * 16 + (unsigned)(isdigit((unsigned char)*at)
							      ? *at - '0'
							      : tolower((unsigned char)*at) - 'a' + 10);
		if (!digits || (i < 5 ? *at != ':' && *at != '-' : *at != '\0'))
			return bad_word(text, "mac", "six bytes such as 00:16:3e:55:9d:b0", word, error);
		at += i < 5;
		vif->mac[i] = (uint8_t)byte;
		any = any || byte;
	}
	if (!any || (vif->mac[0] & 1))
		return bad_word(text, "mac", "the address of one interface, not of a group,", word, error);
	vif->has_mac = true;
	return 0;
}

/* 10Mb/s or 1MB/s, with Xen's replenishment interval after @, which Ferry does not need. */
static int parse_rate(struct guest_vif *vif, const char *word, const char *text, struct error *error)
{
	static const struct {
		const char *unit;
		uint64_t numerator, denominator; /* of bytes per second */
	} units[] = {{"Gb/s", 1000000000, 8}, {"Mb/s", 1000000, 8}, {"Kb/s", 1000, 8}, {"b/s", 1, 8},
		{"GB/s", 1000000000, 1}, {"MB/s", 1000000, 1}, {"KB/s", 1000, 1}, {"B/s", 1, 1}};
	char *end = NULL;
	unsigned long number = isdigit((unsigned char)*word) ? strtoul(word, &end, 10) : 0;

	for (size_t i = 0; end && number && number <= 1000000000 && i < ARRAY_SIZE(units); i++) {
		size_t length = strlen(units[i].unit);

		if (strncmp(end, units[i].unit, length) != 0 || (end[length] && end[length] != '@'))
			continue;
		vif->rate_bytes_per_second = number * units[i].numerator / units[i].denominator;
		vif->rate = strdup(word);
		return vif->rate ? 0 : no_memory(error);
	}
	return bad_word(text, "rate", "a rate such as 10Mb/s or 1MB/s", word, error);
}

static bool is_interface_name(const char *word)
{
	size_t length = strlen(word);

	return length && length <= 15 && strcmp(word, ".") != 0 && strcmp(word, "..") != 0 &&
	       strspn(word, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-@") == length;
}

static bool is_script(const char *word)
{
	return *word && *word != '.' && *word != '-' &&
	       strspn(word, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") ==
		       strlen(word);
}

/* One or more addresses, each perhaps with /prefix length, separated by blanks. */
static bool is_address_list(const char *word)
{
	_cleanup_free_ char *copy = strdup(word);
	char *rest = copy, *item;
	uint8_t address[16];

	while (copy && (item = strsep(&rest, " "))) {
		char *slash = strchr(item, '/');

		if (slash) {
			*slash++ = '\0';
			if (!*slash || strlen(slash) > 3 || strspn(slash, "0123456789") != strlen(slash))
				return false;
		}
		if (inet_pton(AF_INET, item, address) != 1 && inet_pton(AF_INET6, item, address) != 1)
			return false;
	}
	return copy && *word;
}

static bool is_plain_word(const char *word)
{
	return *word && strlen(word) <= 64;
}

static const struct vif_key {
	const char *name;
	int (*parse)(struct guest_vif *vif, const char *word, const char *text, struct error *error);
	bool (*is_valid)(const char *word); /* where the word is kept as it is, at `offset` */
	size_t offset;
	const char *expected;
} vif_keys[] = {
	{"mac", .parse = parse_mac},
	{"bridge", NULL, is_interface_name, offsetof(struct guest_vif, bridge), "the name of a bridge"},
	{"ip", NULL, is_address_list, offsetof(struct guest_vif, ip), "an IP address"},
	{"script", NULL, is_script, offsetof(struct guest_vif, script), "a file in " SCRIPTS_DIRECTORY},
	{"vifname", NULL, is_interface_name, offsetof(struct guest_vif, vifname),
		"a name for the interface of at most 15 characters"},
	{"model", NULL, is_plain_word, offsetof(struct guest_vif, model), "a word"},
	{"type", NULL, is_plain_word, offsetof(struct guest_vif, type), "a word"},
	{"rate", .parse = parse_rate}, {"backend"}, {"accel"}, {"policy"},
	{"label"}, /* Xen's, with nothing behind them here */
};

static int parse_vif_word(
	struct guest_vif *vif, char *word, const char *text, uint32_t *seen, struct error *error)
{
	char *value = strchr(word, '=');
	const struct vif_key *key = NULL;
	size_t length = strlen(SCRIPTS_DIRECTORY);
	char **member;

	if (!value)
		return error_set(error, EINVAL, "vif '%s': expected KEY=VALUE, found '%s'.", text, word);
	*value++ = '\0';
	for (size_t i = 0; i < ARRAY_SIZE(vif_keys); i++)
		if (!strcmp(word, vif_keys[i].name))
			key = &vif_keys[i];
	if (!key)
		return error_set(error, EINVAL,
			"vif '%s': expected mac=, bridge=, ip=, script=, vifname=, rate=, model= or type=, "
			"found '%s='.",
			text, word);
	if (*seen & 1U << (key - vif_keys))
		return error_set(error, EINVAL, "vif '%s': '%s=' is there twice.", text, word);
	*seen |= 1U << (key - vif_keys);
	if (key->parse)
		return key->parse(vif, value, text, error);
	if (!key->is_valid)
		return 0;
	if (key->offset == offsetof(struct guest_vif, script) && !strncmp(value, SCRIPTS_DIRECTORY, length))
		value += length;
	if (!key->is_valid(value))
		return bad_word(text, word, key->expected, value, error);
	member = (char **)((char *)vif + key->offset);
	*member = strdup(value);
	return *member ? 0 : no_memory(error);
}

int guest_vif_parse(struct guest_vif *vif, const char *text, struct error *error)
{
	_cleanup_free_ char *copy = strdup(text);
	_cleanup_(guest_vif_free) struct guest_vif parsed = {0};
	char *fields[FIELDS_MAX];
	uint32_t seen = 0;
	size_t count;
	int r;

	if (!copy)
		return no_memory(error);
	r = check_line("vif", text, error);
	if (r < 0)
		return r;
	count = split(copy, fields);
	if (count > FIELDS_MAX)
		return error_set(error, EINVAL, "vif '%.80s…': expected at most %d words.", text, FIELDS_MAX);
	if (count == 1 && !*fields[0])
		count = 0; /* '' is an interface with everything drawn or configured */
	for (size_t i = 0; i < count; i++) {
		r = parse_vif_word(&parsed, fields[i], text, &seen, error);
		if (r < 0)
			return r;
	}
	*vif = parsed;
	parsed = (struct guest_vif){0};
	return 0;
}

char *guest_vif_text(const struct guest_vif *vif)
{
	_cleanup_buffer_ struct buffer out = {0};
	char mac[32];

	if (vif->has_mac) {
		snprintf(mac, sizeof(mac), "mac=%02x:%02x:%02x:%02x:%02x:%02x", vif->mac[0], vif->mac[1],
			vif->mac[2], vif->mac[3], vif->mac[4], vif->mac[5]);
		buffer_append(&out, mac, strlen(mac));
	}
	for (size_t i = 0; i < ARRAY_SIZE(vif_keys); i++) {
		const char *value = vif_keys[i].is_valid
					    ? *(char *const *)((const char *)vif + vif_keys[i].offset)
				    : vif_keys[i].parse == parse_rate ? vif->rate
								      : NULL;

		if (!value)
			continue;
		if (out.size)
			buffer_append(&out, ", ", 2);
		buffer_append(&out, vif_keys[i].name, strlen(vif_keys[i].name));
		buffer_u8(&out, '=');
		buffer_append(&out, value, strlen(value));
	}
	buffer_u8(&out, 0);
	return out.failed ? NULL : (char *)take_pointer(out.data);
}

void guest_vif_free(struct guest_vif *vif)
{
	free(vif->bridge);
	free(vif->ip);
	free(vif->script);
	free(vif->vifname);
	free(vif->model);
	free(vif->type);
	free(vif->rate);
	*vif = (struct guest_vif){0};
}
