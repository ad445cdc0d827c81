/*
 * What a process of xend's says on its standard output and error: xend reads it, and writes it to the log
 * itself, so that no process has the log's file, which it could fill, spoil or empty.
 *
 * It is a FIFO, which the process has for reading as well, so that it is not hurt where there is no xend for
 * a while; the next one opens it again by its name. It waits for nobody: what a full FIFO does not take is
 * lost, and counted by who said it (log.h). Of one who says too much, less is read.
 *
 * A line that is not in the form of the log is written as what it is: something that was said by that
 * process.
 */
#pragma once

#include "xend/xend.h"

#include <sys/types.h>

struct process_log;

/*
 * Makes the FIFO at `path`, in place of one that an earlier xend has left. NULL: of one that nobody needs to
 * find there is only the name in /proc, by which it is told whose process has it. *output is the process's
 * end, the caller's to close. `name` stands before its lines. With the lock, as all of these.
 */
int process_log_make(struct process_log **log, struct xend *xend, const char *path, const char *name,
	int *output, struct error *error);
/* The process is this one, and is listened to from now on. */
void process_log_listen(struct process_log *log, pid_t pid);

/* Listens again to a process of an earlier xend. NULL where it has no such FIFO, or that cannot be listened
 * to. */
struct process_log *process_log_find(struct xend *xend, const char *path, const char *name, pid_t pid);

/* The process has ended, or is to be heard no more: what it has said is written, and the rest goes. NULL:
 * nothing. */
void process_log_end(struct process_log *log);
