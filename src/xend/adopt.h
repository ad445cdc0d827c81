/*
 * Taking up where an earlier xend has left off, at whatever moment it died: its
 * guests run on and are found again; what was half done is undone or settled.
 */
#pragma once

#include "xend/xend.h"

/* Called once at xend's start, with the lock held, before anybody is listened to. */
int adopt_all(struct xend *xend, struct error *error);
