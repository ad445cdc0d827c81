/*
 * A domain's beginning and end. All functions are called with the lock held and
 * let go of it.
 */
#pragma once

#include "xend/domain.h"
#include "xend/guest.h"

/* Checks all that can be checked without making anything (`xm create --dryrun`). */
int lifecycle_check(struct xend *xend, struct guest_config *config, struct error *error);

/* Whether the domain, where on_reboot starts it again, would find all that it needs for that: 0, or a
 * sentence. */
int lifecycle_check_restart(struct domain *domain, struct error *error);

/* Makes the domain and starts it (paused if asked); *config is consumed. On an error nothing is left. Other
 * hosts are asked whether they have it. */
int lifecycle_create(struct xend *xend, struct guest_config *config, bool paused, struct domain **domain,
	struct error *error);

/* Starts a guest that has ended here and whose place in the list this domain has taken (restart.h), where it
 * was `found` after other hosts were asked. An error leaves it there, STARTING; -EALREADY: it runs on another
 * host. */
int lifecycle_start_again(struct domain *domain, struct error *error);

/* Makes a domain that waits for its state (GUEST_RESTORE, GUEST_RESTORE_LAZY, GUEST_RECEIVE). It is busy
 * until lifecycle_arrived. `shared`: the memory of a clone (GUEST_RESTORE_LAZY), else NULL; `memory_user`:
 * see guest_start.
 */
int lifecycle_expect(struct xend *xend, struct guest_config *config, bool paused,
	enum guest_beginning beginning, struct shared_memory *shared, struct guest_memory_user *memory_user,
	int cancel, struct domain **domain, struct error *error);

/* The state is there: records the domain as LIVE, lets it run unless it is paused, and ends the job. An error
 * leaves it busy. */
int lifecycle_arrived(struct domain *domain, struct error *error);

/*
 * Records that the guest is to be no more: its end (lifecycle_leave, lifecycle_finish) is to follow. Where
 * that cannot be recorded, nothing has happened. Keeps the lock.
 */
int lifecycle_record_end(struct domain *domain, struct error *error);

/*
 * The guest is complete elsewhere, in a checkpoint or on another host: what is left of it here cannot run any
 * more, holds no lock of a disk, and is shown to nobody (domain_has_left). lifecycle_finish is to follow,
 * once that has been said. Lets go of the lock.
 */
void lifecycle_leave(struct domain *domain);

/*
 * Ends the guest and forgets the domain. Where the kernel does not let go of the guest's process, that goes
 * on when this has returned, after storage-timeout: the domain is ENDING, and busy, until then.
 */
void lifecycle_finish(struct domain *domain);

/* Waits until nothing is left of a domain that is ENDING; an error where that takes longer than
 * storage-timeout. Lets go of the lock. */
int lifecycle_await_end(struct domain *domain, struct error *error);

/* xm destroy: cancels the domain's job if it has one, then finishes it. An error also where its process has
 * yet to end. */
int lifecycle_destroy(struct domain *domain, struct error *error);
