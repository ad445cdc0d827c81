/* The machine description in `create`: whatever it says, it is refused with a sentence or within bounds. */
#include "base/cleanup.h"
#include "vmm/kvm.h"
#include "vmm/machine_config.h"
#include "vmm/pci.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct message message = {0};
	struct machine_config config;
	struct error error = {0};
	int r;

	message.body = json_loadb((const char *)data, size, JSON_REJECT_DUPLICATES, NULL);
	if (!message.body)
		return 0;
	for (message.fd_count = 0; message.fd_count < 8; message.fd_count++)
		message.fds[message.fd_count] = dup(STDERR_FILENO);
	r = machine_config_parse(&config, &message, message.body, &error);
	if (r < 0 && !error.text[0])
		abort();
	if (r == 0) {
		if (config.vcpus < 1 || config.vcpus > VCPUS_MAX || config.disk_count > MACHINE_DISKS_MAX ||
			config.net_count > MACHINE_NETS_MAX || !config.command_line || !config.described)
			abort();
		for (unsigned i = 0; i < config.disk_count; i++)
			if (config.disks[i].slot >= PCI_SLOTS || config.disks[i].image < 0)
				abort();
		machine_config_free(&config);
	}
	message_free(&message);
	return 0;
}
