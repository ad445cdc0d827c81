/*
 * What a guest is started from: its kernel and its ramdisk, files of the host that it runs on. It needs them
 *again when it reboots, wherever it is then.
 *
 * A portrait says which files they were:
 *
 *	{"kernel": {"size": 8388608, "digest": "8f1d6db…"}, "ramdisk": null}
 *
 * null: there is none, or it could not be read. The digest is XXH3-64.
 *
 * All of this reads files, which may be on storage that does not answer: it lets go of the lock, and waits no
 * longer than storage-timeout.
 */
#pragma once

#include "config/guest_config.h"
#include "xend/xend.h"

#include <jansson.h>

/* A new object. */
json_t *boot_files_portray(struct xend *xend, const struct guest_config *config);

/*
 * Adds a sentence for each file that is missing here, or differs from `portrait`, which may come from anybody
 * and be no portrait: then only what is missing counts. `then` ends "… is another file here than": "when it
 * was saved".
 */
void boot_files_compare(struct xend *xend, const struct guest_config *config, const json_t *portrait,
	const char *then, json_t *objections);

/* Opens both (-1: there is no ramdisk), for the caller to close, also after an error. Without the lock. */
int boot_files_open(const struct guest_config *config, int *kernel, int *ramdisk, struct error *error);
/* Puts before a sentence of ferry-guest, which knows no paths, which they are. */
int boot_files_explain(const struct guest_config *config, struct error *error);

/* Whether the guest could be started again from them: 0, or a sentence. */
int boot_files_check(struct xend *xend, const struct guest_config *config, struct error *error);
