#include "state/description.h"
#include "base/cleanup.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int uuid_from_text(const char *text, uint8_t uuid[16])
{
	static const char digits[] = "0123456789abcdef";
	unsigned nibbles = 0;

	if (!text || strlen(text) != UUID_TEXT_SIZE - 1)
		return -EINVAL;
	memset(uuid, 0, 16);
	for (unsigned i = 0; i < UUID_TEXT_SIZE - 1; i++) {
		bool dash = i == 8 || i == 13 || i == 18 || i == 23;
		const char *digit = strchr(digits, text[i] | 0x20);

		if (dash != (text[i] == '-') || (!dash && !digit))
			return -EINVAL;
		if (dash)
			continue;
		uuid[nibbles / 2] = (uint8_t)(uuid[nibbles / 2] << 4 | (digit - digits));
		nibbles++;
	}
	return 0;
}

void uuid_to_text(const uint8_t uuid[16], char text[UUID_TEXT_SIZE])
{
	static const char digits[] = "0123456789abcdef";

	for (unsigned i = 0, at = 0; i < 16; i++) {
		if (i == 4 || i == 6 || i == 8 || i == 10)
			text[at++] = '-';
		text[at++] = digits[uuid[i] >> 4];
		text[at++] = digits[uuid[i] & 15];
	}
	text[UUID_TEXT_SIZE - 1] = '\0';
}

static int domain_check(const json_t *domain, uint64_t ram_size, struct error *error)
{
	const char *name = json_string_value(json_object_get(domain, "name"));
	const char *uuid = json_string_value(json_object_get(domain, "uuid"));
	json_int_t mebibytes = json_integer_value(json_object_get(domain, "memory_mib"));
	uint8_t bytes[16];

	if (!name || !*name)
		return error_set(error, EINVAL, "The description of the guest has no name.");
	if (uuid_from_text(uuid, bytes) < 0)
		return error_set(error, EINVAL, "The description of guest '%s' has no valid uuid.", name);
	if (mebibytes <= 0 || (uint64_t)mebibytes > UINT64_MAX >> 20 || (uint64_t)mebibytes << 20 != ram_size)
		return error_set(error, EINVAL,
			"The description of guest '%s' says %lld MiB of memory, but there are %llu.", name,
			(long long)mebibytes, (unsigned long long)(ram_size >> 20));
	return 0;
}

static int check_size(const json_t *description, struct error *error)
{
	if (description && json_dumpb(description, NULL, 0, JSON_COMPACT) <= DESCRIPTION_MAX)
		return 0;
	return error_set(error, E2BIG,
		"The guest's configuration is too large to travel with it (more than %u KiB).",
		DESCRIPTION_MAX >> 10);
}

int description_add_disks(json_t *description, json_t *disks, struct error *error)
{
	if (!json_is_array(disks))
		return 0;
	if (json_object_set(description, "disks", disks) < 0)
		return error_set(error, ENOMEM, "Out of memory.");
	return check_size(description, error);
}

json_t *description_new(json_t *domain, json_t *regions, uint64_t ram_size, struct error *error)
{
	_cleanup_json_ json_t *description = NULL;
	char host[256] = "";

	if (domain_check(domain, ram_size, error) < 0)
		return NULL;
	if (gethostname(host, sizeof(host) - 1) < 0)
		host[0] = '\0';
	description = json_pack("{s:O, s:O, s:s, s:s}", "domain", domain, "regions", regions, "taken_on",
		host, "program", "ferry " FERRY_VERSION);
	return check_size(description, error) < 0 ? NULL : take_pointer(description);
}

static bool region_valid(const json_t *region)
{
	return json_is_integer(json_object_get(region, "gpa")) &&
	       json_is_integer(json_object_get(region, "size")) &&
	       json_is_integer(json_object_get(region, "offset"));
}

json_t *description_parse(const char *text, size_t size, uint64_t ram_size, struct error *error)
{
	_cleanup_json_ json_t *description = json_loadb(text, size, JSON_REJECT_DUPLICATES, NULL);
	const json_t *regions = json_object_get(description, "regions");

	if (!json_is_object(description)) {
		error_set(error, EINVAL, "The description of the guest is not a JSON object.");
		return NULL;
	}
	if (domain_check(json_object_get(description, "domain"), ram_size, error) < 0)
		return NULL;
	for (size_t i = 0; i < json_array_size(regions); i++)
		if (!region_valid(json_array_get(regions, i))) {
			error_set(error, EINVAL,
				"The description of the guest has a memory region without its place.");
			return NULL;
		}
	return take_pointer(description);
}

int description_match_regions(const json_t *description, const json_t *regions, struct error *error)
{
	const json_t *wanted = json_object_get(description, "regions");
	static const char *const members[] = {"gpa", "size", "offset"};
	bool same = json_array_size(wanted) == json_array_size(regions);

	if (!wanted)
		return 0;
	for (size_t i = 0; same && i < json_array_size(wanted); i++)
		for (size_t m = 0; m < ARRAY_SIZE(members); m++)
			same = same &&
			       json_integer_value(json_object_get(json_array_get(wanted, i), members[m])) ==
				       json_integer_value(
					       json_object_get(json_array_get(regions, i), members[m]));
	if (!same)
		return error_set(error, EINVAL,
			"The guest's memory lies at other addresses than this Ferry gives it; use the "
			"version that wrote it.");
	return 0;
}
