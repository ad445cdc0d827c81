/*
 * A guest's configuration: what /etc/xen/TestGuest says, what `xm create` sends,
 * what xend keeps and what travels with a checkpoint or a migration.
 *
 * One table (guest_options) says which options there are, of what kind and
 * within what limits; the same table reads the Python-syntax file and JSON, and
 * writes JSON and the S-expression of `xm list --long`.
 *
 *	_cleanup_guest_config_ struct guest_config config = {0};
 *	r = guest_config_from_json(&config, json, &error);
 *	if (r >= 0)
 *		r = guest_config_complete(&config, &error);
 *
 * In JSON every option has its name and type from the file: "memory": 64,
 * "disk": ["phy:/dev/vg/guest,xvda,w"], "vif": ["mac=00:16:3e:…, bridge=xenbr0"].
 * guest_config_from_json takes JSON from anybody (API clients, peers, files): it
 * checks every value; what it has accepted needs no further syntax checks.
 */
#pragma once

#include "base/buffer.h"
#include "base/error.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define GUEST_DISKS_MAX 16 /* PCI slots 4 to 19 */
#define GUEST_VIFS_MAX 11  /* PCI slots 20 to 30 */
#define GUEST_NAME_MAX 127

enum disk_kind { DISK_FILE, DISK_PHY, DISK_TAP };
enum disk_mode {
	DISK_READ_ONLY,    /* r: any number of guests may read it at once */
	DISK_WRITE,        /* w: this guest alone */
	DISK_WRITE_SHARED, /* w!: the user answers for who else writes */
};

/* What a disk's target is on this host: found out by xend (disks_look), not part of a configuration. */
struct disk_place {
	bool known, block;
	uint64_t device, inode; /* of a block device its own number, and 0 */
};

struct guest_disk {
	enum disk_kind kind; /* tap is a raw file (tap:aio:), like file */
	char *target;        /* absolute path of the image or block device; "": a cdrom drive that is empty */
	char *device;        /* as written: xvda, sda1, hda … */
	enum disk_mode mode;
	bool cdrom;
	struct disk_place place;
};

struct guest_vif {
	uint8_t mac[6]; /* valid where has_mac; always after guest_config_complete */
	bool has_mac;
	char *bridge;  /* each of these NULL when not given */
	char *ip;      /* addresses separated by spaces, for the vif script */
	char *script;  /* a bare name: a file in the scripts directory, never a path elsewhere */
	char *vifname; /* name of the tap, at most 15 characters */
	char *model;
	char *type;
	char *rate;                     /* as written: 10Mb/s */
	uint64_t rate_bytes_per_second; /* 0: no limit */
};

/* What happens to a guest that has ended (on_poweroff, on_reboot, on_crash). */
enum guest_action {
	ACTION_DESTROY,
	ACTION_RESTART,
	ACTION_PRESERVE,
	ACTION_RENAME_RESTART,
	ACTION_COREDUMP_DESTROY,
	ACTION_COREDUMP_RESTART,
};

/* Strings are owned and NULL when not given; all zero is a valid, empty configuration for guest_config_free.
 */
struct guest_config {
	char *name; /* obeys guest_name_check */
	char *uuid; /* 36 characters, lower case */

	char *kernel, *ramdisk; /* absolute paths */
	char *root, *extra;     /* parts of the command line, as written */
	char *bootloader, *bootargs, *bootentry;

	uint64_t memory; /* MiB */
	uint64_t maxmem; /* MiB, 0: same as memory */
	uint64_t vcpus;
	uint64_t vcpu_avail; /* mask, 0: all */
	char *cpus;          /* as in vcpu-pin: "0-3,^1"; NULL: any */
	uint64_t cpu_weight, cpu_cap;

	struct guest_disk *disks;
	size_t disk_count;
	char *on_disk_full; /* NULL: hold */
	char *disk_discard; /* NULL: on */
	struct guest_vif *vifs;
	size_t vif_count;

	char *ip, *netmask, *gateway, *hostname, *dhcp; /* for the kernel's ip= */
	char *interface;
	char *nfs_server, *nfs_root;

	enum guest_action on_poweroff, on_reboot, on_crash;
	char *on_xend_start, *on_xend_stop;
	char *clock_over_pause; /* NULL: catch-up */

	json_t *kept; /* options of Xen's that Ferry knows but does not use: an object, or NULL */
};

#define _cleanup_guest_config_ __attribute__((cleanup(guest_config_free)))

/* Frees what the configuration owns and leaves it all zero. */
void guest_config_free(struct guest_config *config);

/*
 * Reads a guest configuration file (docs/man/xmdomain.cfg.5). `overrides` are
 * `var=value` words of the command line, which win over the file. A mistake's
 * sentence begins with file, line and column. `config` must be all zero; it is
 * all zero again when this fails.
 */
int guest_config_from_file(struct guest_config *config, const char *path, const char *const *overrides,
	size_t override_count, struct error *error);

/* A configuration without a name gets that of its file, without .cfg or .sxp. */
int guest_config_name_after(struct guest_config *config, const char *path, struct error *error);

/* The same from text in memory; `source` stands for the path in messages. */
int guest_config_from_text(struct guest_config *config, const char *source, const char *text, size_t size,
	const char *const *overrides, size_t override_count, struct error *error);

/* The same from JSON. Unknown options are refused by name. */
int guest_config_from_json(struct guest_config *config, const json_t *json, struct error *error);

/* A new object; options that were not given are left out. NULL when out of memory. */
json_t *guest_config_to_json(const struct guest_config *config);

/*
 * Makes a configuration ready to run: checks that it has a name and that options
 * agree with each other (no device or MAC twice …), draws a uuid and, from Xen's
 * range 00:16:3e, MACs where none is given.
 */
int guest_config_complete(struct guest_config *config, struct error *error);

/* An array of sentences about options that Ferry accepts but that will not have the effect they had in Xen.
 */
json_t *guest_config_warnings(const struct guest_config *config);

/*
 * Appends the configuration's members of `xm list --long`, each on a line of its
 * own with four spaces before it: (name TestGuest), (image (linux …)), (device …).
 */
void guest_config_to_sxp(const struct guest_config *config, struct buffer *out);

/* One entry of disk=[…] or vif=[…]; `disk` and `vif` must be all zero. For xm block-attach and
 * network-attach. */
int guest_disk_parse(struct guest_disk *disk, const char *text, struct error *error);
int guest_vif_parse(struct guest_vif *vif, const char *text, struct error *error);
/* PREFIX:TARGET of it, as it is. */
char *guest_disk_uname(const struct guest_disk *disk);
char *guest_disk_text(const struct guest_disk *disk); /* owned by the caller, NULL when out of memory */
char *guest_vif_text(const struct guest_vif *vif);
void guest_disk_free(struct guest_disk *disk);
void guest_vif_free(struct guest_vif *vif);

/* Letters, digits and _ - . + : only, at most GUEST_NAME_MAX, not digits alone (that is an ID), not Domain-0.
 */
int guest_name_check(const char *name, struct error *error);

const char *guest_action_name(enum guest_action action);

/* What `xm create --help_config` prints: every option with its kind, limits and meaning. */
void guest_config_help(struct buffer *out);
