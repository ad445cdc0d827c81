/*
 * S-expressions: the language of xend-config.sxp and of `xm list --long`.
 *
 * Reading: an expression is an atom (bare, '…' or "…", with backslash escapes)
 * or a list of expressions in parentheses. Comments run from # or ; to the end
 * of the line. Writing: atoms are quoted where they need it.
 */
#pragma once

#include "config/value.h"

/*
 * Parses a text of any number of expressions into a list of values: atoms are
 * strings, lists are lists. `source` is borrowed by the places in them.
 */
int sxp_parse(struct value *list, const char *source, const char *text, size_t size, struct error *error);

/* Appends an atom; text that a bare atom cannot show is quoted. */
void sxp_atom(struct buffer *out, const char *text);

/* Appends "(name value)", each an atom; nothing for a NULL value. */
void sxp_pair(struct buffer *out, const char *name, const char *value);
