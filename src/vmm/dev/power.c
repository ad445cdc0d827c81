#include "vmm/dev/power.h"
#include "base/cleanup.h"
#include "vmm/bus.h"
#include "vmm/interrupts.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define PM1_BUTTON 0x0100u /* PWRBTN_STS and PWRBTN_EN (ACPI 6.4, tables 4.13 and 4.14) */
#define PM1_SCI_EN 0x0001u /* PM1 control (ACPI 6.4, table 4.15) */
#define PM1_SLP_EN 0x2000u
#define PM1_SLP_TYP_SHIFT 10u
#define RESET_CPU 0x04u /* of port 0xcf9 (Intel ICH10 data sheet, 13.7.5) */
#define KEYBOARD_PORT 0x64u
#define KEYBOARD_RESET 0xfeu /* pulse output line 0 */

struct power {
	struct device device;
	struct platform *platform;
	struct bus_range pm1, reset, keyboard;
	uint16_t status, enable, control;
	uint8_t reset_control;
};

static const struct field power_fields[] = {
	FIELD(struct power, status, FIELD_U16),
	FIELD(struct power, enable, FIELD_U16),
	FIELD(struct power, control, FIELD_U16),
	FIELD(struct power, reset_control, FIELD_U8),
};
static const struct field_table power_state = FIELD_TABLE("power", 1, power_fields);

static void update_line(struct power *power)
{
	interrupts_line(power->platform->interrupts, POWER_SCI_GSI, power->status & power->enable);
}

static void stop(struct power *power, enum stop_reason reason)
{
	power->platform->stop(power->platform->machine, reason, NULL);
}

/* The three registers as the bytes that the guest sees. */
static void registers_of(const struct power *power, uint16_t registers[3])
{
	registers[0] = power->status;
	registers[1] = power->enable;
	registers[2] = power->control | PM1_SCI_EN;
}

static void pm1_read(void *context, uint64_t offset, void *data, unsigned size)
{
	uint16_t registers[3];

	registers_of(context, registers);
	memcpy(data, (const uint8_t *)registers + offset, size);
}

static void pm1_write(void *context, uint64_t offset, const void *data, unsigned size)
{
	struct power *power = context;
	uint16_t registers[3], written[3] = {0};

	registers_of(power, registers);
	memcpy((uint8_t *)written + offset, data, size);
	memcpy((uint8_t *)registers + offset, data, size);
	power->status &= (uint16_t)~written[0]; /* a one clears */
	power->enable = registers[1];
	power->control = registers[2] & (uint16_t)~PM1_SLP_EN; /* SLP_EN always reads as zero */
	update_line(power);
	if (written[2] & PM1_SLP_EN && (registers[2] >> PM1_SLP_TYP_SHIFT & 7) == POWER_SLEEP_TYPE_OFF)
		stop(power, STOP_POWEROFF);
}

static void reset_read(void *context, uint64_t offset, void *data, unsigned size)
{
	(void)offset, (void)size;
	*(uint8_t *)data = ((struct power *)context)->reset_control;
}

static void reset_write(void *context, uint64_t offset, const void *data, unsigned size)
{
	struct power *power = context;
	uint8_t value = *(const uint8_t *)data;
	bool rises = value & ~power->reset_control & RESET_CPU;

	(void)offset, (void)size;
	power->reset_control = value & 0x0e;
	if (rises)
		stop(power, STOP_REBOOT);
}

static void keyboard_read(void *context, uint64_t offset, void *data, unsigned size)
{
	(void)context, (void)offset;
	memset(data, 0, size); /* status: never busy, nothing typed */
}

static void keyboard_write(void *context, uint64_t offset, const void *data, unsigned size)
{
	(void)offset, (void)size;
	if (*(const uint8_t *)data == KEYBOARD_RESET)
		stop(context, STOP_REBOOT);
}

void power_press_button(struct device *device)
{
	struct power *power = CONTAINER_OF(device, struct power, device);

	power->status |= PM1_BUTTON;
	update_line(power);
}

static int power_after_load(struct device *device, struct error *error)
{
	(void)error;
	update_line(CONTAINER_OF(device, struct power, device));
	return 0;
}

static void power_free(struct device *device)
{
	struct power *power = CONTAINER_OF(device, struct power, device);

	bus_remove(power->platform->ports, &power->pm1);
	bus_remove(power->platform->ports, &power->reset);
	bus_remove(power->platform->ports, &power->keyboard);
	free(power);
}

static const struct device_class power_class = {
	.state = &power_state,
	.after_load = power_after_load,
	.free = power_free,
};

struct device *power_new(struct platform *platform, struct error *error)
{
	struct power *power = calloc(1, sizeof(*power));

	if (!power) {
		error_set(error, ENOMEM, "Out of memory while making the power controls.");
		return NULL;
	}
	power->device.class = &power_class;
	power->platform = platform;
	power->pm1 = (struct bus_range){.name = "ACPI PM1",
		.base = POWER_EVENT_PORT,
		.size = 6,
		.read = pm1_read,
		.write = pm1_write,
		.context = power};
	power->reset = (struct bus_range){.name = "reset register",
		.base = POWER_RESET_PORT,
		.size = 1,
		.read = reset_read,
		.write = reset_write,
		.context = power};
	power->keyboard = (struct bus_range){.name = "keyboard controller",
		.base = KEYBOARD_PORT,
		.size = 1,
		.read = keyboard_read,
		.write = keyboard_write,
		.context = power};
	if (bus_add(platform->ports, &power->pm1) < 0 || bus_add(platform->ports, &power->reset) < 0 ||
		bus_add(platform->ports, &power->keyboard) < 0) {
		error_set(error, EEXIST, "The I/O ports of the power controls are taken.");
		power_free(&power->device);
		return NULL;
	}
	platform_add(platform, &power->device);
	return &power->device;
}
