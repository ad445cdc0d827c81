/*
 * The carrier's side of the conversation with xend (docs/internal/carrier-jobs.md).
 *
 * While guest memory is on its way xend says nothing unless it is asked; whatever arrives
 * then, a message or the end of the channel, means: give up (job_cancelled). {"do":"abort","why":sentence}
 * says why.
 */
#pragma once

#include "base/channel.h"
#include "base/error.h"

#include <stdbool.h>
#include <stdint.h>

struct job {
	int channel;            /* borrowed */
	struct message request; /* the job as xend gave it */
	json_t *secure; /* owned: who we are on a line to a peer, and whom we trust; NULL: clear text */
	bool any_peer;  /* whoever answers is taken, to learn its key */
	const char *only_peer; /* borrowed: the fingerprint of the one whose word counts; NULL: whoever is
				  trusted for the host */
	uint8_t self[16];      /* what identifies this host's records to its peers; zero: not said */
	int64_t next_progress; /* monotonic ns */
};

struct progress {
	unsigned round;
	uint64_t sent_bytes, total_bytes, remaining_pages, bytes_per_second;
	uint64_t dirty_pages;         /* what the guest had written when the last round ended */
	unsigned slowed;              /* percent by which the guest is slowed */
	int64_t downtime_ns, left_ns; /* as expected now; 0: not known */
};

/* Reads the job. */
int job_begin(struct job *job, int channel, struct error *error);
void job_end(struct job *job);

/* Members of the job. job_text gives NULL, job_number 0 and job_flag false where there is none. */
const char *job_text(const struct job *job, const char *key);
int64_t job_number(const struct job *job, const char *key);
bool job_flag(const struct job *job, const char *key);
/* Takes a descriptor out of the job, with a sentence where it is missing. The caller owns it. */
int job_take_fd(struct job *job, const char *key, struct error *error);

/* Sends {"event": name, …}; `body` (may be NULL) is used up. */
int job_event(const struct job *job, const char *name, json_t *body, struct error *error);
/* Sends progress, at most 10 times a second unless `now`. Says nothing of failures: job_cancelled will. */
void job_progress(struct job *job, const struct progress *progress, bool now);
void job_failed(const struct job *job, const struct error *error);

/* -ECANCELED with a sentence, xend's own where it gave one, when xend gave the job up, else 0. */
int job_cancelled(const struct job *job, struct error *error);
/* Reads xend's next answer, which is there or will come soon. {"do":"abort"} and the channel's end give
 * -ECANCELED as above. */
int job_answer(const struct job *job, struct message *answer, struct error *error);
/* The verb of an answer: never NULL. */
const char *job_verb(const struct message *answer);
