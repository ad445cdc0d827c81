#include "xend/checkpoint_file.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "xend/domain.h"
#include "xend/endings.h"
#include "xend/errand.h"
#include "xend/lifecycle.h"
#include "xend/publication.h"
#include "xend/store.h"
#include "xend/uuid.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

/* Who has closed a file waits no longer than this for it to be gone. */
#define DISCARD_MS 3000
/* How long xend's start waits for all the files of an earlier one together. */
#define RECOVER_MS 6000
#define LEAST_MS 200 /* what one gets in any case */

struct checkpoint_file {
	struct xend *xend;
	int fd, directory;
	bool force, keep;
	bool recorded, published, stays;  /* as in publish() and after it */
	bool given_up;                    /* the save has failed while its storage did not answer */
	char uuid[37];                    /* of the guest that is in it */
	char path[4096], temporary[4128]; /* temporary: "" while the file has no name */
	struct publication publication;
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

/* Not every file system can, and then its names are as lasting as they get (fsync(2), EINVAL). */
static int sync_directory(int directory)
{
	if (fsync(directory) == 0 || errno == EINVAL || errno == EOPNOTSUPP || errno == ENOSYS)
		return 0;
	return -errno;
}

/* So that a next xend knows of it, before anything is done. */
static int record(struct checkpoint_file *file, const char *aside, struct error *error)
{
	struct publication *publication = &file->publication;
	struct stat info;
	int r;

	if (fstat(file->fd, &info) < 0)
		return cannot(file, errno, error);
	snprintf(publication->path, sizeof(publication->path), "%s", file->path);
	snprintf(publication->aside, sizeof(publication->aside), "%s", aside);
	publication->device = info.st_dev;
	publication->inode = info.st_ino;
	publication->header = publication_header(file->fd);
	xend_lock(file->xend);
	r = file->given_up ? error_set(error, ECANCELED, "Given up.")
			   : store_put_save(file->xend->store,
				     &(struct stored_save){.uuid = file->uuid,
					     .path = file->path,
					     .aside = aside,
					     .device = info.st_dev,
					     .inode = info.st_ino,
					     .header = publication->header,
					     .fate = file->keep ? SAVE_KEEPS_GUEST : SAVE_ENDS_GUEST},
				     error);
	xend_unlock(file->xend);
	file->recorded = r >= 0;
	return r;
}

/* Where nothing else is under it. */
static int take_name(struct checkpoint_file *file, struct error *error)
{
	int r = record(file, "", error);

	if (r < 0)
		return r;
	if (!*file->temporary)
		r = link_nameless(file, file->path);
	else
		r = renameat2(AT_FDCWD, file->temporary, AT_FDCWD, file->path, RENAME_NOREPLACE);
	/* NFS and others cannot rename without replacing: link, then remove the temporary name. */
	if (r < 0 && *file->temporary && errno == EINVAL)
		r = link(file->temporary, file->path);
	return r < 0 ? -errno : 0;
}

/* As take_name, in the place of another file, which is kept until the save is certain. */
static int replace(struct checkpoint_file *file, struct error *error)
{
	char aside[sizeof(file->publication.aside)];
	int r = check_target(file, error);

	if (r >= 0)
		r = record(file, file->temporary, error);
	if (r < 0)
		return r;
	if (renameat2(AT_FDCWD, file->temporary, AT_FDCWD, file->path, RENAME_EXCHANGE) == 0) {
		xend_lock(file->xend);
		store_drop_leftover(file->xend->store, file->temporary, NULL); /* the record has it now */
		xend_unlock(file->xend);
		*file->temporary = 0;
		return 0;
	}
	if (errno != EINVAL && errno != ENOSYS)
		return -errno;
	snprintf(aside, sizeof(aside), "%.4118s.replaced", file->temporary);
	r = record(file, aside, error);
	if (r < 0)
		return r;
	if (link(file->path, aside) < 0 && rename(file->path, aside) < 0)
		return -errno;
	return rename(file->temporary, file->path) < 0 ? -errno : 0;
}

/* The guest goes on: from now on its end does not mean that it is in the file. Keeps the lock. */
static void fail_record(struct xend *xend, const char *uuid, const char *path)
{
	struct error error;

	if (store_fail_saves(xend->store, uuid, path, &error) < 0)
		log_error("%s", error.text);
}

/* The record stays: the next xend tries it again. */
static int not_taken_back(const struct publication *publication, int code, struct error *error)
{
	char before[sizeof(error->text)];

	snprintf(before, sizeof(before), "%s", error->text);
	return error_set(error, -code,
		"%.2000s%sWhat was written cannot be taken away again (%s): remove %s, and do not restore "
		"from it.",
		before, *before ? " " : "", strerror(-code), publication->path);
}

static void forget_record(struct checkpoint_file *file)
{
	struct error error;

	xend_lock(file->xend);
	if (store_drop_save(file->xend->store, file->uuid, file->publication.inode, &error) < 0)
		log_error("%s", error.text);
	xend_unlock(file->xend);
	file->recorded = false;
}

static int publish(void *context, struct error *error)
{
	struct checkpoint_file *file = context;
	struct stat info;
	int r = 0, undone;

	if (file->force && !*file->temporary) {
		r = take_temporary_name(file, error);
		if (r < 0)
			return r;
		r = link_nameless(file, file->temporary) < 0 ? cannot(file, errno, error) : 0;
		if (r < 0)
			return r;
	}
	error->code = 0;
	r = file->force && publication_look(file->path, &info) > 0 ? -EEXIST : take_name(file, error);
	if (r == -EEXIST && file->force)
		r = replace(file, error);
	if (r >= 0)
		r = sync_directory(file->directory);
	if (r >= 0) {
		file->published = true;
		return 0;
	}
	if (!error->code && r == -EEXIST)
		exists(file, error);
	else if (!error->code)
		cannot(file, -r, error);
	undone = file->recorded ? publication_undo(&file->publication) : 0;
	if (undone < 0) {
		xend_lock(file->xend);
		fail_record(file->xend, file->uuid, file->path);
		xend_unlock(file->xend);
	}
	if (undone < 0)
		return not_taken_back(&file->publication, undone, error);
	sync_directory(file->directory);
	forget_record(file);
	return -error->code;
}

/* It has failed, and nothing may be left of it. */
static int take_back(void *context, struct error *error)
{
	struct checkpoint_file *file = context;
	int r = file->published ? publication_undo(&file->publication) : 0;

	if (r < 0)
		return not_taken_back(&file->publication, r, error);
	if (file->published) {
		sync_directory(file->directory);
		forget_record(file);
	}
	file->published = false;
	return 0;
}

static int discard(void *context, struct error *error)
{
	struct checkpoint_file *file = context;
	int r = file->stays ? 0 : take_back(file, error);

	close(take_fd(&file->fd));
	close(take_fd(&file->directory));
	if (*file->temporary && (unlink(file->temporary) == 0 || errno == ENOENT)) {
		xend_lock(file->xend);
		store_drop_leftover(file->xend->store, file->temporary, NULL);
		xend_unlock(file->xend);
	}
	*file->temporary = 0;
	if (file->stays && publication_clear_aside(&file->publication) == 0) {
		xend_lock(file->xend);
		store_drop_leftover(file->xend->store, file->publication.aside, NULL);
		xend_unlock(file->xend);
	}
	return r;
}

/* Its storage answers again, after the job has gone on without it. */
static void abandon(void *context)
{
	struct checkpoint_file *file = context;
	struct error error = {0};

	if (discard(file, &error) < 0)
		log_error("%s", error.text);
	free(file);
}

/* An errand that nobody waits for any longer does not know what it was about. */
static int run(struct xend *xend, const struct errand *errand, struct checkpoint_file **file, int cancel,
	struct error *error)
{
	struct checkpoint_file *asked = *file;
	char path[sizeof((*file)->path)];
	int r;

	memcpy(path, asked->path, sizeof(path));
	r = errand_run(xend, errand, file, cancel, error);
	/* The errand goes on with it, and cannot end before we let go of the lock. */
	if (!*file)
		asked->given_up = true;
	return r == -ETIMEDOUT && !*file ? error_prefix(error, "Unable to write file %s: ", path) : r;
}

int checkpoint_file_create(struct checkpoint_file **result, struct xend *xend, const char *path, bool force,
	int cancel, struct error *error)
{
	static const struct errand creating = {.run = create, .late = abandon};
	struct checkpoint_file *file;

	if (path[0] != '/' || strlen(path) >= 4080)
		return error_set(error, EINVAL, "'%.200s' is not an absolute file name.", path);
	if (path[strlen(path) - 1] == '/')
		return error_set(
			error, EISDIR, "Unable to write file %.200s: that is a directory's name.", path);
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

int checkpoint_file_publish(struct checkpoint_file **file, const char *uuid, bool keep, struct error *error)
{
	static const struct errand publishing = {.run = publish, .late = abandon};

	struct xend *xend = (*file)->xend;
	char path[sizeof((*file)->path)];
	int r;

	memcpy(path, (*file)->path, sizeof(path));
	snprintf((*file)->uuid, sizeof((*file)->uuid), "%s", uuid);
	(*file)->keep = keep;
	r = run(xend, &publishing, file, -1, error);
	if (!*file) /* it is undone when its storage answers */
		fail_record(xend, uuid, path);
	return r;
}

int checkpoint_file_record_staying(const struct checkpoint_file *file, struct error *error)
{
	const char *aside = file->publication.aside;
	int r = store_drop_save(file->xend->store, file->uuid, file->publication.inode, error);

	return r >= 0 && *aside ? store_add_leftover(file->xend->store, aside, error) : r;
}

void checkpoint_file_stays(struct checkpoint_file *file)
{
	file->stays = true;
}

int checkpoint_file_take_back(struct checkpoint_file **file, struct error *error)
{
	static const struct errand taking_back = {.run = take_back, .late = abandon};
	struct error why;
	int r;

	fail_record((*file)->xend, (*file)->uuid, (*file)->path);
	r = run((*file)->xend, &taking_back, file, -1, &why);

	/* take_back() of an errand does not know why it is called. */
	return r < 0 ? error_set(error, why.code, "%.2000s %.2000s", error->text, why.text) : r;
}

static void forget(void *file)
{
	free(file);
}

void checkpoint_file_discard(struct checkpoint_file **file)
{
	static const struct errand discarding = {.run = discard, .late = forget, .patience_ms = DISCARD_MS};
	struct xend *xend = *file ? (*file)->xend : NULL;
	struct error error = {0};

	if (!xend)
		return;
	if (errand_run(xend, &discarding, file, -1, &error) < 0)
		log_warning("A save's file is not removed yet: %s", error.text);
	if (*file) {
		/* Nothing is left to do, unless there was no worker for it. */
		xend_unlock(xend);
		discard(*file, &error);
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

static unsigned patience_until(long long until)
{
	long long left = until - monotonic_ms();

	return left < LEAST_MS ? LEAST_MS : left < DISCARD_MS ? (unsigned)left : DISCARD_MS;
}

static void clear_leftovers(struct xend *xend, long long until)
{
	_cleanup_json_ json_t *paths = store_leftovers(xend->store);
	json_t *path;
	size_t i;

	json_array_foreach(paths, i, path)
	{
		const struct errand removing = {
			.run = remove_leftover, .late = forget, .patience_ms = patience_until(until)};
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

/* What an earlier xend was about to make certain. */
struct unfinished {
	struct xend *xend;
	struct unfinished *next;
	struct publication publication;
	char uuid[37];
	enum save_fate fate;
	bool ended;   /* the guest's process is no more */
	bool in_file; /* then: it is in the file, which stays */
};

static int finish(void *context, struct error *error)
{
	struct unfinished *unfinished = context;
	const struct publication *publication = &unfinished->publication;
	struct stat info;
	int r = publication_look(publication->path, &info), another = 0;

	if (r > 0 && publication_is(publication, &info))
		another = publication_is_another(publication);
	if (another < 0)
		r = another;
	unfinished->in_file = !another && r > 0 && publication_is(publication, &info) &&
			      (unfinished->fate == SAVE_KEEPS_GUEST ||
				      (unfinished->fate == SAVE_ENDS_GUEST && unfinished->ended));
	if (r >= 0 && !another)
		r = unfinished->in_file ? publication_clear_aside(publication)
					: publication_undo(publication);
	if (r < 0)
		return not_taken_back(publication, r, error);
	xend_lock(unfinished->xend);
	store_drop_save(unfinished->xend->store, unfinished->uuid, publication->inode, NULL);
	xend_unlock(unfinished->xend);
	return 0;
}

static int collect(void *context, const struct stored_save *save)
{
	struct unfinished **first = context, *unfinished = calloc(1, sizeof(*unfinished));

	if (!unfinished)
		return -ENOMEM;
	snprintf(unfinished->uuid, sizeof(unfinished->uuid), "%s", save->uuid);
	snprintf(unfinished->publication.path, sizeof(unfinished->publication.path), "%s", save->path);
	snprintf(unfinished->publication.aside, sizeof(unfinished->publication.aside), "%s", save->aside);
	unfinished->publication.device = save->device;
	unfinished->publication.inode = save->inode;
	unfinished->publication.header = save->header;
	unfinished->fate = save->fate;
	unfinished->next = *first;
	*first = unfinished;
	return 0;
}

static void recover(struct xend *xend, struct unfinished *unfinished, long long until)
{
	const struct errand finishing = {.run = finish, .late = forget, .patience_ms = patience_until(until)};
	struct domain *domain = domain_by_uuid(xend, unfinished->uuid);
	char path[sizeof(unfinished->publication.path)];
	struct error error = {0};
	bool ends = unfinished->fate == SAVE_ENDS_GUEST;

	memcpy(path, unfinished->publication.path, sizeof(path));
	unfinished->xend = xend;
	unfinished->ended = !domain || domain->dead;
	if (ends && !unfinished->ended)
		fail_record(xend, unfinished->uuid, path);
	/* It is the record's, which knows whether it is to go. */
	store_drop_leftover(xend->store, unfinished->publication.aside, NULL);
	if (errand_run(xend, &finishing, &unfinished, -1, &error) < 0)
		log_error(
			"The save to %s was not completed, and its file may be there: %s", path, error.text);
	else if (unfinished->in_file && ends)
		log_info("%s is complete: the guest that was saved to it has ended.", path);
	if (unfinished && unfinished->in_file && ends && domain) {
		ending_by_order(domain, "saved", path, NULL);
		lifecycle_finish(domain);
	}
	free(unfinished);
}

void checkpoint_file_recover(struct xend *xend)
{
	long long until = monotonic_ms() + RECOVER_MS;
	struct unfinished *first = NULL;
	struct error error;

	if (store_each_save(xend->store, collect, &first, &error) < 0)
		log_error("%s", error.text);
	while (first) {
		struct unfinished *unfinished = first;

		first = unfinished->next;
		recover(xend, unfinished, until);
	}
	clear_leftovers(xend, until);
}
