/*
 * What xend knows of a guest, kept a second time in the guest's run directory, beside its process: xend's
 * database may be lost, or be one from yesterday, or its file system may not be there yet, while the guest
 * runs. From this record a xend that does not know the guest takes it over: as what it was, whoever owned it.
 *
 * The database counts more, unless the record is newer: it is written after the database was, so that only
 * a database which has been exchanged is the older one. Like the process it describes it does not outlive the
 * host's boot.
 */
#pragma once

#include "xend/domain.h"
#include "xend/store.h"

/* Writes it. Nothing where the guest has no run directory. An old one is removed where that fails. */
void guest_record_write(const struct domain *domain);

/* What the record of this uuid says; NULL: there is none that can be used. Strings of *stored are of it. */
json_t *guest_record_read(const struct xend *xend, const char *uuid, struct stored_domain *stored);

/* Puts the tickets of its hand-overs, which the record has, in place of the store's. */
int guest_record_restore_tickets(
	struct xend *xend, const char *uuid, const json_t *record, struct error *error);
