/*
 * xendomains: what becomes of the guests when the host is stopped and started (xend(8)). `stop` shuts them
 * down or saves them, several at a time, and records what it did; `start` brings back what was recorded, and
 * starts what is in /etc/xen/auto. xend itself may come and go meanwhile: it does neither. Here is what both
 * need: the host, xend's list of its guests, and the record.
 */
#pragma once

#include "base/cleanup.h"
#include "xm/client.h"
#include "xm/domain.h"
#include "xm/job.h"

#include <limits.h>
#include <stdbool.h>

struct host {
	struct client client;
	const char *automatic, *saves; /* directories */
	char record[PATH_MAX];         /* the file */
	long wait_s;                   /* for a guest to shut down */
	const char *usual;             /* what is done with guests whose configuration does not say */
};

/* The commands (xendomains_stop.c, xendomains_start.c). */
int host_stop(struct host *host, struct error *error);
int host_start(struct host *host, struct error *error);

/* xend's answer to who is here, Domain-0 left out. Waits for a xend that is just starting. */
int host_list(struct host *host, json_t **domains, struct error *error);

/* The guests that are to be brought back, an array; empty where there is no record. */
json_t *record_load(const struct host *host);

/* Writes it to the disk: the power may go next. */
int record_keep(const struct host *host, const json_t *record, struct error *error);

/* Of a guest in the record: whether its checkpoint is there, and whether it is to stay as it is. */
bool record_is_saved(const json_t *domain);
bool record_stays_down(const json_t *domain);

/* A member's text, of the object or of its configuration; "" where there is none. */
const char *text_of(const json_t *object, const char *key);
const char *option_of(const json_t *domain, const char *key);

/* A line for whoever stops or starts the host, at once. */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
