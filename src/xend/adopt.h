/*
 * Taking up where an earlier xend has left off, at whatever moment it died: its
 * guests run on and are found again; what was half done is undone or settled.
 */
#pragma once

#include "xend/xend.h"

/* Called once at xend's start, with the lock held, before anybody is listened to. */
int adopt_all(struct xend *xend, struct error *error);

/* After that, and once other hosts can ask: for a guest is started again only by who asks them whether they
 * have it, and of two that do so at the same time one must hear of the other. Lets go of the lock. */
void adopt_guests(struct xend *xend);

/*
 * What is due to a guest that is found again, or answers again after it was silent (silence.h): it is
 * listened to, and runs on if it stands still for no reason. For xend_worker: `domain` is a reference, which
 * is consumed.
 */
void adopt_guest(void *domain);
