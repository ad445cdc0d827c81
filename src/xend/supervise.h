/*
 * What happens to a guest that has ended: on_poweroff, on_reboot, on_crash.
 *
 * A guest that ends by itself within RESTART_MINIMUM_S of its boot is not started
 * again, so that one that cannot run does not keep the host busy for ever. Where it has
 * rebooted, it is, EARLY_REBOOTS_MAX times in a row.
 */
#pragma once

#include "xend/domain.h"

#define RESTART_MINIMUM_S 10
#define EARLY_REBOOTS_MAX 3

/* Looks whether the guest has ended and, when no job has it, does what its configuration asks for, in a
 * worker. */
void supervise(struct domain *domain);
