#include "xend/checkpoint_file.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "xend/errand.h"
#include "xend/store.h"
#include "xend/uuid.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

/* Who has closed a file waits no longer than this for it to be gone. */
#define DISCARD_MS 3000

struct checkpoint_file {
	struct xend *xend;
	int fd, directory;
	bool force, published;
	char path[4096], temporary[4128]; /* temporary: "" while the file has no name */
};

static int exists(const struct checkpoint_file *file, struct error *error)
{
	return error_set(error, EEXIST,
		"File %s exists already; choose another name, or use --force to replace it.", file->path);
}

static int cannot(const struct checkpoint_file *file, int code, struct error *error)
{
	return error_set(error, code, "Unable to write file %s: %s.", file->path, strerror(code));
}

static int check_target(const struct checkpoint_file *file, struct error *error)
{
	struct stat info;

	if (lstat(file->path, &info) < 0)
		return errno == ENOENT ? 0 : cannot(file, errno, error);
	if (S_ISDIR(info.st_mode))
		return cannot(file, EISDIR, error);
	if (!file->force)
		return exists(file, error);
	if (!S_ISREG(info.st_mode))
		return error_set(
			error, EINVAL, "%s is not a file and is not replaced by a checkpoint.", file->path);
	return 0;
}

/* A name beside the target's, known to the store before it exists. */
static int take_temporary_name(struct checkpoint_file *file, struct error *error)
{
	char uuid[37];
	int r = uuid_draw(uuid, error);

	if (r < 0)
		return r;
	snprintf(file->temporary, sizeof(file->temporary), "%.4080s.%.8s.partial", file->path, uuid);
	xend_lock(file->xend);
	r = store_add_leftover(file->xend->store, file->temporary, error);
	xend_unlock(file->xend);
	return r;
}

/* From here to discard(): errands, without the lock. */
static int create(void *context, struct error *error)
{
	struct checkpoint_file *file = context;
	_cleanup_free_ char *directory = strdup(file->path);
	int r;

	if (!directory)
		return error_set(error, ENOMEM, "Out of memory.");
	strrchr(directory, '/')[strrchr(directory, '/') == directory ? 1 : 0] = 0;
	r = check_target(file, error);
	if (r < 0)
		return r;
	file->directory = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (file->directory < 0)
		return cannot(file, errno, error);
	file->fd = open(directory, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (file->fd >= 0)
		return 0;
	if (errno != EOPNOTSUPP && errno != EISDIR && errno != ENOENT && errno != EINVAL)
		return cannot(file, errno, error);
	r = take_temporary_name(file, error);
	if (r < 0)
		return r;
	file->fd = open(file->temporary, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	return file->fd < 0 ? cannot(file, errno, error) : 0;
}

static int link_nameless(const struct checkpoint_file *file, const char *name)
{
	char itself[64];

	snprintf(itself, sizeof(itself), "/proc/self/fd/%d", file->fd);
	return linkat(AT_FDCWD, itself, AT_FDCWD, name, AT_SYMLINK_FOLLOW);
}

static int publish(void *context, struct error *error)
{
	struct checkpoint_file *file = context;
	bool nameless = !*file->temporary;
	int r = 0;

	if (nameless && !file->force) {
		r = link_nameless(file, file->path) < 0 ? -errno : 0;
	} else {
		if (nameless) {
			r = take_temporary_name(file, error);
			if (r < 0)
				return r;
			r = link_nameless(file, file->temporary) < 0 ? -errno : 0;
		}
		if (r >= 0 && renameat2(AT_FDCWD, file->temporary, AT_FDCWD, file->path,
				      file->force ? 0 : RENAME_NOREPLACE) < 0)
			r = -errno;
		/* NFS and others cannot rename without replacing: link, then remove the temporary name. */
		if (r == -EINVAL && !file->force)
			r = link(file->temporary, file->path) < 0 ? -errno : 0;
	}
	if (r >= 0 && fsync(file->directory) < 0)
		r = -errno;
	if (r == -EEXIST)
		return exists(file, error);
	if (r < 0)
		return cannot(file, -r, error);
	file->published = true;
	return 0;
}

static int discard(void *context, struct error *error)
{
	struct checkpoint_file *file = context;

	(void)error;
	close(take_fd(&file->fd));
	close(take_fd(&file->directory));
	if (*file->temporary && (unlink(file->temporary) == 0 || errno == ENOENT)) {
		xend_lock(file->xend);
		store_drop_leftover(file->xend->store, file->temporary, NULL);
		xend_unlock(file->xend);
	}
	*file->temporary = 0;
	return 0;
}

/* Its storage answers again, after the job has gone on without it. */
static void abandon(void *context)
{
	struct checkpoint_file *file = context;

	if (file->published && file->force)
		log_warning("%s is complete after all: it is as the guest was when the save was given up.",
			file->path);
	else if (file->published && unlink(file->path) < 0)
		log_warning(
			"%s is complete after all, and cannot be removed: %s.", file->path, strerror(errno));
	discard(file, NULL);
	free(file);
}

/* An errand that nobody waits for any longer does not know what it was about. */
static int run(struct xend *xend, const struct errand *errand, struct checkpoint_file **file, int cancel,
	struct error *error)
{
	char path[sizeof((*file)->path)];
	int r;

	memcpy(path, (*file)->path, sizeof(path));
	r = errand_run(xend, errand, file, cancel, error);
	return r == -ETIMEDOUT && !*file ? error_prefix(error, "Unable to write file %s: ", path) : r;
}

int checkpoint_file_create(struct checkpoint_file **result, struct xend *xend, const char *path, bool force,
	int cancel, struct error *error)
{
	static const struct errand creating = {.run = create, .late = abandon};
	struct checkpoint_file *file;

	if (path[0] != '/' || strlen(path) >= 4080 || path[strlen(path) - 1] == '/')
		return error_set(error, EINVAL, "'%.200s' is not an absolute file name.", path);
	file = malloc(sizeof(*file));
	if (!file)
		return error_set(error, ENOMEM, "Out of memory.");
	*file = (struct checkpoint_file){.xend = xend, .fd = -1, .directory = -1, .force = force};
	snprintf(file->path, sizeof(file->path), "%s", path);
	*result = file;
	return run(xend, &creating, result, cancel, error);
}

int checkpoint_file_fd(const struct checkpoint_file *file)
{
	return file->fd;
}

int checkpoint_file_publish(struct checkpoint_file **file, struct error *error)
{
	static const struct errand publishing = {.run = publish, .late = abandon};

	return run((*file)->xend, &publishing, file, -1, error);
}

static void forget(void *file)
{
	free(file);
}

void checkpoint_file_discard(struct checkpoint_file **file)
{
	static const struct errand discarding = {.run = discard, .late = forget, .patience_ms = DISCARD_MS};
	struct xend *xend = *file ? (*file)->xend : NULL;
	struct error error;

	if (!xend)
		return;
	if (errand_run(xend, &discarding, file, -1, &error) < 0)
		log_warning("A save's file is not removed yet: %s", error.text);
	if (*file) {
		/* Nothing is left to do, unless there was no worker for it. */
		xend_unlock(xend);
		discard(*file, NULL);
		xend_lock(xend);
	}
	free(*file);
	*file = NULL;
}

struct leftover {
	struct xend *xend;
	char path[4128];
};

static int remove_leftover(void *context, struct error *error)
{
	struct leftover *leftover = context;

	if (unlink(leftover->path) < 0 && errno != ENOENT)
		return error_set(error, errno, "%s.", strerror(errno));
	xend_lock(leftover->xend);
	store_drop_leftover(leftover->xend->store, leftover->path, NULL);
	xend_unlock(leftover->xend);
	return 0;
}

void checkpoint_file_clear_leftovers(struct xend *xend)
{
	static const struct errand removing = {
		.run = remove_leftover, .late = forget, .patience_ms = DISCARD_MS};
	_cleanup_json_ json_t *paths = store_leftovers(xend->store);
	json_t *path;
	size_t i;

	json_array_foreach(paths, i, path)
	{
		struct leftover *leftover = malloc(sizeof(*leftover));
		struct error error;

		if (!leftover)
			return;
		leftover->xend = xend;
		snprintf(leftover->path, sizeof(leftover->path), "%s", json_string_value(path));
		if (errand_run(xend, &removing, &leftover, -1, &error) < 0)
			log_warning("%s, left by a save that was not completed, is not removed: %s",
				json_string_value(path), error.text);
		free(leftover);
	}
}
