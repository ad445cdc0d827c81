/*
 * Further connections to another host's relocation port, for a carrier, whose sandbox has no call to make
 * them with.
 */
#pragma once

#include "xend/carrier.h"

/* Answers the carrier's `connect`: with as many connections as it wants, or with none where not all of them
 * can be made within seconds. Lets go of the lock. */
int dial_for_carrier(struct carrier *carrier, const struct message *wish, const char *host, unsigned port,
	struct error *error);
