/* Locks of disks where there are none: said, and no reason to keep the guest from its disk. */
#include "base/cleanup.h"
#include "xend/disks.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <unistd.h>
#include <cmocka.h>

static int lock_error; /* what the file system says to locks; 0: it has them */

int __real_fcntl64(int fd, int command, ...);
int __wrap_fcntl64(int fd, int command, ...);

int __wrap_fcntl64(int fd, int command, ...)
{
	va_list arguments;
	void *argument;

	va_start(arguments, command);
	argument = va_arg(arguments, void *);
	va_end(arguments);
	if (command == F_OFD_SETLK && lock_error) {
		errno = lock_error;
		return -1;
	}
	return __real_fcntl64(fd, command, argument);
}

static void a_server_without_locks_is_told(void **state)
{
	static const int codes[] = {ENOLCK, EOPNOTSUPP, ENOSYS, EINVAL};
	char path[] = "/var/tmp/ferry-lock-XXXXXX";
	struct guest_disk disk = {
		.kind = DISK_FILE, .target = path, .device = (char *)"xvda", .mode = DISK_WRITE};
	struct error error = {0};
	_cleanup_close_ int made = mkstemp(path);

	(void)state;
	assert_true(made >= 0);
	for (size_t i = 0; i < ARRAY_SIZE(codes); i++) {
		_cleanup_close_ int fd = -1;

		lock_error = codes[i];
		fd = disk_open(&disk, "G", DISK_LOCK_NOW, &error);
		assert_true(fd >= 0);
		assert_int_equal(disk_lock(fd, &disk), -ENOLCK);
		lock_error = EAGAIN;
		assert_int_equal(disk_lock(fd, &disk), -EBUSY);
		lock_error = 0;
		assert_int_equal(disk_lock(fd, &disk), 0);
	}
	unlink(path);
}

static void a_drive_without_a_medium_is_told(void **state)
{
	const struct guest_disk drive = {.kind = DISK_PHY,
		.target = (char *)"",
		.device = (char *)"xvdb",
		.mode = DISK_READ_ONLY,
		.cdrom = true};
	struct error error = {0};

	(void)state;
	assert_int_equal(disk_open(&drive, "G", DISK_LOCK_NOW, &error), -ENOMEDIUM);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_server_without_locks_is_told),
		cmocka_unit_test(a_drive_without_a_medium_is_told),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
