/* From a request to its handler: finds the route, and a worker for it. */
#include "base/cleanup.h"
#include "xend/api.h"
#include "xend/http.h"

#include <errno.h>
#include <event2/http.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#define BACKLOG 1024

/* So many requests may be worked on at once: of all kinds together, and of one, so that those that have to
 * wait keep no others from being answered. Brief ones, that wait for nobody, have places of their own. */
#define REQUESTS_MAX 1024u
#define OF_ONE_MAX 256u
#define BRIEF_OF_ONE_MAX 32u

/* Whether the path is of that pattern; what stands for "*" goes to `domain`. */
static bool match(const char *pattern, const char *path, char *domain, size_t size)
{
	const char *star = strchr(pattern, '*');
	size_t before = star ? (size_t)(star - pattern) : strlen(pattern), length;
	_cleanup_free_ char *word = NULL, *decoded = NULL;

	*domain = 0;
	if (strncmp(path, pattern, before) != 0)
		return false;
	if (!star)
		return !path[before];
	length = strcspn(path + before, "/");
	if (!length || strcmp(path + before + length, star + 1) != 0)
		return false;
	word = strndup(path + before, length);
	decoded = word ? evhttp_uridecode(word, 0, NULL) : NULL;
	if (!decoded || strlen(decoded) >= size)
		return false;
	snprintf(domain, size, "%s", decoded);
	return true;
}

struct pending {
	struct call call;
	struct route *route;
};

static void pending_free(struct pending *pending)
{
	reply_unref(pending->call.reply);
	json_decref(pending->call.body);
	free(pending->call.bytes);
	free(pending);
}

static void run_call(void *argument)
{
	struct pending *pending = argument;
	struct xend *xend = pending->call.xend;

	pending->route->handle(&pending->call);
	pending->route->running--;
	if (!pending->route->brief)
		xend->requests--;
	pending_free(pending);
}

/* With the lock. */
static int give_to_worker(struct pending *pending, struct error *error)
{
	struct xend *xend = pending->call.xend;
	struct route *route = pending->route;
	int r;

	if (xend->stopping)
		return error_set(error, EBUSY, "xend is being stopped.");
	if (route->running >= (route->brief ? BRIEF_OF_ONE_MAX : OF_ONE_MAX) ||
		(!route->brief && xend->requests >= REQUESTS_MAX))
		return error_set(error, EUSERS,
			"%u requests of this kind are under way, %u in all: xend has too much to do at once; "
			"try again in a "
			"moment.",
			route->running, xend->requests);
	r = xend_worker(xend, run_call, pending, error);
	if (r < 0)
		return r;
	route->running++;
	if (!route->brief)
		xend->requests++;
	return 0;
}

static int read_body(struct http_request *request, struct call *call)
{
	const char *body = http_body(request, &call->size);

	call->bytes = malloc(call->size + 1);
	if (!call->bytes)
		return -ENOMEM;
	memcpy(call->bytes, body, call->size + 1);
	call->body = json_loadb(call->bytes, call->size, JSON_REJECT_DUPLICATES, NULL);
	if (!json_is_object(call->body)) {
		json_decref(call->body);
		call->body = NULL;
	}
	return 0;
}

static struct route *find_route(struct http_request *request, struct call *call, struct error *error)
{
	const struct http_head *head = http_head(request);
	bool known = false;

	call->history = strcmp(head->query, "history=1") == 0;
	for (struct route *route = api_routes; route->path; route++) {
		if (!match(route->path, head->path, call->domain, sizeof(call->domain)))
			continue;
		known = true;
		if (strcmp(route->method, head->method) == 0)
			return route;
	}
	error_set(error, ENOENT,
		known ? "xend does not understand that method for '%.200s'."
		      : "xend knows nothing at '%.200s'.",
		head->path);
	return NULL;
}

static void handle_request(struct http_request *request, void *argument)
{
	struct xend *xend = argument;
	struct pending *pending = calloc(1, sizeof(*pending));
	struct error error = {0};
	int r = 0;

	errno = ENOMEM;
	if (pending)
		pending->call = (struct call){.xend = xend, .reply = reply_new(xend, request)};
	if (!pending || !pending->call.reply) {
		error_set(&error, errno, errno == ENOMEM ? "Out of memory." : HTTP_NO_DESCRIPTORS);
		free(pending);
		http_refuse(request, &error);
		return;
	}
	pending->route = find_route(request, &pending->call, &error);
	if (!pending->route)
		r = -ENOENT;
	else if (read_body(request, &pending->call) < 0)
		r = error_set(&error, ENOMEM, "Out of memory.");
	else if (strcmp(pending->route->method, "POST") == 0 && pending->route->handle != console_input &&
		 pending->call.size && !pending->call.body)
		r = error_set(&error, EINVAL, "The request's body is not a JSON object.");
	if (r >= 0 && !pending->call.body)
		pending->call.body = json_object();
	if (r >= 0) {
		xend_lock(xend);
		r = give_to_worker(pending, &error);
		xend_unlock(xend);
	}
	if (r < 0) {
		reply_error(pending->call.reply, &error);
		pending_free(pending);
	}
}

static int listen_at(const char *path, struct error *error)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	_cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct stat info;
	mode_t mask;
	int r;

	memcpy(address.sun_path, path, strlen(path) + 1);
	/* What is left of an earlier xend makes room, and nothing else. */
	if (lstat(path, &info) == 0 && !S_ISSOCK(info.st_mode))
		return error_set(
			error, EEXIST, "Unable to listen on %s: there is something else of that name.", path);
	unlink(path);
	mask = umask(0177);
	r = fd < 0 ? fd : bind(fd, (struct sockaddr *)&address, sizeof(address));
	umask(mask);
	if (r < 0 || listen(fd, BACKLOG) < 0)
		return error_set(error, errno, "Unable to listen on %s: %s.", path, strerror(errno));
	return take_fd(&fd);
}

int api_start(struct xend *xend, struct error *error)
{
	const char *path = xend->config.unix_path;
	_cleanup_free_ char *directory = strdup(path);
	int fd;

	if (!directory || path[0] != '/' || strlen(path) >= sizeof(((struct sockaddr_un *)0)->sun_path))
		return error_set(error, EINVAL,
			"xend-unix-path '%s' is not an absolute path of at most %zu characters.", path,
			sizeof(((struct sockaddr_un *)0)->sun_path) - 1);
	*strrchr(directory, '/') = 0;
	if (*directory && make_directories(directory, 0755, error) < 0)
		return -error->code;
	fd = listen_at(path, error);
	return fd < 0 ? fd : http_serve(xend->base, fd, handle_request, xend, error);
}
