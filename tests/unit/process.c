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

/* Reads it, or writes what is wanted. */
static int oom_score(pid_t pid, const char *wanted)
{
	_cleanup_fclose_ FILE *file = NULL;
	char path[64];
	int score = 9999;

	snprintf(path, sizeof(path), "/proc/%d/oom_score_adj", (int)pid);
	file = fopen(path, wanted ? "we" : "re");
	if (!file ||
		(wanted ? fputs(wanted, file) < 0 || fflush(file) != 0 : fscanf(file, "%d", &score) != 1))
		return -9999;
	return score;
}

/* xend's unit keeps xend alive where memory is short, not its guests. */
static void a_child_is_as_likely_to_be_killed_as_others(void **state)
{
	static const char *const arguments[] = {"/bin/sleep", "60", NULL};
	const struct spawn spawn = {.arguments = arguments, .pass = -1, .output = -1};
	_cleanup_close_ int process = -1;
	struct error error;
	pid_t pid;

	(void)state;
	oom_score(getpid(), "300");
	assert_int_equal(oom_score(getpid(), NULL), 300);
	process = process_spawn(&spawn, &pid, &error);
	oom_score(getpid(), "0");
	assert_true(process >= 0);
	assert_int_equal(oom_score(pid, NULL), 0);
	process_kill(process);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(who_is_dying_is_waited_for),
		cmocka_unit_test(a_child_is_as_likely_to_be_killed_as_others),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
