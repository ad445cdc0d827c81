/*
 * What `create` asks for (docs/internal/guest-control.md, "machine"), checked,
 * with the descriptors that came along.
 */
#pragma once

#include "base/channel.h"
#include "base/error.h"

#include <stdbool.h>
#include <stdint.h>

#define MACHINE_DISKS_MAX 16u
#define MACHINE_NETS_MAX 11u

struct disk_config {
	unsigned slot;
	int image;                                 /* owned; -1: a drive that is empty */
	bool read_only, no_discard, full_is_error; /* see struct virtio_blk_options */
	char serial[21];
};

struct net_config {
	unsigned slot;
	int tap; /* owned */
	uint8_t mac[6];
};

/* How the guest's time makes up for one in which it stood still: catch_up.h. */
enum clock_over_pause { CLOCK_CATCH_UP, CLOCK_JUMP, CLOCK_STOP };

struct machine_config {
	char name[128];
	char uuid[37];
	uint64_t memory_size; /* bytes */
	uint32_t vcpus;
	bool incoming;
	bool shared;         /* `ram` is what clones share: mapped copy-on-write */
	bool has_generation; /* a VM generation ID of its own, else the one that comes with the state */
	uint8_t generation[16];
	enum clock_over_pause clock_over_pause;
	unsigned console_limit_kib;
	int kvm, ram, kernel, ramdisk; /* owned; -1: none */
	int faults;         /* /dev/userfaultfd: memory may come after the state; owned; -1: none */
	char *command_line; /* owned; "" where incoming */
	unsigned disk_count, net_count;
	struct disk_config disks[MACHINE_DISKS_MAX];
	struct net_config nets[MACHINE_NETS_MAX];
	json_t *described; /* owned: as asked, without descriptors */
};

/* No descriptors, nothing owned. */
#define MACHINE_CONFIG_NONE                                                                                  \
	((struct machine_config){.kvm = -1, .ram = -1, .kernel = -1, .ramdisk = -1, .faults = -1})

#define _cleanup_machine_config_ __attribute__((cleanup(machine_config_free)))

/* Takes the descriptors it needs out of the message. On failure nothing is left to free. */
int machine_config_parse(
	struct machine_config *config, struct message *message, const json_t *machine, struct error *error);
void machine_config_free(struct machine_config *config);
