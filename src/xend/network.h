/*
 * The guest's network devices on the host: taps, and the scripts that join them
 * to a bridge as Xen's did (network-script, vif-script in xend-config.sxp).
 *
 * A vif script is run as `script online|offline` with vif, bridge, mac, ip and
 * domain in its environment. What it prints last becomes the sentence when it
 * fails, and is logged when it does not. When its time is over it is ended with all of its
 * process group. A tap belongs to the descriptor: it goes away with ferry-guest.
 */
#pragma once

#include "config/guest_config.h"

struct vif_place {
	const char *scripts;        /* directory of scripts */
	const char *vif_script;     /* when the vif names none */
	const char *network_script; /* which says what bridge a vif without one joins */
	const char *trouble;        /* why that bridge is not there yet; NULL, "": nothing of that */
	const char *domain;         /* name */
	unsigned id;
	unsigned number; /* of the vif in its guest */
};

/* Makes the tap, runs the script's `online`. Returns the tap's descriptor, owned by the caller. */
int vif_create(const struct guest_vif *vif, const struct vif_place *place, struct error *error);

/* Checks, making nothing, that vif_create would find bridge and script. */
int vif_check(const struct guest_vif *vif, const struct vif_place *place, struct error *error);

/* Runs the script's `offline` for a tap that is gone or about to go. */
void vif_remove(const struct guest_vif *vif, const struct vif_place *place);

/* The bridge that a network-script line makes, and a vif without bridge= joins: its bridge=, else xenbr0. */
void network_bridge(const char *line, char name[16]);

/* Runs a network-script line ("network-bridge bridge=xenbr0") with `start`, for so many seconds, and as many
 * again where it then has to put things back. */
int network_start(const char *scripts, const char *line, int limit_s, struct error *error);
