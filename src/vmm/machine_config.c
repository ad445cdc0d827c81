#include "vmm/machine_config.h"
#include "base/cleanup.h"
#include "base/raw_bytes.h"
#include "vmm/kvm.h"
#include "vmm/pci.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define MEMORY_MIB_LEAST 16
#define MEMORY_MIB_MOST (16 << 20) /* 16 TiB */
#define CONSOLE_KIB_MOST (16 << 10)

static int wrong(struct error *error, const char *what)
{
	return error_set(error, EINVAL, "The machine's description is wrong: %s.", what);
}

static bool copy_text(char *to, size_t size, const char *from)
{
	return (size_t)snprintf(to, size, "%s", from) < size;
}

static int take(struct message *message, const json_t *object, const char *key, int *fd, struct error *error)
{
	int r = message_take_fd(message, object, key, error);

	if (r == -ENOENT)
		return error_set(error, EINVAL, "The machine's description is wrong: it lacks '%s'.", key);
	*fd = r < 0 ? -1 : r;
	return r < 0 ? r : 0;
}

static bool slot_free(const struct machine_config *config, int slot)
{
	if (slot < 1 || slot >= PCI_SLOTS)
		return false;
	for (unsigned i = 0; i < config->disk_count; i++)
		if (config->disks[i].slot == (unsigned)slot)
			return false;
	for (unsigned i = 0; i < config->net_count; i++)
		if (config->nets[i].slot == (unsigned)slot)
			return false;
	return true;
}

static int parse_disk(
	struct machine_config *config, struct message *message, json_t *object, struct error *error)
{
	struct disk_config disk = {.image = -1};
	const char *serial = "";
	int slot, read_only = 0, discard = 1, full_is_error = 0, r;
	json_error_t reason;

	if (json_unpack_ex(object, &reason, 0, "{s:i, s?b, s?s, s?b, s?b}", "slot", &slot, "read_only",
		    &read_only, "serial", &serial, "discard", &discard, "full_is_error", &full_is_error) < 0)
		return wrong(error, reason.text);
	if (!slot_free(config, slot) || config->disk_count == MACHINE_DISKS_MAX)
		return wrong(error, "a disk's slot is taken or out of range, or there are too many disks");
	if (!copy_text(disk.serial, sizeof(disk.serial), serial))
		return wrong(error, "a disk's serial number has over 20 characters");
	disk.slot = (unsigned)slot;
	disk.read_only = read_only;
	disk.no_discard = !discard;
	disk.full_is_error = full_is_error;
	if (json_is_null(json_object_get(object, "image"))) {
		disk.read_only = true; /* a drive that is empty */
		r = 0;
	} else {
		r = take(message, object, "image", &disk.image, error);
	}
	if (r == 0)
		config->disks[config->disk_count++] = disk;
	return r;
}

static bool parse_mac(const char *text, uint8_t mac[6])
{
	unsigned bytes[6];
	int end = 0;

	if (sscanf(text, "%2x:%2x:%2x:%2x:%2x:%2x%n", &bytes[0], &bytes[1], &bytes[2], &bytes[3], &bytes[4],
		    &bytes[5], &end) != 6 ||
		text[end] != '\0')
		return false;
	for (unsigned i = 0; i < 6; i++)
		mac[i] = (uint8_t)bytes[i];
	return true;
}

static int parse_clock(struct machine_config *config, const json_t *machine, struct error *error)
{
	static const char *const words[] = {
		[CLOCK_CATCH_UP] = "catch-up", [CLOCK_JUMP] = "jump", [CLOCK_STOP] = "stop"};
	const json_t *given = json_object_get(machine, "clock_over_pause");
	const char *word = json_string_value(given);

	if (!given || json_is_null(given))
		return 0;
	for (unsigned i = 0; word && i < ARRAY_SIZE(words); i++)
		if (strcmp(words[i], word) == 0) {
			config->clock_over_pause = (enum clock_over_pause)i;
			return 0;
		}
	return wrong(error, "'clock_over_pause' is neither catch-up, jump nor stop");
}

/* Sixteen bytes, written as a uuid. */
static int parse_generation(struct machine_config *config, const json_t *machine, struct error *error)
{
	const json_t *given = json_object_get(machine, "generation");
	const char *text = json_string_value(given);
	unsigned byte, bytes = 0;
	int length;

	if (!given || json_is_null(given))
		return 0;
	for (; text && *text && bytes < sizeof(config->generation); text += length + (text[length] == '-')) {
		if (strspn(text, "0123456789abcdefABCDEF") < 2 || sscanf(text, "%2x%n", &byte, &length) != 1)
			break;
		config->generation[bytes++] = (uint8_t)byte;
	}
	if (!text || *text || bytes != sizeof(config->generation))
		return wrong(error, "'generation' is no uuid");
	config->has_generation = true;
	return 0;
}

static int parse_net(
	struct machine_config *config, struct message *message, json_t *object, struct error *error)
{
	struct net_config net = {.tap = -1};
	const char *mac;
	json_error_t reason;
	int slot, r;

	if (json_unpack_ex(object, &reason, 0, "{s:i, s:s}", "slot", &slot, "mac", &mac) < 0)
		return wrong(error, reason.text);
	if (!slot_free(config, slot) || config->net_count == MACHINE_NETS_MAX)
		return wrong(
			error, "a network device's slot is taken or out of range, or there are too many");
	if (!parse_mac(mac, net.mac))
		return wrong(error, "a network device's MAC is not six hexadecimal bytes");
	net.slot = (unsigned)slot;
	r = take(message, object, "tap", &net.tap, error);
	if (r == 0)
		config->nets[config->net_count++] = net;
	return r;
}

static int parse_each(struct machine_config *config, struct message *message, const json_t *machine,
	const char *key, int (*parse)(struct machine_config *, struct message *, json_t *, struct error *),
	struct error *error)
{
	json_t *list = json_object_get(machine, key), *object;
	size_t i;
	int r = 0;

	if (list && !json_is_array(list))
		return error_set(
			error, EINVAL, "The machine's description is wrong: '%s' is not a list.", key);
	json_array_foreach(list, i, object)
	{
		r = parse(config, message, object, error);
		if (r < 0)
			break;
	}
	return r;
}

/* What the guest begins with: a kernel, or a state that is to come. */
static int parse_boot(
	struct machine_config *config, struct message *message, const json_t *machine, struct error *error)
{
	json_t *boot = json_object_get(machine, "boot");
	const char *line = json_string_value(json_object_get(boot, "cmdline"));
	int r = 0;

	config->command_line = strdup(line && !config->incoming ? line : "");
	if (!config->command_line)
		return error_set(error, ENOMEM, "Out of memory while reading the machine's description.");
	raw_bytes_of(config->command_line, strlen(config->command_line) + 1);
	if (config->incoming) {
		r = message_take_fd(message, machine, "faults", error);
		config->faults = r < 0 ? -1 : r;
		return r < 0 && r != -ENOENT ? r : 0;
	}
	if (!json_is_object(boot))
		return wrong(error, "it says neither how to boot nor that the guest's state is to come");
	r = take(message, boot, "kernel", &config->kernel, error);
	if (r < 0)
		return r;
	r = message_take_fd(message, boot, "ramdisk", error);
	if (r == -ENOENT)
		return 0;
	config->ramdisk = r < 0 ? -1 : r;
	return r < 0 ? r : 0;
}

static json_t *without_descriptors(json_t *value);

/* An object less the members that name descriptors, which mean nothing to anybody else. */
static json_t *object_without_descriptors(json_t *object)
{
	json_t *copy = json_object();

	for (void *at = json_object_iter(object); at; at = json_object_iter_next(object, at)) {
		json_t *member = json_object_iter_value(at);

		if (!json_object_get(member, "fd"))
			json_object_set_new(copy, json_object_iter_key(at), without_descriptors(member));
	}
	return copy;
}

static json_t *without_descriptors(json_t *value)
{
	json_t *copy;

	if (json_is_object(value))
		return object_without_descriptors(value);
	if (!json_is_array(value))
		return json_incref(value);
	copy = json_array();
	for (size_t i = 0; i < json_array_size(value); i++)
		json_array_append_new(copy, without_descriptors(json_array_get(value, i)));
	return copy;
}

static int parse(
	struct machine_config *config, struct message *message, const json_t *machine, struct error *error)
{
	int memory_mib, vcpus, incoming = 0, shared = 0, console = 1024, r;
	const char *name, *uuid;
	json_error_t reason;

	if (json_unpack_ex((json_t *)machine, &reason, 0, "{s:s, s:s, s:i, s:i, s?b, s?b, s?i}", "name",
		    &name, "uuid", &uuid, "memory_mib", &memory_mib, "vcpus", &vcpus, "incoming", &incoming,
		    "shared", &shared, "console_limit_kib", &console) < 0)
		return wrong(error, reason.text);
	if (!copy_text(config->name, sizeof(config->name), name) ||
		!copy_text(config->uuid, sizeof(config->uuid), uuid))
		return wrong(error, "the name or the UUID is too long");
	if (memory_mib < MEMORY_MIB_LEAST || memory_mib > MEMORY_MIB_MOST)
		return error_set(error, EINVAL, "A guest has at least %d MiB of memory, and not %d MiB.",
			MEMORY_MIB_LEAST, memory_mib);
	if (vcpus < 1 || vcpus > (int)VCPUS_MAX)
		return error_set(
			error, EINVAL, "A guest has 1 to %u processors, and not %d.", VCPUS_MAX, vcpus);
	config->memory_size = (uint64_t)memory_mib << 20;
	config->vcpus = (uint32_t)vcpus;
	config->incoming = incoming;
	config->shared = shared && incoming;
	config->console_limit_kib = console < 0                  ? 0
				    : console > CONSOLE_KIB_MOST ? (unsigned)CONSOLE_KIB_MOST
								 : (unsigned)console;
	r = take(message, machine, "kvm", &config->kvm, error);
	if (r == 0)
		r = take(message, machine, "ram", &config->ram, error);
	if (r == 0)
		r = parse_generation(config, machine, error);
	if (r == 0)
		r = parse_clock(config, machine, error);
	if (r == 0)
		r = parse_boot(config, message, machine, error);
	if (r == 0)
		r = parse_each(config, message, machine, "disks", parse_disk, error);
	if (r == 0)
		r = parse_each(config, message, machine, "nets", parse_net, error);
	return r;
}

int machine_config_parse(
	struct machine_config *config, struct message *message, const json_t *machine, struct error *error)
{
	int r;

	*config = MACHINE_CONFIG_NONE;
	if (!json_is_object(machine))
		return wrong(error, "it is not an object");
	r = parse(config, message, machine, error);
	if (r == 0) {
		config->described = object_without_descriptors((json_t *)machine);
		if (!config->described)
			r = error_set(
				error, ENOMEM, "Out of memory while reading the machine's description.");
	}
	if (r < 0)
		machine_config_free(config);
	return r;
}

void machine_config_free(struct machine_config *config)
{
	cleanup_close(&config->kvm);
	cleanup_close(&config->ram);
	cleanup_close(&config->kernel);
	cleanup_close(&config->ramdisk);
	cleanup_close(&config->faults);
	for (unsigned i = 0; i < config->disk_count; i++)
		cleanup_close(&config->disks[i].image);
	for (unsigned i = 0; i < config->net_count; i++)
		cleanup_close(&config->nets[i].tap);
	free(config->command_line);
	json_decref(config->described);
	*config = MACHINE_CONFIG_NONE;
}
