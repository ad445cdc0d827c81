#include "xm/client.h"

#include "base/cleanup.h"
#include "config/xend_config.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#define ANSWER_MAX (64UL * 1024 * 1024)
#define CALL_TIMEOUT_S 600 /* network scripts may take their time */

int client_open(struct client *client, struct error *error)
{
	const char *socket = getenv("XEND_SOCKET");

	*client = (struct client){0};
	if (socket && *socket) {
		client->socket = strdup(socket);
	} else {
		_cleanup_xend_config_ struct xend_config config = {0};
		int r = xend_config_load(&config, xend_config_path(), error);

		if (r < 0)
			return r;
		client->socket = take_pointer(config.unix_path);
	}
	if (curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK)
		client->transfers = curl_multi_init();
	if (!client->socket || !client->transfers)
		return error_set(error, ENOMEM, "Out of memory.");
	return 0;
}

void client_close(struct client *client)
{
	if (client->transfers) {
		curl_multi_cleanup(client->transfers);
		curl_global_cleanup();
	}
	free(client->socket);
	*client = (struct client){0};
}

static long status_of(const struct transfer *transfer)
{
	long status = 0;

	curl_easy_getinfo(transfer->easy, CURLINFO_RESPONSE_CODE, &status);
	return status;
}

/* libcurl's write callback. */
static size_t receive(char *bytes, size_t unit, size_t count, void *context)
{
	struct transfer *transfer = context;
	size_t size = unit * count;

	if (transfer->receive && transfer_is_answered(transfer))
		return transfer->receive(transfer->context, bytes, size, &transfer->error) < 0 ? 0 : size;
	if (transfer->answer.size + size > ANSWER_MAX) {
		error_set(&transfer->error, EFBIG, "xend's answer is too long (over %lu bytes).", ANSWER_MAX);
		return 0;
	}
	buffer_append(&transfer->answer, bytes, size);
	return transfer->answer.failed ? 0 : size;
}

int transfer_start(struct transfer *transfer, struct client *client, const char *method, const char *path,
	const void *body, size_t size, const char *content_type, receive_function receiver, void *context,
	struct error *error)
{
	_cleanup_free_ char *url = NULL, *type = NULL;
	bool posts = !strcmp(method, "POST");

	*transfer = (struct transfer){
		.client = client, .receive = receiver, .context = context, .easy = curl_easy_init()};
	if (body)
		buffer_append(&transfer->request, body, size);
	transfer->headers = curl_slist_append(NULL, "Expect:");
	if (asprintf(&url, "http://xend%s", path) < 0)
		url = NULL;
	if (asprintf(&type, "Content-Type: %s", content_type ? content_type : "application/json") < 0)
		type = NULL;
	if (!transfer->easy || !transfer->headers || !url || !type || transfer->request.failed ||
		!curl_slist_append(transfer->headers, type))
		return error_set(error, ENOMEM, "Out of memory.");
	curl_easy_setopt(transfer->easy, CURLOPT_URL, url);
	curl_easy_setopt(transfer->easy, CURLOPT_UNIX_SOCKET_PATH, client->socket);
	curl_easy_setopt(transfer->easy, CURLOPT_PROTOCOLS_STR, "http");
	curl_easy_setopt(transfer->easy, CURLOPT_PROXY, "");
	curl_easy_setopt(transfer->easy, CURLOPT_NOSIGNAL, 1L);
	curl_easy_setopt(transfer->easy, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
	curl_easy_setopt(transfer->easy, CURLOPT_HTTPHEADER, transfer->headers);
	curl_easy_setopt(transfer->easy, CURLOPT_ERRORBUFFER, transfer->error_text);
	curl_easy_setopt(transfer->easy, CURLOPT_WRITEFUNCTION, receive);
	curl_easy_setopt(transfer->easy, CURLOPT_WRITEDATA, transfer);
	curl_easy_setopt(transfer->easy, CURLOPT_PRIVATE, transfer);
	if (posts) {
		curl_easy_setopt(transfer->easy, CURLOPT_POST, 1L);
		curl_easy_setopt(
			transfer->easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)transfer->request.size);
		curl_easy_setopt(transfer->easy, CURLOPT_POSTFIELDS,
			transfer->request.size ? (char *)transfer->request.data : "");
	}
	if (curl_multi_add_handle(client->transfers, transfer->easy) != CURLM_OK)
		return error_set(error, ENOMEM, "Out of memory.");
	return 0;
}

void transfer_free(struct transfer *transfer)
{
	if (transfer->easy) {
		curl_multi_remove_handle(transfer->client->transfers, transfer->easy);
		curl_easy_cleanup(transfer->easy);
	}
	curl_slist_free_all(transfer->headers);
	buffer_free(&transfer->request);
	buffer_free(&transfer->answer);
	*transfer = (struct transfer){0};
}

bool transfer_is_answered(const struct transfer *transfer)
{
	long status = status_of(transfer);

	return status >= 200 && status < 300;
}

static int connection_error(const struct transfer *transfer, struct error *error)
{
	long os_error = 0;

	curl_easy_getinfo(transfer->easy, CURLINFO_OS_ERRNO, &os_error);
	if (!os_error)
		os_error = ECONNREFUSED;
	if (os_error == EACCES || os_error == EPERM)
		return error_set(error, (int)os_error,
			"Unable to connect to xend: %s. Most commands need root access: please try again as "
			"root.",
			strerror((int)os_error));
	return error_set(error, (int)os_error, "Unable to connect to xend: %s. Is xend running?",
		strerror((int)os_error));
}

/* The sentence in a 4xx or 5xx answer. */
static int refusal(const struct transfer *transfer, struct error *error)
{
	_cleanup_json_ json_t *body =
		json_loadb((const char *)transfer->answer.data, transfer->answer.size, 0, NULL);
	const char *sentence = json_string_value(json_object_get(body, "error"));

	if (sentence && *sentence)
		return error_set(error, EREMOTEIO, "%s", sentence);
	return error_set(error, EPROTO, "xend refuses with status %ld and gives no reason (xm log may).",
		status_of(transfer));
}

int transfer_result(struct transfer *transfer, struct error *error)
{
	if (transfer->code == CURLE_COULDNT_CONNECT)
		return connection_error(transfer, error);
	if (transfer->error.code)
		return error_set(error, transfer->error.code, "%s", transfer->error.text);
	if (status_of(transfer) >= 400)
		return refusal(transfer, error);
	if (transfer->code == CURLE_OK && transfer_is_answered(transfer))
		return 0;
	if (transfer->code == CURLE_GOT_NOTHING || transfer->code == CURLE_RECV_ERROR ||
		transfer->code == CURLE_PARTIAL_FILE || transfer->code == CURLE_SEND_ERROR)
		return error_set(error, EPIPE,
			"xend closed the connection before its answer was complete: see "
			"/var/log/xen/xend.log.");
	return error_set(error, EPROTO, "The answer on %s is not xend's (%s).", transfer->client->socket,
		transfer->code == CURLE_OK ? "unexpected status"
		: *transfer->error_text    ? transfer->error_text
					   : curl_easy_strerror(transfer->code));
}

int client_wait(struct client *client, struct pollfd *descriptors, unsigned count, int timeout_ms,
	struct error *error)
{
	struct curl_waitfd extra[4] = {0};
	CURLMsg *message;
	int running, left;

	if (count > ARRAY_SIZE(extra))
		return error_set(error, EINVAL, "Too many descriptors to wait for.");
	for (unsigned i = 0; i < count; i++) {
		extra[i] = (struct curl_waitfd){.fd = descriptors[i].fd, .events = CURL_WAIT_POLLIN};
		descriptors[i].revents = 0;
	}
	/* Waits first: whatever libcurl does then, the caller sees what has come of it before it waits again.
	 */
	if (curl_multi_poll(client->transfers, extra, count, timeout_ms < 0 ? 60000 : timeout_ms, NULL) !=
		CURLM_OK)
		return error_set(error, EIO, "Unable to wait for xend: %s.", strerror(errno));
	for (unsigned i = 0; i < count; i++)
		descriptors[i].revents = extra[i].revents ? POLLIN : 0;
	if (curl_multi_perform(client->transfers, &running) != CURLM_OK)
		return error_set(error, ENOMEM, "Out of memory.");
	message = curl_multi_info_read(client->transfers, &left);
	for (; message; message = curl_multi_info_read(client->transfers, &left)) {
		struct transfer *transfer = NULL;

		curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, (char **)&transfer);
		if (message->msg == CURLMSG_DONE && transfer) {
			transfer->code = message->data.result;
			transfer->ended = true;
		}
	}
	return 0;
}

int client_fetch(struct client *client, const char *method, const char *path, const json_t *body,
	struct buffer *answer, int timeout_s, struct error *error)
{
	_cleanup_transfer_ struct transfer transfer = {0};
	_cleanup_free_ char *text = body ? json_dumps(body, JSON_COMPACT) : NULL;
	time_t end = time(NULL) + timeout_s;
	int r;

	if (body && !text)
		return error_set(error, EINVAL, "The request cannot be written as JSON.");
	r = transfer_start(
		&transfer, client, method, path, text, text ? strlen(text) : 0, NULL, NULL, NULL, error);
	while (r >= 0 && !transfer.ended) {
		if (timeout_s && time(NULL) > end)
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
	if (reply)
		*reply = take_pointer(json);
	return 0;
}
