#include "vmm/device.h"

void platform_add(struct platform *platform, struct device *device)
{
	device->next = platform->devices;
	platform->devices = device;
}

void platform_free_devices(struct platform *platform)
{
	while (platform->devices) {
		struct device *first = platform->devices;

		platform->devices = first->next;
		first->class->free(first);
	}
}
