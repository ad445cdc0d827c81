/*
 * The file that a save writes: under its name there is the whole checkpoint or
 * none. It has no name until it is complete (O_TMPFILE), or a temporary one where
 * the file system cannot do that; the store knows temporary names, so that none
 * outlives a killed xend for longer than to the next one's start.
 *
 * What had the name is kept beside it until the caller has said that the new one
 * stays; until then all of it is undone by whatever goes wrong, also by a next xend:
 * a guest that runs on has left no file that could be restored.
 *
 *	_cleanup_checkpoint_file_ struct checkpoint_file *file = NULL;
 *	r = checkpoint_file_create(&file, xend, path, force, cancel, &error);
 *	… write checkpoint_file_fd(file) …
 *	r = checkpoint_file_publish(&file, uuid, keep, &error);
 *	… in one transaction: checkpoint_file_record_staying(file, &error), the guest's end …
 *	checkpoint_file_stays(file);
 *
 * All of this is done as errands (errand.h) and lets go of the lock: where the file's
 * storage does not answer, *file is left to them and NULL.
 */
#pragma once

#include "xend/xend.h"

struct checkpoint_file;

#define _cleanup_checkpoint_file_ __attribute__((cleanup(checkpoint_file_discard)))

/* An existing file is refused without force. `cancel`: an eventfd, or -1. */
int checkpoint_file_create(struct checkpoint_file **file, struct xend *xend, const char *path, bool force,
	int cancel, struct error *error);

int checkpoint_file_fd(const struct checkpoint_file *file);

/*
 * Gives the synced file its name, durably. Where that fails or takes too long, it is taken back. `uuid`: of
 * the guest, `keep`: it goes on although the file stays.
 */
int checkpoint_file_publish(struct checkpoint_file **file, const char *uuid, bool keep, struct error *error);

/* Records that the published file stays; checkpoint_file_stays follows once that is committed. Keeps the
 * lock.
 */
int checkpoint_file_record_staying(const struct checkpoint_file *file, struct error *error);
void checkpoint_file_stays(struct checkpoint_file *file);

/* What has failed after it was published is in *error, to which is added what cannot be taken back. */
int checkpoint_file_take_back(struct checkpoint_file **file, struct error *error);

/* Closes it; what does not stay is gone. *file is NULL afterwards. */
void checkpoint_file_discard(struct checkpoint_file **file);

/*
 * At xend's start, when it is known which guests live: takes back what an earlier xend had published before
 * the guest's end was recorded, unless the guest has ended: then it is in the file, and is ended here
 * (lifecycle.h). Then removes what is left under temporary names. As far as storage answers.
 */
void checkpoint_file_recover(struct xend *xend);
