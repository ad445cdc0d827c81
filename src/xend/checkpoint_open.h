/* A checkpoint to be read, on storage that may not answer. */
#pragma once

#include "xend/xend.h"

/* Opens the file, as an errand (errand.h); the descriptor is the caller's. `cancel`: an eventfd, or -1. Lets
 * go of the lock. */
int checkpoint_open_file(struct xend *xend, const char *path, int cancel, struct error *error);
