/*
 * A list of sentences from another host, shown to a user: one stays in the line,
 * several stand below it.
 */
#pragma once

#include "base/error.h"

#include <jansson.h>

/* Whatever does not print becomes a space. */
void sentence_printable(char *text);

/* "HOST refuses the guest: …" from its array of objections; returns -EPERM. */
int sentences_refused(struct error *error, const char *host, const json_t *objections);
