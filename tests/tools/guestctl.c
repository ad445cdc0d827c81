/*
 * guestctl: a guest without xend, for trying ferry-guest by hand and in tests.
 *
 *	guestctl run [OPTION…] [-- COMMAND-LINE-WORD…]
 *		--guest PROGRAM   ferry-guest (default: the installed one)
 *		--socket PATH     control socket, for other guestctls (default: none that has a name)
 *		--kernel FILE --ramdisk FILE --memory MIB --vcpus N
 *		--disk [ro:]FILE  as often as there are disks; --tap NAME,MAC: network devices
 *		--state FILE      restore from FILE and FILE.ram instead of booting
 *		--user UID:GID
 *	guestctl --socket PATH VERB [JSON-MEMBERS]     any verb: prints the reply
 *	guestctl --socket PATH save FILE               pauses, saves to FILE and FILE.ram, leaves the guest
 *paused
 *
 * `run` attaches the guest's console to its own standard input and output, and exits when the guest shuts
 *down: 0 after poweroff, 1 otherwise.
 */
#include "base/channel.h"
#include "base/cleanup.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#define DEVICES_MAX 8

struct options {
	const char *guest, *socket, *kernel, *ramdisk, *state, *user;
	int memory_mib, vcpus;
	const char *disks[DEVICES_MAX], *taps[DEVICES_MAX];
	int disk_count, tap_count;
	char command_line[2048];
};

static void fail(const char *what)
{
	fprintf(stderr, "guestctl: %s: %s\n", what, strerror(errno));
	exit(2);
}

static void check(int result, const struct error *error)
{
	if (result < 0) {
		fprintf(stderr, "guestctl: %s\n", error->text);
		exit(2);
	}
}

static int open_or_fail(const char *path, int flags)
{
	int fd = open(path, flags | O_CLOEXEC, 0600);

	if (fd < 0)
		fail(path);
	return fd;
}

static struct sockaddr_un address_of(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};

	if (strlen(path) >= sizeof(address.sun_path)) {
		errno = ENAMETOOLONG;
		fail(path);
	}
	strcpy(address.sun_path, path);
	return address;
}

static int connect_to(const char *path)
{
	struct sockaddr_un address = address_of(path);
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	if (connect(fd, (const struct sockaddr *)&address, sizeof(address)) < 0)
		fail(path);
	return fd;
}

/* Adds a descriptor to a message and gives how JSON names it. */
static json_t *name_fd(int *fds, unsigned *count, int fd)
{
	fds[*count] = fd;
	return json_pack("{s:i}", "fd", (int)(*count)++);
}

static int open_tap(const char *name)
{
	struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
	int fd = open_or_fail("/dev/net/tun", O_RDWR | O_NONBLOCK);

	strncpy(request.ifr_name, name, IFNAMSIZ - 1);
	if (ioctl(fd, TUNSETIFF, &request) < 0)
		fail(name);
	return fd;
}

/* Copies what there is of `from`, holes excepted. */
static void copy_data(int from, int to, const char *path)
{
	static char block[1 << 18];
	off_t at = 0, end;

	while ((at = lseek(from, at, SEEK_DATA)) >= 0) {
		end = lseek(from, at, SEEK_HOLE);
		while (at < end) {
			size_t part = (size_t)(end - at) < sizeof(block) ? (size_t)(end - at) : sizeof(block);
			ssize_t got = pread(from, block, part, at);

			if (got <= 0 || pwrite(to, block, (size_t)got, at) != got)
				fail(path);
			at += got;
		}
	}
}

static int make_ram(const struct options *options)
{
	int fd = memfd_create("guest-ram", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	char path[4096];
	int from;

	if (fd < 0 || ftruncate(fd, (off_t)options->memory_mib << 20) < 0)
		fail("guest memory");
	if (!options->state)
		return fd;
	snprintf(path, sizeof(path), "%s.ram", options->state);
	from = open_or_fail(path, O_RDONLY);
	copy_data(from, fd, path);
	close(from);
	return fd;
}

static json_t *describe(const struct options *options, int *fds, unsigned *count)
{
	json_t *disks = json_array(), *nets = json_array();
	json_t *machine = json_pack("{s:s, s:s, s:i, s:i, s:b, s:o, s:o}", "name", "guestctl", "uuid",
		"00000000-0000-4000-8000-000000000000", "memory_mib", options->memory_mib, "vcpus",
		options->vcpus, "incoming", options->state != NULL, "kvm",
		name_fd(fds, count, open_or_fail("/dev/kvm", O_RDWR)), "ram",
		name_fd(fds, count, make_ram(options)));

	for (int i = 0; i < options->disk_count; i++) {
		bool read_only = strncmp(options->disks[i], "ro:", 3) == 0;
		int fd = open_or_fail(options->disks[i] + (read_only ? 3 : 0), read_only ? O_RDONLY : O_RDWR);

		json_array_append_new(disks,
			json_pack("{s:i, s:o, s:b, s:s}", "slot", 4 + i, "image", name_fd(fds, count, fd),
				"read_only", read_only, "serial", "guestctl"));
	}
	for (int i = 0; i < options->tap_count; i++) {
		_cleanup_free_ char *name = strdup(options->taps[i]);
		char *mac = strchr(name, ',');

		if (!mac) {
			errno = EINVAL;
			fail(name);
		}
		*mac++ = '\0';
		json_array_append_new(nets, json_pack("{s:i, s:o, s:s}", "slot", 20 + i, "tap",
						    name_fd(fds, count, open_tap(name)), "mac", mac));
	}
	json_object_set_new(machine, "disks", disks);
	json_object_set_new(machine, "nets", nets);
	if (!options->state) {
		json_t *boot = json_pack("{s:s, s:o}", "cmdline", options->command_line, "kernel",
			name_fd(fds, count, open_or_fail(options->kernel, O_RDONLY)));

		if (options->ramdisk)
			json_object_set_new(boot, "ramdisk",
				name_fd(fds, count, open_or_fail(options->ramdisk, O_RDONLY)));
		json_object_set_new(machine, "boot", boot);
	}
	return machine;
}

static void call(int channel, json_t *request, const int *fds, unsigned count, struct message *reply)
{
	struct error error = {0};

	check(channel_call(channel, request, fds, count, reply, -1, &error), &error);
	json_decref(request);
}

static void create(int channel, const struct options *options)
{
	int fds[CHANNEL_FDS_MAX];
	unsigned count = 0;
	json_t *machine = describe(options, fds, &count);

	call(channel, json_pack("{s:s, s:o}", "do", "create", "machine", machine), fds, count, NULL);
	for (unsigned i = 0; i < count; i++)
		close(fds[i]);
}

static void load_state(int channel, const struct options *options)
{
	int fd = open_or_fail(options->state, O_RDONLY);
	struct stat status;

	if (fstat(fd, &status) < 0)
		fail(options->state);
	call(channel,
		json_pack("{s:s, s:{s:i}, s:I}", "do", "load-state", "state", "fd", 0, "size",
			(json_int_t)status.st_size),
		&fd, 1, NULL);
	close(fd);
}

static pid_t spawn(const struct options *options, int listening)
{
	char number[16], disks[16];
	pid_t child = fork();

	if (child != 0)
		return child;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	snprintf(number, sizeof(number), "%d", listening);
	snprintf(disks, sizeof(disks), "%d", options->disk_count);
	fcntl(listening, F_SETFD, 0);
	if (options->user)
		execl(options->guest, "ferry-guest", "--control", number, "--disks", disks, "--user",
			options->user, NULL);
	else
		execl(options->guest, "ferry-guest", "--control", number, "--disks", disks, NULL);
	fail(options->guest);
	return -1;
}

/* Copies between the console and our standard input and output until the guest has shut down. Returns the
 * reason. */
static char *attend(int events, int console)
{
	struct pollfd fds[3] = {{.fd = events, .events = POLLIN}, {.fd = console, .events = POLLIN},
		{.fd = STDIN_FILENO, .events = POLLIN}};
	char bytes[4096], *reason = NULL;
	bool over = false;

	while (!over || fds[1].revents & POLLIN) {
		ssize_t size;

		if (poll(fds, 3, over ? 100 : -1) < 0)
			fail("poll");
		if (fds[1].revents) {
			size = read(console, bytes, sizeof(bytes));
			if (size <= 0)
				break;
			if (write(STDOUT_FILENO, bytes, (size_t)size) < 0)
				fail("standard output");
		}
		if (fds[2].revents) {
			size = read(STDIN_FILENO, bytes, sizeof(bytes));
			if (size <= 0)
				fds[2].fd = -1;
			else if (write(console, bytes, (size_t)size) < 0)
				fail("console");
		}
		if (fds[0].revents) {
			_cleanup_message_ struct message event = {0};
			struct error error = {0};
			const char *why;

			check(channel_receive(events, &event, &error), &error);
			why = json_string_value(json_object_get(event.body, "reason"));
			if (why) {
				fprintf(stderr, "\nguestctl: shutdown: %s. %s\n", why,
					json_string_value(json_object_get(event.body, "detail")));
				reason = strdup(why);
				over = true;
				fds[0].fd = -1;
			}
		}
	}
	return reason;
}

static int run(const struct options *options)
{
	_cleanup_close_ int listening = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	char fallback[64];
	const char *path = options->socket;
	_cleanup_free_ char *reason = NULL;
	struct sockaddr_un address;
	int channel, events, console[2], status;
	pid_t child;

	snprintf(fallback, sizeof(fallback), "/tmp/guestctl.%d", (int)getpid());
	address = address_of(path ? path : fallback);
	unlink(address.sun_path);
	if (bind(listening, (const struct sockaddr *)&address, sizeof(address)) < 0 ||
		listen(listening, 8) < 0)
		fail(address.sun_path);
	child = spawn(options, listening);
	channel = connect_to(address.sun_path);
	events = connect_to(address.sun_path);
	if (!path)
		unlink(address.sun_path);
	create(channel, options);
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, console) < 0)
		fail("socketpair");
	call(channel, json_pack("{s:s, s:{s:i}, s:b}", "do", "console", "stream", "fd", 0, "history", 1),
		&console[1], 1, NULL);
	close(console[1]);
	call(events, json_pack("{s:s}", "do", "subscribe"), NULL, 0, NULL);
	if (options->state)
		load_state(channel, options);
	call(channel, json_pack("{s:s, s:b}", "do", "resume", "announce", options->state != NULL), NULL, 0,
		NULL);
	reason = attend(events, console[0]);
	if (reason)
		call(channel, json_pack("{s:s}", "do", "quit"), NULL, 0, NULL);
	waitpid(child, &status, 0);
	return reason && strcmp(reason, "poweroff") == 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0
													  : 1;
}

static void copy_to(int from, uint64_t size, const char *path)
{
	int to = open_or_fail(path, O_RDWR | O_CREAT | O_TRUNC);

	if (ftruncate(to, (off_t)size) < 0)
		fail(path);
	copy_data(from, to, path);
	close(to);
}

static int save(int channel, const char *path)
{
	struct message memory, state;
	struct error error = {0};
	char ram[4096];
	int fd;

	call(channel, json_pack("{s:s}", "do", "pause"), NULL, 0, NULL);
	call(channel, json_pack("{s:s}", "do", "save-state"), NULL, 0, &state);
	call(channel, json_pack("{s:s}", "do", "memory"), NULL, 0, &memory);
	fd = message_take_fd(&state, state.body, "state", &error);
	check(fd, &error);
	copy_to(fd, (uint64_t)json_integer_value(json_object_get(state.body, "size")), path);
	fd = message_take_fd(&memory, memory.body, "ram", &error);
	check(fd, &error);
	snprintf(ram, sizeof(ram), "%s.ram", path);
	copy_to(fd, (uint64_t)json_integer_value(json_object_get(memory.body, "size")), ram);
	return 0;
}

static int any_verb(int channel, const char *verb, const char *members)
{
	json_t *request = members ? json_loads(members, 0, NULL) : json_object();
	struct message reply;

	if (!request) {
		fprintf(stderr, "guestctl: '%s' is not JSON\n", members);
		return 2;
	}
	json_object_set_new(request, "do", json_string(verb));
	call(channel, request, NULL, 0, &reply);
	json_dumpf(reply.body, stdout, JSON_INDENT(1));
	putchar('\n');
	message_free(&reply);
	return 0;
}

static void add(const char **list, int *count, const char *value)
{
	if (*count == DEVICES_MAX) {
		errno = E2BIG;
		fail(value);
	}
	list[(*count)++] = value;
}

static void parse(int argc, char **argv, struct options *options)
{
	static const struct option known[] = {{"guest", 1, NULL, 'g'}, {"socket", 1, NULL, 's'},
		{"kernel", 1, NULL, 'k'}, {"ramdisk", 1, NULL, 'r'}, {"memory", 1, NULL, 'm'},
		{"vcpus", 1, NULL, 'v'}, {"disk", 1, NULL, 'd'}, {"tap", 1, NULL, 't'},
		{"state", 1, NULL, 'S'}, {"user", 1, NULL, 'u'}, {0}};
	int option;

	while ((option = getopt_long(argc, argv, "+", known, NULL)) != -1)
		switch (option) {
		case 'g':
			options->guest = optarg;
			break;
		case 's':
			options->socket = optarg;
			break;
		case 'k':
			options->kernel = optarg;
			break;
		case 'r':
			options->ramdisk = optarg;
			break;
		case 'm':
			options->memory_mib = atoi(optarg);
			break;
		case 'v':
			options->vcpus = atoi(optarg);
			break;
		case 'd':
			add(options->disks, &options->disk_count, optarg);
			break;
		case 't':
			add(options->taps, &options->tap_count, optarg);
			break;
		case 'S':
			options->state = optarg;
			break;
		case 'u':
			options->user = optarg;
			break;
		default:
			exit(2);
		}
}

int main(int argc, char **argv)
{
	struct options options = {.guest = FERRY_LIBEXECDIR "/ferry-guest", .memory_mib = 128, .vcpus = 1};
	const char *verb;

	signal(SIGPIPE, SIG_IGN);
	parse(argc, argv, &options);
	verb = optind < argc ? argv[optind++] : "";
	if (strcmp(verb, "run") == 0) {
		parse(argc, argv, &options);
		for (int i = optind; i < argc; i++)
			snprintf(options.command_line + strlen(options.command_line),
				sizeof(options.command_line) - strlen(options.command_line), "%s%s",
				options.command_line[0] ? " " : "", argv[i]);
		return run(&options);
	}
	if (!options.socket || !verb[0]) {
		fprintf(stderr,
			"usage: guestctl run …; guestctl --socket PATH VERB (see tests/tools/guestctl.c)\n");
		return 2;
	}
	if (strcmp(verb, "save") == 0 && optind < argc)
		return save(connect_to(options.socket), argv[optind]);
	return any_verb(connect_to(options.socket), verb, optind < argc ? argv[optind] : NULL);
}
