/*
 * Memory that follows its guest: after a restore that did not wait for it, a carrier
 * goes on bringing it, and would do so without xend. Who looks after that carrier, and
 * what becomes of the guest when its memory cannot come.
 *
 * The carrier's process, and the file that it reads, are recorded in the guest's run
 * directory, so that it ends with the guest and a later xend finds it. All functions are called with the lock
 * held.
 */
#pragma once

#include "xend/carrier.h"
#include "xend/domain.h"
#include "xend/machine.h"

/* What a carrier that is to bring a guest its memory is handed. */
struct filling_fds {
	struct message_fds list;
	int shared, device; /* owned, -1 where it is no clone */
};

/* Adds `guest`, a control connection (borrowed), and what a clone's carrier needs to the message. On an error
 * there is nothing to end. */
int filling_fds_begin(
	struct filling_fds *fds, struct domain *domain, int guest, json_t *message, struct error *error);
void filling_fds_end(struct filling_fds *fds);

/* Gives the carrier to the guest: it no longer ends with the job, nor with xend. Before the domain is LIVE.
 * `path` and `identity` (NULL: not known) say which file it reads, and are kept for a next xend. */
int filling_begin(struct domain *domain, struct carrier *carrier, const char *path, const char *identity,
	struct error *error);

/*
 * Stays until the memory is there or the guest has ended, or xend stops; starts another carrier, with the
 * same file, where one dies, and for as long as storage-timeout says where the file cannot be read. `file` is
 * consumed; `path` and `identity` say which it is. In the worker of the restore, after its answer. Lets go of
 * the lock.
 */
void filling_follow(
	struct domain *domain, struct carrier *carrier, int file, const char *path, const char *identity);

/* After a restart of xend: has a worker wait for the carrier that an earlier xend has left to this guest, and
 * start another where that one does not get to its end. */
void filling_adopt(struct domain *domain);

/*
 * Before a job that needs all of the memory: waits for it, a few minutes at most, unless `cancel` is
 * signalled or the guest ends. Lets go of the lock.
 */
int filling_wait(struct domain *domain, int cancel, struct error *error);

/* The same for a guest that answers nothing, and waits for memory that nobody brings, as its process tells.
 */
void filling_look_after_silent(struct domain *domain);

/* When the guest has been ended: ends its carrier and waits until nobody follows it. Lets go of the lock. */
void filling_end(struct domain *domain);
