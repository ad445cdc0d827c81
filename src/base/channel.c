#include "base/channel.h"
#include "base/cleanup.h"
#include "base/printable.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

void message_free(struct message *message)
{
	json_decref(message->body);
	message->body = NULL;
	for (unsigned i = 0; i < message->fd_count; i++)
		if (message->fds[i] >= 0)
			close(message->fds[i]);
	message->fd_count = 0;
}

int message_take_fd(struct message *message, const json_t *object, const char *key, struct error *error)
{
	const json_t *member = json_object_get(object, key), *place = json_object_get(member, "fd");
	json_int_t at = json_integer_value(place);

	if (!member || json_is_null(member))
		return -ENOENT;
	if (!json_is_integer(place) || at < 0 || at >= (json_int_t)message->fd_count || message->fds[at] < 0)
		return error_set(error, EINVAL,
			"The message names a descriptor for '%s' that it does not carry.", key);
	return take_fd(&message->fds[at]);
}

int channel_send(int socket, const json_t *body, const int *fds, unsigned fd_count, struct error *error)
{
	_cleanup_free_ char *text = json_dumps(body, JSON_COMPACT);
	union {
		char bytes[CMSG_SPACE(sizeof(int) * CHANNEL_FDS_MAX)];
		struct cmsghdr align;
	} control = {0};
	struct iovec part = {.iov_base = text, .iov_len = text ? strlen(text) : 0};
	struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1};
	ssize_t sent;

	if (!text)
		return error_set(error, ENOMEM, "Out of memory while writing a message.");
	if (part.iov_len > CHANNEL_MESSAGE_MAX || fd_count > CHANNEL_FDS_MAX)
		return error_set(error, EMSGSIZE,
			"A message of %zu bytes and %u descriptors is too large to send.", part.iov_len,
			fd_count);
	if (fd_count) {
		struct cmsghdr *first;

		header.msg_control = control.bytes;
		header.msg_controllen = CMSG_SPACE(sizeof(int) * fd_count);
		first = CMSG_FIRSTHDR(&header);
		first->cmsg_level = SOL_SOCKET;
		first->cmsg_type = SCM_RIGHTS;
		first->cmsg_len = CMSG_LEN(sizeof(int) * fd_count);
		memcpy(CMSG_DATA(first), fds, sizeof(int) * fd_count);
	}
	do
		sent = sendmsg(socket, &header, MSG_NOSIGNAL);
	while (sent < 0 && errno == EINTR);
	if (sent < 0)
		return error_set(error, errno, "Unable to send a message: %s.", strerror(errno));
	return 0;
}

static void take_descriptors(struct msghdr *header, struct message *message)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(header); c; c = CMSG_NXTHDR(header, c)) {
		size_t count;

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		memcpy(message->fds + message->fd_count, CMSG_DATA(c), count * sizeof(int));
		message->fd_count += (unsigned)count;
	}
}

int channel_receive(int socket, struct message *message, struct error *error)
{
	union {
		char bytes[CMSG_SPACE(sizeof(int) * CHANNEL_FDS_MAX)];
		struct cmsghdr align;
	} control;
	_cleanup_free_ char *text = malloc(CHANNEL_MESSAGE_MAX);
	struct iovec part = {.iov_base = text, .iov_len = CHANNEL_MESSAGE_MAX};
	struct msghdr header = {.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = control.bytes,
		.msg_controllen = sizeof(control.bytes)};
	json_error_t reason;
	ssize_t size;

	*message = (struct message){0};
	if (!text)
		return error_set(error, ENOMEM, "Out of memory while reading a message.");
	/*
	 * A peer that left without reading everything shows as ECONNRESET, once, before what it had said: its
	 * last message, often the reason, is still there.
	 */
	do
		size = recvmsg(socket, &header, MSG_CMSG_CLOEXEC);
	while (size < 0 && (errno == EINTR || errno == ECONNRESET));
	if (size < 0)
		return error_set(error, errno, "Unable to receive a message: %s.", strerror(errno));
	take_descriptors(&header, message);
	if (size == 0) {
		message_free(message);
		return error_set(error, EPIPE, "The other side closed the channel.");
	}
	if (!(header.msg_flags & (MSG_TRUNC | MSG_CTRUNC)))
		message->body = json_loadb(text, (size_t)size, JSON_REJECT_DUPLICATES, &reason);
	if (!json_is_object(message->body)) {
		message_free(message);
		return error_set(error, EBADMSG,
			"A message arrived that is not one JSON object of at most %d bytes.",
			CHANNEL_MESSAGE_MAX);
	}
	return 0;
}

int channel_error_of(const json_t *body, struct error *error)
{
	const char *sentence = json_string_value(json_object_get(body, "error"));
	json_int_t code = json_integer_value(json_object_get(body, "errno"));

	if (!sentence)
		return 0;
	return error_set(error, code > 0 && code < 4096 ? (int)code : EIO, "%s", sentence);
}

static long long now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

static int no_answer(const json_t *request, int timeout_ms, struct error *error)
{
	return error_set(error, ETIMEDOUT, "No answer to '%s' within %d ms.",
		json_string_value(json_object_get(request, "do")), timeout_ms);
}

int channel_call(int socket, const json_t *request, const int *fds, unsigned fd_count, struct message *reply,
	int timeout_ms, struct error *error)
{
	long long deadline = now_ms() + timeout_ms;
	struct message unwanted, *answer = reply ? reply : &unwanted;
	int r = channel_send(socket, request, fds, fd_count, error);

	*answer = (struct message){0};
	while (r == 0) {
		struct pollfd ready = {.fd = socket, .events = POLLIN};
		long long left = deadline - now_ms();
		int n = poll(&ready, 1, timeout_ms < 0 ? -1 : left > 0 ? (int)left : 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n == 0)
			return no_answer(request, timeout_ms, error);
		r = channel_receive(socket, answer, error);
		if (r == -EAGAIN) {
			r = 0;
			continue;
		}
		if (r < 0)
			return r;
		if (!json_object_get(answer->body, "event"))
			break;
		message_free(answer);
		/* Who has always something else to say does not answer either. */
		if (timeout_ms >= 0 && now_ms() >= deadline)
			return no_answer(request, timeout_ms, error);
	}
	if (r == 0)
		r = channel_error_of(answer->body, error);
	if (r < 0 || !reply)
		message_free(answer);
	return r;
}

int channel_reply_error(int socket, const struct error *error)
{
	_cleanup_json_ json_t *body =
		json_pack("{s:o, s:i}", "error", printable_sentence(error->text), "errno", error->code);

	return channel_send(socket, body, NULL, 0, NULL);
}
