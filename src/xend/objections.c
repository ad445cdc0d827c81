#include "xend/objections.h"
#include "base/cleanup.h"
#include "xend/disk_portrait.h"
#include "xend/disks.h"
#include "xend/guest.h"
#include "xend/network.h"
#include "xend/processor.h"

#include <errno.h>
#include <inttypes.h>

static json_t *portray_disks(const struct guest_config *config)
{
	json_t *portraits = json_array();

	for (size_t i = 0; i < config->disk_count; i++) {
		json_t *portrait = disk_portrait(&config->disks[i]);

		json_array_append_new(portraits, portrait ? portrait : json_null());
	}
	return portraits;
}

void objections_prepare(struct domain *domain, json_t *offer)
{
	struct xend *xend = domain->xend;
	_cleanup_message_ struct message seen = {0};
	json_t *portraits, *features;

	/* Nobody touches the configuration of a domain that is busy. */
	xend_unlock(xend);
	portraits = portray_disks(&domain->config);
	xend_lock(xend);
	json_object_set_new(offer, "portraits", portraits);
	/* A guest whose process is from an older Ferry cannot say; then it shows when the state is loaded. */
	if (guest_call(domain, json_pack("{s:s}", "do", "features"), &seen, GUEST_ANSWER_MS, NULL) >= 0 &&
		(features = json_object_get(seen.body, "features")))
		json_object_set(offer, "features", features);
}

static void object(json_t *objections, const struct error *error)
{
	json_array_append_new(objections, json_string(error->text));
}

static int judge_disk(
	const struct guest_disk *disk, const struct disk_likeness *likeness, struct error *error)
{
	if (likeness->identity == IDENTITY_DIFFERENT && disk->mode != DISK_READ_ONLY)
		return error_set(error, EXDEV,
			"Disk %s (%s) is another disk here than on the host that the guest comes from: put "
			"it on storage that both reach, under the same name.",
			disk->target, disk->device);
	if (likeness->size != likeness->other_size)
		return error_set(error, EXDEV,
			"Disk %s (%s) has %" PRIu64 " bytes here and %" PRIu64
			" on the host that the guest comes from: it is not the same disk.",
			disk->target, disk->device, likeness->size, likeness->other_size);
	/* One block alone, the guest may just have written. */
	if (likeness->unequal > 1 && likeness->unequal > likeness->equal)
		return error_set(error, EXDEV,
			"Disk %s (%s) holds something else here than on the host that the guest comes from: "
			"it is not the same disk.",
			disk->target, disk->device);
	return 0;
}

/* Without the lock. */
static int check_disk(
	const struct guest_config *config, size_t index, const json_t *portraits, struct error *error)
{
	const struct guest_disk *disk = &config->disks[index];
	const json_t *portrait = json_array_get(portraits, index);
	struct disk_likeness likeness;
	/* The peer has the lock, until it has given the guest away. */
	int r, fd = disk_open(disk, config->name, DISK_LOCK_LATER, error);

	if (fd < 0)
		return fd;
	close(fd);
	if (!json_is_object(portrait)) /* the source could not say */
		return 0;
	r = disk_compare(disk, portrait, true, &likeness, error);
	return r < 0 ? r : judge_disk(disk, &likeness, error);
}

static void check_host(
	struct xend *xend, const struct guest_config *config, const json_t *offer, json_t *objections)
{
	const json_t *portraits = json_object_get(offer, "portraits");
	struct error error;

	if (processor_check(xend, json_object_get(offer, "features"), &error) < 0)
		object(objections, &error);
	for (size_t i = 0; i < config->disk_count; i++)
		if (check_disk(config, i, portraits, &error) < 0)
			object(objections, &error);
	for (unsigned i = 0; i < config->vif_count; i++) {
		struct vif_place place = {.scripts = xend->paths.scripts,
			.vif_script = xend->config.vif_script,
			.domain = config->name,
			.number = i};

		if (vif_check(&config->vifs[i], &place, &error) < 0)
			object(objections, &error);
	}
}

json_t *objections_to(struct xend *xend, struct guest_config *config, const json_t *offer)
{
	json_t *objections = json_array();
	struct error error;

	if (disks_look(xend, config, 0, -1, &error) < 0) {
		object(objections, &error);
		return objections;
	}
	domain_await_leavers(xend);
	domain_objections(xend, config, objections);
	xend_unlock(xend);
	check_host(xend, config, offer, objections);
	xend_lock(xend);
	return objections;
}
