#include "xend/network.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "xend/process.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>

#define SCRIPT_TIMEOUT_MS 30000
#define SCRIPT_WORDS_MAX 16
#define SCRIPT_PATH "PATH=/usr/sbin:/usr/bin:/sbin:/bin"

static void vif_name(const struct guest_vif *vif, const struct vif_place *place, char name[IFNAMSIZ])
{
	if (vif->vifname)
		snprintf(name, IFNAMSIZ, "%s", vif->vifname);
	else
		snprintf(name, IFNAMSIZ, "vif%u.%u", place->id % 10000000, place->number % 100);
}

/* Reads what the script says until it ends; keeps its last line. */
static void read_output(int fd, char *line, size_t size)
{
	char text[4096];
	size_t length = 0;

	*line = 0;
	for (;;) {
		struct pollfd ready = {.fd = fd, .events = POLLIN};
		ssize_t n = poll(&ready, 1, SCRIPT_TIMEOUT_MS) > 0
				    ? read(fd, text + length, sizeof(text) - 1 - length)
				    : 0;

		if (n <= 0)
			break;
		length += (size_t)n;
		if (length == sizeof(text) - 1) {
			memmove(text, text + length / 2, length - length / 2);
			length -= length / 2;
		}
	}
	while (length && text[length - 1] == '\n')
		length--;
	text[length] = 0;
	snprintf(line, size, "%.500s", strrchr(text, '\n') ? strrchr(text, '\n') + 1 : text);
}

static int run_script(const char *const *arguments, const char *const *environment, struct error *error)
{
	_cleanup_close_ int output = -1, process = -1;
	struct spawn spawn = {.arguments = arguments, .environment = environment, .pass = -1};
	int ends[2], status = 0;
	char last[512];
	pid_t pid;

	if (pipe2(ends, O_CLOEXEC) < 0)
		return error_set(error, errno, "Unable to run %s: %s.", arguments[0], strerror(errno));
	output = ends[0];
	spawn.output = ends[1];
	process = process_spawn(&spawn, &pid, error);
	close(ends[1]);
	if (process < 0)
		return process;
	read_output(output, last, sizeof(last));
	if (process_wait(process, SCRIPT_TIMEOUT_MS, &status) < 0) {
		process_kill(process);
		return error_set(error, ETIMEDOUT, "The script %s did not end within %d s and was stopped.",
			arguments[0], SCRIPT_TIMEOUT_MS / 1000);
	}
	if (status)
		return error_set(error, EIO, "The script %s failed: %s", arguments[0],
			*last ? last : "it gave no reason.");
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

/* The bridge a vif without one gets: the first there is, as Xen's vif-bridge had it. */
static void first_bridge(char name[IFNAMSIZ])
{
	DIR *directory = opendir("/sys/class/net");
	struct dirent *entry;
	char path[300];

	*name = 0;
	while (directory && (entry = readdir(directory))) {
		snprintf(path, sizeof(path), "/sys/class/net/%s/bridge", entry->d_name);
		if (access(path, F_OK) == 0 && (!*name || strcmp(entry->d_name, name) < 0))
			snprintf(name, IFNAMSIZ, "%.15s", entry->d_name);
	}
	if (directory)
		closedir(directory);
}

static int find_bridge(
	const struct guest_vif *vif, const struct vif_place *place, char name[IFNAMSIZ], struct error *error)
{
	char path[300];

	if (!vif->bridge) {
		first_bridge(name);
		if (*name)
			return 0;
		return error_set(error, ENODEV,
			"Network device %u of domain '%s' names no bridge and this host has none; set "
			"network-script in "
			"xend-config.sxp and restart xend, or make one.",
			place->number, place->domain);
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
	return run_script(arguments, environment, error);
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

int network_start(const char *scripts, const char *line, struct error *error)
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
	return run_script(arguments, environment, error);
}
