/*
 * The host's network as guests need it: network-script, run when xend starts, and again until it holds, for a
 * host may be slow at its start, or its address come late.
 */
#pragma once

#include "xend/xend.h"

/* Begins, and waits for the first attempt, but not for ever. With the lock held; lets go of it. */
void host_network_begin(struct xend *xend);

/* Why the script has not held, NULL: it has, or there is none. */
const char *host_network_failure(const struct xend *xend);

/* The same where guests have to wait for its bridge: it was not there before, and may go away again. */
const char *host_network_trouble(const struct xend *xend);
