#include "xend/guest_disks.h"
#include "base/cleanup.h"
#include "base/raw_bytes.h"
#include "base/log.h"
#include "xend/disks.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#define LOCK_MS 30000
#define LOCK_RETRY_MS 20
#define LOCK_LATER_MS 1000

/* What the kernel remembers of a file, without asking its storage, which may not answer (statx(2)). */
static bool is_file(int directory, const char *name, const struct disk_place *place)
{
	int flags = AT_STATX_DONT_SYNC | (*name ? 0 : AT_EMPTY_PATH);
	struct statx info;

	return statx(directory, name, flags, STATX_TYPE | STATX_INO, &info) == 0 && S_ISREG(info.stx_mode) &&
	       info.stx_ino == place->inode &&
	       makedev(info.stx_dev_major, info.stx_dev_minor) == place->device;
}

/* A duplicate of the process's own descriptor of this file; -1: it has none. A lock on it is the process's.
 */
static int find_open_file(int process, pid_t pid, const struct disk_place *place)
{
	struct dirent *entry;
	char table[64];
	DIR *directory;
	int found = -1;

	snprintf(table, sizeof(table), "/proc/%d/fd", (int)pid);
	directory = place->known && !place->block ? opendir(table) : NULL;
	while (found < 0 && directory && (entry = readdir(directory))) {
		int number = atoi(entry->d_name);

		if (!is_file(dirfd(directory), entry->d_name, place))
			continue;
		found = pidfd_getfd(process, number, 0);
		/* The number may mean another file by now. */
		if (found >= 0 && !is_file(found, "", place)) {
			close(found);
			found = -1;
		}
	}
	if (directory)
		closedir(directory);
	return found;
}

void guest_unlock_disks(const struct domain *domain)
{
	for (size_t i = 0; domain->process >= 0 && i < domain->config.disk_count; i++) {
		_cleanup_close_ int fd =
			find_open_file(domain->process, domain->pid, &domain->config.disks[i].place);

		if (fd >= 0)
			disk_unlock(fd);
	}
}

void guest_lacks_lock(struct domain *domain, size_t disk)
{
	domain->lockless |= 1u << disk;
	log_warning("Disk %s (%s) of domain '%s' is not locked: where it lies there are no locks. Only this "
		    "host's own guests are "
		    "kept from it.",
		domain->config.disks[disk].target, domain->config.disks[disk].device, domain->config.name);
}

void guest_describe_disks(const struct domain *domain, json_t *described)
{
	const struct guest_config *config = &domain->config;

	for (unsigned i = 0; i < config->disk_count; i++)
		if (domain->lockless >> i & 1)
			json_object_set_new(described, "lockless",
				json_sprintf("Disk %s (%s) of domain '%s' is not locked: where it lies there "
					     "are no "
					     "locks. See to it that no other host uses it.",
					config->disks[i].target, config->disks[i].device, config->name));
	if (domain->waits[0])
		json_object_set_new(described, "waits",
			json_sprintf("Domain '%s' waits: %s. It goes on by itself when that is over.",
				config->name, domain->waits));
}

/* Disks that are open here as well. Closing one may wait for its storage (a file of NFS is flushed then). */
struct open_disks {
	int fds[GUEST_DISKS_MAX]; /* -1: not open */
	unsigned count;
};

static void take(struct domain *domain, struct open_disks *disks)
{
	disks->count = domain->unlocked_count;
	for (unsigned i = 0; i < disks->count; i++)
		disks->fds[i] = domain->unlocked[i];
	domain->unlocked_count = 0;
}

/* Lets go of the lock. */
static void close_all(struct xend *xend, struct open_disks *disks)
{
	xend_unlock(xend);
	for (unsigned i = 0; i < disks->count; i++)
		cleanup_close(&disks->fds[i]);
	xend_lock(xend);
}

void guest_release_disks(struct domain *domain)
{
	struct open_disks disks;

	take(domain, &disks);
	close_all(domain->xend, &disks);
}

/* Its storage may not answer. Lets go of the lock. */
static int lock_one(const struct domain *domain, int fd, enum disk_mode mode)
{
	const struct guest_disk disk = {.mode = mode};
	int r;

	xend_unlock(domain->xend);
	r = fd < 0 ? 0 : disk_lock(fd, &disk);
	xend_lock(domain->xend);
	return r;
}

static bool still_wanted(const struct domain *domain)
{
	return domain->process >= 0 && !domain->dead && domain->phase == DOMAIN_LIVE &&
	       !domain->xend->stopping;
}

/*
 * Until it has them all: a peer that is cut off holds its locks for as long as it does not know that the
 * guest is gone. The locks are those of the open files, which ferry-guest holds too.
 */
static void lock_all(struct domain *domain, struct open_disks *disks)
{
	long long patience = monotonic_ms() + LOCK_MS;
	unsigned locked = 0;
	bool said = false;

	while (still_wanted(domain) && locked < disks->count) {
		int r = lock_one(domain, disks->fds[locked], domain->config.disks[locked].mode);

		if (r == -ENOLCK && still_wanted(domain))
			guest_lacks_lock(domain, locked);
		if (r == 0 || r == -ENOLCK) {
			locked++;
			continue;
		}
		if (!said && monotonic_ms() > patience) {
			said = true;
			log_warning("Disk %s of domain '%s' cannot be locked: another host or program still "
				    "has it. This is tried until it can be.",
				domain->config.disks[locked].target, domain->config.name);
		}
		xend_wait(domain->xend, said ? LOCK_LATER_MS : LOCK_RETRY_MS);
	}
	close_all(domain->xend, disks);
}

static void lock_disks(void *argument)
{
	struct domain *domain = argument;
	struct open_disks disks;

	take(domain, &disks);
	lock_all(domain, &disks);
	domain_unref(domain);
}

static void start(struct domain *domain, void (*run)(void *argument))
{
	struct error error;

	if (xend_worker(domain->xend, run, domain_ref(domain), &error) < 0) {
		log_error("The disks of domain '%s' may not be locked: %s", domain->config.name, error.text);
		domain_unref(domain);
	}
}

void guest_lock_disks(struct domain *domain)
{
	if (domain->unlocked_count)
		start(domain, lock_disks);
}

static void relock_disks(void *argument)
{
	struct domain *domain = argument;
	struct xend *xend = domain->xend;
	struct disk_place places[GUEST_DISKS_MAX];
	_cleanup_close_ int process = still_wanted(domain) ? fcntl(domain->process, F_DUPFD_CLOEXEC, 0) : -1;
	struct open_disks disks = {.count = process < 0 ? 0 : (unsigned)domain->config.disk_count};
	pid_t pid = domain->pid;

	for (unsigned i = 0; i < disks.count; i++)
		places[i] = domain->config.disks[i].place;
	xend_unlock(xend);
	for (unsigned i = 0; i < disks.count; i++)
		disks.fds[i] = find_open_file(process, pid, &places[i]);
	xend_lock(xend);
	lock_all(domain, &disks);
	domain_unref(domain);
}

void guest_relock_disks(struct domain *domain)
{
	if (domain->config.disk_count)
		start(domain, relock_disks);
}
