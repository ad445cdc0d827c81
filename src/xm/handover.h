/* xm migrate --resolve: a hand-over whose other side does not answer. */
#pragma once

#include "xm/command.h"

int handover_resolve(struct xm *xm, const struct arguments *arguments, struct error *error);
