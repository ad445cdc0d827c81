/*
 * Who may relocate guests to this host: xend-relocation-hosts-allow, a list of addresses, networks
 * (10.0.0.0/24) and POSIX extended regular expressions, of which one must match the whole of the peer's
 * address or host name, in large or small letters; an empty list admits all.
 *
 * The name is the one that the address resolves to, and counts only if it resolves back to
 * that address. It is looked up only where no pattern matches the address, and some could match a name: who
 * is listed by address does not wait for a DNS that is down.
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
