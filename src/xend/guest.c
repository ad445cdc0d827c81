#include "xend/guest.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "base/raw_bytes.h"
#include "xend/boot_files.h"
#include "xend/disks.h"
#include "xend/filling.h"
#include "xend/guest_disks.h"
#include "xend/guest_record.h"
#include "xend/guest_watch.h"
#include "xend/machine.h"
#include "xend/memory.h"
#include "xend/network.h"
#include "xend/process_log.h"
#include "xend/shared_memory.h"
#include "xend/silence.h"
#include "xend/uuid.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#define CREATE_MS 60000
#define REFRESH_MS 500
#define LAST_BREATH_MS 100 /* from a closed channel to the end of its process */

void guest_place_of(const struct xend *xend, const char *uuid, struct guest_place *place)
{
	snprintf(place->directory, sizeof(place->directory), "%s/guests/%.36s", xend->paths.run, uuid);
	snprintf(place->control, sizeof(place->control), "%s/control", place->directory);
	snprintf(place->process, sizeof(place->process), "%s/process", place->directory);
	snprintf(place->carrier, sizeof(place->carrier), "%s/carrier", place->directory);
	snprintf(place->source, sizeof(place->source), "%s/source", place->directory);
	snprintf(place->domain, sizeof(place->domain), "%s/domain", place->directory);
	snprintf(place->log, sizeof(place->log), "%s/log", place->directory);
}

static int address_of(const char *path, struct sockaddr_un *address, struct error *error)
{
	*address = (struct sockaddr_un){.sun_family = AF_UNIX};
	if (strlen(path) >= sizeof(address->sun_path))
		return error_set(
			error, ENAMETOOLONG, "The socket path %s is too long; shorten FERRY_RUNDIR.", path);
	memcpy(address->sun_path, path, strlen(path) + 1);
	return 0;
}

static int connect_to(const char *path, struct error *error)
{
	_cleanup_close_ int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	struct sockaddr_un address;
	int r = address_of(path, &address, error);

	if (r < 0)
		return r;
	/* Not blocking: a guest that accepts nobody must not stop xend. */
	if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		return error_set(error, errno, "Unable to reach the guest's process at %s: %s.", path,
			strerror(errno));
	if (fcntl(fd, F_SETFL, 0) < 0)
		return error_set(error, errno, "Unable to use %s: %s.", path, strerror(errno));
	return take_fd(&fd);
}

int guest_explain_closed(const struct domain *domain, int r, struct error *error)
{
	if (r != -EPIPE && r != -ECONNRESET && r != -ECONNREFUSED)
		return r;
	return error_set(error, -r,
		"The process of domain '%s' has ended, or is just ending; xm list shows it.",
		domain->config.name);
}

int guest_connect(const struct domain *domain, struct error *error)
{
	struct guest_place place;

	guest_place_of(domain->xend, domain->config.uuid, &place);
	return guest_explain_closed(domain, connect_to(place.control, error), error);
}

static int listen_at(const char *path, struct error *error)
{
	_cleanup_close_ int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	struct sockaddr_un address;
	int r = address_of(path, &address, error);

	if (r < 0)
		return r;
	unlink(path);
	if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(fd, 512) < 0)
		return error_set(error, errno, "Unable to listen on %s: %s.", path, strerror(errno));
	return take_fd(&fd);
}

int guest_open_kvm(struct error *error)
{
	int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	if (fd < 0)
		return error_set(error, errno,
			"Unable to open /dev/kvm: %s. Load the module kvm_intel or kvm_amd, and see that the "
			"firmware has "
			"virtualization enabled.",
			strerror(errno));
	return fd;
}

/* Linux 6.1 and later have it; elsewhere all memory is read before the guest runs. */
static int open_faults(void)
{
	int fd = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);

	if (fd < 0)
		log_info("Guests are restored with all of their memory at once: /dev/userfaultfd: %s.",
			strerror(errno));
	return fd;
}

static struct vif_place vif_place_of(const struct domain *domain, unsigned number)
{
	return (struct vif_place){.scripts = domain->xend->paths.scripts,
		.vif_script = domain->xend->config.vif_script,
		.network_script = domain->xend->config.network_script,
		.domain = domain->config.name,
		.id = domain->id,
		.number = number};
}

/* Without the lock; nobody else touches the configuration and the vifs of a domain that is STARTING. */
static int open_files(struct domain *domain, enum guest_beginning beginning, struct machine_files *files,
	struct error *error)
{
	const struct guest_config *config = &domain->config;
	bool incoming = beginning != GUEST_BOOT;

	files->kvm = guest_open_kvm(error);
	if (files->kvm < 0)
		return files->kvm;
	if (beginning == GUEST_RESTORE_LAZY)
		files->faults = open_faults();
	files->shared = domain->shared_memory;
	files->ram = files->shared ? shared_memory_open(domain->shared_memory->ram, false, error)
				   : memory_create(config->memory, error);
	if (files->ram < 0)
		return files->ram;
	if (!incoming) {
		int r = boot_files_open(config, &files->kernel, &files->ramdisk, error);

		if (r < 0)
			return r;
	}
	for (unsigned i = 0; i < config->disk_count; i++) {
		files->disks[i] = disk_open(&config->disks[i], config->name,
			beginning == GUEST_RECEIVE ? DISK_LOCK_LATER : DISK_LOCK_NOW, error);
		if (files->disks[i] == -ENOMEDIUM && config->disks[i].cdrom) {
			files->disks[i] = -1; /* a drive that is empty */
			continue;
		}
		if (files->disks[i] < 0)
			return files->disks[i];
		if (beginning != GUEST_RECEIVE && disk_lock(files->disks[i], &config->disks[i]) == -ENOLCK)
			guest_lacks_lock(domain, i);
	}
	for (unsigned i = 0; i < config->vif_count; i++) {
		struct vif_place place = vif_place_of(domain, i);

		files->taps[i] = vif_create(&config->vifs[i], &place, error);
		if (files->taps[i] < 0)
			return files->taps[i];
		domain->vifs_online = i + 1;
	}
	return 0;
}

static int start_process(struct domain *domain, struct error *error)
{
	struct guest_place place;
	char program[320], user[32], root[PATHS_EMPTY_MAX], disks[16];
	const char *const arguments[] = {program, "--control", "3", "--user", user, "--root", root, "--disks",
		disks, "--name", domain->config.name, NULL};
	struct spawn spawn = {.arguments = arguments, .own_network = true, .record = place.process};
	_cleanup_close_ int control = -1, output = -1;
	struct xend *xend = domain->xend;
	pid_t pid = 0;
	int process, r;

	guest_place_of(domain->xend, domain->config.uuid, &place);
	snprintf(program, sizeof(program), "%s/ferry-guest", domain->xend->paths.libexec);
	snprintf(user, sizeof(user), "%u:%u", GUEST_UID_BASE + domain->id, GUEST_UID_BASE + domain->id);
	snprintf(disks, sizeof(disks), "%zu", domain->config.disk_count);
	paths_empty(&domain->xend->paths, root);
	if (mkdir(place.directory, 0700) < 0 && errno != EEXIST)
		return error_set(error, errno, "Unable to create %s: %s.", place.directory, strerror(errno));
	control = listen_at(place.control, error);
	if (control < 0)
		return control;
	r = process_log_make(&domain->log, xend, place.log, domain->config.name, &output, error);
	if (r < 0)
		return r;
	guest_record_write(domain); /* there before its process is */
	spawn.pass = control;
	spawn.output = output;
	/* The program may be on storage that does not answer. */
	xend_unlock(xend);
	process = process_spawn(&spawn, &pid, error);
	xend_lock(xend);
	if (process < 0)
		return process;
	domain->process = process;
	domain->pid = pid;
	process_log_listen(domain->log, pid);
	xend_changed(xend); /* somebody may want it ended */
	return 0;
}

static int create_machine(
	struct domain *domain, const struct machine_files *files, bool incoming, struct error *error)
{
	struct message_fds list = {0};
	_cleanup_json_ json_t *request = NULL;
	_cleanup_close_ int control = guest_connect(domain, error);
	json_t *machine;

	if (control < 0)
		return control;
	machine =
		machine_describe(&domain->config, files, incoming, domain->xend->config.console_limit, &list);
	request = json_pack("{s:s, s:o}", "do", "create", "machine", machine);
	if (!request)
		return error_set(error, ENOMEM, "Out of memory.");
	return channel_call(control, request, list.fds, list.count, NULL, CREATE_MS, error);
}

int guest_explain(const struct domain *domain, int r, struct error *error)
{
	char how[64];
	int status = 0;

	if ((r != -EPIPE && r != -ECONNRESET && r != -ECONNREFUSED) || domain->process < 0 ||
		process_wait_if_dying(domain->process, domain->pid, LAST_BREATH_MS, &status) < 0)
		return r;
	process_describe_end(status, how, sizeof(how));
	return error_set(error, EIO, "The process of domain '%s' %s; what it said of that is in %s.",
		domain->config.name, how, domain->xend->config.logfile);
}

/* ferry-guest knows neither names nor paths, and a dead one says nothing. */
static int explain(const struct domain *domain, bool incoming, int r, struct error *error)
{
	const struct guest_config *config = &domain->config;

	if (r == -EPIPE || r == -ECONNRESET || r == -ECONNREFUSED)
		return guest_explain(domain, r, error);
	if (r < 0 && !incoming)
		return boot_files_explain(config, error);
	return r < 0 ? error_prefix(error, "Domain '%s': ", config->name) : r;
}

int guest_start(struct domain *domain, enum guest_beginning beginning, struct guest_memory_user *memory_user,
	struct error *error)
{
	bool incoming = beginning != GUEST_BOOT;
	struct xend *xend = domain->xend;
	_cleanup_machine_files_ struct machine_files files;
	int r;

	machine_files_init(&files);
	/* Whether a state has been restored before, nobody knows: a guest that comes out of a file never
	 * keeps its ID. */
	r = beginning == GUEST_RECEIVE ? 0 : uuid_draw(files.generation, error);
	if (r < 0)
		return r;
	xend_unlock(xend);
	r = open_files(domain, beginning, &files, error);
	xend_lock(xend);
	if (r >= 0)
		r = start_process(domain, error);
	if (r >= 0 && memory_user)
		r = memory_user->ready(memory_user, files.ram, error);
	if (r >= 0) {
		xend_unlock(xend);
		r = explain(domain, incoming, create_machine(domain, &files, incoming, error), error);
		xend_lock(xend);
	}
	if (r >= 0) {
		domain->ram = take_fd(&files.ram);
		domain->shared = files.shared;
		if (beginning == GUEST_RECEIVE)
			for (unsigned i = 0; i < domain->config.disk_count; i++)
				domain->unlocked[domain->unlocked_count++] = take_fd(&files.disks[i]);
		domain->state = incoming ? GUEST_INCOMING : GUEST_PAUSED;
		r = guest_watch(domain, error);
	}
	return r;
}

int guest_call(
	struct domain *domain, json_t *request, struct message *reply, int timeout_ms, struct error *error)
{
	_cleanup_json_ json_t *body = request;
	_cleanup_close_ int control = guest_connect(domain, error);
	int r;

	if (control < 0)
		return control;
	xend_unlock(domain->xend);
	r = guest_explain_closed(
		domain, channel_call(control, body, NULL, 0, reply, timeout_ms, error), error);
	xend_lock(domain->xend);
	if (r == -ETIMEDOUT) {
		silence_begin(domain, timeout_ms);
		if (silence_check(domain, error) == 0)
			error_prefix(error, "Domain '%s': ", domain->config.name);
	}
	return r;
}

static int plain(struct domain *domain, const char *verb, struct error *error)
{
	return guest_call(domain, json_pack("{s:s}", "do", verb), NULL, GUEST_ANSWER_MS, error);
}

int guest_pause(struct domain *domain, struct error *error)
{
	return plain(domain, "pause", error);
}

int guest_power_button(struct domain *domain, struct error *error)
{
	return plain(domain, "power-button", error);
}

int guest_resume(struct domain *domain, bool announce, struct error *error)
{
	return guest_call(domain, json_pack("{s:s, s:b}", "do", "resume", "announce", announce), NULL,
		GUEST_ANSWER_MS, error);
}

int guest_carry_on(struct domain *domain, struct error *error)
{
	struct error untracked;
	int r;

	if (domain->dead)
		return 0;
	if (guest_call(domain, json_pack("{s:s, s:b}", "do", "track", "on", 0), NULL, GUEST_ANSWER_MS,
		    &untracked) < 0)
		log_debug("Domain '%s': %s", domain->config.name, untracked.text);
	r = guest_refresh_one(domain, error);
	if (r >= 0 && (domain->state == GUEST_PAUSED || domain->state == GUEST_RUNNING) && !domain->paused) {
		/*
		 * It may have arrived in a job of an earlier xend, and nobody has been told; or it runs, but
		 * is just being paused for a carrier that has died.
		 */
		r = guest_resume(domain, true, error);
	}
	return r;
}

int guest_question(const struct domain *domain)
{
	_cleanup_json_ json_t *request = json_pack("{s:s}", "do", "status");
	_cleanup_close_ int control = guest_connect(domain, NULL);

	return control >= 0 && channel_send(control, request, NULL, 0, NULL) >= 0 ? take_fd(&control) : -1;
}

int guest_ask_status(
	const struct guest_place *place, int timeout_ms, struct message *reply, struct error *error)
{
	_cleanup_json_ json_t *request = json_pack("{s:s}", "do", "status");
	_cleanup_close_ int control = connect_to(place->control, error);

	return control < 0 ? control : channel_call(control, request, NULL, 0, reply, timeout_ms, error);
}

int guest_refresh_one(struct domain *domain, struct error *error)
{
	_cleanup_message_ struct message reply = {0};
	int r = guest_call(domain, json_pack("{s:s}", "do", "status"), &reply, GUEST_ANSWER_MS, error);

	if (r >= 0)
		guest_note_state(domain, reply.body);
	return r;
}

struct asked {
	struct domain *domain;
	int control;
};

void guest_refresh(struct xend *xend)
{
	unsigned count = 0, at = 0;
	_cleanup_free_ struct asked *asked = NULL;
	long long deadline = monotonic_ms() + REFRESH_MS;

	for (struct domain *domain = xend->domains; domain; domain = domain->next)
		count++;
	asked = calloc(count + 1, sizeof(*asked));
	if (!asked)
		return;
	for (struct domain *domain = xend->domains; domain; domain = domain->next) {
		/* Who is known not to answer is not waited for. */
		int control = domain->phase == DOMAIN_LIVE && !domain->dead && !domain->silent_ms &&
					      domain->events >= 0
				      ? guest_question(domain)
				      : -1;

		if (control >= 0)
			asked[at++] = (struct asked){domain_ref(domain), control};
	}
	for (unsigned i = 0; i < at; i++) {
		_cleanup_message_ struct message reply = {0};
		long long left = deadline - monotonic_ms();
		int r;

		xend_unlock(xend);
		r = channel_wait(asked[i].control, &reply, left > 0 ? (int)left : 0);
		xend_lock(xend);
		if (r >= 0)
			guest_note_state(asked[i].domain, reply.body);
		else if (r == -ETIMEDOUT)
			silence_begin(asked[i].domain, REFRESH_MS);
		close(asked[i].control);
		domain_unref(asked[i].domain);
	}
}

int guest_find(struct domain *domain, struct error *error)
{
	struct guest_place place;

	int r;

	guest_place_of(domain->xend, domain->config.uuid, &place);
	domain->vifs_online = (unsigned)domain->config.vif_count;
	r = process_find(place.process, &domain->pid);
	domain->process = r < 0 ? -1 : r;
	if (r == -ESRCH)
		return error_set(error, ESRCH, "The process of domain '%s' is no more.", domain->config.name);
	if (r < 0)
		return error_set(error, -r,
			"Whether the process of domain '%s' lives cannot be found out: %s. Guests that run "
			"go on. See "
			"that xend gets what it lacks (LimitNOFILE in its unit, where that is descriptors) "
			"and start "
			"it again.",
			domain->config.name, strerror(-r));
	process_log_end(domain->log);
	domain->log = process_log_find(domain->xend, place.log, domain->config.name, domain->pid);
	return 0;
}

bool guest_has_process(const struct domain *domain)
{
	struct guest_place place;
	pid_t pid;

	guest_place_of(domain->xend, domain->config.uuid, &place);
	_cleanup_close_ int process = process_find(place.process, &pid);

	return process >= 0;
}

bool guest_has_place(const struct domain *domain)
{
	struct guest_place place;

	guest_place_of(domain->xend, domain->config.uuid, &place);
	return access(place.directory, F_OK) == 0;
}

int guest_adopt(struct domain *domain, struct error *error)
{
	_cleanup_message_ struct message reply = {0};
	int r = guest_refresh_one(domain, error);

	if (r >= 0)
		r = guest_call(domain, json_pack("{s:s}", "do", "memory"), &reply, GUEST_ANSWER_MS, error);
	if (r >= 0) {
		cleanup_close(&domain->ram);
		domain->ram = message_take_fd(&reply, reply.body, "ram", error);
		r = guest_watch(domain, error);
	}
	return r;
}

void guest_place_remove(const struct guest_place *place)
{
	unlink(place->control);
	unlink(place->process);
	unlink(place->carrier);
	unlink(place->source);
	unlink(place->domain);
	unlink(place->log);
	if (rmdir(place->directory) < 0 && errno != ENOENT)
		log_warning("Unable to remove %s: %s.", place->directory, strerror(errno));
}

void guest_end(struct domain *domain)
{
	struct xend *xend = domain->xend;
	int process = take_fd(&domain->process);
	struct guest_place place;

	guest_place_of(xend, domain->config.uuid, &place);
	domain->silent_ms = 0;
	guest_unwatch(domain);
	guest_release_disks(domain);
	cleanup_close(&domain->ram);
	domain->ram = -1;
	shared_memory_unref(xend, domain->shared_memory);
	domain->shared_memory = NULL;
	domain->shared = false;
	xend_unlock(xend);
	if (process >= 0) {
		process_kill(process);
		close(process);
	}
	xend_lock(xend);
	process_log_end(take_pointer(domain->log));
	filling_end(domain);
	xend_unlock(xend);
	for (; domain->vifs_online; domain->vifs_online--) {
		struct vif_place vif = vif_place_of(domain, domain->vifs_online - 1);

		vif_remove(&domain->config.vifs[domain->vifs_online - 1], &vif);
	}
	guest_place_remove(&place);
	xend_lock(xend);
}
