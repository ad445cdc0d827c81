#include "xend/carrier.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "xend/process_log.h"

#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/socket.h>

/* How long a carrier has to notice that its channel is closed. */
#define END_MS 3000
/* Of the patience with storage a look counts for no more, even where the whole host stood still meanwhile. */
#define LOOK_MS 200
/* How long a killed process has to leave the kernel. */
#define KILLED_MS 2000

int carrier_start(
	struct carrier *carrier, struct xend *xend, int cancel, struct reply *progress, struct error *error)
{
	unsigned number = xend->carriers_started++ % 0x1000000;
	char program[320], user[32];
	const char *const arguments[] = {program, "--job", "3", "--user", user, NULL};
	struct spawn spawn = {.arguments = arguments, .record = carrier->record};
	_cleanup_close_ int output = -1;
	int pair[2], r;
	pid_t pid;

	snprintf(program, sizeof(program), "%s/ferry-carrier", xend->paths.libexec);
	snprintf(user, sizeof(user), "%u:%u", CARRIER_UID_BASE + number, CARRIER_UID_BASE + number);
	snprintf(carrier->record, sizeof(carrier->record), "%s/carriers/%u", xend->paths.run, number);
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return error_set(
			error, errno, "Unable to make a channel to the carrier: %s.", strerror(errno));
	r = process_log_make(&carrier->log, xend, NULL, "ferry-carrier", &output, error);
	if (r < 0) {
		close(pair[0]);
		close(pair[1]);
		return r;
	}
	spawn.pass = pair[1];
	spawn.output = output;
	/* A new process takes its time, and peers cause some. */
	xend_unlock(xend);
	carrier->process = process_spawn(&spawn, &pid, error);
	xend_lock(xend);
	close(pair[1]);
	if (carrier->process < 0) {
		close(pair[0]);
		unlink(carrier->record);
		process_log_end(carrier->log);
		return carrier->process;
	}
	process_log_listen(carrier->log, pid);
	carrier->xend = xend;
	carrier->channel = pair[0];
	carrier->cancel = cancel;
	carrier->progress = progress;
	return 0;
}

static int died(const struct carrier *carrier, struct error *error)
{
	return error_set(error, EPIPE, "The carrier ended before its job was done; its reason may be in %s.",
		carrier->xend->config.logfile);
}

int carrier_say(struct carrier *carrier, json_t *body, const int *fds, unsigned count, struct error *error)
{
	_cleanup_json_ json_t *said = body;
	int r;

	if (!said)
		return error_set(error, ENOMEM, "Out of memory.");
	r = channel_send(carrier->channel, said, fds, count, error);
	return r == -EPIPE || r == -ECONNRESET ? died(carrier, error) : r;
}

bool carrier_heard(const struct message *event, const char *name)
{
	const char *heard = json_string_value(json_object_get(event->body, "event"));

	return heard && strcmp(heard, name) == 0;
}

/* Without the lock. */
static int wait_for_message(struct carrier *carrier, struct message *event, struct error *error)
{
	/* Past its point of no return (no `cancel`) a job does not end for xend's sake either. */
	struct pollfd ready[] = {{.fd = carrier->channel, .events = POLLIN},
		{.fd = carrier->cancel, .events = POLLIN},
		{.fd = carrier->cancel < 0 && !carrier->outlives ? -1 : carrier->xend->stop,
			.events = POLLIN}};
	unsigned looks = carrier->patience_s * 1000 / LOOK_MS;
	int r;

	do
		r = poll(ready, ARRAY_SIZE(ready), carrier->patience_s ? LOOK_MS : -1);
	while ((r < 0 && errno == EINTR) || (r == 0 && --looks));
	if (r == 0)
		return error_set(error, ETIMEDOUT, "The checkpoint's storage has not answered for %u s.",
			carrier->patience_s);
	/* What the carrier has said already counts before a cancellation. */
	if (!ready[0].revents && (ready[1].revents || ready[2].revents))
		return error_set(
			error, ECANCELED, ready[1].revents ? "Cancelled." : "xend is being stopped.");
	r = channel_receive(carrier->channel, event, error);
	return r == -EPIPE || r == -ECONNRESET ? died(carrier, error) : r;
}

static bool is_cancelled(const struct carrier *carrier)
{
	struct pollfd cancelled = {.fd = carrier->cancel, .events = POLLIN};

	return poll(&cancelled, 1, 0) > 0;
}

int carrier_hear(struct carrier *carrier, struct message *event, struct error *error)
{
	for (;;) {
		int r;

		xend_unlock(carrier->xend);
		r = wait_for_message(carrier, event, error);
		xend_lock(carrier->xend);
		if (r < 0)
			return r;
		if (carrier_heard(event, "failed")) {
			r = channel_error_of(event->body, error);
			message_free(event);
			return r < 0 ? r : error_set(error, EIO, "The carrier failed without a reason.");
		}
		if (!carrier_heard(event, "progress"))
			return 0;
		if (carrier->told)
			carrier->told(carrier->context, event->body);
		else if (carrier->progress)
			reply_line(carrier->progress, json_incref(event->body));
		message_free(event);
		/* One that does not stop telling of it can be ended all the same. */
		if (is_cancelled(carrier))
			return error_set(error, ECANCELED, "Cancelled.");
	}
}

int carrier_expect(struct carrier *carrier, const char *name, struct message *event, struct error *error)
{
	int r = carrier_hear(carrier, event, error);

	if (r < 0 || carrier_heard(event, name))
		return r;
	message_free(event);
	return error_set(error, EPROTO, "The carrier said something else where '%s' was due.", name);
}

struct straggler {
	struct xend *xend;
	int process;
	char record[sizeof(((struct carrier *)0)->record)];
};

static void wait_for_straggler(void *argument)
{
	struct straggler *straggler = argument;

	xend_unlock(straggler->xend);
	process_wait(straggler->process, -1, NULL);
	xend_lock(straggler->xend);
	close(straggler->process);
	unlink(straggler->record);
	free(straggler);
}

/* It has been killed, but is in a system call that cannot be interrupted. */
static void leave_straggler(const struct carrier *carrier, struct xend *xend)
{
	struct straggler *straggler = malloc(sizeof(*straggler));
	struct error error;

	log_warning("A carrier is held by storage that does not answer. It ends when that does.");
	if (!straggler) {
		close(carrier->process);
		return;
	}
	*straggler = (struct straggler){.xend = xend, .process = carrier->process};
	memcpy(straggler->record, carrier->record, sizeof(straggler->record));
	if (xend_worker(xend, wait_for_straggler, straggler, &error) < 0) {
		close(carrier->process);
		free(straggler);
	}
}

void carrier_end(struct carrier *carrier)
{
	struct xend *xend = carrier->xend;
	int r;

	if (!xend)
		return;
	close(carrier->channel);
	carrier->xend = NULL;
	if (carrier->outlives) {
		process_log_end(carrier->log);
		close(carrier->process);
		return;
	}
	xend_unlock(xend);
	r = process_wait(carrier->process, END_MS, NULL);
	if (r < 0) {
		log_warning("A carrier did not end by itself and was killed.");
		r = process_kill_within(carrier->process, KILLED_MS);
	}
	xend_lock(xend);
	process_log_end(carrier->log);
	if (r < 0) {
		leave_straggler(carrier, xend);
		return;
	}
	close(carrier->process);
	unlink(carrier->record);
}

static void kill_stray(const char *record, long long until)
{
	pid_t pid;
	_cleanup_close_ int process = process_find(record, &pid);

	(void)until;
	if (process < 0)
		return;
	log_warning("Ending the carrier %d of an earlier xend.", (int)pid);
	pidfd_send_signal(process, SIGKILL, NULL, 0);
}

static void await_stray(const char *record, long long until)
{
	pid_t pid;
	_cleanup_close_ int process = process_find(record, &pid);
	long long left = until - monotonic_ms();

	if (process >= 0 && process_wait(process, left > 0 ? (int)left : 0, NULL) < 0)
		log_warning(
			"The carrier %d is held by storage that does not answer, and ends when that does.",
			(int)pid);
	unlink(record);
}

static void for_each_record(
	const struct xend *xend, void (*visit)(const char *record, long long until), long long until)
{
	char path[96], record[400];
	struct dirent *entry;
	DIR *directory;

	snprintf(path, sizeof(path), "%s/carriers", xend->paths.run);
	directory = opendir(path);
	while (directory && (entry = readdir(directory))) {
		if (entry->d_name[0] == '.')
			continue;
		snprintf(record, sizeof(record), "%s/%s", path, entry->d_name);
		visit(record, until);
	}
	if (directory)
		closedir(directory);
}

void carrier_end_strays(struct xend *xend)
{
	/* However many the kernel holds, they are waited for together. */
	for_each_record(xend, kill_stray, 0);
	for_each_record(xend, await_stray, monotonic_ms() + KILLED_MS);
}
