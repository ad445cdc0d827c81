/*
 * From a guest's configuration to the machine that ferry-guest is asked to
 * make: PCI slots, the kernel's command line, descriptors. Nothing is opened here.
 */
#pragma once

#include "base/channel.h"
#include "config/guest_config.h"

#define MACHINE_MEMORY_MIN 16 /* MiB */
#define MACHINE_VCPUS_MAX 128
#define MACHINE_FIRST_DISK_SLOT 4 /* docs/internal/guest-control.md, "machine" */
#define MACHINE_FIRST_NET_SLOT 20

/* What the machine is handed; -1 where there is none. */
struct machine_files {
	int kvm, ram, kernel, ramdisk;
	int faults;          /* /dev/userfaultfd */
	bool shared;         /* `ram` is what clones share */
	char generation[37]; /* its VM generation ID, as a uuid; "": the one that comes with its state */
	int disks[GUEST_DISKS_MAX];
	int taps[GUEST_VIFS_MAX];
};

#define _cleanup_machine_files_ __attribute__((cleanup(machine_files_close)))

void machine_files_init(struct machine_files *files);
void machine_files_close(struct machine_files *files);

/* Descriptors of one message, borrowed, in the order of their numbers in its JSON. */
struct message_fds {
	int fds[CHANNEL_FDS_MAX];
	unsigned count;
};

/* Appends the descriptor; returns its {"fd": N}. */
json_t *message_fds_add(struct message_fds *list, int fd);

/* Checks what only a whole machine shows: memory, vCPUs, a kernel to boot. */
int machine_check(const struct guest_config *config, struct error *error);

/* What the configuration's n-th disk is called in the guest: "vda", "vdb" … */
void machine_disk_name(unsigned n, char name[8]);

/*
 * The kernel's command line as Xen made it: ip=…, root=…, nfsroot=…, extra. A
 * root= naming one of the guest's disks as Xen named it (xvda1, sda1, hda) names
 * the virtio disk instead. Owned by the caller.
 */
char *machine_command_line(const struct guest_config *config);

/* The "machine" member of ferry-guest's create; its descriptors are added to `list`. NULL when out of memory.
 */
json_t *machine_describe(const struct guest_config *config, const struct machine_files *files, bool incoming,
	uint64_t console_limit_kib, struct message_fds *list);
