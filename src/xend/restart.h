/*
 * A guest that has ended and is started again: on_reboot, on_crash and the like.
 *
 * From the decision on the store knows that it is to be started again
 * (STORED_RESTARTING), so that a next xend does it where this one cannot. The successor
 * takes the predecessor's place in the list and in the store in one step: whoever asks
 * for the guest meanwhile finds one of the two, and one of them only. A start that
 * fails is tried again for RESTART_PATIENCE_S.
 */
#pragma once

#include "xend/domain.h"

#define RESTART_PATIENCE_S 600

/*
 * Ends what is left of the domain and starts its successor, unless somebody destroys it meanwhile or xend is
 * stopped: then it is left to the next one. `keep`: it is kept beside its successor under another name
 * (on_crash='rename-restart'). The domain is busy with it. Lets go of the lock.
 */
void restart_guest(struct domain *domain, bool keep, unsigned early_reboots);

/* For xm list: a guest that could not be started again yet, NULL: nothing of that. */
const char *restart_trouble(const struct domain *domain);
