#include "xend/publication.h"
#include "base/cleanup.h"
#include "state/digest.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#define HEADER_SIZE 512

bool publication_is(const struct publication *publication, const struct stat *info)
{
	return info->st_dev == publication->device && info->st_ino == publication->inode;
}

int publication_look(const char *path, struct stat *info)
{
	if (*path && lstat(path, info) == 0)
		return 1;
	return *path && errno != ENOENT ? -errno : 0;
}

int publication_undo(const struct publication *publication)
{
	struct stat at = {0}, beside = {0};
	int there = publication_look(publication->path, &at),
	    kept = publication_look(publication->aside, &beside);
	bool named = there > 0 && publication_is(publication, &at);
	int r = 0;

	if (there < 0 || kept < 0)
		return there < 0 ? there : kept;
	if (kept && !publication_is(publication, &beside) && (named || !there)) {
		r = rename(publication->aside, publication->path);
	} else {
		if (kept)
			r = unlink(publication->aside);
		if (r == 0 && named)
			r = unlink(publication->path);
	}
	return r < 0 && errno != ENOENT ? -errno : 0;
}

int publication_clear_aside(const struct publication *publication)
{
	return *publication->aside && unlink(publication->aside) < 0 && errno != ENOENT ? -errno : 0;
}

uint64_t publication_header(int fd)
{
	uint8_t begin[HEADER_SIZE];

	return pread(fd, begin, sizeof(begin), 0) == sizeof(begin) ? digest_of(begin, sizeof(begin)) : 0;
}

int publication_is_another(const struct publication *publication)
{
	_cleanup_close_ int fd = -1;
	uint8_t byte;

	if (!publication->header)
		return 0;
	fd = open(publication->path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	if (fd < 0 || pread(fd, &byte, sizeof(byte), 0) < 0)
		return -errno;
	return publication_header(fd) != publication->header;
}
