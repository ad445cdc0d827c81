/* What became of migrations: xm migrate --status, --cancel, and who watched a console of a guest that went.
 */
#pragma once

#include "xm/command.h"

int migrations_status(struct xm *xm, const struct arguments *arguments, struct error *error);
int migrations_cancel(struct xm *xm, const struct arguments *arguments, struct error *error);

/* The console of the domain with this ID has ended: says so on standard error if it went to another host. */
void migrations_tell_destination(struct client *client, long long id);
