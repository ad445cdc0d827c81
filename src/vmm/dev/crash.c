#include "vmm/dev/crash.h"
#include "base/cleanup.h"
#include "vmm/bus.h"

#include <errno.h>
#include <stdlib.h>

#define CRASH_PORT 0x505u
#define CRASH_PANICKED 0x01u
#define CRASH_LOADED 0x02u /* panicked, but a crash kernel takes over: the guest runs on */

struct crash {
	struct device device;
	struct platform *platform;
	struct bus_range range;
	uint8_t last; /* event that the guest reported last */
};

static const struct field crash_fields[] = {
	FIELD(struct crash, last, FIELD_U8),
};
static const struct field_table crash_state = FIELD_TABLE("crash", 1, crash_fields);

static void crash_read(void *context, uint64_t offset, void *data, unsigned size)
{
	(void)context, (void)offset, (void)size;
	*(uint8_t *)data = CRASH_PANICKED | CRASH_LOADED; /* the events that we take */
}

static void crash_write(void *context, uint64_t offset, const void *data, unsigned size)
{
	struct crash *crash = context;

	(void)offset, (void)size;
	crash->last = *(const uint8_t *)data;
	if (crash->last & CRASH_PANICKED)
		crash->platform->stop(
			crash->platform->machine, STOP_CRASH, "The guest's kernel reported a panic.");
}

static void crash_free(struct device *device)
{
	struct crash *crash = CONTAINER_OF(device, struct crash, device);

	bus_remove(crash->platform->ports, &crash->range);
	free(crash);
}

static const struct device_class crash_class = {.state = &crash_state, .free = crash_free};

struct device *crash_new(struct platform *platform, struct error *error)
{
	struct crash *crash = calloc(1, sizeof(*crash));

	if (!crash) {
		error_set(error, ENOMEM, "Out of memory while making the crash device.");
		return NULL;
	}
	crash->device.class = &crash_class;
	crash->platform = platform;
	crash->range = (struct bus_range){.name = "pvpanic",
		.base = CRASH_PORT,
		.size = 1,
		.read = crash_read,
		.write = crash_write,
		.context = crash};
	if (bus_add(platform->ports, &crash->range) < 0) {
		error_set(error, EEXIST, "The I/O port of the crash device is taken.");
		free(crash);
		return NULL;
	}
	platform_add(platform, &crash->device);
	return &crash->device;
}
