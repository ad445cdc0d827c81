#include "xend/http.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "base/printable.h"

#include <errno.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <event2/listener.h>
#include <fcntl.h>
#include <jansson.h>
#include <string.h>
#include <strings.h>
#include <sys/queue.h>
#include <sys/resource.h>
#include <sys/socket.h>

#define PLACES_MOST 4096u
#define DESCRIPTORS_OF_ONE 4u /* that a connection may cost */
#define REQUEST_S 20          /* for all of a request to arrive */
#define TAKE_S 60             /* for a client to take some of an answer that is complete */
#define LINGER_S 2            /* for a client whose request was not read to read why */
#define PAUSE_US 200000       /* where there are no descriptors */

enum phase { PHASE_HEAD, PHASE_BODY, PHASE_HANDLED, PHASE_ENDING };

struct http_server {
	struct event_base *base;
	struct evconnlistener *listener;
	struct event *again;
	void (*handle)(struct http_request *request, void *context);
	void *context;
	int spare; /* a descriptor to say with that there is none */
	unsigned places, taken;
	TAILQ_HEAD(, http_request) arriving; /* the oldest first */
};

struct http_request {
	struct bufferevent *connection; /* owned; NULL: the client is gone */
	struct event *deadline;         /* owned: for its arrival */
	enum phase phase;
	char *text; /* owned: the head */
	struct http_head head;
	char *body; /* owned */
	void (*left)(void *context);
	void (*written)(void *context);
	void *context;
	TAILQ_ENTRY(http_request) next; /* while it arrives */
};

static struct http_server server; /* there is one */

/* ---- the head ---- */

static const struct {
	int status;
	const char *reason;
	int codes[4];
} statuses[] = {
	{500, "Internal Server Error", {0}},
	{200, "OK", {0}},
	{201, "Created", {0}},
	{400, "Bad Request", {EINVAL, EACCES, EPERM, 0}},
	{404, "Not Found", {ENOENT, ESRCH, 0}},
	{408, "Request Timeout", {ETIME, 0}},
	{409, "Conflict", {EEXIST, EBUSY, EALREADY, 0}},
	{413, "Content Too Large", {EFBIG, 0}},
	{431, "Request Header Fields Too Large", {E2BIG, 0}},
	{501, "Not Implemented", {EOPNOTSUPP, 0}},
	{503, "Service Unavailable", {EUSERS, EMFILE, ENFILE, 0}},
};

int http_status(int code)
{
	for (size_t i = 1; i < ARRAY_SIZE(statuses); i++)
		for (size_t j = 0; statuses[i].codes[j]; j++)
			if (statuses[i].codes[j] == code)
				return statuses[i].status;
	return statuses[0].status;
}

static const char *reason_of(int status)
{
	for (size_t i = 0; i < ARRAY_SIZE(statuses); i++)
		if (statuses[i].status == status)
			return statuses[i].reason;
	return "Unknown";
}

static int parse_length(const char *value, struct http_head *head, struct error *error)
{
	size_t digits = strspn(value, "0123456789");

	if (!digits || value[digits + strspn(value + digits, " \t")])
		return error_set(error, EINVAL, "The request's Content-Length is no number.");
	if (digits > 9 || strtoul(value, NULL, 10) > HTTP_BODY_MAX)
		return error_set(error, EFBIG, "A request's body has at most %d bytes.", HTTP_BODY_MAX);
	head->body = strtoul(value, NULL, 10);
	return 0;
}

static int parse_field(char *line, struct http_head *head, struct error *error)
{
	char *value = strchr(line, ':');

	if (!value || value == line)
		return error_set(error, EINVAL, "The request has a line that is no header: '%.80s'.", line);
	*value++ = 0;
	value += strspn(value, " \t");
	if (strcasecmp(line, "Content-Length") == 0)
		return parse_length(value, head, error);
	if (strcasecmp(line, "Transfer-Encoding") == 0)
		return error_set(error, EOPNOTSUPP, "xend takes no request in pieces (Transfer-Encoding).");
	head->expects = head->expects ||
			(strcasecmp(line, "Expect") == 0 && strncasecmp(value, "100-continue", 12) == 0);
	return 0;
}

static char *next_line(char **rest)
{
	char *line = strsep(rest, "\n");
	size_t length = line ? strlen(line) : 0;

	if (length && line[length - 1] == '\r')
		line[length - 1] = 0;
	return line;
}

int http_parse_head(char *text, struct http_head *head, struct error *error)
{
	char *rest = text, *line = next_line(&rest), *method = strsep(&line, " "),
	     *target = strsep(&line, " "), *query;
	int r = 0;

	*head = (struct http_head){.query = ""};
	if (!target || !*method || !*target || *target == '?' || !line || strncmp(line, "HTTP/1.", 7) != 0 ||
		strchr(line, ' '))
		return error_set(error, EINVAL, "This is no request of HTTP/1.1.");
	head->method = method;
	head->path = target;
	query = strchr(target, '?');
	if (query) {
		*query = 0;
		head->query = query + 1;
	}
	while (r == 0 && (line = next_line(&rest)))
		if (*line)
			r = parse_field(line, head, error);
	return r;
}

/* ---- connections ---- */

static void request_free(struct http_request *request)
{
	if (request->connection)
		bufferevent_free(request->connection);
	if (request->deadline)
		event_free(request->deadline);
	free(request->text);
	free(request->body);
	free(request);
}

static void arrived(struct http_request *request, enum phase phase)
{
	if (request->phase <= PHASE_BODY)
		TAILQ_REMOVE(&server.arriving, request, next);
	event_del(request->deadline);
	request->phase = phase;
}

/* The client is gone, or has to go. */
static void hang_up(struct http_request *request)
{
	enum phase phase = request->phase;

	bufferevent_free(take_pointer(request->connection));
	server.taken--;
	if (phase == PHASE_HANDLED) { /* whose answer frees it */
		if (request->left)
			request->left(request->context);
		return;
	}
	arrived(request, PHASE_ENDING);
	request_free(request);
}

static void put_head(struct http_request *request, int status, const char *type)
{
	evbuffer_add_printf(bufferevent_get_output(request->connection),
		"HTTP/1.1 %d %s\r\nContent-Type: %s\r\nConnection: close\r\n", status, reason_of(status),
		type);
}

/* All has been said; who does not take it is not waited for. */
static void end(struct http_request *request)
{
	const struct timeval take = {.tv_sec = TAKE_S};

	if (!request->connection) {
		request_free(request);
		return;
	}
	request->phase = PHASE_ENDING;
	request->written = request->left = NULL;
	bufferevent_set_timeouts(request->connection, &take, &take);
}

static void answer(struct http_request *request, int status, const char *type, struct evbuffer *data)
{
	if (request->connection) {
		struct evbuffer *output = bufferevent_get_output(request->connection);

		put_head(request, status, type);
		evbuffer_add_printf(
			output, "Content-Length: %zu\r\n\r\n", data ? evbuffer_get_length(data) : 0);
		if (data)
			evbuffer_add_buffer(output, data);
	}
	end(request);
}

void http_refuse(struct http_request *request, const struct error *error)
{
	_cleanup_json_ json_t *body = json_pack("{s:o}", "error", printable_sentence(error->text));
	_cleanup_free_ char *text = body ? json_dumps(body, JSON_COMPACT) : NULL;
	struct evbuffer *data = evbuffer_new();

	if (data && text)
		evbuffer_add(data, text, strlen(text));
	answer(request, http_status(error->code), "application/json", data);
	if (data)
		evbuffer_free(data);
}

/* The same of one that has not arrived whole. */
static void refuse(struct http_request *request, const struct error *error)
{
	arrived(request, PHASE_HANDLED);
	http_refuse(request, error);
}

static int take_head(struct http_request *request, struct evbuffer *input, struct error *error)
{
	struct evbuffer_ptr end_crlf = evbuffer_search(input, "\r\n\r\n", 4, NULL),
			    end_lf = evbuffer_search(input, "\n\n", 2, NULL);
	bool lf = end_lf.pos >= 0 && (end_crlf.pos < 0 || end_lf.pos < end_crlf.pos);
	ssize_t size = lf ? end_lf.pos : end_crlf.pos;

	if (size > HTTP_HEAD_MAX || (size < 0 && evbuffer_get_length(input) > HTTP_HEAD_MAX))
		return error_set(error, E2BIG, "A request's head has at most %d bytes.", HTTP_HEAD_MAX);
	if (size < 0)
		return 0;
	request->text = malloc((size_t)size + 1);
	if (!request->text)
		return error_set(error, ENOMEM, "Out of memory.");
	evbuffer_remove(input, request->text, (size_t)size);
	request->text[size] = 0;
	evbuffer_drain(input, lf ? 2 : 4);
	if (memchr(request->text, 0, (size_t)size))
		return error_set(error, EINVAL, "This is no request of HTTP/1.1.");
	request->phase = PHASE_BODY;
	return http_parse_head(request->text, &request->head, error);
}

static int take_body(struct http_request *request, struct evbuffer *input, struct error *error)
{
	if (evbuffer_get_length(input) < request->head.body) {
		if (request->head.expects)
			evbuffer_add_printf(
				bufferevent_get_output(request->connection), "HTTP/1.1 100 Continue\r\n\r\n");
		request->head.expects = false;
		return 0;
	}
	request->body = malloc(request->head.body + 1);
	if (!request->body)
		return error_set(error, ENOMEM, "Out of memory.");
	evbuffer_remove(input, request->body, request->head.body);
	request->body[request->head.body] = 0;
	arrived(request, PHASE_HANDLED);
	server.handle(request, server.context);
	return 0;
}

static void readable(struct bufferevent *connection, void *argument)
{
	struct http_request *request = argument;
	struct evbuffer *input = bufferevent_get_input(connection);
	struct error error;
	int r = 0;

	if (request->phase == PHASE_HEAD)
		r = take_head(request, input, &error);
	if (r == 0 && request->phase == PHASE_BODY)
		r = take_body(request, input, &error);
	else if (r == 0 && request->phase >= PHASE_HANDLED)
		evbuffer_drain(input, evbuffer_get_length(input)); /* it is read so that its end is seen */
	if (r < 0)
		refuse(request, &error);
}

static void taken(struct bufferevent *connection, void *argument)
{
	const struct timeval linger = {.tv_sec = LINGER_S};
	struct http_request *request = argument;

	(void)connection;
	if (request->phase == PHASE_ENDING) {
		/* Not closed before the client does, or what it has yet to read would be lost with what is
		 * unread here. */
		shutdown(bufferevent_getfd(request->connection), SHUT_WR);
		if (request->body)
			hang_up(request);
		else
			bufferevent_set_timeouts(request->connection, &linger, &linger);
	} else if (request->written) {
		request->written(request->context);
	}
}

static void happened(struct bufferevent *connection, short what, void *argument)
{
	(void)connection;
	(void)what; /* end, error or timeout */
	hang_up(argument);
}

static void too_late(evutil_socket_t fd, short what, void *argument)
{
	struct error error;

	(void)fd;
	(void)what;
	error_set(&error, ETIME, "The request has not arrived within %d s.", REQUEST_S);
	refuse(argument, &error);
}

static void make_room(void)
{
	struct http_request *request;
	unsigned count = 0;

	TAILQ_FOREACH(request, &server.arriving, next)
	count++;
	if (count <= server.places / 2)
		return;
	log_seldom(LOG_WARNING_,
		"%u connections to xend's socket do not say what they want: the oldest is closed.", count);
	hang_up(TAILQ_FIRST(&server.arriving));
}

static void accepted(struct evconnlistener *listener, evutil_socket_t fd, struct sockaddr *address, int size,
	void *argument)
{
	const struct timeval deadline = {.tv_sec = REQUEST_S};
	struct http_request *request = calloc(1, sizeof(*request));
	struct error error;

	(void)listener;
	(void)address;
	(void)size;
	(void)argument;
	if (request) {
		request->deadline = evtimer_new(server.base, too_late, request);
		request->connection = bufferevent_socket_new(server.base, fd, BEV_OPT_CLOSE_ON_FREE);
	}
	if (!request || !request->deadline || !request->connection) {
		if (!request || !request->connection)
			close((int)fd);
		if (request)
			request_free(request);
		return;
	}
	server.taken++;
	TAILQ_INSERT_TAIL(&server.arriving, request, next);
	event_add(request->deadline, &deadline);
	bufferevent_setcb(request->connection, readable, taken, happened, request);
	bufferevent_setwatermark(request->connection, EV_READ, 0, HTTP_HEAD_MAX + HTTP_BODY_MAX + 4);
	bufferevent_enable(request->connection, EV_READ | EV_WRITE);
	if (server.taken > server.places) {
		error_set(&error, EUSERS,
			"%u clients are being served, and xend has no place for more; try again in a moment.",
			server.places);
		refuse(request, &error);
	} else {
		make_room();
	}
}

static void listen_again(evutil_socket_t fd, short what, void *argument)
{
	(void)fd;
	(void)what;
	(void)argument;
	if (server.spare < 0)
		server.spare = open("/dev/null", O_RDONLY | O_CLOEXEC);
	evconnlistener_enable(server.listener);
}

static void tell_that_none_is_left(int client)
{
	static const char body[] = "{\"error\":\"" HTTP_NO_DESCRIPTORS "\"}";
	char text[400], request[16384];
	int length = snprintf(text, sizeof(text),
		"HTTP/1.1 503 %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n"
		"Connection: close\r\n\r\n%s",
		reason_of(503), sizeof(body) - 1, body);

	if (client < 0)
		return;
	send(client, text, (size_t)length, MSG_NOSIGNAL);
	shutdown(client, SHUT_WR);
	/* What is unread at the end would take the answer away. */
	while (recv(client, request, sizeof(request), 0) > 0)
		;
	close(client);
}

/* One client after the other is told; without a spare descriptor they have to wait. */
static void not_accepted(struct evconnlistener *listener, void *argument)
{
	const struct timeval pause = {.tv_usec = PAUSE_US};
	int failed = errno;

	(void)argument;
	log_seldom(LOG_WARNING_, "A client of xend's socket could not be accepted: %s.", strerror(failed));
	/* Whoever has said nothing yet makes room for who may. */
	if (!TAILQ_EMPTY(&server.arriving)) {
		for (unsigned i = 0; i < DESCRIPTORS_OF_ONE && !TAILQ_EMPTY(&server.arriving); i++)
			hang_up(TAILQ_FIRST(&server.arriving));
		return;
	}
	if (server.spare >= 0) {
		close(server.spare);
		tell_that_none_is_left(
			accept4(evconnlistener_get_fd(listener), NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK));
		server.spare = open("/dev/null", O_RDONLY | O_CLOEXEC);
		if (server.spare >= 0)
			return;
	}
	evconnlistener_disable(listener);
	event_add(server.again, &pause);
}

/* ---- what others use ---- */

int http_serve(struct event_base *base, int listening,
	void (*handle)(struct http_request *request, void *context), void *context, struct error *error)
{
	struct rlimit descriptors;
	rlim_t places = PLACES_MOST;

	if (getrlimit(RLIMIT_NOFILE, &descriptors) == 0 && descriptors.rlim_cur / DESCRIPTORS_OF_ONE < places)
		places = descriptors.rlim_cur / DESCRIPTORS_OF_ONE;
	server = (struct http_server){.base = base,
		.handle = handle,
		.context = context,
		.places = (unsigned)places,
		.spare = open("/dev/null", O_RDONLY | O_CLOEXEC)};
	TAILQ_INIT(&server.arriving);
	server.again = evtimer_new(base, listen_again, NULL);
	evutil_make_socket_nonblocking(listening);
	server.listener = evconnlistener_new(
		base, accepted, NULL, LEV_OPT_CLOSE_ON_EXEC | LEV_OPT_CLOSE_ON_FREE, 0, listening);
	if (!server.again || !server.listener)
		return error_set(error, ENOMEM, "Out of memory.");
	evconnlistener_set_error_cb(server.listener, not_accepted);
	return 0;
}

unsigned http_streams_max(void)
{
	return server.places / 4 * 3;
}

const struct http_head *http_head(const struct http_request *request)
{
	return &request->head;
}

const char *http_body(const struct http_request *request, size_t *size)
{
	*size = request->head.body;
	return request->body;
}

void http_watch(struct http_request *request, void (*left)(void *context), void (*written)(void *context),
	void *context)
{
	request->left = left;
	request->written = written;
	request->context = context;
}

void http_answer(struct http_request *request, int status, const char *type, struct evbuffer *data)
{
	answer(request, status, type, data);
}

void http_begin(struct http_request *request, int status, const char *type)
{
	if (!request->connection)
		return;
	put_head(request, status, type);
	evbuffer_add_printf(
		bufferevent_get_output(request->connection), "Transfer-Encoding: chunked\r\n\r\n");
}

void http_chunk(struct http_request *request, struct evbuffer *data)
{
	struct evbuffer *output = request->connection ? bufferevent_get_output(request->connection) : NULL;

	if (!output || !evbuffer_get_length(data))
		return;
	evbuffer_add_printf(output, "%zx\r\n", evbuffer_get_length(data));
	evbuffer_add_buffer(output, data);
	evbuffer_add(output, "\r\n", 2);
}

void http_end(struct http_request *request)
{
	if (request->connection)
		evbuffer_add_printf(bufferevent_get_output(request->connection), "0\r\n\r\n");
	end(request);
}
