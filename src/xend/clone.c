#include "xend/clone.h"
#include "base/cleanup.h"

#include <errno.h>
#include <string.h>

static int no_memory(struct error *error)
{
	return error_set(error, ENOMEM, "Out of memory.");
}

static int set_text(char **text, const char *value, struct error *error)
{
	char *copy = value ? strdup(value) : NULL;

	if (value && !copy)
		return no_memory(error);
	free(*text);
	*text = copy;
	return 0;
}

/* As many as the guest has: it would miss one, and not find another. */
static int check_count(const json_t *given, const char *what, size_t count, struct error *error)
{
	if (json_is_array(given) && json_array_size(given) == count)
		return 0;
	return error_set(error, EINVAL,
		"%s= must list all of the guest's: the checkpoint's guest has %zu, and %zu are given.", what,
		count, json_array_size(given));
}

static int replace_disks(struct guest_config *config, const json_t *given, struct error *error)
{
	int r = check_count(given, "disk", config->disk_count, error);

	for (size_t i = 0; r >= 0 && i < config->disk_count; i++) {
		const char *text = json_string_value(json_array_get(given, i));
		struct guest_disk disk = {0}, *old = &config->disks[i];

		r = guest_disk_parse(&disk, text ? text : "", error);
		if (r >= 0 && (disk.mode == DISK_READ_ONLY) != (old->mode == DISK_READ_ONLY))
			r = error_set(error, EINVAL,
				"Disk %s was %s in the checkpoint, and its guest relies on that: give it so.",
				old->device, old->mode == DISK_READ_ONLY ? "read-only (r)" : "writable (w)");
		if (r >= 0)
			r = set_text(&disk.device, old->device, error);
		if (r < 0) {
			guest_disk_free(&disk);
			return r;
		}
		guest_disk_free(old);
		*old = disk;
	}
	return r;
}

static int refuse_written_disks(const struct guest_config *config, struct error *error)
{
	for (size_t i = 0; i < config->disk_count; i++)
		if (config->disks[i].mode != DISK_READ_ONLY)
			return error_set(error, EBUSY,
				"A clone cannot have disk %s (%s): the guest that it is a clone of writes to "
				"it. Give the clone copies of the disks, as they were when the checkpoint "
				"was "
				"taken: disk=['file:/path/of/copy,%s,w'].",
				config->disks[i].target, config->disks[i].device, config->disks[i].device);
	return 0;
}

static int replace_vifs(struct guest_config *config, const json_t *given, struct error *error)
{
	int r = check_count(given, "vif", config->vif_count, error);

	for (size_t i = 0; r >= 0 && i < config->vif_count; i++) {
		const char *text = json_string_value(json_array_get(given, i));
		struct guest_vif vif = {0};

		r = guest_vif_parse(&vif, text ? text : "", error);
		if (r < 0) {
			guest_vif_free(&vif);
			return r;
		}
		guest_vif_free(&config->vifs[i]);
		config->vifs[i] = vif;
	}
	return r;
}

/* guest_config_complete draws the MACs. */
static void renew_vifs(struct guest_config *config)
{
	for (size_t i = 0; i < config->vif_count; i++) {
		config->vifs[i].has_mac = false;
		free(take_pointer(config->vifs[i].vifname));
	}
}

int clone_config(struct guest_config *config, const struct clone_options *options, struct error *error)
{
	int r = guest_name_check(options->name, error);

	if (r >= 0)
		r = set_text(&config->name, options->name, error);
	if (r >= 0)
		r = set_text(&config->uuid, NULL, error);
	if (r >= 0)
		r = options->disk ? replace_disks(config, options->disk, error)
				  : refuse_written_disks(config, error);
	if (r >= 0 && options->vif)
		r = replace_vifs(config, options->vif, error);
	else if (r >= 0)
		renew_vifs(config);
	return r < 0 ? r : guest_config_complete(config, error);
}
