/* Domains as xend's API gives them, and the paths by which it knows them. */
#pragma once

#include "base/buffer.h"
#include "base/error.h"
#include "xm/client.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>

struct domain {
	const char *name, *uuid, *state; /* borrowed from the JSON */
	long long id, memory_mib, vcpus;
	double cpu_time_s;
	long long started_at; /* unix seconds */
	const json_t *config; /* borrowed, may be NULL */
};

/* Reads and checks the members of an API domain. */
int domain_read(struct domain *domain, const json_t *json, struct error *error);

/* "/domains/NAME" followed by `suffix`. A word that no domain can be called does not exist. */
int domain_path(char path[static 256], const char *name_or_id, const char *suffix, struct error *error);

/* Asks xend for one domain. `json` owns what `domain` points into. */
int domain_get(struct client *client, const char *name_or_id, struct domain *domain, json_t **json,
	struct error *error);

/* Refuses Domain-0: "Domain-0 is the host itself: it cannot be VERB." `done`: saved, migrated … */
int domain_is_guest(const char *name_or_id, const char *done, struct error *error);

/* xm list: the header, a row, and the S-expression of --long. */
void domain_print_header(FILE *out);
void domain_print_row(FILE *out, const struct domain *domain);
int domain_print_long(FILE *out, const struct domain *domain, struct error *error);
