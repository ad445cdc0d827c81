#include "xend/logfile.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "xend/paths.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <time.h>

#define OLD_LOGS 5u
#define LOOK_S 2

int logfile_open(const struct xend_config *config, struct error *error)
{
	_cleanup_free_ char *directory = strdup(config->logfile);
	_cleanup_close_ int file = -1;
	int r = 0;

	if (directory && strrchr(directory, '/') && strrchr(directory, '/') != directory) {
		*strrchr(directory, '/') = 0;
		r = make_directories(directory, 0755, error);
	}
	if (r < 0)
		return r;
	file = open(config->logfile, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0640);
	if (file < 0 || dup2(file, STDERR_FILENO) < 0 || dup2(file, STDOUT_FILENO) < 0)
		return error_set(
			error, errno, "Unable to write the log %s: %s.", config->logfile, strerror(errno));
	return 0;
}

static void old_name(const struct xend_config *config, unsigned number, char *name, size_t size)
{
	snprintf(name, size, "%s.%u", config->logfile, number);
}

/* The oldest goes first: it makes room on a full disk. */
static void shift(const struct xend_config *config)
{
	char from[4096], to[4096];

	old_name(config, OLD_LOGS, to, sizeof(to));
	unlink(to);
	for (unsigned i = OLD_LOGS; i > 1; i--) {
		old_name(config, i - 1, from, sizeof(from));
		old_name(config, i, to, sizeof(to));
		rename(from, to);
	}
}

/* All up to the file's end, whoever writes there meanwhile. */
static int copy(int from, off_t at, int to)
{
	ssize_t size;

	do
		size = sendfile(to, from, &at, 1 << 20);
	while (size > 0 || (size < 0 && errno == EINTR));
	return size < 0 ? -errno : 0;
}

static void rotate(const struct xend_config *config, off_t size, off_t most)
{
	_cleanup_close_ int log = open(config->logfile, O_RDWR | O_CLOEXEC | O_NOFOLLOW), old = -1;
	char name[4096];
	int r = log < 0 ? -errno : 0;

	shift(config);
	old_name(config, 1, name, sizeof(name));
	if (r >= 0 && (old = open(name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0640)) < 0)
		r = -errno;
	/* Of one that has grown beyond all measure the end is enough. */
	if (r >= 0)
		r = copy(log, size > 2 * most ? size - most : 0, old);
	/* Where it cannot be kept, it is at least not in the way. */
	if (log >= 0 && ftruncate(log, 0) < 0 && r >= 0)
		r = -errno;
	if (r < 0)
		log_seldom(LOG_WARNING_, "The log could not be kept as %s: %s.", name, strerror(-r));
}

static void *keep(void *argument)
{
	const struct xend_config *config = argument;
	const struct timespec pause = {.tv_sec = LOOK_S};
	off_t most = (off_t)config->logfile_limit << 20;

	for (;;) {
		struct stat now, named;

		log_tell_counted(false);
		/* Not one that somebody has just renamed, or a terminal. */
		if (most && fstat(STDERR_FILENO, &now) == 0 && S_ISREG(now.st_mode) && now.st_size > most &&
			stat(config->logfile, &named) == 0 && named.st_ino == now.st_ino &&
			named.st_dev == now.st_dev)
			rotate(config, now.st_size, most);
		nanosleep(&pause, NULL);
	}
	return NULL;
}

void logfile_keep(const struct xend_config *config)
{
	pthread_attr_t attributes;
	pthread_t thread;
	int r;

	pthread_attr_init(&attributes);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	r = pthread_create(&thread, &attributes, keep, (void *)(uintptr_t)config);
	pthread_attr_destroy(&attributes);
	if (r)
		log_warning("The log %s will not be kept small: %s.", config->logfile, strerror(r));
}
