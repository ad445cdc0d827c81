#include "xend/checkpoint_file.h"
#include "base/cleanup.h"
#include "xend/store.h"
#include "xend/uuid.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

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
	return store_add_leftover(file->store, file->temporary, error);
}

int checkpoint_file_create(
	struct checkpoint_file *file, struct store *store, const char *path, bool force, struct error *error)
{
	_cleanup_free_ char *directory = strdup(path);
	int r;

	*file = (struct checkpoint_file){.store = store, .fd = -1, .directory = -1, .force = force};
	if (!directory)
		return error_set(error, ENOMEM, "Out of memory.");
	if (path[0] != '/' || strlen(path) >= 4080 || path[strlen(path) - 1] == '/')
		return error_set(error, EINVAL, "'%.200s' is not an absolute file name.", path);
	snprintf(file->path, sizeof(file->path), "%s", path);
	strrchr(directory, '/')[directory[0] && strrchr(directory, '/') == directory ? 1 : 0] = 0;
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

int checkpoint_file_publish(struct checkpoint_file *file, struct error *error)
{
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
	return r < 0 ? cannot(file, -r, error) : 0;
}

void checkpoint_file_discard(struct checkpoint_file *file)
{
	cleanup_close(&file->fd);
	cleanup_close(&file->directory);
	if (*file->temporary && (unlink(file->temporary) == 0 || errno == ENOENT))
		store_drop_leftover(file->store, file->temporary, NULL);
	file->fd = file->directory = -1;
	*file->temporary = 0;
}
