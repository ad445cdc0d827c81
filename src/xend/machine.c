#include "xend/machine.h"
#include "base/cleanup.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>

void machine_files_init(struct machine_files *files)
{
	*files = (struct machine_files){.kvm = -1, .ram = -1, .kernel = -1, .ramdisk = -1, .faults = -1};
	for (unsigned i = 0; i < GUEST_DISKS_MAX; i++)
		files->disks[i] = -1;
	for (unsigned i = 0; i < GUEST_VIFS_MAX; i++)
		files->taps[i] = -1;
}

void machine_files_close(struct machine_files *files)
{
	int *one[] = {&files->kvm, &files->ram, &files->kernel, &files->ramdisk, &files->faults};

	for (unsigned i = 0; i < ARRAY_SIZE(one); i++)
		cleanup_close(one[i]);
	for (unsigned i = 0; i < GUEST_DISKS_MAX; i++)
		cleanup_close(&files->disks[i]);
	for (unsigned i = 0; i < GUEST_VIFS_MAX; i++)
		cleanup_close(&files->taps[i]);
	machine_files_init(files);
}

json_t *message_fds_add(struct message_fds *list, int fd)
{
	list->fds[list->count] = fd;
	return json_pack("{s:i}", "fd", (int)list->count++);
}

int machine_check(const struct guest_config *config, struct error *error)
{
	if (config->memory < MACHINE_MEMORY_MIN)
		return error_set(error, EINVAL,
			"Domain '%s' has memory=%" PRIu64 ", but a guest needs at least %d MiB.",
			config->name, config->memory, MACHINE_MEMORY_MIN);
	if (config->vcpus < 1 || config->vcpus > MACHINE_VCPUS_MAX)
		return error_set(error, EINVAL,
			"Domain '%s' has vcpus=%" PRIu64 ", but a guest can have 1 to %d.", config->name,
			config->vcpus, MACHINE_VCPUS_MAX);
	if (!config->kernel && config->bootloader)
		return error_set(error, EINVAL,
			"Domain '%s' asks for the boot loader %s, which Ferry does not run: name the guest's "
			"kernel= and "
			"ramdisk= instead.",
			config->name, config->bootloader);
	if (config->kernel && strstr(config->kernel, "hvmloader"))
		return error_set(error, EINVAL,
			"Domain '%s' was an HVM guest of Xen, whose firmware %s Ferry does not run: name the "
			"guest's "
			"own kernel= and ramdisk= (files of the host; those in the guest's /boot will do), "
			"and root= "
			"for them.",
			config->name, config->kernel);
	if (!config->kernel)
		return error_set(error, EINVAL,
			"Domain '%s' has no kernel to boot: give kernel= in its configuration.",
			config->name);
	if (config->nfs_root && !config->nfs_server)
		return error_set(
			error, EINVAL, "Domain '%s' has an nfs_root but no nfs_server=.", config->name);
	return 0;
}

void machine_disk_name(unsigned n, char name[8])
{
	snprintf(name, 8, "vd%c", (char)('a' + n % 26));
}

/*
 * The virtio name for a device as Xen named it: the disk itself (sda1 may well be
 * a whole disk to Xen), or a partition of one. false where no disk has that name.
 */
static bool translate_device(const struct guest_config *config, const char *device, char *to, size_t size)
{
	size_t length = strlen(device), digits = length;
	char name[8];

	while (digits > 0 && isdigit((unsigned char)device[digits - 1]))
		digits--;
	for (unsigned pass = 0; pass < 2; pass++) {
		size_t compared = pass ? digits : length;

		for (unsigned i = 0; i < config->disk_count; i++) {
			const char *known = config->disks[i].device;

			if (strlen(known) != compared || strncmp(known, device, compared) != 0)
				continue;
			machine_disk_name(i, name);
			snprintf(to, size, "/dev/%s%s", name, device + compared);
			return true;
		}
	}
	return false;
}

/* Appends one word of a command line, with root=/dev/… translated. */
static void add_word(struct buffer *line, const struct guest_config *config, const char *word, size_t length)
{
	static const char root[] = "root=/dev/";
	char device[64], translated[80];

	if (line->size)
		buffer_u8(line, ' ');
	if (length > strlen(root) && length - strlen(root) < sizeof(device) &&
		strncmp(word, root, strlen(root)) == 0) {
		snprintf(device, sizeof(device), "%.*s", (int)(length - strlen(root)), word + strlen(root));
		if (translate_device(config, device, translated, sizeof(translated))) {
			buffer_append(line, "root=", 5);
			buffer_append(line, translated, strlen(translated));
			return;
		}
	}
	buffer_append(line, word, length);
}

static void add_words(struct buffer *line, const struct guest_config *config, const char *words)
{
	while (*(words += strspn(words, " \t\n"))) {
		size_t length = strcspn(words, " \t\n");

		add_word(line, config, words, length);
		words += length;
	}
}

static const char *or_empty(const char *text)
{
	return text ? text : "";
}

/* ip=client:server:gateway:netmask:hostname:device:autoconf (Linux
 * Documentation/admin-guide/nfs/nfsroot.rst). */
static void add_address(struct buffer *line, const struct guest_config *config)
{
	bool dhcp = config->dhcp && strcmp(config->dhcp, "off") != 0 && strcmp(config->dhcp, "no") != 0;
	_cleanup_free_ char *word = NULL;

	if (!config->ip && !dhcp)
		return;
	if (asprintf(&word, "ip=%s:%s:%s:%s:%s:%s:%s", or_empty(config->ip), or_empty(config->nfs_server),
		    or_empty(config->gateway), or_empty(config->netmask), or_empty(config->hostname),
		    config->interface ? config->interface : "eth0", dhcp ? "dhcp" : "off") < 0)
		line->failed = true;
	else
		add_word(line, config, word, strlen(word));
}

char *machine_command_line(const struct guest_config *config)
{
	_cleanup_buffer_ struct buffer line = {0};
	_cleanup_free_ char *root = NULL, *nfs = NULL;

	add_address(&line, config);
	if (config->root && asprintf(&root, "%s%s",
				    strncmp(config->root, "root=", 5) == 0 ? "" : "root=", config->root) < 0)
		return NULL;
	if (root)
		add_words(&line, config, root);
	if (config->nfs_root) {
		if (asprintf(&nfs, "nfsroot=%s:%s", or_empty(config->nfs_server), config->nfs_root) < 0)
			return NULL;
		add_words(&line, config, nfs);
	}
	add_words(&line, config, or_empty(config->extra));
	buffer_u8(&line, 0);
	if (line.failed)
		return NULL;
	return (char *)take_pointer(line.data);
}

static json_t *describe_boot(
	const struct guest_config *config, const struct machine_files *files, struct message_fds *list)
{
	_cleanup_free_ char *line = machine_command_line(config);

	if (!line)
		return NULL;
	return json_pack("{s:o, s:o, s:s}", "kernel", message_fds_add(list, files->kernel), "ramdisk",
		files->ramdisk >= 0 ? message_fds_add(list, files->ramdisk) : json_null(), "cmdline", line);
}

static json_t *describe_disks(
	const struct guest_config *config, const struct machine_files *files, struct message_fds *list)
{
	bool discard = !config->disk_discard || strcmp(config->disk_discard, "off") != 0;
	bool full_is_error = config->on_disk_full && strcmp(config->on_disk_full, "error") == 0;
	json_t *disks = json_array();

	for (unsigned i = 0; i < config->disk_count; i++) {
		const struct guest_disk *disk = &config->disks[i];
		json_t *one = json_pack("{s:i, s:o, s:b, s:s, s:b, s:b}", "slot",
			MACHINE_FIRST_DISK_SLOT + (int)i, "image",
			files->disks[i] < 0 ? json_null() : message_fds_add(list, files->disks[i]),
			"read_only", disk->mode == DISK_READ_ONLY, "serial", disk->device, "discard", discard,
			"full_is_error", full_is_error);

		if (json_array_append_new(disks, one) < 0) {
			json_decref(disks);
			return NULL;
		}
	}
	return disks;
}

static json_t *describe_nets(
	const struct guest_config *config, const struct machine_files *files, struct message_fds *list)
{
	json_t *nets = json_array();

	for (unsigned i = 0; i < config->vif_count; i++) {
		const uint8_t *m = config->vifs[i].mac;
		char mac[18];
		json_t *one;

		snprintf(mac, sizeof(mac), "%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4],
			m[5]);
		one = json_pack("{s:i, s:o, s:s}", "slot", MACHINE_FIRST_NET_SLOT + (int)i, "tap",
			message_fds_add(list, files->taps[i]), "mac", mac);
		if (json_array_append_new(nets, one) < 0) {
			json_decref(nets);
			return NULL;
		}
	}
	return nets;
}

json_t *machine_describe(const struct guest_config *config, const struct machine_files *files, bool incoming,
	uint64_t console_limit_kib, struct message_fds *list)
{
	json_t *kvm = message_fds_add(list, files->kvm), *ram = message_fds_add(list, files->ram);
	json_t *boot = incoming ? json_null() : describe_boot(config, files, list);
	json_t *faults = files->faults >= 0 ? message_fds_add(list, files->faults) : json_null();
	json_t *disks = describe_disks(config, files, list), *nets = describe_nets(config, files, list);

	return json_pack("{s:s, s:s, s:s*, s:s*, s:I, s:I, s:b, s:b, s:o, s:o, s:o, s:o, s:o, s:o, s:I}",
		"name", config->name, "uuid", config->uuid, "generation",
		*files->generation ? files->generation : NULL, "clock_over_pause", config->clock_over_pause,
		"memory_mib", (json_int_t)config->memory, "vcpus", (json_int_t)config->vcpus, "incoming",
		incoming, "shared", files->shared, "kvm", kvm, "ram", ram, "faults", faults, "boot", boot,
		"disks", disks, "nets", nets, "console_limit_kib", (json_int_t)console_limit_kib);
}
