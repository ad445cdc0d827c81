/* The network scripts as xend runs them: one time limit in all, and they end with what they started. */
#include "base/cleanup.h"
#include "xend/network.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

static char directory[] = "/tmp/scripts-XXXXXX";

static double now_s(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* A script of this name, which writes the pids of what it starts to NAME.pids. */
static void write_script(const char *name, const char *text)
{
	char path[128];
	FILE *file;

	snprintf(path, sizeof(path), "%s/%s", directory, name);
	file = fopen(path, "we");
	assert_non_null(file);
	fprintf(file, "#!/bin/sh\ncd %s\n%s", directory, text);
	assert_int_equal(fclose(file), 0);
	assert_int_equal(chmod(path, 0755), 0);
}

struct run {
	const char *name, *text, *sentence; /* sentence NULL: it succeeds */
	bool leaves;                        /* what it has started lives on */
	struct error error;
	int result;
	double seconds;
	pthread_t thread;
};

static void *run_script(void *context)
{
	struct run *run = context;
	double began = now_s();

	run->result = network_start(directory, run->name, 30, &run->error);
	run->seconds = now_s() - began;
	return NULL;
}

static bool lives(const char *name)
{
	char path[128], stat[64];
	FILE *file;
	int pid = 0;

	snprintf(path, sizeof(path), "%s/%s.pid", directory, name);
	file = fopen(path, "re");
	if (!file)
		return false;
	assert_int_equal(fscanf(file, "%d", &pid), 1);
	fclose(file);
	snprintf(stat, sizeof(stat), "/proc/%d/stat", pid);
	file = fopen(stat, "re");
	if (!file)
		return false;
	strcpy(path, "Z"); /* gone meanwhile */
	if (fscanf(file, "%*d (%*[^)]) %1s", path) != 1)
		strcpy(path, "Z");
	fclose(file);
	return *path != 'Z';
}

static void scripts_end_in_time_with_what_they_started(void **state)
{
	struct run runs[] = {
		{"child", "sleep 600 & echo $! >child.pid\n", NULL, .leaves = true},
		{"failing-child", "sleep 600 & echo $! >failing-child.pid\necho no luck >&2; exit 3\n",
			"failed: no luck"},
		{"silent", "sleep 600 & echo $! >silent.pid\nwait\n", "did not end within 30 s"},
		{"talking", "echo $$ >talking.pid\nwhile :; do echo word; sleep 1; done\n",
			"did not end within 30 s"},
		/* Asked to end, it may put things back. */
		{"orderly",
			"echo $$ >orderly.pid\ntrap 'echo back >orderly.back; exit 1' TERM\nsleep 600 & "
			"wait\n",
			"did not end within 30 s"},
		{"stubborn", "echo $$ >stubborn.pid\ntrap '' TERM\nwhile :; do sleep 1; done\n",
			"did not end within 30 s"},
		{"long",
			"i=0; while [ $i -lt 20000 ]; do echo a line; i=$((i + 1)); done; echo the last >&2; "
			"exit 1\n",
			"failed: the last"},
	};
	char path[128];

	(void)state;
	/* None is still open for writing in a process that is being made for another: it could not be
	 * started. */
	for (size_t i = 0; i < sizeof(runs) / sizeof(*runs); i++)
		write_script(runs[i].name, runs[i].text);
	for (size_t i = 0; i < sizeof(runs) / sizeof(*runs); i++)
		assert_int_equal(pthread_create(&runs[i].thread, NULL, run_script, &runs[i]), 0);
	for (size_t i = 0; i < sizeof(runs) / sizeof(*runs); i++) {
		struct run *run = &runs[i];

		assert_int_equal(pthread_join(run->thread, NULL), 0);
		print_message("# %s: %d after %.1f s: %s\n", run->name, run->result, run->seconds,
			run->result < 0 ? run->error.text : "");
		assert_true(run->sentence ? run->result < 0 && strstr(run->error.text, run->sentence)
					  : run->result == 0);
		assert_true(run->seconds < 120);
		for (unsigned tries = 0; !run->leaves && lives(run->name) && tries < 100; tries++)
			usleep(100000); /* a process takes a while to die of a signal */
		assert_int_equal(lives(run->name), run->leaves);
	}
	/* It did not wait for the child that keeps its output. */
	assert_true(runs[0].seconds < 25 && runs[1].seconds < 25);
	snprintf(path, sizeof(path), "%s/orderly.back", directory);
	assert_int_equal(access(path, F_OK), 0);
}

static void the_bridge_of_a_guest_that_names_none(void **state)
{
	static const struct {
		const char *line, *bridge;
	} lines[] = {
		{"", "xenbr0"},
		{"network-bridge", "xenbr0"},
		{"network-bridge netdev=eth1", "xenbr0"},
		{"network-bridge  bridge=br7\tnetdev=eth1", "br7"},
		{"network-bridge netdev=eth1 bridge=xenbr1", "xenbr1"},
		{"/opt/network bridge=lan", "lan"},
		{"network-bridge bridge=a-name-far-too-long-for-any", "a-name-far-too-"},
	};
	char name[16];

	(void)state;
	for (size_t i = 0; i < sizeof(lines) / sizeof(*lines); i++) {
		network_bridge(lines[i].line, name);
		assert_string_equal(name, lines[i].bridge);
	}
}

static int make_directory(void **state)
{
	(void)state;
	return mkdtemp(directory) ? 0 : -1;
}

static int remove_directory(void **state)
{
	char command[128];

	(void)state;
	snprintf(command, sizeof(command), "kill -9 $(cat %s/child.pid); rm -rf %s", directory, directory);
	return system(command);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_bridge_of_a_guest_that_names_none),
		cmocka_unit_test(scripts_end_in_time_with_what_they_started),
	};

	return cmocka_run_group_tests(tests, make_directory, remove_directory);
}
