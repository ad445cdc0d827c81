/* The relocation port (xend-relocation-server): each connection is handed to a carrier of its own. */
#pragma once

#include "xend/xend.h"

int relocation_start(struct xend *xend, struct error *error);
