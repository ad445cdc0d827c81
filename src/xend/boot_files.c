#include "xend/boot_files.h"
#include "base/cleanup.h"
#include "base/printable.h"
#include "base/raw_bytes.h"
#include "state/digest.h"
#include "xend/errand.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

#define BITE (256u << 10)

/* One file that is looked at; `path` is behind it. */
struct look {
	bool digested; /* else only whether it can be read */
	uint64_t size, digest;
	char path[];
};

static int digest_file(int fd, struct look *look, struct error *error)
{
	_cleanup_free_ uint8_t *bite = malloc(BITE);
	struct digest_stream stream;
	ssize_t got;

	if (!bite)
		return error_set(error, ENOMEM, "Out of memory.");
	digest_begin(&stream);
	while ((got = read(fd, bite, BITE)) != 0) {
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return error_set(error, errno, "%s", strerror(errno));
		digest_add(&stream, bite, (size_t)got);
		look->size += (size_t)got;
	}
	look->digest = digest_end(&stream);
	return 0;
}

static int look_at(void *context, struct error *error)
{
	struct look *look = context;
	char place[HOST_PATH_MAX];
	_cleanup_close_ int fd = open(host_path(look->path, place), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	struct stat info;

	if (fd < 0 || fstat(fd, &info) < 0)
		return error_set(error, errno, "%s", strerror(errno));
	if (!S_ISREG(info.st_mode))
		return error_set(error, EINVAL, "it is not a file");
	return look->digested ? digest_file(fd, look, error) : 0;
}

/* error: only why it cannot be read. */
static int look(struct xend *xend, const char *path, bool digested, struct look **result, struct error *error)
{
	static const struct errand errand = {.run = look_at, .late = free};
	struct look *look = calloc(1, sizeof(*look) + strlen(path) + 1);
	int r;

	*result = NULL;
	if (!look)
		return error_set(error, ENOMEM, "out of memory");
	look->digested = digested;
	strcpy(look->path, path);
	r = errand_run(xend, &errand, &look, -1, error);
	if (r < 0)
		free(look);
	else
		*result = look;
	return r;
}

/* The configuration may be gone once the lock has been let go of. */
struct boot_paths {
	struct {
		const char *what;
		char *path; /* owned; NULL: the guest has none */
	} files[2];
	char *guest;
};

static void boot_paths_free(struct boot_paths *paths)
{
	for (unsigned i = 0; i < ARRAY_SIZE(paths->files); i++)
		free(paths->files[i].path);
	free(paths->guest);
}
#define _cleanup_boot_paths_ __attribute__((cleanup(boot_paths_free)))

static struct boot_paths boot_paths_of(const struct guest_config *config)
{
	return (struct boot_paths){.files = {{"kernel", config->kernel ? strdup(config->kernel) : NULL},
					   {"ramdisk", config->ramdisk ? strdup(config->ramdisk) : NULL}},
		.guest = strdup(config->name ? config->name : "")};
}

static json_t *portray(struct xend *xend, const char *path)
{
	_cleanup_free_ struct look *found = NULL;
	struct error error;
	char digest[17];

	if (!path || look(xend, path, true, &found, &error) < 0)
		return json_null();
	snprintf(digest, sizeof(digest), "%016" PRIx64, found->digest);
	return json_pack("{s:I, s:s}", "size", (json_int_t)found->size, "digest", digest);
}

json_t *boot_files_portray(struct xend *xend, const struct guest_config *config)
{
	_cleanup_boot_paths_ struct boot_paths paths = boot_paths_of(config);
	json_t *portrait = json_object();

	for (unsigned i = 0; i < ARRAY_SIZE(paths.files); i++)
		json_object_set_new(portrait, paths.files[i].what, portray(xend, paths.files[i].path));
	return portrait;
}

static bool differs(const struct look *found, const json_t *told)
{
	const char *digest = json_string_value(json_object_get(told, "digest"));
	const json_t *size = json_object_get(told, "size");

	if (!digest || !json_is_integer(size))
		return false;
	return (uint64_t)json_integer_value(size) != found->size ||
	       strtoull(digest, NULL, 16) != found->digest;
}

void boot_files_compare(struct xend *xend, const struct guest_config *config, const json_t *portrait,
	const char *then, json_t *objections)
{
	_cleanup_boot_paths_ struct boot_paths paths = boot_paths_of(config);

	for (unsigned i = 0; i < ARRAY_SIZE(paths.files); i++) {
		const json_t *told = json_object_get(portrait, paths.files[i].what);
		const char *what = paths.files[i].what, *path = paths.files[i].path;
		_cleanup_free_ struct look *found = NULL;
		struct error why, error;

		if (!path)
			continue;
		if (look(xend, path, json_is_object(told), &found, &why) < 0)
			error_set(&error, ENOENT,
				"The guest's %s %s is not to be had here (%s), and the guest could not be "
				"started again: put it there, or leave that to later with --accept=kernel.",
				what, path, why.text);
		else if (differs(found, told))
			error_set(&error, EXDEV,
				"The guest's %s %s is another file here than %s, and the guest's next start "
				"would be with this one: put the same file there, or take this one with "
				"--accept=kernel.",
				what, path, then);
		else
			continue;
		json_array_append_new(objections, printable_sentence(error.text));
	}
}

int boot_files_check(struct xend *xend, const struct guest_config *config, struct error *error)
{
	_cleanup_boot_paths_ struct boot_paths paths = boot_paths_of(config);

	for (unsigned i = 0; i < ARRAY_SIZE(paths.files); i++) {
		_cleanup_free_ struct look *found = NULL;
		struct error why;
		int r = paths.files[i].path ? look(xend, paths.files[i].path, false, &found, &why) : 0;

		if (r < 0)
			return error_set(error, -r, "Unable to read the %s %s of domain '%s': %s.",
				paths.files[i].what, paths.files[i].path, paths.guest, why.text);
	}
	return 0;
}

static int open_image(const char *what, const char *path, const char *domain, struct error *error)
{
	char place[HOST_PATH_MAX];
	_cleanup_close_ int fd = open(host_path(path, place), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	struct stat info;

	if (fd < 0 || fstat(fd, &info) < 0)
		return error_set(error, errno, "Unable to read the %s %s of domain '%s': %s.", what, path,
			domain, strerror(errno));
	if (!S_ISREG(info.st_mode))
		return error_set(
			error, EINVAL, "The %s %s of domain '%s' is not a file.", what, path, domain);
	return take_fd(&fd);
}

int boot_files_open(const struct guest_config *config, int *kernel, int *ramdisk, struct error *error)
{
	*ramdisk = -1;
	*kernel = open_image("kernel", config->kernel, config->name, error);
	if (*kernel < 0)
		return *kernel;
	if (config->ramdisk)
		*ramdisk = open_image("ramdisk", config->ramdisk, config->name, error);
	return config->ramdisk && *ramdisk < 0 ? *ramdisk : 0;
}

int boot_files_explain(const struct guest_config *config, struct error *error)
{
	return error_prefix(error, "Domain '%s' with kernel %s%s%s: ", config->name, config->kernel,
		config->ramdisk ? " and ramdisk " : "", config->ramdisk ? config->ramdisk : "");
}
