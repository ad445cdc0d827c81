/* xend's child processes: one that is on its way out is waited for. */
#include "xend/process.h"
#include "base/cleanup.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/pidfd.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <cmocka.h>

static void *end_late(void *argument)
{
	char byte;

	_exit(read(*(int *)argument, &byte, 1) == 1 ? 3 : 4);
}

/* A process whose first thread has ended, but not the last: that one waits for a byte. */
static pid_t dying_process(int gate[2])
{
	pthread_t last;
	pid_t pid;

	assert_int_equal(pipe(gate), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		if (pthread_create(&last, NULL, end_late, &gate[0]) == 0)
			syscall(SYS_exit, 0);
		_exit(5);
	}
	return pid;
}

static bool ended_first(pid_t pid)
{
	_cleanup_fclose_ FILE *file = NULL;
	char path[64], state = 0;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	file = fopen(path, "re");
	return file && fscanf(file, "%*d (%*[^)]) %c", &state) == 1 && state == 'Z';
}

static void *open_gate(void *argument)
{
	usleep(300000);
	return write(*(int *)argument, "x", 1) == 1 ? argument : NULL;
}

static void who_is_dying_is_waited_for(void **state)
{
	int gate[2], own = pidfd_open(getpid(), 0), status = 0;
	pid_t pid = dying_process(gate);
	_cleanup_close_ int process = pidfd_open(pid, 0);
	pthread_t opener;
	void *opened;

	(void)state;
	assert_int_equal(process_wait_if_dying(own, getpid(), 10, NULL), -ETIMEDOUT);
	while (!ended_first(pid))
		usleep(1000);
	assert_int_equal(process_wait(process, 10, &status), -ETIMEDOUT);
	assert_int_equal(pthread_create(&opener, NULL, open_gate, &gate[1]), 0);
	assert_int_equal(process_wait_if_dying(process, pid, 10, &status), 0);
	assert_int_equal(status, 3);
	pthread_join(opener, &opened);
	assert_non_null(opened);
	close(own);
	close(gate[0]);
	close(gate[1]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(who_is_dying_is_waited_for),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
