/*
 * The lab's agent: runs commands inside an emulated machine on behalf of the outside.
 *
 *   agent PORT...        serve the first of these character devices that exists (virtio-serial)
 *   agent --listen N     serve TCP port N, one process for each connection
 *
 * Both directions carry frames: channel, type and length as 32-bit little-endian words, then that many
 * bytes. A channel is one command; the outside chooses its number. Several commands run at a time. As
 * process 1 of a machine the agent also reaps what daemons leave behind.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

enum frame_type {
	/* From outside. */
	FRAME_SPAWN = 1,  /* u16 flags, rows, columns, argc; then strings: argv, then NAME=value */
	FRAME_STDIN = 2,  /* bytes for the command; none: end of input */
	FRAME_SIGNAL = 3, /* u32 signal for the command's process group */
	FRAME_WINDOW = 4, /* u16 rows, columns */
	FRAME_CLOSE = 5,  /* nobody is interested any more: kill it */
	/* To outside. */
	FRAME_HELLO = 16, /* the agent is ready */
	FRAME_STDOUT = 17,
	FRAME_STDERR = 18,
	FRAME_EXIT = 19,     /* u32 wait status; the channel is free again */
	FRAME_CONSUMED = 20, /* u32 bytes of input that the command has taken */
};

enum { FRAME_HEADER = 12, PAYLOAD_MAX = 65536, CHANNELS = 64, STRINGS_MAX = 256 };
enum { SPAWN_PTY = 1 };

/* One running command. */
struct command {
	uint32_t channel;
	pid_t pid;        /* its process group too; 0: this slot is free */
	bool announced;   /* its end was reported; only the outputs of its children remain */
	int in, out, err; /* our ends, or -1; a terminal is in `in` and `out` */
	uint8_t *input;   /* what the outside sent and the command has not taken yet */
	size_t input_length;
	bool input_ends;
};

struct agent {
	int port;
	int signals;
	struct command commands[CHANNELS];
	uint8_t received[FRAME_HEADER + PAYLOAD_MAX];
	size_t received_length;
};

static uint32_t get32(const uint8_t *p)
{
	return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static uint16_t get16(const uint8_t *p)
{
	return (uint16_t)(p[0] | p[1] << 8);
}

static void put32(uint8_t *p, uint32_t value)
{
	for (int i = 0; i < 4; i++)
		p[i] = (uint8_t)(value >> (8 * i));
}

/* Writes everything; waits while the line is full. The end of the line is the end of the agent. */
static void send_bytes(struct agent *agent, const uint8_t *bytes, size_t length)
{
	while (length > 0) {
		ssize_t n = write(agent->port, bytes, length);
		if (n > 0) {
			bytes += n;
			length -= (size_t)n;
		} else if (n < 0 && errno == EAGAIN) {
			struct pollfd p = {.fd = agent->port, .events = POLLOUT};
			poll(&p, 1, 1000);
		} else if (n < 0 && errno != EINTR) {
			exit(1);
		}
	}
}

static void send_frame(
	struct agent *agent, uint32_t channel, enum frame_type type, const void *payload, size_t length)
{
	uint8_t frame[FRAME_HEADER + PAYLOAD_MAX];
	put32(frame, channel);
	put32(frame + 4, type);
	put32(frame + 8, (uint32_t)length);
	if (length > 0)
		memcpy(frame + FRAME_HEADER, payload, length);
	send_bytes(agent, frame, FRAME_HEADER + length);
}

static void send_word(struct agent *agent, uint32_t channel, enum frame_type type, uint32_t word)
{
	uint8_t payload[4];
	put32(payload, word);
	send_frame(agent, channel, type, payload, sizeof(payload));
}

static struct command *find_command(struct agent *agent, uint32_t channel)
{
	for (size_t i = 0; i < CHANNELS; i++) {
		struct command *c = &agent->commands[i];
		if (c->pid != 0 && !c->announced && c->channel == channel)
			return c;
	}
	return NULL;
}

static void close_end(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static void close_input(struct command *c)
{
	if (c->in >= 0 && c->in != c->out)
		close(c->in);
	c->in = -1;
	free(c->input);
	c->input = NULL;
	c->input_length = 0;
}

static void release_if_over(struct command *c)
{
	if (c->announced && c->out < 0 && c->err < 0) {
		close_input(c);
		c->pid = 0;
	}
}

/* The child's half: becomes the command on the descriptors it is given. Does not return. */
static void become(
	char **argv, char **environment, int environment_length, const char *terminal, const int fds[3])
{
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGPIPE, SIG_DFL);
	setsid();
	int ends[3] = {fds[0], fds[1], fds[2]};
	if (terminal) {
		int slave = open(terminal, O_RDWR);
		if (slave < 0)
			_exit(126);
		ioctl(slave, TIOCSCTTY, 0);
		ends[0] = ends[1] = ends[2] = slave;
	}
	for (int i = 0; i < 3; i++)
		dup2(ends[i], i);
	for (int fd = 3; fd < 1024; fd++)
		close(fd);
	for (int i = 0; i < environment_length; i++)
		putenv(environment[i]);
	execvp(argv[0], argv);
	dprintf(2, "%s: %s\n", argv[0], strerror(errno));
	_exit(127);
}

/* Cuts a spawn frame's strings; returns their count or -1. */
static int cut_strings(uint8_t *bytes, size_t length, char *strings[STRINGS_MAX])
{
	if (length == 0 || bytes[length - 1] != 0)
		return -1;
	int count = 0;
	for (size_t at = 0; at < length; at += strlen((char *)bytes + at) + 1) {
		if (count == STRINGS_MAX - 2)
			return -1;
		strings[count++] = (char *)bytes + at;
	}
	return count;
}

static void set_nonblocking(int fd)
{
	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

static bool open_ends(struct command *c, bool pty, const uint8_t *window, int child[3], char terminal[64])
{
	int pipes[3][2] = {{-1, -1}, {-1, -1}, {-1, -1}};
	if (pty) {
		int master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
		if (master < 0 || grantpt(master) || unlockpt(master) || ptsname_r(master, terminal, 64)) {
			close_end(&master);
			return false;
		}
		struct winsize size = {.ws_row = get16(window), .ws_col = get16(window + 2)};
		ioctl(master, TIOCSWINSZ, &size);
		c->in = c->out = master;
		c->err = -1;
		set_nonblocking(master);
		return true;
	}
	for (int i = 0; i < 3; i++) {
		if (pipe2(pipes[i], O_CLOEXEC) == 0)
			continue;
		for (int k = 0; k < i; k++) {
			close(pipes[k][0]);
			close(pipes[k][1]);
		}
		return false;
	}
	child[0] = pipes[0][0];
	c->in = pipes[0][1];
	c->out = pipes[1][0];
	child[1] = pipes[1][1];
	c->err = pipes[2][0];
	child[2] = pipes[2][1];
	set_nonblocking(c->in);
	set_nonblocking(c->out);
	set_nonblocking(c->err);
	return true;
}

static void refuse(struct agent *agent, uint32_t channel, const char *why)
{
	send_frame(agent, channel, FRAME_STDERR, why, strlen(why));
	send_word(agent, channel, FRAME_EXIT, 126 << 8);
}

static void spawn(struct agent *agent, uint32_t channel, uint8_t *payload, size_t length)
{
	char *strings[STRINGS_MAX];
	int count = length > 8 ? cut_strings(payload + 8, length - 8, strings) : -1;
	int argc = length > 8 ? get16(payload + 6) : 0;
	if (count < 1 || argc < 1 || argc > count) {
		refuse(agent, channel, "agent: malformed request\n");
		return;
	}
	char *argv[STRINGS_MAX];
	memcpy(argv, strings, (size_t)argc * sizeof(char *));
	argv[argc] = NULL;

	struct command *c = NULL;
	for (size_t i = 0; i < CHANNELS && !c; i++) {
		if (agent->commands[i].pid == 0)
			c = &agent->commands[i];
	}
	bool pty = get16(payload) & SPAWN_PTY;
	int child[3] = {-1, -1, -1};
	char terminal[64];
	struct command fresh = {.channel = channel, .in = -1, .out = -1, .err = -1};
	if (!c || !open_ends(&fresh, pty, payload + 2, child, terminal)) {
		refuse(agent, channel, "agent: too many commands at a time\n");
		return;
	}
	*c = fresh;
	c->pid = fork();
	if (c->pid == 0)
		become(argv, strings + argc, count - argc, pty ? terminal : NULL, child);
	for (int i = 0; i < 3; i++)
		close_end(&child[i]);
	if (c->pid < 0) {
		c->pid = 0;
		close_input(c);
		close_end(&c->out);
		close_end(&c->err);
		refuse(agent, channel, "agent: cannot fork\n");
	}
}

/* Passes on what output there is; true: there may be more. After the command's end it is thrown away. */
static bool pass_output(struct agent *agent, struct command *c, int *fd, enum frame_type type)
{
	uint8_t buffer[PAYLOAD_MAX];
	ssize_t n = read(*fd, buffer, sizeof(buffer));
	if (n > 0) {
		if (!c->announced)
			send_frame(agent, c->channel, type, buffer, (size_t)n);
		return true;
	}
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return false;
	if (fd == &c->out && c->in == c->out)
		c->in = -1; /* a terminal: one descriptor for both */
	close_end(fd);
	return false;
}

static void pass_input(struct agent *agent, struct command *c)
{
	if (c->in >= 0 && c->input_length > 0) {
		ssize_t n = write(c->in, c->input, c->input_length);
		if (n < 0 && errno != EAGAIN && errno != EINTR) {
			/* Nobody reads it: take it all, so that the sender is not left waiting. */
			send_word(agent, c->channel, FRAME_CONSUMED, (uint32_t)c->input_length);
			close_input(c);
			return;
		}
		if (n > 0) {
			c->input_length -= (size_t)n;
			memmove(c->input, c->input + n, c->input_length);
			send_word(agent, c->channel, FRAME_CONSUMED, (uint32_t)n);
		}
	}
	if (c->input_ends && c->input_length == 0 && c->in != c->out)
		close_input(c);
}

static void take_input(struct agent *agent, struct command *c, const uint8_t *payload, size_t length)
{
	if (c->in < 0) {
		send_word(agent, c->channel, FRAME_CONSUMED, (uint32_t)length);
		return;
	}
	if (length == 0) {
		c->input_ends = true;
	} else {
		uint8_t *grown = realloc(c->input, c->input_length + length);
		if (!grown)
			exit(1);
		memcpy(grown + c->input_length, payload, length);
		c->input = grown;
		c->input_length += length;
	}
	pass_input(agent, c);
}

static void handle_frame(
	struct agent *agent, uint32_t channel, uint32_t type, uint8_t *payload, size_t length)
{
	if (type == FRAME_SPAWN) {
		spawn(agent, channel, payload, length);
		return;
	}
	struct command *c = find_command(agent, channel);
	if (!c)
		return;
	switch (type) {
	case FRAME_STDIN:
		take_input(agent, c, payload, length);
		break;
	case FRAME_SIGNAL:
		if (length >= 4)
			kill(-c->pid, (int)get32(payload));
		break;
	case FRAME_WINDOW:
		if (length >= 4 && c->in >= 0) {
			struct winsize size = {.ws_row = get16(payload), .ws_col = get16(payload + 2)};
			ioctl(c->in, TIOCSWINSZ, &size);
		}
		break;
	case FRAME_CLOSE:
		kill(-c->pid, SIGKILL);
		break;
	default:
		break;
	}
}

/* Reads what the line has. False: the line has ended. */
static bool receive(struct agent *agent)
{
	ssize_t n = read(agent->port, agent->received + agent->received_length,
		sizeof(agent->received) - agent->received_length);
	if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
		return false;
	if (n < 0)
		return true;
	agent->received_length += (size_t)n;
	size_t at = 0;
	while (agent->received_length - at >= FRAME_HEADER) {
		uint8_t *frame = agent->received + at;
		size_t length = get32(frame + 8);
		if (length > PAYLOAD_MAX)
			return false;
		if (agent->received_length - at < FRAME_HEADER + length)
			break;
		handle_frame(agent, get32(frame), get32(frame + 4), frame + FRAME_HEADER, length);
		at += FRAME_HEADER + length;
	}
	agent->received_length -= at;
	memmove(agent->received, agent->received + at, agent->received_length);
	return true;
}

static void reap(struct agent *agent)
{
	struct signalfd_siginfo info;
	while (read(agent->signals, &info, sizeof(info)) == sizeof(info)) {
	}
	int status = 0;
	for (pid_t pid = waitpid(-1, &status, WNOHANG); pid > 0; pid = waitpid(-1, &status, WNOHANG)) {
		for (size_t i = 0; i < CHANNELS; i++) {
			struct command *c = &agent->commands[i];
			if (c->pid != pid || c->announced)
				continue;
			while (c->out >= 0 && pass_output(agent, c, &c->out, FRAME_STDOUT)) {
			}
			while (c->err >= 0 && pass_output(agent, c, &c->err, FRAME_STDERR)) {
			}
			c->announced = true;
			close_input(c);
			send_word(agent, c->channel, FRAME_EXIT, (uint32_t)status);
			release_if_over(c);
		}
	}
}

static size_t watch_list(struct agent *agent, struct pollfd *list)
{
	size_t n = 0;
	list[n++] = (struct pollfd){.fd = agent->port, .events = POLLIN};
	list[n++] = (struct pollfd){.fd = agent->signals, .events = POLLIN};
	for (size_t i = 0; i < CHANNELS; i++) {
		struct command *c = &agent->commands[i];
		bool live = c->pid != 0;
		list[n++] =
			(struct pollfd){.fd = live && c->input_length > 0 ? c->in : -1, .events = POLLOUT};
		list[n++] = (struct pollfd){.fd = live ? c->out : -1, .events = POLLIN};
		list[n++] = (struct pollfd){.fd = live ? c->err : -1, .events = POLLIN};
	}
	return n;
}

/* Serves one line until it ends. */
static void serve(int port)
{
	static struct agent agent;
	agent.port = port;
	set_nonblocking(port);
	sigset_t mask;
	sigemptyset(&mask);
	sigaddset(&mask, SIGCHLD);
	sigprocmask(SIG_BLOCK, &mask, NULL);
	signal(SIGPIPE, SIG_IGN);
	agent.signals = signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK);
	send_frame(&agent, 0, FRAME_HELLO, NULL, 0);

	struct pollfd list[2 + 3 * CHANNELS];
	bool open = true;
	while (open) {
		size_t n = watch_list(&agent, list);
		if (poll(list, n, -1) < 0)
			continue;
		for (size_t i = 0; i < CHANNELS; i++) {
			struct command *c = &agent.commands[i];
			const struct pollfd *p = &list[2 + 3 * i];
			if (c->pid != 0 && p[0].revents)
				pass_input(&agent, c);
			if (c->pid != 0 && p[1].revents && c->out >= 0)
				pass_output(&agent, c, &c->out, FRAME_STDOUT);
			if (c->pid != 0 && p[2].revents && c->err >= 0)
				pass_output(&agent, c, &c->err, FRAME_STDERR);
			release_if_over(c);
		}
		if (list[1].revents)
			reap(&agent);
		if (list[0].revents)
			open = receive(&agent);
	}
	for (size_t i = 0; i < CHANNELS; i++) {
		if (agent.commands[i].pid != 0 && !agent.commands[i].announced)
			kill(-agent.commands[i].pid, SIGKILL);
	}
}

static int listen_forever(uint16_t number)
{
	signal(SIGCHLD, SIG_IGN);
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int one = 1;
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(number)};
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(listener, (struct sockaddr *)&address, sizeof(address)) || listen(listener, 16)) {
		perror("agent: listen");
		return 1;
	}
	for (;;) {
		int line = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
		if (line < 0)
			continue;
		setsockopt(line, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		if (fork() == 0) {
			close(listener);
			signal(SIGCHLD, SIG_DFL);
			serve(line);
			_exit(0);
		}
		close(line);
	}
}

int main(int argc, char **argv)
{
	if (argc == 3 && strcmp(argv[1], "--listen") == 0)
		return listen_forever((uint16_t)atoi(argv[2]));
	for (int i = 1; i < argc; i++) {
		int port = open(argv[i], O_RDWR | O_CLOEXEC);
		if (port >= 0) {
			serve(port);
			return 1;
		}
	}
	fprintf(stderr, "agent: no port to serve\n");
	return 1;
}
