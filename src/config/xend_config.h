/*
 * xend's configuration, /etc/xen/xend-config.sxp: S-expressions (option value),
 * comments from # or ; to the end of the line, values bare or in '…' or "…",
 * spread over lines where one likes.
 *
 *	_cleanup_xend_config_ struct xend_config config = {0};
 *	r = xend_config_load(&config, xend_config_path(), &error);
 *
 * A missing file means all defaults. Options of Xen's that Ferry does not need are
 * accepted; unknown ones are refused by name (a misspelt hosts-allow would open a host).
 */
#pragma once

#include "base/error.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct xend_config {
	char *logfile;          /* /var/log/xen/xend.log */
	uint64_t logfile_limit; /* MiB, 10; 0: none */
	char *loglevel;         /* DEBUG, INFO, WARNING, ERROR or CRITICAL */

	bool unix_server; /* yes */
	char *unix_path;  /* /var/lib/xend/xend-socket */
	bool http_server; /* no */
	uint64_t port;    /* 8000 */
	char *address;    /* '': every address */

	bool relocation_server;       /* no */
	uint64_t relocation_port;     /* 8002 */
	char *relocation_address;     /* '': every address */
	char *relocation_hosts_allow; /* as written: addresses, networks and regular expressions separated
					 by spaces, '': all */
	char **allow;                 /* its words, each checked (src/carry/allow.h) */
	size_t allow_count;
	bool relocation_clear_text; /* no: TLS, between hosts that trust each other
				       (docs/relocation-protocol.md) */
	char *relocation_ca_file; /* PEM: whose certificates are trusted, '': only keys that xm trust knows */
	char *relocation_crl_file;        /* PEM: what those authorities have revoked, '': nothing */
	char *relocation_cert_file;       /* PEM: this host's certificate, '': one that xend makes */
	char *relocation_key_file;        /* PEM: its key, '': in the same file */
	uint64_t relocation_connections;  /* that a guest's memory goes over, 0: chosen for each guest */
	uint64_t relocation_max_downtime; /* milliseconds a live migration may stand still, 50 */

	uint64_t
		storage_timeout; /* seconds that a checkpoint's storage may take to answer, 60; 0: for ever */
	uint64_t console_limit;  /* KiB of history, 1024 */
	char *network_script;    /* network-bridge and its arguments, '': none */
	char *vif_script;        /* vif-bridge */
	uint64_t dom0_min_mem;   /* MiB kept for the host, 0 */
	uint64_t dom0_cpus;      /* 0: all */
	bool enable_dump;        /* no */
	char *external_migration_tool;
	char *vnc_listen;
	char *vncpasswd;
};

#define _cleanup_xend_config_ __attribute__((cleanup(xend_config_free)))

/* The environment's XEND_CONFIG, or /etc/xen/xend-config.sxp. */
const char *xend_config_path(void);

/* Reads the file; a mistake's sentence begins with file, line and column. `config` must be all zero. */
int xend_config_load(struct xend_config *config, const char *path, struct error *error);

/* The same from text in memory; `source` stands for the path in messages. */
int xend_config_parse(
	struct xend_config *config, const char *source, const char *text, size_t size, struct error *error);

/* An array of sentences about settings that will not have the effect they had in Xen. */
json_t *xend_config_warnings(const struct xend_config *config);

void xend_config_free(struct xend_config *config);
