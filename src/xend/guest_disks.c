#include "xend/guest_disks.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "xend/guest.h"

#include <dirent.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/stat.h>

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
	char table[64];
	DIR *directory;
	int found = -1;

	snprintf(table, sizeof(table), "/proc/%d/fd", (int)domain->pid);
	directory = stat(path, &wanted) < 0 ? NULL : opendir(table);
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

static void lock_disks(void *argument)
{
	struct domain *domain = argument;

	guest_lock_disks(domain);
	domain_unref(domain);
}

void guest_relock_disks(struct domain *domain)
{
	struct error error;

	/* What is not found is a block device, whose lock came with its opening: an empty place for it. */
	while (domain->process >= 0 && domain->unlocked_count < domain->config.disk_count) {
		const char *path = domain->config.disks[domain->unlocked_count].target;

		domain->unlocked[domain->unlocked_count++] = find_open_file(domain, path);
	}
	if (domain->unlocked_count && xend_worker(domain->xend, lock_disks, domain_ref(domain), &error) < 0) {
		log_error("The disks of domain '%s' may not be locked: %s", domain->config.name, error.text);
		domain_unref(domain);
	}
}
