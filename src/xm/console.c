#include "xm/console.h"

#include "base/cleanup.h"
#include "xm/command.h"
#include "xm/domain.h"
#include "xm/migrations.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <termios.h>
#include <unistd.h>

#define ESCAPE 0x1d     /* ^] */
#define INPUT_MAX 65536 /* typed and not yet sent: beyond it the terminal waits */

struct terminal {
	bool raw;
	struct termios before;
};

static void terminal_restore(struct terminal *terminal)
{
	if (terminal->raw)
		tcsetattr(STDIN_FILENO, TCSADRAIN, &terminal->before);
}

/* Every key goes to the guest as it is; the guest's bytes come as they are. */
static void terminal_raw(struct terminal *terminal)
{
	struct termios raw;

	if (tcgetattr(STDIN_FILENO, &terminal->before) < 0)
		return;
	raw = terminal->before;
	cfmakeraw(&raw);
	terminal->raw = tcsetattr(STDIN_FILENO, TCSADRAIN, &raw) == 0;
}

static int write_all(const char *bytes, size_t size, struct error *error)
{
	while (size) {
		ssize_t r = write(STDOUT_FILENO, bytes, size);

		if (r < 0 && errno == EAGAIN) { /* a terminal that somebody made non-blocking */
			struct pollfd descriptor = {.fd = STDOUT_FILENO, .events = POLLOUT};

			poll(&descriptor, 1, 1000);
		} else if (r < 0 && errno != EINTR) {
			return error_set(
				error, errno, "Unable to write the console's output: %s.", strerror(errno));
		}
		if (r > 0) {
			bytes += r;
			size -= (size_t)r;
		}
	}
	return 0;
}

static int show(void *context, const char *bytes, size_t size, struct error *error)
{
	(void)context;
	return write_all(bytes, size, error);
}

/* What was typed, and the request that carries a part of it. */
struct typing {
	struct buffer pending;
	struct transfer request;
	bool ended, escaped;
};

static void typing_free(struct typing *typing)
{
	transfer_free(&typing->request);
	buffer_free(&typing->pending);
}

static int read_keys(struct typing *typing, struct error *error)
{
	char keys[4096], *escape;
	ssize_t size = read(STDIN_FILENO, keys, sizeof(keys));

	if (size < 0 && (errno == EINTR || errno == EAGAIN))
		return 0;
	if (size < 0)
		return error_set(error, errno, "Unable to read from the terminal: %s.", strerror(errno));
	escape = memchr(keys, ESCAPE, (size_t)size);
	typing->escaped = escape;
	typing->ended = escape || !size;
	buffer_append(&typing->pending, keys, escape ? (size_t)(escape - keys) : (size_t)size);
	return typing->pending.failed ? error_set(error, ENOMEM, "Out of memory.") : 0;
}

/* One request is under way at a time, so that keys keep their order. */
static int send_keys(struct typing *typing, struct client *client, const char *path, struct error *error)
{
	int r = 0;

	if (typing->request.ended) {
		r = transfer_result(&typing->request, error);
		transfer_free(&typing->request);
	}
	if (r >= 0 && !typing->request.started && typing->pending.size) {
		r = transfer_start(&typing->request, client, "POST", path, typing->pending.data,
			typing->pending.size, "application/octet-stream", NULL, NULL, error);
		buffer_clear(&typing->pending);
	}
	return r;
}

/* A key that comes as the guest ends is refused; the end of the output, which then follows, is what counts.
 */
static int end_follows(struct client *client, const struct transfer *output, int r)
{
	for (int i = 0; i < 10 && !output->ended; i++)
		if (client_wait(client, NULL, 0, 100, NULL) < 0)
			break;
	return output->ended ? 0 : r;
}

/* The loop: output, keys and signals until the output ends, ^] or a signal. */
static int converse(struct client *client, struct transfer *output, const char *input_path, const char *then,
	int signals, struct error *error)
{
	_cleanup_(typing_free) struct typing typing = {0};
	int r = 0;

	while (r >= 0 && !output->ended) {
		bool reads = !typing.ended && typing.pending.size < INPUT_MAX && transfer_is_answered(output);
		struct pollfd descriptors[] = {
			{.fd = signals, .events = POLLIN}, {.fd = STDIN_FILENO, .events = POLLIN}};

		r = client_wait(client, descriptors, reads ? 2 : 1, -1, error);
		if (r < 0 || output->ended || descriptors[0].revents)
			return r;
		if (then && transfer_is_answered(output)) {
			r = client_call(client, "POST", then, NULL, NULL, error);
			then = NULL;
		}
		if (r >= 0 && reads && descriptors[1].revents)
			r = read_keys(&typing, error);
		if (r < 0)
			return r;
		r = send_keys(&typing, client, input_path, error);
		if ((r == -EREMOTEIO || r == -EBUSY) &&
			isatty(STDIN_FILENO)) /* a guest that boots or hangs does not listen */
			r = write_all("\a", 1, error);
		if (r < 0)
			return end_follows(client, output, r);
		if (typing.escaped && !typing.pending.size && !typing.request.started)
			return 0;
	}
	return r;
}

int console_attach(struct client *client, long long id, bool history, const char *then, struct error *error)
{
	_cleanup_(terminal_restore) struct terminal terminal = {0};
	_cleanup_transfer_ struct transfer output = {0};
	_cleanup_close_ int signals = -1;
	char output_path[96], input_path[64];
	sigset_t ends;
	int r;

	sigemptyset(&ends);
	sigaddset(&ends, SIGINT);
	sigaddset(&ends, SIGTERM);
	sigaddset(&ends, SIGHUP);
	sigprocmask(SIG_BLOCK, &ends, NULL);
	signal(SIGPIPE, SIG_IGN); /* whoever reads us may leave: the terminal is restored all the same */
	signals = signalfd(-1, &ends, SFD_CLOEXEC | SFD_NONBLOCK);
	if (signals < 0)
		return error_set(error, errno, "Unable to wait for signals: %s.", strerror(errno));
	snprintf(input_path, sizeof(input_path), "/domains/%lld/console", id);
	snprintf(output_path, sizeof(output_path), "%s%s", input_path, history ? "?history=1" : "");
	fflush(stdout);
	r = transfer_start(&output, client, "GET", output_path, NULL, 0, NULL, show, NULL, error);
	if (r < 0)
		return r;
	terminal_raw(&terminal);
	r = converse(client, &output, input_path, then, signals, error);
	if (r >= 0 && output.ended)
		r = transfer_result(&output, error);
	if (terminal.raw)
		write_all("\r\n", 2, NULL);
	if (r >= 0 && output.ended) {
		terminal_restore(&terminal);
		migrations_tell_destination(client, id);
	}
	return r;
}

static int console(struct xm *xm, const struct arguments *arguments, struct error *error)
{
	_cleanup_json_ json_t *json = NULL;
	struct domain domain;
	int r = domain_is_guest(arguments->words[0], "watched: its console is the host's own", error);

	if (r >= 0)
		r = domain_get(&xm->client, arguments->words[0], &domain, &json, error);
	if (r < 0)
		return r;
	return console_attach(&xm->client, domain.id, !option_given(arguments, "new"), NULL, error);
}

const struct command console_commands[] = {
	{"console", NULL, "<Domain>", "Show a domain's console and type into it; ^] leaves.",
		{{"quiet", 'q', NULL, "accepted for old scripts: xm prints nothing of its own anyway"},
			{"new", 'n', NULL, "only what comes from now on, not what was printed before"}},
		1, 1, console},
	{0},
};
