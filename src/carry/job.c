#include "carry/job.h"
#include "base/cleanup.h"
#include "base/printable.h"
#include "carry/clock.h"
#include "state/description.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#define PROGRESS_EVERY_NS (100 * NS_PER_MS)
#define JOB_REASON_MAX 4096 /* a longer message than that is no reason */

/* `secure` comes as a memfd: a host may trust many others. */
static int read_secure(struct job *job, struct error *error)
{
	_cleanup_close_ int fd = message_take_fd(&job->request, job->request.body, "secure", error);
	_cleanup_free_ char *text = NULL;
	off_t size;

	if (fd < 0)
		return fd == -ENOENT ? 0 : fd;
	size = lseek(fd, 0, SEEK_END);
	text = size > 0 ? malloc((size_t)size) : NULL;
	if (!text || pread(fd, text, (size_t)size, 0) != size ||
		!(job->secure = json_loadb(text, (size_t)size, 0, NULL)))
		return error_set(error, EINVAL, "The job for the carrier has no usable 'secure'.");
	return 0;
}

int job_begin(struct job *job, int channel, struct error *error)
{
	int r;

	*job = (struct job){.channel = channel};
	r = channel_receive(channel, &job->request, error);
	if (r == 0 && job_text(job, "self") && uuid_from_text(job_text(job, "self"), job->self) < 0)
		r = error_set(error, EINVAL, "The job for the carrier has no usable 'self'.");
	return r == 0 ? read_secure(job, error) : r;
}

void job_end(struct job *job)
{
	message_free(&job->request);
	json_decref(job->secure);
	job->secure = NULL;
}

const char *job_text(const struct job *job, const char *key)
{
	return json_string_value(json_object_get(job->request.body, key));
}

int64_t job_number(const struct job *job, const char *key)
{
	return json_integer_value(json_object_get(job->request.body, key));
}

bool job_flag(const struct job *job, const char *key)
{
	return json_is_true(json_object_get(job->request.body, key));
}

int job_take_fd(struct job *job, const char *key, struct error *error)
{
	int fd = message_take_fd(&job->request, job->request.body, key, error);

	if (fd == -ENOENT)
		return error_set(error, EINVAL, "The job for the carrier has no '%s'.", key);
	return fd;
}

int job_event(const struct job *job, const char *name, json_t *body, struct error *error)
{
	_cleanup_json_ json_t *event = body ? body : json_object();

	if (json_object_set_new(event, "event", json_string(name)) < 0)
		return error_set(error, ENOMEM, "Out of memory while telling xend of '%s'.", name);
	return channel_send(job->channel, event, NULL, 0, error);
}

void job_progress(struct job *job, const struct progress *progress, bool now)
{
	int64_t time = monotonic_ns();

	if (!now && time < job->next_progress)
		return;
	job->next_progress = time + PROGRESS_EVERY_NS;
	job_event(job, "progress",
		json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "phase", "memory", "round",
			(json_int_t)progress->round, "sent_bytes", (json_int_t)progress->sent_bytes,
			"total_bytes", (json_int_t)progress->total_bytes, "remaining_pages",
			(json_int_t)progress->remaining_pages, "bytes_per_second",
			(json_int_t)progress->bytes_per_second, "dirty_pages",
			(json_int_t)progress->dirty_pages, "slowed_percent", (json_int_t)progress->slowed,
			"expected_downtime_ms", (json_int_t)(progress->downtime_ns / NS_PER_MS),
			"expected_left_ms", (json_int_t)(progress->left_ns / NS_PER_MS)),
		NULL);
}

void job_failed(const struct job *job, const struct error *error)
{
	job_event(job, "failed",
		json_pack("{s:o, s:i}", "error",
			printable_sentence(error->text[0] ? error->text : "The carrier failed."), "errno",
			error->code ? error->code : EIO),
		NULL);
}

/* `body`, what xend said last, may hold the reason. */
static int cancelled(const json_t *body, struct error *error)
{
	const char *why = json_string_value(json_object_get(body, "why"));

	return error_set(error, ECANCELED, "%s", why ? why : "Cancelled.");
}

int job_cancelled(const struct job *job, struct error *error)
{
	struct pollfd channel = {.fd = job->channel, .events = POLLIN};
	_cleanup_json_ json_t *body = NULL;
	char text[JOB_REASON_MAX];
	ssize_t size;

	if (poll(&channel, 1, 0) <= 0)
		return 0;
	/* It stays there: whoever asks next is told the same. */
	size = recv(job->channel, text, sizeof(text), MSG_PEEK | MSG_DONTWAIT);
	if (size > 0)
		body = json_loadb(text, (size_t)size, 0, NULL);
	return cancelled(body, error);
}

int job_answer(const struct job *job, struct message *answer, struct error *error)
{
	int r = channel_receive(job->channel, answer, error);

	if (r == -EPIPE || r == -ECONNRESET)
		return cancelled(NULL, error);
	if (r == 0 && strcmp(job_verb(answer), "abort") == 0) {
		r = cancelled(answer->body, error);
		message_free(answer);
	}
	return r;
}

const char *job_verb(const struct message *answer)
{
	const char *verb = json_string_value(json_object_get(answer->body, "do"));

	return verb ? verb : "";
}
