#include "xend/saved_disks.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "base/printable.h"
#include "base/sentences.h"
#include "state/saved_disk.h"
#include "xend/errand.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct looking {
	size_t count;
	struct guest_disk *disks; /* only target, device and mode */
	json_t *portraits;        /* made here, or to be compared with: this errand's alone */
	json_t *objections, *warnings;
	bool hurry;
};

static void forget(void *context)
{
	struct looking *looking = context;

	for (size_t i = 0; i < looking->count; i++)
		guest_disk_free(&looking->disks[i]);
	free(looking->disks);
	json_decref(looking->portraits);
	json_decref(looking->objections);
	json_decref(looking->warnings);
	free(looking);
}

static struct looking *looking_new(const struct guest_config *config, json_t *portraits)
{
	struct looking *looking = calloc(1, sizeof(*looking));

	if (!looking) {
		json_decref(portraits);
		return NULL;
	}
	*looking = (struct looking){.disks = calloc(config->disk_count + 1, sizeof(*looking->disks)),
		.portraits = portraits,
		.objections = json_array(),
		.warnings = json_array()};
	for (; looking->disks && looking->count < config->disk_count; looking->count++) {
		struct guest_disk *copy = &looking->disks[looking->count];
		const struct guest_disk *disk = &config->disks[looking->count];

		*copy = (struct guest_disk){
			.target = strdup(disk->target), .device = strdup(disk->device), .mode = disk->mode};
		if (!copy->target || !copy->device)
			break;
	}
	if (looking->count == config->disk_count && looking->disks)
		return looking;
	forget(looking);
	return NULL;
}

static const char *mode_of(const struct guest_disk *disk)
{
	return disk->mode == DISK_READ_ONLY ? "r" : disk->mode == DISK_WRITE ? "w" : "w!";
}

static int portray(void *context, struct error *error)
{
	struct looking *looking = context;
	struct error why;

	(void)error;
	for (size_t i = 0; i < looking->count; i++) {
		const struct guest_disk *disk = &looking->disks[i];
		json_t *portrait = *disk->target ? saved_disk_portray(disk->target, disk->device,
							   mode_of(disk), looking->hurry, &why)
						 : NULL;

		if (!portrait && *disk->target)
			json_array_append_new(looking->warnings, printable_sentence(why.text));
		json_array_append_new(looking->portraits, portrait ? portrait : json_null());
	}
	return 0;
}

static const json_t *portrait_of(const json_t *portraits, const struct guest_disk *disk)
{
	for (size_t i = 0; i < json_array_size(portraits); i++) {
		const json_t *portrait = json_array_get(portraits, i);
		const char *device = json_string_value(json_object_get(portrait, "device"));

		if (device && strcmp(device, disk->device) == 0)
			return portrait;
	}
	return NULL;
}

static int compare(void *context, struct error *error)
{
	struct looking *looking = context;

	(void)error;
	for (size_t i = 0; i < looking->count; i++) {
		const struct guest_disk *disk = &looking->disks[i];
		const json_t *portrait = portrait_of(looking->portraits, disk);
		enum saved_disk_verdict verdict = SAVED_DISK_UNKNOWN;
		struct error why;

		if (!*disk->target) /* a drive that is empty */
			continue;
		if (saved_disk_compare(disk->target, disk->device, portrait, &verdict, &why) < 0 ||
			verdict == SAVED_DISK_CHANGED)
			json_array_append_new(looking->objections, printable_sentence(why.text));
		else if (verdict == SAVED_DISK_ODD)
			json_array_append_new(looking->warnings, printable_sentence(why.text));
	}
	return 0;
}

static void log_all(const json_t *sentences)
{
	for (size_t i = 0; i < json_array_size(sentences); i++)
		log_warning("%s", json_string_value(json_array_get(sentences, i)));
}

json_t *saved_disks_portray(struct xend *xend, const struct guest_config *config, bool hurry, int cancel)
{
	const struct errand errand = {.run = portray, .late = forget};
	struct looking *looking = looking_new(config, json_array());
	struct error error = {0};
	json_t *portraits;
	int r;

	if (!looking)
		return NULL;
	looking->hurry = hurry;
	r = errand_run(xend, &errand, &looking, cancel, &error);
	if (!looking || r < 0) {
		log_warning("The checkpoint of domain '%s' says nothing of its disks: %s", config->name,
			error.text);
		if (looking)
			forget(looking);
		return NULL;
	}
	log_all(looking->warnings);
	portraits = json_incref(looking->portraits);
	forget(looking);
	return portraits;
}

static int judge(
	const struct looking *looking, const struct guest_config *config, bool accepted, struct error *error)
{
	log_all(looking->warnings);
	if (json_array_size(looking->objections) == 0)
		return 0;
	if (!accepted)
		return sentences_refused(error, "This host", looking->objections);
	log_warning("Domain '%s' is restored all the same, as was asked for:", config->name);
	log_all(looking->objections);
	return 0;
}

int saved_disks_compare(struct xend *xend, const struct guest_config *config, const json_t *portraits,
	bool accepted, int cancel, struct error *error)
{
	const struct errand errand = {.run = compare, .late = forget};
	struct looking *looking;
	int r;

	if (config->disk_count == 0)
		return 0;
	if (!json_is_array(portraits)) {
		log_info("The checkpoint of domain '%s' says nothing of its disks: whether they were written "
			 "since, "
			 "only you know.",
			config->name);
		return 0;
	}
	looking = looking_new(config, json_deep_copy(portraits));
	if (!looking)
		return error_set(error, ENOMEM, "Out of memory.");
	r = errand_run(xend, &errand, &looking, cancel, error);
	if (!looking)
		return r == -ETIMEDOUT ? error_prefix(error, "Unable to look at disk %s%s of domain '%s': ",
						 config->disks[0].target,
						 config->disk_count > 1 ? " and others" : "", config->name)
				       : r;
	if (r >= 0)
		r = judge(looking, config, accepted, error);
	forget(looking);
	return r;
}
