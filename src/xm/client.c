#include "xm/client.h"

#include "base/cleanup.h"
#include "base/printable.h"
#include "config/xend_config.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#define ANSWER_MAX (64UL * 1024 * 1024)
#define CALL_TIMEOUT_S 600 /* network scripts may take their time */
#define TRANSFERS_MAX 8    /* at once; a console has three */
#define DESCRIPTORS_MAX 4  /* of the caller's */
#define AGAIN_MS 10        /* when xend has no room for another connection */
#define PIECE 65536        /* bytes taken at a time */

int client_open(struct client *client, struct error *error)
{
	const char *socket = getenv("XEND_SOCKET");

	*client = (struct client){0};
	if (socket && *socket) {
		client->socket = strdup(socket);
	} else {
		_cleanup_xend_config_ struct xend_config config = {0};
		int r = xend_config_load(&config, xend_config_path(), error);

		/* A xend that runs has read another one: the mistake is told, and it is looked for where it
		 * usually is. */
		if (r < 0) {
			struct xend_config usual = {0};

			client->complaint = strdup(error ? error->text : "");
			r = xend_config_parse(&usual, "", "", 0, NULL);
			client->socket = take_pointer(usual.unix_path);
			xend_config_free(&usual);
		} else {
			client->socket = take_pointer(config.unix_path);
		}
	}
	if (!client->socket)
		return error_set(error, ENOMEM, "Out of memory.");
	return 0;
}

void client_close(struct client *client)
{
	free(client->socket);
	free(client->complaint);
	*client = (struct client){0};
}

int transfer_start(struct transfer *transfer, struct client *client, const char *method, const char *path,
	const void *body, size_t size, const char *content_type, receive_function receive, void *context,
	struct error *error)
{
	*transfer = (struct transfer){.client = client,
		.next = client->transfers,
		.started = true,
		.connection = -1,
		.receive = receive,
		.context = context};
	client->transfers = transfer;
	http_request(&transfer->request, method, path, content_type ? content_type : "application/json", body,
		size);
	return transfer->request.failed ? error_set(error, ENOMEM, "Out of memory.") : 0;
}

void transfer_free(struct transfer *transfer)
{
	if (transfer->started) {
		struct transfer **link = &transfer->client->transfers;

		while (*link != transfer)
			link = &(*link)->next;
		*link = transfer->next;
		cleanup_close(&transfer->connection);
	}
	buffer_free(&transfer->request);
	buffer_free(&transfer->answer);
	*transfer = (struct transfer){0};
}

bool transfer_is_answered(const struct transfer *transfer)
{
	return transfer->http.status >= 200 && transfer->http.status < 300;
}

static int connection_error(int os_error, struct error *error)
{
	if (os_error == EACCES || os_error == EPERM)
		return error_set(error, os_error,
			"Unable to connect to xend: %s. Most commands need root access: please try again as "
			"root.",
			strerror(os_error));
	return error_set(
		error, os_error, "Unable to connect to xend: %s. Is xend running?", strerror(os_error));
}

static int not_xends(const struct client *client, const char *why, struct error *error)
{
	return error_set(error, EPROTO, "The answer on %s is not xend's (%s).", client->socket, why);
}

/* The connection is gone before the answer was complete. What a refusal says by then still counts. */
static void cut_short(struct transfer *transfer)
{
	transfer->ended = true;
	if (transfer->http.status < 400)
		error_set(&transfer->error, EPIPE,
			"xend closed the connection before its answer was complete: see "
			"/var/log/xen/xend.log.");
}

static int take_body(void *context, const char *bytes, size_t size)
{
	struct transfer *transfer = context;

	if (transfer->receive && transfer_is_answered(transfer))
		return transfer->receive(transfer->context, bytes, size, &transfer->error);
	if (transfer->answer.size + size > ANSWER_MAX)
		return error_set(
			&transfer->error, EFBIG, "xend's answer is too long (over %lu bytes).", ANSWER_MAX);
	buffer_append(&transfer->answer, bytes, size);
	return transfer->answer.failed ? error_set(&transfer->error, ENOMEM, "Out of memory.") : 0;
}

/* A unix socket connects at once or not at all; EAGAIN: its queue is full. */
static void connect_to_xend(struct transfer *transfer)
{
	const char *path = transfer->client->socket;
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	_cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int os_error = fd < 0 ? errno : 0;

	if (!os_error && strlen(path) >= sizeof(address.sun_path))
		os_error = ENAMETOOLONG;
	if (!os_error) {
		memcpy(address.sun_path, path, strlen(path) + 1);
		os_error = connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0 ? errno : 0;
	}
	if (!os_error)
		transfer->connection = take_fd(&fd);
	else if (os_error != EAGAIN && os_error != EINTR)
		transfer->ended = connection_error(os_error, &transfer->error) < 0;
}

/* As much as there is room for. A xend that takes no more may have answered already: that tells. */
static void send_request(struct transfer *transfer)
{
	struct buffer *request = &transfer->request;

	while (transfer->sent < request->size) {
		ssize_t r = send(transfer->connection, request->data + transfer->sent,
			request->size - transfer->sent, MSG_NOSIGNAL);

		if (r < 0 && errno == EAGAIN)
			return;
		if (r < 0 && errno != EINTR)
			transfer->sent = request->size;
		if (r > 0)
			transfer->sent += (size_t)r;
	}
}

/* As far as it goes without waiting. */
static void advance(struct transfer *transfer)
{
	if (transfer->connection < 0)
		connect_to_xend(transfer);
	if (transfer->connection >= 0)
		send_request(transfer);
}

static void receive_answer(struct transfer *transfer)
{
	char bytes[PIECE];
	ssize_t size = recv(transfer->connection, bytes, sizeof(bytes), 0);
	int r = 0;

	if (size < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (size > 0)
		r = http_answer_take(&transfer->http, bytes, (size_t)size, take_body, transfer);
	if (size < 0 || (!size && http_answer_end(&transfer->http) < 0))
		return cut_short(transfer);
	if (r < 0 && transfer->http.fault && transfer->http.status < 400)
		not_xends(transfer->client, transfer->http.fault, &transfer->error);
	transfer->ended = r < 0 || transfer->http.part == HTTP_COMPLETE;
}

/* The sentence in a 4xx or 5xx answer. */
static int refusal(const struct transfer *transfer, struct error *error)
{
	_cleanup_json_ json_t *body =
		json_loadb((const char *)transfer->answer.data, transfer->answer.size, 0, NULL);
	const char *sentence = json_string_value(json_object_get(body, "error"));

	if (sentence && *sentence)
		return error_set(error,
			transfer->http.status == 404   ? ENOENT
			: transfer->http.status == 409 ? EBUSY
						       : EREMOTEIO,
			"%s", sentence);
	return error_set(error, EPROTO, "xend refuses with status %d and gives no reason (xm log may).",
		transfer->http.status);
}

int transfer_result(struct transfer *transfer, struct error *error)
{
	if (transfer->error.code)
		return error_set(error, transfer->error.code, "%s", transfer->error.text);
	if (transfer->http.status >= 400)
		return refusal(transfer, error);
	if (!transfer_is_answered(transfer))
		return not_xends(transfer->client, "unexpected status", error);
	return 0;
}

int client_wait(struct client *client, struct pollfd *descriptors, unsigned count, int timeout_ms,
	struct error *error)
{
	struct pollfd polled[DESCRIPTORS_MAX + TRANSFERS_MAX];
	struct transfer *receiving[TRANSFERS_MAX];
	unsigned transfers = 0;

	if (count > DESCRIPTORS_MAX)
		return error_set(error, EINVAL, "Too many descriptors to wait for.");
	for (unsigned i = 0; i < count; i++) {
		polled[i] = descriptors[i];
		descriptors[i].revents = 0;
	}
	for (struct transfer *transfer = client->transfers; transfer; transfer = transfer->next) {
		if (transfer->ended)
			continue;
		advance(transfer);
		if (transfer->ended) {
			timeout_ms = 0; /* the caller sees what has come of it before it waits */
		} else if (transfer->connection < 0) {
			timeout_ms = timeout_ms < 0 || timeout_ms > AGAIN_MS ? AGAIN_MS : timeout_ms;
		} else if (transfers == TRANSFERS_MAX) {
			return error_set(error, EINVAL, "Too many requests to wait for.");
		} else {
			polled[count + transfers] = (struct pollfd){.fd = transfer->connection,
				.events =
					transfer->sent < transfer->request.size ? POLLIN | POLLOUT : POLLIN};
			receiving[transfers++] = transfer;
		}
	}
	if (poll(polled, count + transfers, timeout_ms) < 0)
		return errno == EINTR
			       ? 0
			       : error_set(error, EIO, "Unable to wait for xend: %s.", strerror(errno));
	for (unsigned i = 0; i < count; i++)
		descriptors[i].revents = polled[i].revents ? POLLIN : 0;
	for (unsigned i = 0; i < transfers; i++)
		if (polled[count + i].revents & ~POLLOUT)
			receive_answer(receiving[i]);
	return 0;
}

time_t steady_seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec;
}

int client_fetch(struct client *client, const char *method, const char *path, const json_t *body,
	struct buffer *answer, int timeout_s, struct error *error)
{
	_cleanup_transfer_ struct transfer transfer = {0};
	_cleanup_free_ char *text = body ? json_dumps(body, JSON_COMPACT) : NULL;
	time_t end = steady_seconds() + timeout_s;
	int r;

	if (body && !text)
		return error_set(error, EINVAL, "The request cannot be written as JSON.");
	r = transfer_start(
		&transfer, client, method, path, text, text ? strlen(text) : 0, NULL, NULL, NULL, error);
	while (r >= 0 && !transfer.ended) {
		if (timeout_s && steady_seconds() > end)
			return error_set(error, ETIMEDOUT, "xend does not answer (waited %d s).", timeout_s);
		r = client_wait(client, NULL, 0, 1000, error);
	}
	if (r >= 0)
		r = transfer_result(&transfer, error);
	if (r < 0)
		return r;
	buffer_append(answer, transfer.answer.data, transfer.answer.size);
	buffer_u8(answer, 0);
	return answer->failed ? error_set(error, ENOMEM, "Out of memory.") : 0;
}

int client_call(struct client *client, const char *method, const char *path, const json_t *body,
	json_t **reply, struct error *error)
{
	_cleanup_buffer_ struct buffer answer = {0};
	_cleanup_json_ json_t *json = NULL;
	int r = client_fetch(client, method, path, body, &answer, CALL_TIMEOUT_S, error);

	if (r < 0)
		return r;
	json = json_loadb((const char *)answer.data, answer.size - 1, 0, NULL);
	if (!json_is_object(json))
		return error_set(
			error, EPROTO, "The answer on %s is not xend's (no JSON object).", client->socket);
	printable_json(json);
	if (reply)
		*reply = take_pointer(json);
	return 0;
}
