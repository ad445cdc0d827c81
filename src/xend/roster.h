/*
 * Who is here, at xend's start: the guests that the database knows, and those that only their run directories
 * know, because the database is lost, or older than they are. All of them get into the list of domains, and
 * the database then has them as well. No guest is ended for not being known.
 */
#pragma once

#include "xend/xend.h"

/* With the lock held. An error: the database cannot be used; nothing was done to any guest. */
int roster_take_up(struct xend *xend, struct error *error);
