/*
 * How guests have ended that are not here any more, the latest ending of each name: for whoever looks for
 * one that is gone (`xm list NAME`, `xm log NAME`). Kept in the store, at most ENDINGS_MAX of them.
 *
 * All of this is called with xend's lock held.
 */
#pragma once

#include "xend/domain.h"

#define ENDINGS_MAX 200

/* What has ended by itself: its reason, its process's exit and the last lines of its console. Lets go of the
 * lock. */
void ending_by_itself(struct domain *domain, const char *then);
/* What was ended: "destroyed", "saved" to `file`, "lost" for the reason `detail`; both may be NULL. */
void ending_by_order(const struct domain *domain, const char *reason, const char *file, const char *detail);

/* Adds to `sentence`, which says that no such domain is here, how it ended, if that is known. */
void endings_add(struct xend *xend, const char *name_or_id, char *sentence, size_t size);

/* When that was, in seconds since 1970; 0: nothing is known. */
int64_t endings_at(struct xend *xend, const char *name_or_id);

/* For the API (docs/internal/api.md): NULL with a sentence where nothing is known. */
json_t *endings_describe(struct xend *xend, const char *name_or_id, struct error *error);
