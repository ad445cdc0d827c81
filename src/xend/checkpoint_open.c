#include "xend/checkpoint_open.h"
#include "base/cleanup.h"
#include "xend/errand.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

struct opening {
	int fd;
	char path[];
};

static int open_file(void *context, struct error *error)
{
	struct opening *opening = context;
	struct stat info;

	opening->fd = open(opening->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (opening->fd < 0 || fstat(opening->fd, &info) < 0)
		return error_set(error, errno, "Unable to read file %s: %s.", opening->path, strerror(errno));
	if (!S_ISREG(info.st_mode))
		return error_set(error, EINVAL, "Unable to read file %s: it is not a file.", opening->path);
	return 0;
}

static void close_file(void *context)
{
	struct opening *opening = context;

	cleanup_close(&opening->fd);
	free(opening);
}

int checkpoint_open_file(struct xend *xend, const char *path, int cancel, struct error *error)
{
	static const struct errand errand = {.run = open_file, .late = close_file};
	struct opening *opening = malloc(sizeof(*opening) + strlen(path) + 1);
	int r, fd = -1;

	if (!opening)
		return error_set(error, ENOMEM, "Out of memory.");
	opening->fd = -1;
	strcpy(opening->path, path);
	r = errand_run(xend, &errand, &opening, cancel, error);
	if (!opening)
		return r == -ETIMEDOUT ? error_prefix(error, "Unable to read file %s: ", path) : r;
	if (r >= 0)
		fd = take_fd(&opening->fd);
	close_file(opening);
	return r < 0 ? r : fd;
}
