/*
 * Child processes: started with nothing but what they are given, watched by
 * pidfd, and found again after xend itself has been restarted.
 *
 * The child writes its own /proc/self/stat into a record file before it becomes
 * the program: whatever moment xend dies at, a later xend knows the process by
 * pid and start time and cannot mistake another one for it.
 */
#pragma once

#include "base/error.h"

#include <stdbool.h>
#include <sys/types.h>

struct spawn {
	const char *const *arguments;   /* arguments[0] is the program's path; NULL-terminated */
	const char *const *environment; /* NULL: an empty one */
	int pass;                       /* the descriptor that the child gets as number 3; -1: none */
	int output;                     /* standard output and error; -1: xend's standard error */
	bool own_network;               /* in a network namespace of its own, with nothing in it */
	const char *record;             /* record file, NULL: none */
};

#define SPAWN_PASSED_FD 3

/* Starts the program; returns its pidfd (owned by the caller) with *pid set. A failed exec is an error here.
 */
int process_spawn(const struct spawn *spawn, pid_t *pid, struct error *error);

/* Opens the process that a record file describes: its pidfd, or -ESRCH when it is no more. Other errors say
 * nothing of that: there was no descriptor for it, or no memory. */
int process_find(const char *record, pid_t *pid);

/* Waits until the process has ended and reaps it where it is a child. -ETIMEDOUT after timeout_ms (-1: for
 * ever). */
int process_wait(int pidfd, int timeout_ms, int *status);

/* The same; and a process that is on its way out when the time is over is waited for until it has ended,
 * since a busy machine may be slow with that. */
int process_wait_if_dying(int pidfd, pid_t pid, int timeout_ms, int *status);

/* Only that, and at most for so long: -ETIMEDOUT as well where the process is not on its way out. */
int process_wait_while_dying(int pidfd, pid_t pid, long long most_ms, int *status);

/* SIGKILL, then waits for the end. */
void process_kill(int pidfd);
/* The same for a process that the kernel may not let go of. -ETIMEDOUT: it has yet to end, and does nothing
 * more. */
int process_kill_within(int pidfd, int timeout_ms);

/* In words, of a status as process_wait gives it: "was killed by signal 9 (Killed)", "ended with status 1".
 */
void process_describe_end(int status, char *text, size_t size);
