/*
 * Jobs: requests whose answer is a stream of events (docs/internal/api.md, "A
 * job stream"). On a terminal the progress is shown in one line on standard
 * error; ^C has xend cancel the job, and its end is waited for; a second one closes the stream.
 */
#pragma once

#include "xm/client.h"

struct job {
	const char *doing; /* "Saving TestGuest", for the progress line */
	const char *
		cancelled; /* what ^C comes to, a sentence for the user, and so where the end is not waited */
	const char *left;  /* for */
	const char *cancel; /* path of the request that cancels it, NULL: only its client's leaving does */
	bool lines;         /* where there is no terminal: a line now and then on standard error */
	bool detach;        /* leave as soon as there is progress; *done is then NULL */
};

/* Runs a job to its end. *done is its last event, owned by the caller. */
int job_run(struct client *client, const char *path, const json_t *body, const struct job *job, json_t **done,
	struct error *error);

/*
 * One line of progress, without its end: "Saving a [#####     ] 50%  64.0 of 128.0 MB  120.0 MB/s  0:01
 * left". `columns`: of the terminal.
 */
void job_progress_line(char *line, size_t size, const char *doing, const json_t *event, unsigned columns);
