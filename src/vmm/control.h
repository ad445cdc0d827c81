/*
 * The control socket: connections, and the table of verbs that
 * docs/internal/guest-control.md specifies.
 */
#pragma once

#include "vmm/machine.h"

struct control;

/* Serves the listening socket (taken over in case of success) on the machine's loop. NULL with a sentence on
 * failure. */
struct control *control_new(struct machine *machine, int listening, struct error *error);
/* The machine's loop does not run any more. */
void control_free(struct control *control);
