#include "vmm/control.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "base/printable.h"
#include "vmm/control_verbs.h"

#include <errno.h>
#include <sys/socket.h>

#define CONNECTIONS_MAX 300u

static void free_closed(void *context)
{
	struct control *control = context;

	while (control->closed) {
		struct connection *connection = control->closed;

		control->closed = connection->next;
		free(connection);
	}
}

/*
 * It is freed when the loop turns: a connection is closed where something is sent on it, and that may be far
 * inside of what somebody asked on it, or in the middle of a walk through all.
 */
static void connection_close(struct connection *connection)
{
	struct control *control = connection->control;

	if (connection->watch.fd < 0)
		return;
	for (struct connection **at = &control->connections; *at; at = &(*at)->next)
		if (*at == connection) {
			*at = connection->next;
			break;
		}
	control->count--;
	if (connection->slows)
		throttle_end(&control->machine->throttle);
	loop_remove(control->machine->loop, &connection->watch);
	close(connection->watch.fd);
	connection->watch.fd = -1;
	connection->waiting = connection->subscribed = false;
	if (!control->closed)
		loop_defer(control->machine->loop, free_closed, control);
	connection->next = control->closed;
	control->closed = connection;
}

/* Sends, or closes the connection of somebody who does not read. False where it is closed. */
static bool connection_send(
	struct connection *connection, const json_t *body, const int *fds, unsigned fd_count)
{
	struct error error;

	if (connection->watch.fd < 0)
		return false;
	if (channel_send(connection->watch.fd, body, fds, fd_count, &error) == 0)
		return true;
	log_debug("A control connection is closed: %s", error.text);
	connection_close(connection);
	return false;
}

static bool connection_send_error(struct connection *connection, const struct error *error)
{
	_cleanup_json_ json_t *body =
		json_pack("{s:o, s:i}", "error", printable_sentence(error->text), "errno", error->code);

	return connection_send(connection, body, NULL, 0);
}

static int need_machine(const struct machine *machine, struct error *error)
{
	return machine->state == MACHINE_EMPTY ? error_set(error, ENOENT, "There is no guest yet.") : 0;
}

static void handle_request(struct connection *connection, struct message *request)
{
	const char *name = json_string_value(json_object_get(request->body, "do"));
	const struct verb *verb = control_find_verb(name);
	struct reply reply = {.body = json_pack("{s:b}", "ok", 1)};
	_cleanup_json_ json_t *body = reply.body;
	struct error error = {0};
	int r;

	if (!verb)
		r = error_set(&error, EINVAL, "The guest knows no request '%s'.", name ? name : "");
	else
		r = verb->needs_machine ? need_machine(connection->control->machine, &error) : 0;
	if (r == 0)
		r = verb->function(connection, request, &reply, &error);
	if (r < 0)
		connection_send_error(connection, &error);
	else if (!reply.later)
		connection_send(connection, body, reply.fds, reply.fd_count);
	if (verb && verb->gives_state && reply.fd_count)
		close(reply.fds[0]);
}

static void connection_ready(void *context, uint32_t events)
{
	struct connection *connection = context;
	_cleanup_message_ struct message request = {0};
	struct error error = {0};
	int r;

	if (!(events & EPOLLIN)) {
		connection_close(connection);
		return;
	}
	r = channel_receive(connection->watch.fd, &request, &error);
	if (r == -EAGAIN)
		return;
	if (r == -EBADMSG) {
		connection_send_error(connection, &error);
		return;
	}
	if (r < 0) {
		connection_close(connection);
		return;
	}
	handle_request(connection, &request);
	if (connection->waiting)
		loop_modify(connection->control->machine->loop, &connection->watch, 0, NULL);
}

static void listening_ready(void *context, uint32_t events)
{
	struct control *control = context;
	int fd = accept4(control->listening.fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	struct connection *connection = fd < 0 ? NULL : calloc(1, sizeof(*connection));

	(void)events;
	if (!connection || control->count == CONNECTIONS_MAX) {
		free(connection);
		cleanup_close(&fd);
		return;
	}
	*connection = (struct connection){
		.watch = {.fd = fd, .handler = connection_ready, .context = connection}, .control = control};
	if (loop_add(control->machine->loop, &connection->watch, EPOLLIN, NULL) < 0) {
		close(fd);
		free(connection);
		return;
	}
	connection->next = control->connections;
	control->connections = connection;
	control->count++;
}

static void machine_changed(void *context)
{
	struct control *control = context;
	_cleanup_json_ json_t *event = json_pack("{s:s}", "event", "state");

	control_add_state(control->machine, event);
	for (struct connection *connection = control->connections, *next; connection; connection = next) {
		next = connection->next;
		if (connection->subscribed)
			connection_send(connection, event, NULL, 0);
	}
}

/* The replies to `pause` that were due; then those connections' next requests. */
static void machine_paused(void *context, const struct error *error)
{
	struct control *control = context;
	_cleanup_json_ json_t *done = json_pack("{s:b}", "ok", 1);

	for (struct connection *connection = control->connections, *next; connection; connection = next) {
		next = connection->next;
		if (!connection->waiting)
			continue;
		connection->waiting = false;
		if (error ? connection_send_error(connection, error)
			  : connection_send(connection, done, NULL, 0))
			loop_modify(control->machine->loop, &connection->watch, EPOLLIN, NULL);
	}
}

struct control *control_new(struct machine *machine, int listening, struct error *error)
{
	struct control *control = calloc(1, sizeof(*control));

	if (!control) {
		error_set(error, ENOMEM, "Out of memory while opening the control socket.");
		return NULL;
	}
	control->machine = machine;
	control->listening = (struct watch){.fd = listening, .handler = listening_ready, .context = control};
	if (loop_add(machine->loop, &control->listening, EPOLLIN, error) < 0) {
		free(control);
		return NULL;
	}
	machine->changed = machine_changed;
	machine->paused = machine_paused;
	machine->context = control;
	return control;
}

void control_free(struct control *control)
{
	if (!control)
		return;
	while (control->connections)
		connection_close(control->connections);
	free_closed(control);
	loop_remove(control->machine->loop, &control->listening);
	close(control->listening.fd);
	free(control);
}
