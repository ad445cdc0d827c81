#include "xend/guest_disks.h"
#include "base/cleanup.h"
#include "base/raw_bytes.h"
#include "base/log.h"
#include "xend/disks.h"

#include <dirent.h>
#include <errno.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/stat.h>

#define LOCK_MS 30000
#define LOCK_RETRY_MS 20
#define LOCK_LATER_MS 1000

static bool same_file(const struct stat *one, const struct stat *other)
{
	return one->st_dev == other->st_dev && one->st_ino == other->st_ino && S_ISREG(other->st_mode);
}

/* A duplicate of the process's own descriptor of this file; -1: it has none. A lock on it is the process's.
 */
static int find_open_file(const struct domain *domain, const char *path)
{
	struct stat wanted, info;
	struct dirent *entry;
	char table[64], place[HOST_PATH_MAX];
	DIR *directory;
	int found = -1;

	snprintf(table, sizeof(table), "/proc/%d/fd", (int)domain->pid);
	directory = stat(host_path(path, place), &wanted) < 0 ? NULL : opendir(table);
	while (found < 0 && directory && (entry = readdir(directory))) {
		int number = atoi(entry->d_name);

		if (fstatat(dirfd(directory), entry->d_name, &info, 0) < 0 || !same_file(&wanted, &info))
			continue;
		found = pidfd_getfd(domain->process, number, 0);
		/* The number may mean another file by now. */
		if (found >= 0 && (fstat(found, &info) < 0 || !same_file(&wanted, &info))) {
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
		_cleanup_close_ int fd = find_open_file(domain, domain->config.disks[i].target);

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

void guest_release_disks(struct domain *domain)
{
	while (domain->unlocked_count)
		close(domain->unlocked[--domain->unlocked_count]);
}

/*
 * Until it has them all: a peer that is cut off holds its locks for as long as it does not know that the
 * guest is gone.
 */
static void lock_all(struct domain *domain)
{
	long long patience = monotonic_ms() + LOCK_MS;
	unsigned locked = 0;
	bool said = false;

	while (domain->process >= 0 && !domain->dead && !domain->xend->stopping &&
		locked < domain->unlocked_count) {
		int r = disk_lock(domain->unlocked[locked], &domain->config.disks[locked]);

		if (r == -ENOLCK)
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
	/* The locks are those of the open files, which ferry-guest holds too. */
	guest_release_disks(domain);
}

static void lock_disks(void *argument)
{
	struct domain *domain = argument;

	lock_all(domain);
	domain_unref(domain);
}

void guest_lock_disks(struct domain *domain)
{
	struct error error;

	if (domain->unlocked_count && xend_worker(domain->xend, lock_disks, domain_ref(domain), &error) < 0) {
		log_error("The disks of domain '%s' may not be locked: %s", domain->config.name, error.text);
		domain_unref(domain);
	}
}

void guest_relock_disks(struct domain *domain)
{
	/* What is not found is a block device, whose lock came with its opening: an empty place for it. */
	while (domain->process >= 0 && domain->unlocked_count < domain->config.disk_count) {
		const char *path = domain->config.disks[domain->unlocked_count].target;

		domain->unlocked[domain->unlocked_count++] = find_open_file(domain, path);
	}
	guest_lock_disks(domain);
}
