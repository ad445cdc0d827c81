/*
 * Where xend keeps things. Everything has its place from the file system
 * hierarchy; environment variables move a whole xend into a private root, so
 * that several can be tried side by side on one machine.
 *
 *	FERRY_RUNDIR      /run/ferry         guests' control sockets, carriers, pid file
 *	FERRY_STATEDIR    /var/lib/xend      xend.db
 *	FERRY_LIBEXECDIR  …/libexec/ferry    ferry-guest, ferry-carrier
 *	FERRY_SCRIPTDIR   /etc/xen/scripts   network and vif scripts
 *
 * The API socket and the log file are named in xend-config.sxp.
 */
#pragma once

#include "base/error.h"

struct paths {
	char run[64]; /* short: the control sockets under it must fit sockaddr_un */
	char state[256];
	char libexec[256];
	char scripts[256];
};

/* Fills paths from the environment; refuses names that are too long or not absolute. */
int paths_init(struct paths *paths, struct error *error);

/* Makes the run and state directories (0700: only xend opens what is in them), and the empty one. */
int paths_create(const struct paths *paths, struct error *error);

#define PATHS_EMPTY_MAX 80u
/* A directory in which there is nothing: all that ferry-guest can see of the file system. */
void paths_empty(const struct paths *paths, char path[static PATHS_EMPTY_MAX]);

/* Whether all is mounted that fstab(5) has for this place: else what is there is not what is meant. */
int paths_check_mounted(const char *path, struct error *error);

/* Makes a directory and those above it. */
int make_directories(const char *path, unsigned mode, struct error *error);
