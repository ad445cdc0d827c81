#include "xm/job.h"

#include "base/cleanup.h"
#include "base/printable.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <unistd.h>

#define EVENT_MAX (1024UL * 1024) /* bytes of one event */
#define BAR_WIDTH 20
#define LINE_EVERY_S 10

/* What the events of a running job have come to. */
struct events {
	const struct job *job;
	struct buffer line;
	json_t *last; /* done or failed */
	bool shows;   /* standard error is a terminal */
	bool shown;
	long long line_round; /* of the latest line, where there is no terminal */
	time_t line_at;
	bool left; /* detached */
};

static void events_free(struct events *events)
{
	buffer_free(&events->line);
	json_decref(events->last);
}

/* What is expected of the rest of a live migration, as far as that is known. */
static void tell_expected(char *text, size_t size, const json_t *event, unsigned narrow)
{
	long long dirty = json_integer_value(json_object_get(event, "dirty_pages"));
	long long left_ms = json_integer_value(json_object_get(event, "expected_left_ms"));
	long long downtime = json_integer_value(json_object_get(event, "expected_downtime_ms"));
	long long slowed = json_integer_value(json_object_get(event, "slowed_percent"));
	size_t used = 0;

	*text = '\0';
	if (downtime > 0 && narrow < 1)
		used += (size_t)snprintf(text, size, ", %lld dirty", dirty);
	if (downtime > 0)
		used += (size_t)snprintf(
			text + used, size - used, ", %lld:%02lld left", left_ms / 60000, left_ms / 1000 % 60);
	if (downtime > 0 && narrow < 5)
		used += (size_t)snprintf(text + used, size - used, ", %lld ms downtime", downtime);
	if (slowed > 0 && narrow < 2)
		snprintf(text + used, size - used, ", slowed %lld %%", slowed);
}

/* Characters of UTF-8, each of which takes a column. */
static unsigned columns_of(const char *text)
{
	unsigned columns = 0;

	for (; *text; text++)
		columns += ((unsigned char)*text & 0xc0) != 0x80;
	return columns;
}

static void cut_columns(char *text, unsigned columns)
{
	for (; *text; text++)
		if (((unsigned char)*text & 0xc0) != 0x80 && columns-- == 0)
			break;
	*text = '\0';
}

void job_progress_line(char *line, size_t size, const char *doing, const json_t *event, unsigned columns)
{
	double sent = json_number_value(json_object_get(event, "sent_bytes"));
	double total = json_number_value(json_object_get(event, "total_bytes"));
	double rate = json_number_value(json_object_get(event, "bytes_per_second"));
	long long round = json_integer_value(json_object_get(event, "round"));
	long long pages = json_integer_value(json_object_get(event, "remaining_pages"));
	double part = total > 0 && sent >= 0 ? sent / total : 0;
	long long left_s =
		rate >= 1 && total > sent && total < 1e18 ? (long long)((total - sent) / rate + 0.5) : 0;
	char bar[BAR_WIDTH + 1], expected[160], speed[32], left[32] = "", amount[64], rounds_sent[32],
							   pages_left[32], rounds_speed[32];

	part = part > 1 ? 1 : part;
	snprintf(amount, sizeof(amount), "  %.0f of %.0f MB", sent / 1e6, total / 1e6);
	snprintf(speed, sizeof(speed), "  %.0f MB/s", rate / 1e6);
	snprintf(rounds_sent, sizeof(rounds_sent), ", %.0f MB sent", sent / 1e6);
	snprintf(pages_left, sizeof(pages_left), ", %lld pages left", pages);
	snprintf(rounds_speed, sizeof(rounds_speed), ", %.0f MB/s", rate / 1e6);
	/* Before anything has come, nobody knows. */
	if (sent > 0 && (rate >= 1 || sent >= total))
		snprintf(left, sizeof(left), "  %lld:%02lld left", left_s / 60, left_s % 60);
	/* On a narrow terminal what matters less is left out, first of all the bar, last of all the time. */
	for (unsigned narrow = 0; narrow < 6; narrow++) {
		unsigned width = narrow ? narrow < 2 ? BAR_WIDTH / 2 : 0 : BAR_WIDTH;

		memset(bar, ' ', width);
		memset(bar, '#', (size_t)(part * width));
		bar[width] = '\0';
		tell_expected(expected, sizeof(expected), event, narrow);
		if (round > 1)
			snprintf(line, size, "%s: round %lld%s%s%s%s", doing, round,
				narrow < 3 ? rounds_sent : "", narrow < 4 ? pages_left : "",
				narrow < 2 ? rounds_speed : "", expected);
		else
			snprintf(line, size, "%s%s%s%s %3.0f%%%s%s%s", doing, width ? " [" : "", bar,
				width ? "]" : "", part * 100, narrow < 4 ? amount : "",
				narrow < 3 ? speed : "", left);
		if (!columns || columns_of(line) < columns)
			return;
	}
	cut_columns(line, columns > 1 ? columns - 1 : 1);
}

/* For a log: a line for each round, and one every ten seconds. */
static void print_line(struct events *events, const json_t *event)
{
	long long round = json_integer_value(json_object_get(event, "round"));
	time_t now = steady_seconds();
	char line[512];

	if (!events->line_round) {
		events->line_round = 1;
		events->line_at = now;
	}
	if (round <= events->line_round && now - events->line_at < LINE_EVERY_S)
		return;
	events->line_round = round;
	events->line_at = now;
	job_progress_line(line, sizeof(line), events->job->doing, event, 0);
	fprintf(stderr, "%s\n", line);
}

static void show_progress(struct events *events, const json_t *event)
{
	struct winsize window = {0};
	char line[512];

	events->left = events->job->detach;
	if (!events->shows) {
		if (events->job->lines && !events->left)
			print_line(events, event);
		return;
	}
	if (ioctl(STDERR_FILENO, TIOCGWINSZ, &window) < 0 || !window.ws_col)
		window.ws_col = 80;
	job_progress_line(line, sizeof(line), events->job->doing, event, window.ws_col);
	fprintf(stderr, "\r%s\x1b[K", line); /* erase to the end of the line: ECMA-48, EL */
	events->shown = true;
}

static void clear_progress(struct events *events)
{
	if (events->shown)
		fprintf(stderr, "\r\x1b[K");
	events->shown = false;
}

/* Something went wrong that the job can still make good: the user reads it at once. */
static void show_trouble(struct events *events, const char *sentence)
{
	clear_progress(events);
	fprintf(stderr, "Warning: %s\n", sentence);
}

static int take_event(struct events *events, struct error *error)
{
	_cleanup_json_ json_t *event =
		json_loadb((const char *)events->line.data, events->line.size, JSON_REJECT_DUPLICATES, NULL);
	const char *name, *trouble;

	printable_json(event);
	name = json_string_value(json_object_get(event, "event"));
	trouble = json_string_value(json_object_get(event, "error"));
	buffer_clear(&events->line);
	if (events->last) /* what follows the end does not count */
		return 0;
	if (!name)
		return error_set(
			error, EPROTO, "xend's answer is not understood: do xm and xend fit together?");
	if (!strcmp(name, "progress") && trouble)
		show_trouble(events, trouble);
	else if (!strcmp(name, "progress"))
		show_progress(events, event);
	else if (!strcmp(name, "done") || !strcmp(name, "failed"))
		events->last = take_pointer(event);
	return 0;
}

static int receive_events(void *context, const char *bytes, size_t size, struct error *error)
{
	struct events *events = context;

	while (size) {
		const char *end = memchr(bytes, '\n', size);
		size_t length = end ? (size_t)(end - bytes) : size;
		int r = 0;

		buffer_append(&events->line, bytes, length);
		if (events->line.failed || events->line.size > EVENT_MAX)
			return error_set(
				error, EPROTO, "xend's answer is not understood: a line of it never ends.");
		if (end && events->line.size)
			r = take_event(events, error);
		if (r < 0)
			return r;
		bytes += length + (end ? 1 : 0);
		size -= length + (end ? 1 : 0);
	}
	return 0;
}

static bool has_failed(const struct events *events)
{
	return strcmp(json_string_value(json_object_get(events->last, "event")), "failed") == 0;
}

static int result_of(struct transfer *transfer, struct events *events, json_t **done, struct error *error)
{
	const char *sentence;
	int r = 0;

	if (!events->last) {
		r = transfer_result(transfer, error);
		if (r < 0 && r != -EPIPE)
			return r;
		return error_set(error, EPIPE,
			"xend ended the connection without saying how the job went: see xm list and "
			"/var/log/xen/xend.log.");
	}
	if (has_failed(events)) {
		sentence = json_string_value(json_object_get(events->last, "error"));
		return error_set(error, EREMOTEIO, "%s",
			sentence && *sentence ? sentence
					      : "The job failed, and xend gives no reason (xm log may).");
	}
	*done = json_incref(events->last);
	return 0;
}

/* Whether the job's end is worth waiting for. */
static bool cancel_it(struct client *client, const struct job *job)
{
	return job->cancel && client_call(client, "POST", job->cancel, NULL, NULL, NULL) >= 0;
}

int job_run(struct client *client, const char *path, const json_t *body, const struct job *job, json_t **done,
	struct error *error)
{
	_cleanup_(events_free) struct events events = {.job = job, .shows = isatty(STDERR_FILENO)};
	_cleanup_transfer_ struct transfer transfer = {0};
	_cleanup_free_ char *text = json_dumps(body, JSON_COMPACT);
	_cleanup_close_ int signals = -1;
	bool interrupted = false;
	sigset_t interrupts;
	int r;

	sigemptyset(&interrupts);
	sigaddset(&interrupts, SIGINT);
	sigaddset(&interrupts, SIGTERM);
	sigaddset(&interrupts, SIGHUP);
	if (sigprocmask(SIG_BLOCK, &interrupts, NULL) < 0)
		return error_set(error, errno, "Unable to block signals: %s.", strerror(errno));
	signals = signalfd(-1, &interrupts, SFD_CLOEXEC | SFD_NONBLOCK);
	if (signals < 0 || !text)
		return error_set(error, errno, "Unable to wait for signals: %s.", strerror(errno));
	r = transfer_start(
		&transfer, client, "POST", path, text, strlen(text), NULL, receive_events, &events, error);
	while (r >= 0 && !transfer.ended && !events.last && !events.left) {
		struct pollfd descriptor = {.fd = signals, .events = POLLIN};

		r = client_wait(client, &descriptor, 1, -1, error);
		if (r >= 0 && descriptor.revents && !events.last) {
			struct signalfd_siginfo signal_info;

			clear_progress(&events);
			if (read(signals, &signal_info, sizeof(signal_info)) < 0 || interrupted ||
				!cancel_it(client, job))
				return error_set(error, EINTR, "%s", job->left ? job->left : job->cancelled);
			interrupted = true;
		}
	}
	clear_progress(&events);
	/* Whether it was that or something else: nothing has come of the job. */
	if (r >= 0 && interrupted && events.last && has_failed(&events))
		return error_set(error, EINTR, "%s", job->cancelled);
	if (r >= 0 && events.left && !events.last)
		return 0;
	return r < 0 ? r : result_of(&transfer, &events, done, error);
}
