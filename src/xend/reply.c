#include "xend/reply.h"
#include "base/cleanup.h"
#include "base/printable.h"
#include "xend/http.h"
#include "xend/xend.h"

#include <errno.h>
#include <event2/buffer.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/eventfd.h>

struct reply {
	struct xend *xend;
	atomic_uint references;
	struct http_request *request; /* the loop's thread only; NULL once answered */
	int cancel;
	atomic_bool gone, streaming, answered;
	atomic_size_t backlog;
};

enum part_kind { PART_WHOLE, PART_BEGIN, PART_CHUNK, PART_END };

/* One thing for the loop's thread to write. */
struct part {
	struct reply *reply;
	enum part_kind kind;
	int status;
	const char *type; /* a literal */
	struct evbuffer *data;
};

/* More of it than this is not kept for a client that does not read. */
#define PROGRESS_BACKLOG_MAX 65536

static void client_left(void *argument)
{
	struct reply *reply = argument;

	atomic_store(&reply->gone, true);
	eventfd_write(reply->cancel, 1);
	xend_lock(reply->xend);
	xend_changed(reply->xend);
	xend_unlock(reply->xend);
}

static void all_taken(void *argument)
{
	struct reply *reply = argument;

	atomic_store(&reply->backlog, 0);
}

struct reply *reply_new(struct xend *xend, struct http_request *request)
{
	struct reply *reply = calloc(1, sizeof(*reply));

	if (!reply)
		return NULL;
	reply->xend = xend;
	reply->request = request;
	reply->references = 1;
	reply->cancel = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (reply->cancel < 0) {
		free(reply);
		return NULL;
	}
	http_watch(request, client_left, all_taken, reply);
	return reply;
}

struct reply *reply_ref(struct reply *reply)
{
	atomic_fetch_add(&reply->references, 1);
	return reply;
}

void reply_unref(struct reply *reply)
{
	if (atomic_fetch_sub(&reply->references, 1) > 1)
		return;
	close(reply->cancel);
	free(reply);
}

static void write_part(void *argument)
{
	struct part *part = argument;
	struct reply *reply = part->reply;
	struct http_request *request = reply->request;

	if (request && (part->kind == PART_WHOLE || part->kind == PART_END))
		reply->request = NULL;
	if (request && part->kind == PART_WHOLE)
		http_answer(request, part->status, part->type, part->data);
	if (request && part->kind == PART_BEGIN)
		http_begin(request, part->status, part->type);
	if (request && part->kind == PART_CHUNK)
		http_chunk(request, part->data);
	if (request && part->kind == PART_END)
		http_end(request);
	if (part->data)
		evbuffer_free(part->data);
	reply_unref(reply);
	free(part);
}

static void hand_over(
	struct reply *reply, enum part_kind kind, int status, const char *type, const void *data, size_t size)
{
	struct part *part = malloc(sizeof(*part));
	struct evbuffer *buffer = size ? evbuffer_new() : NULL;

	if (!part || (size && (!buffer || evbuffer_add(buffer, data, size) < 0)))
		abort(); /* see xend_post */
	*part = (struct part){reply_ref(reply), kind, status, type, buffer};
	xend_post(reply->xend, write_part, part);
}

void reply_json(struct reply *reply, int status, json_t *body)
{
	_cleanup_json_ json_t *said = body;
	_cleanup_free_ char *text =
		said ? json_dumps(said, JSON_COMPACT) : strdup("{\"error\":\"Out of memory.\"}");

	if (!text)
		abort(); /* see xend_post */
	if (atomic_exchange(&reply->answered, true))
		return;
	hand_over(reply, PART_WHOLE, body ? status : 500, "application/json", text, strlen(text));
}

void reply_error(struct reply *reply, const struct error *error)
{
	if (!atomic_load(&reply->streaming)) {
		reply_json(reply, http_status(error->code),
			json_pack("{s:o}", "error", printable_sentence(error->text)));
		return;
	}
	reply_line(
		reply, json_pack("{s:s, s:o}", "event", "failed", "error", printable_sentence(error->text)));
	reply_end(reply);
}

void reply_stream(struct reply *reply, const char *type)
{
	if (!atomic_exchange(&reply->streaming, true))
		hand_over(reply, PART_BEGIN, 200, type, NULL, 0);
}

static bool is_progress(const json_t *line)
{
	const char *event = json_string_value(json_object_get(line, "event"));

	return event && strcmp(event, "progress") == 0;
}

void reply_line(struct reply *reply, json_t *line)
{
	_cleanup_json_ json_t *said = line;
	_cleanup_free_ char *text = said ? json_dumps(said, JSON_COMPACT) : NULL;
	size_t size = text ? strlen(text) : 0;

	if (!text || (is_progress(said) && reply_backlog(reply) > PROGRESS_BACKLOG_MAX))
		return;
	text[size] = '\n'; /* in the place of the terminating zero: what is sent has a length */
	reply_bytes(reply, text, size + 1);
}

void reply_bytes(struct reply *reply, const void *data, size_t size)
{
	if (!size || atomic_load(&reply->gone))
		return;
	atomic_fetch_add(&reply->backlog, size);
	hand_over(reply, PART_CHUNK, 0, NULL, data, size);
}

void reply_end(struct reply *reply)
{
	if (!atomic_exchange(&reply->answered, true))
		hand_over(reply, PART_END, 0, NULL, NULL, 0);
}

int reply_cancel_fd(const struct reply *reply)
{
	return reply->cancel;
}

bool reply_gone(struct reply *reply)
{
	return atomic_load(&reply->gone);
}

size_t reply_backlog(struct reply *reply)
{
	return atomic_load(&reply->backlog);
}
