#include "xend/process_log.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "base/printable.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* So much is read of one process within so long. */
#define RATION_LINES 200u
#define RATION_BYTES (64u << 10)
#define RATION_MS 10000
#define LAST_BYTES (64u << 10) /* and so much at its end */
#define LINE_MAX_BYTES 2048u   /* of a longer one the rest is left out */

#define STAMP "0000-00-00 00:00:00.000 +0000" /* the form of a time in the log (log.h) */

struct process_log {
	struct xend *xend;
	char name[128];
	pid_t pid;
	int fifo; /* owned */
	struct event *readable, *later;
	bool ended;
	long long since_ms; /* of its ration */
	size_t lines, bytes;
	char line[LINE_MAX_BYTES];
	size_t length;
};

static bool is_stamp(const char *text)
{
	for (size_t i = 0; i < strlen(STAMP); i++)
		if (STAMP[i] == '0'       ? text[i] < '0' || text[i] > '9'
			: STAMP[i] == '+' ? text[i] != '+' && text[i] != '-'
					  : text[i] != STAMP[i])
			return false;
	return true;
}

/* What follows the head of a line of the log that this process may write; NULL: it is no such line. */
static const char *after_head(const struct process_log *log, const char *line)
{
	char tail[32];
	const char *end;

	snprintf(tail, sizeof(tail), " %d] ", (int)log->pid);
	if (strlen(line) < strlen(STAMP) + 2 || line[0] != '[' || !is_stamp(line + 1))
		return NULL;
	end = strchr(line, ']');
	if (!end || (size_t)(end - line) < strlen(tail) || !end[1])
		return NULL;
	end += 2; /* the tail's end */
	return memcmp(end - strlen(tail), tail, strlen(tail)) == 0 ? end : NULL;
}

static void write_line(struct process_log *log)
{
	char shown[2 * LINE_MAX_BYTES], text[sizeof(shown) + 256];
	const char *rest;
	int size;

	log->line[log->length] = 0;
	rest = after_head(log, log->line);
	if (!rest) {
		log_warning("%s (process %d): %s", log->name, (int)log->pid, log->line);
	} else {
		printable(rest, strlen(rest), PRINTABLE_LINE, shown, sizeof(shown));
		size = snprintf(text, sizeof(text), "[%.*s %s %d] %s\n", (int)strlen(STAMP), log->line + 1,
			log->name, (int)log->pid, shown);
		if (write(STDERR_FILENO, text, (size_t)size) < 0)
			return;
	}
}

static void take(struct process_log *log, const char *bytes, size_t size)
{
	for (size_t i = 0; i < size; i++) {
		if (bytes[i] != '\n') {
			if (log->length < sizeof(log->line) - 1)
				log->line[log->length++] = bytes[i];
			continue;
		}
		if (log->length)
			write_line(log);
		log->lines++;
		log->length = 0;
	}
	log->bytes += size;
}

/* How many bytes may be read now; 0: none before it has more. */
static size_t ration(struct process_log *log)
{
	long long now = monotonic_ms();

	if (now - log->since_ms >= RATION_MS) {
		log->since_ms = now;
		log->lines = log->bytes = 0;
	}
	return log->lines < RATION_LINES && log->bytes < RATION_BYTES ? RATION_BYTES - log->bytes : 0;
}

/* At most `most` bytes; whether there may be more. */
static bool read_some(struct process_log *log, size_t most)
{
	char bytes[4096];
	ssize_t size = read(log->fifo, bytes, most < sizeof(bytes) ? most : sizeof(bytes));

	if (size > 0)
		take(log, bytes, (size_t)size);
	return size > 0;
}

static void pause_reading(struct process_log *log)
{
	long long left = log->since_ms + RATION_MS - monotonic_ms();
	const struct timeval until = {.tv_sec = left > 0 ? left / 1000 + 1 : 1};

	log_seldom(
		LOG_WARNING_, "%s (process %d) says more than is written of it.", log->name, (int)log->pid);
	event_del(log->readable);
	event_add(log->later, &until);
}

static void said(evutil_socket_t fd, short what, void *argument)
{
	struct process_log *log = argument;
	struct xend *xend = log->xend;
	size_t most;

	(void)fd;
	(void)what;
	xend_lock(xend);
	if (!log->ended) {
		most = ration(log);
		if (most)
			read_some(log, most);
		else
			pause_reading(log);
	}
	xend_unlock(xend);
}

static void listen_again(evutil_socket_t fd, short what, void *argument)
{
	struct process_log *log = argument;

	(void)fd;
	(void)what;
	xend_lock(log->xend);
	if (!log->ended)
		event_add(log->readable, NULL);
	xend_unlock(log->xend);
}

/* The loop's thread, or nobody has heard of it yet. */
static void free_log(void *argument)
{
	struct process_log *log = argument;

	if (log->readable)
		event_free(log->readable);
	if (log->later)
		event_free(log->later);
	close(log->fifo);
	free(log);
}

/* Takes the FIFO over, also where it fails. */
static struct process_log *new_log(struct xend *xend, int fifo, const char *name)
{
	struct process_log *log = calloc(1, sizeof(*log));

	if (!log) {
		close(fifo);
		return NULL;
	}
	*log = (struct process_log){.xend = xend, .fifo = fifo, .since_ms = monotonic_ms()};
	snprintf(log->name, sizeof(log->name), "%s", name);
	log->readable = event_new(xend->base, fifo, EV_READ | EV_PERSIST, said, log);
	log->later = evtimer_new(xend->base, listen_again, log);
	if (log->readable && log->later)
		return log;
	free_log(log);
	return NULL;
}

/* Both ends at once, and of its own: nobody's end is the other's. */
static int open_fifo(const char *path)
{
	struct stat status;
	_cleanup_close_ int fifo = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);

	if (fifo < 0 || fstat(fifo, &status) < 0)
		return -errno;
	return S_ISFIFO(status.st_mode) ? take_fd(&fifo) : -EINVAL;
}

static int open_both(const char *path, int *output)
{
	_cleanup_close_ int fifo = open_fifo(path);

	if (fifo < 0)
		return fifo;
	*output = open_fifo(path);
	return *output < 0 ? *output : take_fd(&fifo);
}

static int open_named(const char *path, int *output)
{
	unlink(path);
	return mkfifo(path, 0600) < 0 ? -errno : open_both(path, output);
}

int process_log_make(struct process_log **log, struct xend *xend, const char *path, const char *name,
	int *output, struct error *error)
{
	char passing[sizeof(xend->paths.run) + 16];
	int fifo;

	snprintf(passing, sizeof(passing), "%s/passing.log", xend->paths.run);
	fifo = open_named(path ? path : passing, output);
	if (!path)
		unlink(passing);
	*log = fifo < 0 ? NULL : new_log(xend, fifo, name);
	if (*log)
		return 0;
	if (fifo >= 0)
		cleanup_close(output);
	return error_set(error, fifo < 0 ? -fifo : ENOMEM, "Unable to listen to a new process of %s: %s.",
		name, strerror(fifo < 0 ? -fifo : ENOMEM));
}

void process_log_listen(struct process_log *log, pid_t pid)
{
	log->pid = pid;
	if (event_add(log->readable, NULL) < 0)
		log_warning("%s (process %d) is not listened to.", log->name, (int)pid);
}

struct process_log *process_log_find(struct xend *xend, const char *path, const char *name, pid_t pid)
{
	int fifo = open_fifo(path);
	struct process_log *log = fifo < 0 ? NULL : new_log(xend, fifo, name);

	if (log)
		process_log_listen(log, pid);
	return log;
}

void process_log_end(struct process_log *log)
{
	if (!log)
		return;
	for (size_t before = log->bytes; log->bytes < before + LAST_BYTES && read_some(log, LAST_BYTES);)
		;
	if (log->length)
		write_line(log);
	log->ended = true;
	xend_post(log->xend, free_log, log);
}
