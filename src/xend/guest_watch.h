/*
 * What a guest's process says unasked: its events, and its end. The loop listens
 * and notes; what is to be done about it, supervise.c decides.
 */
#pragma once

#include "xend/domain.h"

/* Begins to listen: subscribes to events, watches the process. With the lock held, which it lets go of. */
int guest_watch(struct domain *domain, struct error *error);
/* Ends that. */
void guest_unwatch(struct domain *domain);

/* Notes what a `status` reply or a `state` event says. With the lock held. */
void guest_note_state(struct domain *domain, const json_t *state);

/* Waits for one message that is a reply, not an event. Without the lock. */
struct message;
int channel_wait(int socket, struct message *reply, int timeout_ms);
