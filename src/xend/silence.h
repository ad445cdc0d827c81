/*
 * Guests that do not answer: their process is stopped, frozen or starved, or their host swaps. That is no
 * end: only that of the process is. Such a guest is left alone, xm list says so, and one worker, for all of
 * them, waits for their answers. All functions are called with the lock held.
 */
#pragma once

#include "xend/domain.h"

/* It has not answered for so long by now. Harmless when that is known, or its process has ended. */
void silence_begin(struct domain *domain, long long already_ms);

/* -EBUSY, with a sentence, of a guest that has not answered for a while, or not at all since this xend was
 * started: nothing can be asked of it. */
int silence_check(const struct domain *domain, struct error *error);
