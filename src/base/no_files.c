#include "base/no_files.h"
#include "base/cleanup.h"

#include <errno.h>
#include <linux/landlock.h>
#include <stdint.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* What each version of the interface knows: rights to files, use of the network, reach (in that order, as
 * struct landlock_ruleset_attr has them). */
static const struct {
	unsigned file_rights, network_rights, scopes;
	size_t size;
} versions[] = {
	{0, 0, 0, 0},
	{13, 0, 0, 8},
	{14, 0, 0, 8},
	{15, 0, 0, 8},
	{15, 2, 0, 16},
	{16, 2, 0, 16},
	{16, 2, 2, 24},
};

static uint64_t bits(unsigned count)
{
	return (1ull << count) - 1;
}

int no_files(struct error *error)
{
	_cleanup_close_ int rules = -1;
	long version = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
	uint64_t handled[3];

	if (version < 1) /* not built in, or not switched on */
		return 0;
	if (version >= (long)ARRAY_SIZE(versions))
		version = (long)ARRAY_SIZE(versions) - 1;
	handled[0] = bits(versions[version].file_rights);
	handled[1] = bits(versions[version].network_rights);
	handled[2] = bits(versions[version].scopes);
	rules = (int)syscall(SYS_landlock_create_ruleset, handled, versions[version].size, 0);
	if (rules < 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ||
		syscall(SYS_landlock_restrict_self, rules, 0) < 0)
		return error_set(error, errno, "Unable to give up the file system: %s.", strerror(errno));
	return 0;
}
