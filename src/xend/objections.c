#include "xend/objections.h"
#include "base/cleanup.h"
#include "base/printable.h"
#include "base/sentences.h"
#include "xend/boot_files.h"
#include "xend/disk_portrait.h"
#include "xend/disks.h"
#include "xend/guest.h"
#include "xend/host_network.h"
#include "xend/network.h"
#include "xend/processor.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

/* Disks do not differ from what they were where a guest moves. */
static const struct {
	const char *word;
	bool only_restore;
} acceptable[] = {{ACCEPT_KERNEL, false}, {ACCEPT_CLOCK, false}, {ACCEPT_DISKS, true}};

static json_t *portray_disks(const struct guest_config *config)
{
	json_t *portraits = json_array();

	for (size_t i = 0; i < config->disk_count; i++) {
		json_t *portrait = disk_portrait(&config->disks[i]);

		json_array_append_new(portraits, portrait ? portrait : json_null());
	}
	return portraits;
}

bool objections_accepted(const json_t *accept, const char *what)
{
	for (size_t i = 0; i < json_array_size(accept); i++) {
		const char *word = json_string_value(json_array_get(accept, i));

		if (word && strcmp(word, what) == 0)
			return true;
	}
	return false;
}

int objections_check_accepted(const json_t *accept, bool restores, struct error *error)
{
	if (accept && !json_is_array(accept))
		return error_set(error, EINVAL, "'accept' is no list of words.");
	for (size_t i = 0; i < json_array_size(accept); i++) {
		const char *word = json_string_value(json_array_get(accept, i));
		bool known = false;

		for (size_t j = 0; word && j < ARRAY_SIZE(acceptable); j++)
			known |= strcmp(word, acceptable[j].word) == 0 &&
				 (restores || !acceptable[j].only_restore);
		if (!known)
			return error_set(error, EINVAL, "There is no difference '%s' to accept: expected %s.",
				word ? word : "",
				restores ? ACCEPT_KERNEL ", " ACCEPT_CLOCK " or " ACCEPT_DISKS
					 : ACCEPT_KERNEL " or " ACCEPT_CLOCK);
	}
	return 0;
}

void objections_portray_machine(struct domain *domain, json_t *offer)
{
	static const char *const members[] = {"features", "needs", "tsc_khz"};
	_cleanup_message_ struct message seen = {0};

	/* Nobody touches the configuration of a domain that is busy. */
	json_object_set_new(offer, "boot_files", boot_files_portray(domain->xend, &domain->config));
	/* A guest whose process is from an older Ferry cannot say; then it shows when the state is loaded. */
	if (guest_call(domain, json_pack("{s:s}", "do", "features"), &seen, GUEST_ANSWER_MS, NULL) < 0)
		return;
	for (size_t i = 0; i < ARRAY_SIZE(members); i++)
		if (json_object_get(seen.body, members[i]))
			json_object_set(offer, members[i], json_object_get(seen.body, members[i]));
}

void objections_prepare(struct domain *domain, const json_t *accept, json_t *offer)
{
	struct xend *xend = domain->xend;
	json_t *portraits;

	xend_unlock(xend);
	portraits = portray_disks(&domain->config);
	xend_lock(xend);
	json_object_set_new(offer, "portraits", portraits);
	objections_portray_machine(domain, offer);
	if (accept)
		json_object_set(offer, "accept", (json_t *)(uintptr_t)accept);
}

static void object(json_t *objections, const struct error *error)
{
	json_array_append_new(objections, printable_sentence(error->text));
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
	if (likeness->other_block_size && likeness->block_size > likeness->other_block_size)
		return error_set(error, EXDEV,
			"Disk %s (%s) is written in blocks of %u bytes here, and of %u on the host that the "
			"guest comes "
			"from, as the guest goes on doing: put it on storage that takes those.",
			disk->target, disk->device, likeness->block_size, likeness->other_block_size);
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

	if (fd == -ENOMEDIUM && disk->cdrom)
		return json_integer_value(json_object_get(portrait, "size"))
			       ? error_set(error, ENOMEDIUM,
					 "Drive %s (%s) is empty here, and not on the host that the guest "
					 "comes from: put its "
					 "medium into it.",
					 disk->target, disk->device)
			       : 0;
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

	processor_check(
		xend, offer, objections_accepted(json_object_get(offer, "accept"), ACCEPT_CLOCK), objections);
	for (size_t i = 0; i < config->disk_count; i++)
		if (check_disk(config, i, portraits, &error) < 0)
			object(objections, &error);
	for (unsigned i = 0; i < config->vif_count; i++) {
		struct vif_place place = {.scripts = xend->paths.scripts,
			.vif_script = xend->config.vif_script,
			.network_script = xend->config.network_script,
			.trouble = host_network_trouble(xend),
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
	if (!objections_accepted(json_object_get(offer, "accept"), ACCEPT_KERNEL))
		boot_files_compare(xend, config, json_object_get(offer, "boot_files"),
			"on the host that the guest comes from", objections);
	xend_unlock(xend);
	check_host(xend, config, offer, objections);
	xend_lock(xend);
	return objections;
}

int objections_to_restore(struct xend *xend, const struct guest_config *config, const json_t *offer,
	const json_t *accept, struct error *error)
{
	_cleanup_json_ json_t *objections = json_array();

	if (!objections_accepted(accept, ACCEPT_KERNEL))
		boot_files_compare(xend, config, json_object_get(offer, "boot_files"),
			"when the guest was saved", objections);
	xend_unlock(xend);
	processor_check(xend, offer, objections_accepted(accept, ACCEPT_CLOCK), objections);
	xend_lock(xend);
	return json_array_size(objections) ? sentences_refused(error, "This host", objections) : 0;
}
