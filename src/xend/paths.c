#include "xend/paths.h"

#include "base/cleanup.h"

#include <errno.h>
#include <mntent.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static int place(char *to, size_t size, const char *variable, const char *usual, struct error *error)
{
	const char *path = getenv(variable);

	if (!path || !*path)
		path = usual;
	if (path[0] != '/')
		return error_set(error, EINVAL, "%s is '%s', which is not an absolute path.", variable, path);
	if (strlen(path) >= size)
		return error_set(error, ENAMETOOLONG,
			"%s is longer than %zu characters; choose a shorter path.", variable, size - 1);
	snprintf(to, size, "%s", path);
	return 0;
}

int paths_init(struct paths *paths, struct error *error)
{
	int r = place(paths->run, sizeof(paths->run), "FERRY_RUNDIR", "/run/ferry", error);

	if (r >= 0)
		r = place(paths->state, sizeof(paths->state), "FERRY_STATEDIR", "/var/lib/xend", error);
	if (r >= 0)
		r = place(
			paths->libexec, sizeof(paths->libexec), "FERRY_LIBEXECDIR", FERRY_LIBEXECDIR, error);
	if (r >= 0)
		r = place(
			paths->scripts, sizeof(paths->scripts), "FERRY_SCRIPTDIR", "/etc/xen/scripts", error);
	return r;
}

int make_directories(const char *path, unsigned mode, struct error *error)
{
	char part[4096];
	size_t length = strlen(path);

	if (length >= sizeof(part))
		return error_set(error, ENAMETOOLONG, "The path %.64s… is too long.", path);
	for (size_t i = 1; i <= length; i++) {
		if (path[i] && path[i] != '/')
			continue;
		memcpy(part, path, i);
		part[i] = 0;
		if (mkdir(part, path[i] ? 0755 : mode) < 0 && errno != EEXIST)
			return error_set(
				error, errno, "Unable to create directory %s: %s.", part, strerror(errno));
	}
	return 0;
}

void paths_empty(const struct paths *paths, char path[static PATHS_EMPTY_MAX])
{
	snprintf(path, PATHS_EMPTY_MAX, "%s/empty", paths->run);
}

int paths_create(const struct paths *paths, struct error *error)
{
	char under[128];
	int r = make_directories(paths->run, 0700, error);

	for (unsigned i = 0; r >= 0 && i < 2; i++) {
		snprintf(under, sizeof(under), "%s/%s", paths->run, i ? "carriers" : "guests");
		r = make_directories(under, 0700, error);
	}
	if (r >= 0) {
		paths_empty(paths, under);
		r = make_directories(under, 0555, error);
	}
	return r < 0 ? r : make_directories(paths->state, 0700, error);
}

static bool is_within(const char *path, const char *place)
{
	size_t length = strlen(place);

	while (length > 1 && place[length - 1] == '/')
		length--;
	return length > 1 && strncmp(path, place, length) == 0 && (path[length] == '/' || !path[length]);
}

static bool is_mounted(const char *place)
{
	FILE *mounts = setmntent("/proc/self/mounts", "re");
	const struct mntent *entry;
	bool found = !mounts; /* who cannot look takes fstab's word for nothing */

	while (!found && (entry = getmntent(mounts)))
		found = strcmp(entry->mnt_dir, place) == 0;
	if (mounts)
		endmntent(mounts);
	return found;
}

int paths_check_mounted(const char *path, struct error *error)
{
	FILE *table = setmntent("/etc/fstab", "re");
	const struct mntent *entry;
	char missing[4096] = "";

	while (table && !*missing && (entry = getmntent(table))) {
		char place[4096];

		snprintf(place, sizeof(place), "%s", entry->mnt_dir);
		if (is_within(path, place) && !is_mounted(place))
			memcpy(missing, place, sizeof(missing));
	}
	if (table)
		endmntent(table);
	if (!*missing)
		return 0;
	return error_set(error, ENOENT,
		"%s belongs to %s, which /etc/fstab has and which is not mounted: xend's database is not "
		"there yet. "
		"Guests that run go on. Mount %s, or take it out of /etc/fstab, and start xend again.",
		path, missing, missing);
}
