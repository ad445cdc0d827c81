#include "vmm/dev/generation.h"
#include "base/cleanup.h"
#include "vmm/interrupts.h"
#include "vmm/layout.h"
#include "vmm/memory.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct generation {
	struct device device;
	struct platform *platform;
	uint8_t id[GENERATION_ID_SIZE];
	bool changed; /* the guest has yet to be told */
	bool is_set;  /* by whoever made the machine */
	uint8_t set[GENERATION_ID_SIZE];
};

static const struct field generation_fields[] = {
	FIELD(struct generation, id, FIELD_BYTES),
	FIELD(struct generation, changed, FIELD_BOOL),
};
static const struct field_table generation_state = FIELD_TABLE("generation", 1, generation_fields);

static int show(struct generation *generation, struct error *error)
{
	if (memory_write(generation->platform->memory, LAYOUT_GENERATION, generation->id,
		    sizeof(generation->id)) < 0)
		return error_set(error, ENOMEM, "The guest's memory is too small for the VM generation ID.");
	return 0;
}

/* Also where the state has no ID, which is older than this device: its guest does not look, and need not. */
static int generation_after_load(struct device *device, struct error *error)
{
	struct generation *generation = CONTAINER_OF(device, struct generation, device);

	if (!generation->is_set)
		return 0;
	memcpy(generation->id, generation->set, sizeof(generation->id));
	generation->changed = true;
	return show(generation, error);
}

static void generation_resume(struct device *device)
{
	struct generation *generation = CONTAINER_OF(device, struct generation, device);

	if (!generation->changed)
		return;
	generation->changed = false;
	interrupts_line(generation->platform->interrupts, GENERATION_GSI, true);
	interrupts_line(generation->platform->interrupts, GENERATION_GSI, false);
}

static void generation_free(struct device *device)
{
	free(CONTAINER_OF(device, struct generation, device));
}

static const struct device_class generation_class = {
	.state = &generation_state,
	.state_may_lack = true,
	.after_load = generation_after_load,
	.resume = generation_resume,
	.free = generation_free,
};

struct device *generation_new(
	struct platform *platform, const uint8_t id[GENERATION_ID_SIZE], bool incoming, struct error *error)
{
	_cleanup_free_ struct generation *generation = calloc(1, sizeof(*generation));

	if (!generation) {
		error_set(error, ENOMEM, "Out of memory while making the VM generation ID.");
		return NULL;
	}
	generation->device.class = &generation_class;
	generation->platform = platform;
	if (id) {
		generation->is_set = true;
		memcpy(generation->set, id, GENERATION_ID_SIZE);
		memcpy(generation->id, id, GENERATION_ID_SIZE);
	}
	if (!incoming && show(generation, error) < 0)
		return NULL;
	platform_add(platform, &generation->device);
	return &take_pointer(generation)->device;
}
