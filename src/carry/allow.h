/*
 * Who may relocate guests to this host: xend-relocation-hosts-allow, a list of POSIX
 * extended regular expressions. One that matches from the first character of the peer's
 * host name, or of its address, admits it (as Xen's xend did); an empty list admits all.
 *
 * The name is the one that the address resolves to, and counts only if it resolves back to
 * that address.
 */
#pragma once

#include "base/error.h"

#include <jansson.h>

#define PEER_NAME_MAX 1100

/* 0, or -EACCES with a sentence that names the peer. A pattern that is no regular expression admits nobody.
 */
int allow_check(const json_t *patterns, const char *name, const char *address, struct error *error);

/* Judges the other end of a connected socket, and writes "name (address)" or the address to `peer`. */
int allow_peer(int socket, const json_t *patterns, char peer[PEER_NAME_MAX], struct error *error);
