/*
 * A list of sentences from another host, shown to a user: one stays in the line,
 * several stand below it.
 */
#pragma once

#include "base/error.h"

#include <jansson.h>

/* "HOST refuses the guest: …" from its array of objections, each as printable.h shows it; returns -EPERM. */
int sentences_refused(struct error *error, const char *host, const json_t *objections);
