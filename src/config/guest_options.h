/*
 * The table of all options of a guest configuration: internal to src/config.
 * The functions here set, write and describe one option as its entry says.
 */
#pragma once

#include "config/guest_config.h"
#include "config/value.h"

enum option_kind {
	OPTION_NAME,    /* char *, a domain's name */
	OPTION_UUID,    /* char * */
	OPTION_TEXT,    /* char *, at most `most` bytes, one of `choices` where given */
	OPTION_WORD,    /* the same without blanks */
	OPTION_PATH,    /* char *, absolute */
	OPTION_CPUS,    /* char *, CPU numbers; a list is joined */
	OPTION_ADDRESS, /* char *, IPv4 */
	OPTION_NUMBER,  /* uint64_t from `least` to `most` */
	OPTION_ACTION,  /* enum guest_action */
	OPTION_DISKS,   /* disks and disk_count */
	OPTION_VIFS,    /* vifs and vif_count */
	OPTION_NICS,    /* makes vif_count at least this many */
	OPTION_KEPT,    /* anything; goes to `kept` */
};

/* Where `xm list --long` shows an option. */
enum option_section { SHOWN_NOWHERE, SHOWN_IN_DOMAIN, SHOWN_IN_IMAGE };

struct guest_option {
	const char *name;
	enum option_kind kind;
	enum option_section section;
	size_t offset;
	uint64_t least, most, fallback; /* of numbers and actions; fallback: when not given */
	const char *choices;            /* "ignore|start" */
	const char *shown_as;           /* in xm list --long; NULL: its name */
	const char *help;
	const char
		*without_effect; /* why setting it changes nothing (the end of a warning), NULL: it works */
};

extern const struct guest_option guest_options[];
extern const size_t guest_option_count;

const struct guest_option *guest_option_find(const char *name);

/* Sets the option from a value; what it had before is replaced. */
int guest_option_set(const struct guest_option *option, struct guest_config *config,
	const struct value *value, struct error *error);

/* The option's JSON value (new reference), or NULL where it was not given. */
json_t *guest_option_json(const struct guest_option *option, const struct guest_config *config);

/* Frees the texts of all options, not disks, vifs and `kept`. */
void guest_options_free(struct guest_config *config);

/* Sets all fallbacks in a fresh configuration. */
void guest_options_defaults(struct guest_config *config);

/* Whether a setting that has no effect in Ferry was asked for. */
bool guest_option_is_ineffective(const struct guest_option *option, const struct guest_config *config);
