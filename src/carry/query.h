/*
 * A question that one xend has for another, in JSON, and what it answers; then, where
 * the source wants to know, how fast the line is. Nothing is handed over here.
 */
#pragma once

#include "base/error.h"
#include "carry/job.h"
#include "carry/wire.h"

/* The destination's side, after HELLO: hears the question, has xend answer it, takes probes until the source
 * leaves. */
int query_serve(struct job *job, struct wire *wire, const char *peer, struct error *error);
