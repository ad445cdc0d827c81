/*
 * The carrier's jobs, one function each (docs/internal/carrier-jobs.md says what they
 * are given and what they tell xend). Each returns 0, or a negative errno with the
 * sentence of its `failed`, which the caller sends.
 */
#pragma once

#include "carry/job.h"

/* Called by a job once it has what needs privileges, before it reads anything from outside. May be NULL
 * (tests). */
typedef int confine_function(struct error *error);

int save_job(struct job *job, confine_function *confine, struct error *error);
int restore_job(struct job *job, confine_function *confine, struct error *error);
int fill_job(struct job *job, confine_function *confine, struct error *error);
int send_job(struct job *job, confine_function *confine, struct error *error);
int receive_job(struct job *job, confine_function *confine, struct error *error);
int ask_job(struct job *job, confine_function *confine, struct error *error);
int query_job(struct job *job, confine_function *confine, struct error *error);
int measure_job(struct job *job, confine_function *confine, struct error *error);
int identify_job(struct job *job, confine_function *confine, struct error *error);
