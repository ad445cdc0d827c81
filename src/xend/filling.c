#include "xend/filling.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "xend/checkpoint_open.h"
#include "xend/guest.h"
#include "xend/shared_memory.h"
#include "xend/supervise.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/pidfd.h>

/* What to do with a guest that ran before it was lost: its disks are newer than its checkpoint. */
#define START_ANEW                                                                                           \
	"It had run since it was restored, and its disks no longer fit the checkpoint: start it anew with "  \
	"xm create."
#define STORAGE_AGAIN_MS 1000
#define CARRIERS_MAX 4    /* that are tried one after the other for one guest */
#define WAIT_MS 300000    /* how long a job waits for memory */
#define NOTICE_MS 100     /* how soon it sees that it is cancelled */
#define GUEST_END_MS 5000 /* after the carrier has seen the guest's end, xend sees it */

static struct guest_place place_of(const struct domain *domain)
{
	struct guest_place place;

	guest_place_of(domain->xend, domain->config.uuid, &place);
	return place;
}

/* For a next xend. */
static void record_source(const struct domain *domain, const char *path, const char *identity)
{
	_cleanup_json_ json_t *record = json_pack("{s:s, s:s*}", "file", path, "identity", identity);
	struct guest_place place = place_of(domain);

	if (!record || json_dump_file(record, place.source, JSON_COMPACT) < 0)
		log_warning("Which file domain '%s' has its memory from could not be written to %s: %s.",
			domain->config.name, place.source, strerror(errno));
}

/* There is nothing to be brought any more. */
static void forget(const struct domain *domain)
{
	struct guest_place place = place_of(domain);

	unlink(place.carrier);
	unlink(place.source);
}

static bool has_ended(const struct domain *domain)
{
	return domain->phase > DOMAIN_LIVE || domain->dead || domain->process < 0 ||
	       domain->state == GUEST_SHUTDOWN;
}

/* The guest must not run on without its memory. Its process may hang in waiting for it, so it is killed. */
static void lose(struct domain *domain, const char *why)
{
	snprintf(domain->detail, sizeof(domain->detail), "%.500s", why);
	domain->state = GUEST_SHUTDOWN;
	domain->reason = REASON_ERROR;
	domain->dead = domain->lost = true;
	domain->filling = false;
	pidfd_send_signal(domain->process, SIGKILL, NULL, 0);
	xend_changed(domain->xend);
	supervise(domain);
}

static int give(struct domain *domain, struct carrier *carrier, struct error *error)
{
	struct guest_place place = place_of(domain);

	if (rename(carrier->record, place.carrier) < 0)
		return error_set(error, errno, "Unable to rename %s to %s: %s.", carrier->record,
			place.carrier, strerror(errno));
	snprintf(carrier->record, sizeof(carrier->record), "%s", place.carrier);
	carrier->outlives = true;
	carrier->cancel = -1;
	carrier->progress = NULL;
	return 0;
}

int filling_begin(struct domain *domain, struct carrier *carrier, const char *path, const char *identity,
	struct error *error)
{
	int r = give(domain, carrier, error);

	record_source(domain, path, identity);
	domain->filling = true;
	return r < 0 ? r : carrier_say(carrier, json_pack("{s:s}", "do", "go-on"), NULL, 0, error);
}

int filling_fds_begin(
	struct filling_fds *fds, struct domain *domain, int guest, json_t *message, struct error *error)
{
	*fds = (struct filling_fds){.shared = -1, .device = -1};
	json_object_set_new(message, "guest", message_fds_add(&fds->list, guest));
	if (!domain->shared)
		return 0;
	fds->shared = shared_memory_open(domain->ram, true, error);
	if (fds->shared < 0)
		return fds->shared;
	fds->device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (fds->device < 0) {
		close(fds->shared);
		return error_set(error, errno, "Unable to open /dev/userfaultfd: %s.", strerror(errno));
	}
	json_object_set_new(message, "shared", message_fds_add(&fds->list, fds->shared));
	json_object_set_new(message, "faults", message_fds_add(&fds->list, fds->device));
	return 0;
}

void filling_fds_end(struct filling_fds *fds)
{
	cleanup_close(&fds->shared);
	cleanup_close(&fds->device);
}

/* What the carriers read, and for how long that was in vain. */
struct source {
	int file; /* owned; -1: yet to be opened */
	const char *path, *identity;
	int cancel;              /* owned: readable once the guest has ended */
	long long failing_since; /* monotonic_ms(); 0: it does not fail */
};

static struct source source_begin(struct domain *domain, int file, const char *path, const char *identity)
{
	int cancel = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

	domain->filling_cancel = cancel;
	domain->followed = true;
	return (struct source){.file = file, .path = path, .identity = identity, .cancel = cancel};
}

static void source_end(struct domain *domain, struct source *source)
{
	domain->filling_cancel = -1;
	cleanup_close(&source->cancel);
	cleanup_close(&source->file);
	domain->followed = false;
	xend_changed(domain->xend);
}

static int start_another(
	struct domain *domain, struct carrier *carrier, struct source *source, struct error *error)
{
	_cleanup_json_ json_t *job = json_pack("{s:s, s:s*}", "do", "fill", "identity", source->identity);
	_cleanup_close_ int guest = guest_connect(domain, error);
	struct filling_fds fds;
	int r;

	if (guest < 0)
		return guest;
	if (source->file < 0)
		source->file = checkpoint_open_file(domain->xend, source->path, source->cancel, error);
	if (source->file < 0)
		return source->file;
	r = carrier_start(carrier, domain->xend, -1, NULL, error);
	if (r >= 0)
		r = give(domain, carrier, error);
	if (r >= 0)
		r = filling_fds_begin(&fds, domain, guest, job, error);
	if (r < 0)
		return r;
	json_object_set_new(job, "file", message_fds_add(&fds.list, source->file));
	r = carrier_say(carrier, json_incref(job), fds.list.fds, fds.list.count, error);
	filling_fds_end(&fds);
	return r;
}

/* Ends what is left of the carrier, and forgets it. */
static void take_away(struct carrier *carrier)
{
	carrier->outlives = false;
	carrier_end(carrier);
}

/* What failed so may succeed later: a server that was away, a path that comes back, a host short of memory.
 */
static bool may_pass(int r)
{
	static const int codes[] = {EIO, ESTALE, ETIMEDOUT, EAGAIN, EREMOTEIO, ENOTCONN, EHOSTUNREACH,
		EHOSTDOWN, ENOLINK, ECONNABORTED, ENOMEM, EMFILE, ENFILE};

	for (size_t i = 0; i < ARRAY_SIZE(codes); i++)
		if (r == -codes[i])
			return true;
	return false;
}

/* The server does not know the file any more as which it was opened: it may have it under its name. */
static void reopen(struct xend *xend, struct source *source)
{
	struct error error;
	int file = checkpoint_open_file(xend, source->path, source->cancel, &error);

	if (file < 0)
		return;
	cleanup_close(&source->file);
	source->file = file;
}

/*
 * The guest has run since it was restored, and has written to its disks: no checkpoint fits them any more.
 * So storage that fails is given its time, while the guest waits for its memory.
 */
static bool wait_for_storage(
	struct domain *domain, struct source *source, int failed, const struct error *error)
{
	struct xend *xend = domain->xend;
	long long patience = (long long)xend->config.storage_timeout * 1000, now = monotonic_ms();

	if (!source->failing_since) {
		source->failing_since = now;
		log_warning("The memory of domain '%s' cannot be read from %s: %s This is tried again%s.",
			domain->config.name, source->path, error->text,
			patience ? " until storage-timeout" : "");
	}
	if (patience && now - source->failing_since >= patience)
		return false;
	now += STORAGE_AGAIN_MS;
	while (monotonic_ms() < now && !has_ended(domain) && !xend->stopping)
		xend_wait(xend, NOTICE_MS);
	if (failed == -ESTALE)
		reopen(xend, source);
	return !has_ended(domain) && !xend->stopping;
}

static bool ended_soon(struct domain *domain)
{
	long long deadline = monotonic_ms() + GUEST_END_MS;

	while (!has_ended(domain) && !domain->xend->stopping && monotonic_ms() < deadline)
		xend_wait(domain->xend, NOTICE_MS);
	return has_ended(domain);
}

/* The carrier has brought what none had brought before. */
static void note_progress(void *context, json_t *progress)
{
	struct source *source = context;

	(void)progress;
	source->failing_since = 0;
}

/* Until the memory is there: 0, or why it does not come. */
static int follow(struct domain *domain, struct carrier *carrier, struct source *source, struct error *error)
{
	carrier->told = note_progress;
	carrier->context = source;
	for (unsigned died = 0;;) {
		_cleanup_message_ struct message filled = {0};
		int r = carrier->xend ? 0 : start_another(domain, carrier, source, error);

		if (r >= 0)
			r = carrier_expect(carrier, "filled", &filled, error);
		if (r >= 0 || has_ended(domain))
			return r;
		/* A carrier may find the guest ended before its end is told here, or be wrong. */
		if ((r == -ESRCH || r == -ECONNREFUSED) && ended_soon(domain))
			return r;
		if ((r == -EPIPE || r == -ESRCH) && ++died < CARRIERS_MAX)
			log_warning("The carrier that brings domain '%s' its memory has given up (%s); "
				    "another one "
				    "goes on.",
				domain->config.name, error->text);
		else if (!may_pass(r) || !wait_for_storage(domain, source, r, error))
			return r;
		take_away(carrier);
	}
}

static void follow_to_its_end(struct domain *domain, struct carrier *carrier, struct source *source)
{
	struct xend *xend = domain->xend;
	struct error error = {0}, why;
	long long deadline;
	int r = follow(domain, carrier, source, &error);

	if (xend->stopping && r < 0 && !has_ended(domain))
		return; /* the carrier goes on; the next xend finds it, or starts another */
	deadline = monotonic_ms() + GUEST_END_MS;
	while (r == -ESRCH && !has_ended(domain) && monotonic_ms() < deadline)
		xend_wait(xend, NOTICE_MS);
	take_away(carrier);
	if (r >= 0) {
		domain->filling = false;
		forget(domain);
		log_info("Domain '%s' has all of its memory from %s.", domain->config.name, source->path);
	} else if (!has_ended(domain)) {
		error_set(&why, EIO, "its memory could not be read from %s: %s " START_ANEW, source->path,
			error.text);
		lose(domain, why.text);
	}
}

void filling_follow(
	struct domain *domain, struct carrier *carrier, int file, const char *path, const char *identity)
{
	struct source source = source_begin(domain, file, path, identity);

	follow_to_its_end(domain, carrier, &source);
	source_end(domain, &source);
}

/* A guest keeps the descriptor by which missing pages are brought until all of them have come. */
static bool waits_for_memory(const struct domain *domain)
{
	char table[64], target[64];
	struct dirent *entry;
	bool found = false;
	DIR *directory;

	snprintf(table, sizeof(table), "/proc/%d/fd", (int)domain->pid);
	directory = opendir(table);
	while (!found && directory && (entry = readdir(directory))) {
		ssize_t size = readlinkat(dirfd(directory), entry->d_name, target, sizeof(target) - 1);

		target[size < 0 ? 0 : size] = 0;
		found = strstr(target, "[userfaultfd]");
	}
	if (directory)
		closedir(directory);
	return found;
}

static const char abandoned[] = "its memory was still coming from its checkpoint, and the carrier that "
				"brought it is no more. " START_ANEW;

/* Until an earlier xend's carrier, which says nothing to us, has ended. Lets go of the lock. */
static void await_carrier(struct domain *domain)
{
	struct guest_place place = place_of(domain);
	struct xend *xend = domain->xend;
	_cleanup_close_ int process = -1;
	pid_t pid;

	while ((process = process_find(place.carrier, &pid)) < 0 && process != -ESRCH && !xend->stopping)
		xend_wait(xend, STORAGE_AGAIN_MS); /* there was no descriptor for it */
	if (process >= 0) {
		struct pollfd ready[] = {
			{.fd = process, .events = POLLIN}, {.fd = xend->stop, .events = POLLIN}};

		xend_unlock(xend);
		while (poll(ready, ARRAY_SIZE(ready), -1) < 0 && errno == EINTR)
			;
		xend_lock(xend);
	}
}

/* Whether all came, the guest tells: if it does not, whether it still waits for what nobody brings. */
static bool lacks_memory(struct domain *domain)
{
	struct error error;

	if (guest_refresh_one(domain, &error) < 0)
		domain->filling = waits_for_memory(domain);
	return domain->filling && !has_ended(domain);
}

/* Where an earlier xend's carrier has left off, another goes on. */
static void take_over(void *argument)
{
	_cleanup_domain_ struct domain *domain = argument;
	struct guest_place place = place_of(domain);
	_cleanup_json_ json_t *record = json_load_file(place.source, 0, NULL);
	_cleanup_carrier_ struct carrier carrier = {0};
	struct source source = source_begin(domain, -1, json_string_value(json_object_get(record, "file")),
		json_string_value(json_object_get(record, "identity")));
	struct xend *xend = domain->xend;
	struct error error;

	/* While its name leads to it. */
	if (source.path)
		source.file = checkpoint_open_file(xend, source.path, source.cancel, &error);
	await_carrier(domain);
	if (xend->stopping || has_ended(domain)) {
		/* the next xend's, or nobody's */
	} else if (!lacks_memory(domain)) {
		forget(domain);
	} else if (!source.path) {
		lose(domain, abandoned);
	} else {
		log_warning("The carrier that an earlier xend has left to bring domain '%s' its memory is no "
			    "more; another one goes on.",
			domain->config.name);
		follow_to_its_end(domain, &carrier, &source);
	}
	source_end(domain, &source);
}

static bool is_abandoned(const struct domain *domain)
{
	struct guest_place place = place_of(domain);
	pid_t pid;
	_cleanup_close_ int process = process_find(place.carrier, &pid);

	return process == -ESRCH && access(place.carrier, F_OK) == 0;
}

static void begin_later(evutil_socket_t fd, short what, void *argument)
{
	struct domain *domain = argument;
	struct xend *xend = domain->xend;

	(void)fd;
	(void)what;
	xend_lock(xend);
	if (domain->phase == DOMAIN_LIVE)
		filling_adopt(domain);
	domain_unref(domain);
	xend_unlock(xend);
}

static void begin_to_follow(struct domain *domain)
{
	const struct timeval soon = {.tv_sec = STORAGE_AGAIN_MS / 1000};
	struct error error;

	domain->followed = true;
	if (xend_worker(domain->xend, take_over, domain_ref(domain), &error) >= 0)
		return;
	domain->followed = false;
	log_seldom(LOG_WARNING_, "The memory of domain '%s' is not looked after yet: %s", domain->config.name,
		error.text);
	/* The reference is the next attempt's. */
	if (event_base_once(domain->xend->base, -1, EV_TIMEOUT, begin_later, domain, &soon) < 0)
		domain_unref(domain);
}

void filling_look_after_silent(struct domain *domain)
{
	if (has_ended(domain) || domain->followed || !is_abandoned(domain) || !waits_for_memory(domain))
		return;
	domain->filling = true;
	begin_to_follow(domain);
}

void filling_adopt(struct domain *domain)
{
	if (domain->dead && is_abandoned(domain))
		lose(domain, abandoned);
	if (domain->dead || !domain->filling)
		forget(domain);
	else if (!domain->followed)
		begin_to_follow(domain);
}

static bool signalled(int cancel)
{
	struct pollfd ready = {.fd = cancel, .events = POLLIN};

	return poll(&ready, 1, 0) > 0;
}

int filling_wait(struct domain *domain, int cancel, struct error *error)
{
	struct xend *xend = domain->xend;
	long long deadline = monotonic_ms() + WAIT_MS;

	if (domain->filling)
		log_info("Domain '%s' is first waited for: its memory is still coming from its checkpoint.",
			domain->config.name);
	while (domain->filling && !has_ended(domain)) {
		if (signalled(cancel) || xend->stopping)
			return error_set(
				error, ECANCELED, xend->stopping ? "xend is being stopped." : "Cancelled.");
		if (monotonic_ms() > deadline)
			return error_set(error, EBUSY,
				"The memory of domain '%s' is still coming from its checkpoint; try again "
				"later.",
				domain->config.name);
		xend_wait(xend, NOTICE_MS);
	}
	if (has_ended(domain))
		return error_set(error, EBUSY, "Domain '%s' has ended meanwhile.", domain->config.name);
	return 0;
}

void filling_end(struct domain *domain)
{
	struct xend *xend = domain->xend;
	struct guest_place place = place_of(domain);
	pid_t pid;
	_cleanup_close_ int process = process_find(place.carrier, &pid);

	if (process >= 0) {
		xend_unlock(xend);
		process_kill(process);
		xend_lock(xend);
	}
	if (domain->filling_cancel >= 0)
		eventfd_write(domain->filling_cancel, 1);
	while (domain->followed)
		xend_wait(xend, -1);
	forget(domain);
}
