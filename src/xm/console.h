/* A domain's console on this terminal. */
#pragma once

#include "xm/client.h"

/*
 * Shows the console of the domain with this ID from the beginning of its
 * history (where asked) until the domain ends or ^] is pressed. `then` is a path
 * that is posted to as soon as the console is attached (xm create -c unpauses
 * there), or NULL.
 */
int console_attach(struct client *client, long long id, bool history, const char *then, struct error *error);
