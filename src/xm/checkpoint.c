/* xm checkpoint: what a checkpoint file holds, and whether it is whole. Asks no xend; the file is the user's.
 */
#include "base/bitmap.h"
#include "base/cleanup.h"
#include "base/printable.h"
#include "state/checkpoint.h"
#include "config/guest_config.h"
#include "state/fields.h"
#include "state/saved_disk.h"
#include "xm/command.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#define KINDS_MAX 64 /* of devices; the rest is counted */

/* Text out of the file, which anybody may have written. */
static void print_text(const char *text)
{
	_cleanup_free_ char *shown = printable_copy(text, PRINTABLE_LINE);

	fputs(shown ? shown : "?", stdout);
}

static void print_member(const char *label, const json_t *value)
{
	if (!json_is_string(value))
		return;
	printf("%-14s: ", label);
	print_text(json_string_value(value));
	putchar('\n');
}

static void print_taken(const struct checkpoint *checkpoint)
{
	const char *host = json_string_value(json_object_get(checkpoint->description, "taken_on"));
	const char *program = json_string_value(json_object_get(checkpoint->description, "program"));
	time_t seconds = (time_t)(checkpoint->taken_realtime_ns / 1000000000);
	char when[64] = "?";
	struct tm local;

	if (localtime_r(&seconds, &local))
		strftime(when, sizeof(when), "%Y-%m-%d %H:%M:%S %Z", &local);
	printf("%-14s: %s on ", "taken", when);
	print_text(host && *host ? host : "?");
	printf(" by ");
	print_text(program ? program : "?");
	putchar('\n');
}

/* One line per kind of device, with how many of it there are. */
static int print_devices(const struct checkpoint *checkpoint, struct error *error)
{
	struct cursor records = cursor_over(checkpoint->state.data, checkpoint->state.size);
	char names[KINDS_MAX][sizeof(((struct record_head *)0)->name)];
	unsigned counts[KINDS_MAX] = {0}, kinds = 0, others = 0;
	struct record_head head;
	int r;

	while ((r = fields_next(&records, &head, error)) > 0) {
		unsigned kind = 0;

		while (kind < kinds && strcmp(names[kind], head.name) != 0)
			kind++;
		if (kind == kinds && kinds < KINDS_MAX)
			memcpy(names[kinds++], head.name, sizeof(head.name));
		if (kind < kinds)
			counts[kind]++;
		else
			others++;
	}
	if (r < 0)
		return error_prefix(error, "The checkpoint's device state is not understood: ");
	for (unsigned kind = 0; kind < kinds; kind++) {
		printf("%-14s: ", kind ? "" : "devices");
		print_text(names[kind]);
		if (counts[kind] > 1)
			printf(" (%u)", counts[kind]);
		putchar('\n');
	}
	if (others)
		printf("%-14s: %u more\n", "", others);
	return 0;
}

static int print_facts(const struct checkpoint *checkpoint, struct error *error)
{
	const json_t *domain = json_object_get(checkpoint->description, "domain");
	const json_t *vcpus = json_object_get(domain, "vcpus");
	struct stat status;

	if (fstat(checkpoint->fd, &status) < 0)
		return error_set(error, errno, "Unable to look at the checkpoint: %s.", strerror(errno));
	print_member("name", json_object_get(domain, "name"));
	print_member("uuid", json_object_get(domain, "uuid"));
	print_taken(checkpoint);
	printf("%-14s: %llu MiB, %.1f MiB of it stored\n", "memory",
		(unsigned long long)(checkpoint->ram_size >> 20),
		(double)checkpoint->stored_pages * CHECKPOINT_PAGE / (1 << 20));
	if (json_is_integer(vcpus))
		printf("%-14s: %lld\n", "vcpus", (long long)json_integer_value(vcpus));
	printf("%-14s: %.1f MiB, %.1f MiB with its holes\n", "size on disk",
		(double)status.st_blocks * 512 / (1 << 20), (double)status.st_size / (1 << 20));
	printf("%-14s: %s\n", "compressed", checkpoint->features & CHECKPOINT_ZSTD ? "yes (zstd)" : "no");
	return print_devices(checkpoint, error);
}

/* Reads all memory. Each damaged place gets a line; the sentence says how many there are. */
static int verify(struct checkpoint *checkpoint, struct error *error)
{
	_cleanup_free_ uint8_t *content = malloc(CHECKPOINT_EXTENT_SIZE);
	unsigned long long wrong = 0, looked_at = 0;

	if (!content)
		return error_set(error, ENOMEM, "Out of memory.");
	for (uint64_t i = 0; i < checkpoint->extent_count; i++) {
		if (checkpoint->extents[i].kind == EXTENT_EMPTY)
			continue;
		looked_at++;
		if (checkpoint_read_extent(checkpoint, i, content, error) == 0)
			continue;
		wrong++;
		printf("%-14s: %s\n", "damage", error->text);
	}
	if (!wrong) {
		printf("%-14s: whole; header, device state and all memory are as they were written\n",
			"digests");
		return 0;
	}
	return error_set(error, EBADMSG,
		"The checkpoint is damaged: %llu of the %llu parts of its memory cannot be used; start the "
		"domain anew with xm create, or restore another checkpoint with the disks as they were then.",
		wrong, looked_at);
}

static const json_t *portrait_of(const json_t *portraits, const char *device)
{
	for (size_t i = 0; i < json_array_size(portraits); i++) {
		const json_t *portrait = json_array_get(portraits, i);
		const char *of = json_string_value(json_object_get(portrait, "device"));

		if (of && strcmp(of, device) == 0)
			return portrait;
	}
	return NULL;
}

/* Whether the disks are as they were, as a restore would see it; with a line for each. */
static void verify_disks(const struct checkpoint *checkpoint)
{
	const json_t *domain = json_object_get(checkpoint->description, "domain");
	const json_t *portraits = json_object_get(checkpoint->description, "disks");
	_cleanup_guest_config_ struct guest_config config = {0};
	struct error error = {0};

	if (guest_config_from_json(&config, json_object_get(domain, "config"), &error) < 0)
		return;
	for (size_t i = 0; i < config.disk_count; i++) {
		const struct guest_disk *disk = &config.disks[i];
		enum saved_disk_verdict verdict;

		if (!*disk->target)
			continue;
		printf("%-14s: ", i ? "" : "disks");
		if (saved_disk_compare(disk->target, disk->device, portrait_of(portraits, disk->device),
			    &verdict, &error) < 0 ||
			verdict == SAVED_DISK_CHANGED || verdict == SAVED_DISK_ODD) {
			print_text(error.text);
		} else {
			print_text(disk->target);
			printf(" (%s) %s", disk->device,
				verdict == SAVED_DISK_SAME
					? "is as it was"
					: "may have been written since: the checkpoint does not say");
		}
		putchar('\n');
	}
}

static int show(struct xm *xm, const struct arguments *arguments, struct error *error)
{
	const char *path = arguments->words[0];
	_cleanup_close_ int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	_cleanup_checkpoint_ struct checkpoint checkpoint = {.fd = -1};
	struct stat status;
	int r;

	(void)xm;
	if (file < 0 || fstat(file, &status) < 0)
		return error_set(error, errno, "Unable to read file %s: %s.", path, strerror(errno));
	if (!S_ISREG(status.st_mode))
		return error_set(error, EINVAL, "Unable to read file %s: it is not a file.", path);
	r = checkpoint_open(&checkpoint, file, error);
	if (r == 0)
		r = print_facts(&checkpoint, error);
	if (r == 0 && option_given(arguments, "verify")) {
		verify_disks(&checkpoint);
		return verify(&checkpoint, error);
	}
	if (r == 0)
		printf("%-14s: header and device state are whole; --verify looks at the memory too\n",
			"digests");
	return r;
}

const struct command checkpoint_commands[] = {
	{"checkpoint", NULL, "<File>", "Show what a file that xm save wrote holds.",
		{{"verify", 'v', NULL,
			"read all of it, and say whether it is whole and its disks as they were"}},
		1, 1, show, true},
	{0},
};
