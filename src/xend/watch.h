/*
 * Clients that only watch: for a guest's end, or its console. There may be many of them for as long as guests
 * live, so they cost no thread.
 */
#pragma once

#include "xend/domain.h"
#include "xend/reply.h"

/* An error where there are too many already. With the lock, as all of these. */
int watch_begin(struct xend *xend, struct error *error);

/* Answers `{}` when the domain is no longer there, or is one that is only looked at any more, and with an
 * error when xend is stopped before. After watch_begin. */
void watch_for_end(struct domain *domain, struct reply *reply);

/* Passes on what comes from the stream, which it takes over, until that ends. When xend is stopped before,
 * the answer has no end: that would be the guest's. After watch_begin. */
void watch_stream(struct xend *xend, int stream, struct reply *reply);

/* Something has changed (xend_changed says so). */
void watch_look(struct xend *xend);
