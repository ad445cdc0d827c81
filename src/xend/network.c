#include "xend/network.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "xend/process.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <time.h>

#define VIF_LIMIT_S 30
#define VIF_GRACE_S 5
#define SCRIPT_TEXT_SIZE 4096
#define SCRIPT_DRAIN_MAX 64
#define SCRIPT_WORDS_MAX 16
#define SCRIPT_PATH "PATH=/usr/sbin:/usr/bin:/sbin:/bin"

static void vif_name(const struct guest_vif *vif, const struct vif_place *place, char name[IFNAMSIZ])
{
	if (vif->vifname)
		snprintf(name, IFNAMSIZ, "%s", vif->vifname);
	else
		snprintf(name, IFNAMSIZ, "vif%u.%u", place->id % 10000000, place->number % 100);
}

static int left_ms(const struct timespec *end)
{
	struct timespec now;
	int64_t left;

	clock_gettime(CLOCK_MONOTONIC, &now);
	left = (end->tv_sec - now.tv_sec) * 1000 + (end->tv_nsec - now.tv_nsec) / 1000000;
	return left > 0 ? (int)left : 0;
}

/* Keeps the end of what the script says. False: nothing more for now, or ever. */
static bool read_some(int fd, char text[static SCRIPT_TEXT_SIZE], size_t *length)
{
	ssize_t n = read(fd, text + *length, SCRIPT_TEXT_SIZE - 1 - *length);

	if (n <= 0)
		return false;
	*length += (size_t)n;
	if (*length == SCRIPT_TEXT_SIZE - 1) {
		memmove(text, text + *length / 2, *length - *length / 2);
		*length -= *length / 2;
	}
	return true;
}

/* How long a script may take, and, where it is ended, to put things back. */
struct limit {
	int seconds, grace_s;
};

/* Until the script has ended, whoever else still holds its output, or the time is over; keeps its last line.
 * Returns whether it has ended. */
static bool hear_out(int fd, int process, int limit_s, char *line, size_t size)
{
	struct pollfd ready[] = {{.fd = process, .events = POLLIN}, {.fd = fd, .events = POLLIN}};
	char text[SCRIPT_TEXT_SIZE];
	size_t length = 0;
	struct timespec end;
	int left;

	clock_gettime(CLOCK_MONOTONIC, &end);
	end.tv_sec += limit_s;
	while ((left = left_ms(&end)) > 0 && !ready[0].revents) {
		if (poll(ready, 2, left) < 0)
			continue;
		if (ready[1].revents && !read_some(fd, text, &length))
			ready[1].fd = -1; /* closed */
	}
	for (unsigned i = 0; i < SCRIPT_DRAIN_MAX && ready[1].fd >= 0 && read_some(fd, text, &length); i++)
		;
	while (length && text[length - 1] == '\n')
		length--;
	text[length] = 0;
	snprintf(line, size, "%.500s", strrchr(text, '\n') ? strrchr(text, '\n') + 1 : text);
	return ready[0].revents;
}

/* Ends the script with what it has started, which is all in its process group. It may put things back first.
 */
static void stop_script(int process, pid_t pid, int grace_s)
{
	struct pollfd ended = {.fd = process, .events = POLLIN};

	kill(-pid, SIGTERM);
	if (poll(&ended, 1, grace_s * 1000) == 0)
		log_warning("A network script (pid %d) does not end when asked to, and is killed.", (int)pid);
	/* Not reaped before: the number is still its own. */
	kill(-pid, SIGKILL);
	process_wait(process, grace_s * 1000, NULL);
}

static bool has_failed(int process)
{
	siginfo_t info = {0};

	return waitid(P_PIDFD, (id_t)process, &info, WEXITED | WNOWAIT | WNOHANG) < 0 ||
	       info.si_code != CLD_EXITED || info.si_status != 0;
}

static int run_script(
	const char *const *arguments, const char *const *environment, struct limit limit, struct error *error)
{
	_cleanup_close_ int output = -1, process = -1;
	struct spawn spawn = {.arguments = arguments, .environment = environment, .pass = -1};
	char last[512];
	int ends[2];
	pid_t pid;

	if (pipe2(ends, O_CLOEXEC) < 0)
		return error_set(error, errno, "Unable to run %s: %s.", arguments[0], strerror(errno));
	output = ends[0];
	spawn.output = ends[1];
	process = process_spawn(&spawn, &pid, error);
	close(ends[1]);
	if (process < 0)
		return process;
	fcntl(output, F_SETFL, O_NONBLOCK);
	if (!hear_out(output, process, limit.seconds, last, sizeof(last))) {
		stop_script(process, pid, limit.grace_s);
		return error_set(error, ETIMEDOUT, "The script %s did not end within %d s and was stopped.",
			arguments[0], limit.seconds);
	}
	if (has_failed(process)) {
		kill(-pid, SIGKILL);
		process_wait(process, -1, NULL);
		return error_set(error, EIO, "The script %s failed: %s", arguments[0],
			*last ? last : "it gave no reason.");
	}
	process_wait(process, -1, NULL);
	if (*last)
		log_warning("%s: %s", arguments[0], last);
	return 0;
}

static int script_path(char *path, size_t size, const char *scripts, const char *name, struct error *error)
{
	if ((size_t)snprintf(path, size, "%s%s%s", name[0] == '/' ? "" : scripts, name[0] == '/' ? "" : "/",
		    name) >= size)
		return error_set(error, ENAMETOOLONG, "The script name %.64s… is too long.", name);
	if (access(path, X_OK) < 0)
		return error_set(error, errno, "Unable to run the script %s: %s.", path, strerror(errno));
	return 0;
}

void network_bridge(const char *line, char name[16])
{
	const char *word = line;

	snprintf(name, IFNAMSIZ, "%s", "xenbr0");
	while (*(word += strspn(word, " \t\n"))) {
		size_t length = strcspn(word, " \t\n");

		if (length > 7 && !strncmp(word, "bridge=", 7))
			snprintf(name, IFNAMSIZ, "%.*s", (int)length - 7, word + 7);
		word += length;
	}
}

/* A bridge that is still being made may be taken away again, and the guest's device with it. */
static int check_set_up(const struct guest_vif *vif, const struct vif_place *place, struct error *error)
{
	char name[IFNAMSIZ];

	network_bridge(place->network_script, name);
	if (!place->trouble || !*place->trouble || (vif->bridge && strcmp(vif->bridge, name) != 0))
		return 0;
	return error_set(error, EBUSY,
		"The bridge %s, which network device %u of domain '%s' is to join, is not set up yet; xend "
		"goes on "
		"trying to. %s",
		name, place->number, place->domain, place->trouble);
}

static int find_bridge(
	const struct guest_vif *vif, const struct vif_place *place, char name[IFNAMSIZ], struct error *error)
{
	char path[300];

	if (check_set_up(vif, place, error) < 0)
		return -error->code;

	/* The host's other bridges are somebody else's: Docker's, libvirt's. */
	if (!vif->bridge) {
		network_bridge(place->network_script, name);
		snprintf(path, sizeof(path), "/sys/class/net/%s/bridge", name);
		if (access(path, F_OK) == 0)
			return 0;
		return error_set(error, ENODEV,
			"Network device %u of domain '%s' names no bridge, and this host's bridge for such "
			"guests, "
			"%s, does not exist: set network-script in xend-config.sxp and restart xend (its log "
			"says why "
			"if the script failed), or name a bridge in vif=.",
			place->number, place->domain, name);
	}
	snprintf(path, sizeof(path), "/sys/class/net/%.200s/bridge", vif->bridge);
	if (strlen(vif->bridge) >= IFNAMSIZ || access(path, F_OK) < 0)
		return error_set(error, ENODEV,
			"Bridge %s, which network device %u of domain '%s' is to join, does not exist; "
			"create it or correct "
			"vif=.",
			vif->bridge, place->number, place->domain);
	snprintf(name, IFNAMSIZ, "%.15s", vif->bridge);
	return 0;
}

struct vif_script {
	char path[512], bridge[IFNAMSIZ];
};

static int find_script(const struct guest_vif *vif, const struct vif_place *place, struct vif_script *script,
	struct error *error)
{
	const char *name = vif->script ? vif->script : place->vif_script;
	int r = script_path(script->path, sizeof(script->path), place->scripts, name, error);

	if (r < 0)
		return r;
	/* Other scripts (vif-route, one's own) may do without a bridge. */
	if (!vif->bridge && !strstr(name, "bridge")) {
		*script->bridge = 0;
		return 0;
	}
	return find_bridge(vif, place, script->bridge, error);
}

static int run_vif_script(const struct guest_vif *vif, const struct vif_place *place,
	const struct vif_script *script, const char *verb, struct error *error)
{
	char name[IFNAMSIZ], words[5][512];
	const char *const arguments[] = {script->path, verb, NULL};
	const char *const environment[] = {
		SCRIPT_PATH, words[0], words[1], words[2], words[3], words[4], NULL};
	const uint8_t *m = vif->mac;

	vif_name(vif, place, name);
	snprintf(words[0], sizeof(words[0]), "vif=%s", name);
	snprintf(words[1], sizeof(words[1]), "bridge=%s", script->bridge);
	snprintf(words[2], sizeof(words[2]), "mac=%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3],
		m[4], m[5]);
	snprintf(words[3], sizeof(words[3]), "ip=%.500s", vif->ip ? vif->ip : "");
	snprintf(words[4], sizeof(words[4]), "domain=%s", place->domain);
	return run_script(arguments, environment, (struct limit){VIF_LIMIT_S, VIF_GRACE_S}, error);
}

int vif_check(const struct guest_vif *vif, const struct vif_place *place, struct error *error)
{
	struct vif_script script;

	return find_script(vif, place, &script, error);
}

int vif_create(const struct guest_vif *vif, const struct vif_place *place, struct error *error)
{
	struct ifreq request = {.ifr_flags = (short)(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)};
	_cleanup_close_ int tap = -1;
	struct vif_script script;
	int r = find_script(vif, place, &script, error);

	if (r < 0)
		return r;
	vif_name(vif, place, request.ifr_name);
	if (if_nametoindex(request.ifr_name))
		return error_set(error, EEXIST,
			"The network device %s, wanted for domain '%s', exists already; remove it or give "
			"another vifname.",
			request.ifr_name, place->domain);
	tap = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
	if (tap < 0)
		return error_set(error, errno, "Unable to open /dev/net/tun: %s. Load the module tun.",
			strerror(errno));
	if (ioctl(tap, TUNSETIFF, &request) < 0)
		return error_set(error, errno, "Unable to create the network device %s of domain '%s': %s.",
			request.ifr_name, place->domain, strerror(errno));
	r = run_vif_script(vif, place, &script, "online", error);
	return r < 0 ? r : take_fd(&tap);
}

void vif_remove(const struct guest_vif *vif, const struct vif_place *place)
{
	struct vif_script script;
	struct error error;

	if (find_script(vif, place, &script, &error) < 0 ||
		run_vif_script(vif, place, &script, "offline", &error) < 0)
		log_warning("%s", error.text);
}

int network_start(const char *scripts, const char *line, int limit_s, struct error *error)
{
	static const char *const environment[] = {SCRIPT_PATH, NULL};
	char path[512];
	_cleanup_free_ char *copy = strdup(line);
	const char *arguments[SCRIPT_WORDS_MAX] = {NULL};
	char *rest = copy, *word;
	unsigned count = 0;
	int r;

	while (copy && count < SCRIPT_WORDS_MAX - 2 && (word = strsep(&rest, " \t\n")))
		if (*word) {
			arguments[count++] = word;
			/* `start` comes right after the script's name. */
			if (count == 1)
				arguments[count++] = "start";
		}
	if (!count)
		return 0;
	r = script_path(path, sizeof(path), scripts, arguments[0], error);
	if (r < 0)
		return r;
	arguments[0] = path;
	/* Half of a host's addresses moved is the worst: it may take as long again to put them back. */
	return run_script(arguments, environment, (struct limit){limit_s, limit_s}, error);
}
