#include "vmm/acpi/acpi.h"
#include "base/buffer.h"
#include "base/cleanup.h"
#include "vmm/dev/power.h"
#include "vmm/dev/rtc.h"
#include "vmm/layout.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "dsdt.hex" /* dsdt_aml_code, by iasl */

#define PACKED __attribute__((packed))

/* 5.2.6 */
struct header {
	char signature[4];
	uint32_t length;
	uint8_t revision, checksum;
	char oem[6], oem_table[8];
	uint32_t oem_revision;
	char creator[4];
	uint32_t creator_revision;
} PACKED;

/* 5.2.5.3 */
struct rsdp {
	char signature[8];
	uint8_t checksum;
	char oem[6];
	uint8_t revision;
	uint32_t rsdt, length;
	uint64_t xsdt;
	uint8_t extended_checksum, reserved[3];
} PACKED;

/* 5.2.10 */
struct facs {
	char signature[4];
	uint32_t length, hardware_signature, waking_vector, lock, flags;
	uint64_t long_waking_vector;
	uint8_t version, reserved[31];
} PACKED;

/* 5.2.3.2 */
struct address {
	uint8_t space, bits, offset, access;
	uint64_t address;
} PACKED;
#define SPACE_IO 1
#define ACCESS_BYTE 1
#define ACCESS_WORD 2

/* 5.2.9 */
struct fadt {
	struct header header;
	uint32_t facs, dsdt;
	uint8_t reserved, profile;
	uint16_t sci;
	uint32_t smi_command;
	uint8_t enable, disable, s4_request, pstate_control;
	uint32_t pm1a_event, pm1b_event, pm1a_control, pm1b_control, pm2_control, timer, gpe0, gpe1;
	uint8_t pm1_event_length, pm1_control_length, pm2_control_length, timer_length, gpe0_length,
		gpe1_length, gpe1_base, cstate_control;
	uint16_t c2_latency, c3_latency, flush_size, flush_stride;
	uint8_t duty_offset, duty_width, day_alarm, month_alarm, century;
	uint16_t boot_flags;
	uint8_t reserved_2;
	uint32_t flags;
	struct address reset;
	uint8_t reset_value;
	uint16_t arm_boot_flags;
	uint8_t minor_revision;
	uint64_t long_facs, long_dsdt;
	struct address long_pm1a_event, long_pm1b_event, long_pm1a_control, long_pm1b_control,
		long_pm2_control, long_timer, long_gpe0, long_gpe1, sleep_control, sleep_status;
} PACKED;
#define FADT_REVISION 5
#define BOOT_LEGACY_DEVICES 0x0001u /* there is a serial port */
#define BOOT_NO_VGA 0x0004u
#define FLAG_WBINVD 0x00000001u
#define FLAG_C1 0x00000004u
#define FLAG_NO_SLEEP_BUTTON 0x00000020u /* no fixed one; the power button is fixed: its bit is clear */
#define FLAG_NO_RTC_WAKE 0x00000040u
#define FLAG_RESET_REGISTER 0x00000400u
#define PM1_EVENT_LENGTH 4u
#define PM1_CONTROL_LENGTH 2u
#define NO_C2_LATENCY 0x0fffu /* over 100 µs and over 1000 µs: no such states */

/* 5.2.12 */
struct madt {
	struct header header;
	uint32_t lapic, flags;
} PACKED;
struct madt_lapic {
	uint8_t type, length, processor, apic;
	uint32_t flags;
} PACKED;
struct madt_ioapic {
	uint8_t type, length, id, reserved;
	uint32_t address, first_gsi;
} PACKED;
struct madt_override {
	uint8_t type, length, bus, source;
	uint32_t gsi;
	uint16_t flags;
} PACKED;
struct madt_nmi {
	uint8_t type, length, processor;
	uint16_t flags;
	uint8_t pin;
} PACKED;
#define MADT_HAS_PICS 1u
#define MADT_ENABLED 1u
#define MADT_ALL_PROCESSORS 0xffu
#define MADT_LEVEL_HIGH 0x000du

static uint8_t checksum(const void *from, size_t size)
{
	const uint8_t *bytes = from;
	uint8_t sum = 0;

	for (size_t i = 0; i < size; i++)
		sum = (uint8_t)(sum + bytes[i]);
	return (uint8_t)-sum;
}

static struct header header(const char *signature, uint8_t revision)
{
	struct header result = {.revision = revision, .oem_revision = 1, .creator_revision = 1};

	memcpy(result.signature, signature, sizeof(result.signature));
	memcpy(result.oem, "FERRY ", sizeof(result.oem));
	memcpy(result.oem_table, "MACHINE ", sizeof(result.oem_table));
	memcpy(result.creator, "FRRY", sizeof(result.creator));
	return result;
}

/* Appends a table, aligned to 64 bytes (5.2.10 wants it of the FACS); returns its address. */
static uint64_t append(struct buffer *tables, const void *table, size_t size)
{
	size_t at = ALIGN_UP(tables->size, 64);

	buffer_extend(tables, at - tables->size);
	buffer_append(tables, table, size);
	return LAYOUT_ACPI + at;
}

/* The same for one that begins with a header: sets length and checksum. */
static uint64_t append_table(struct buffer *tables, struct header *table, size_t size)
{
	table->length = (uint32_t)size;
	table->checksum = 0;
	table->checksum = checksum(table, size);
	return append(tables, table, size);
}

static uint64_t append_fadt(struct buffer *tables)
{
	struct facs facs = {.signature = {'F', 'A', 'C', 'S'}, .length = sizeof(facs), .version = 2};
	uint64_t facs_at = append(tables, &facs, sizeof(facs));
	uint64_t dsdt_at = append(tables, dsdt_aml_code, sizeof(dsdt_aml_code));
	struct fadt fadt = {.header = header("FACP", FADT_REVISION),
		.facs = (uint32_t)facs_at,
		.dsdt = (uint32_t)dsdt_at,
		.sci = POWER_SCI_GSI,
		.pm1a_event = POWER_EVENT_PORT,
		.pm1a_control = POWER_CONTROL_PORT,
		.pm1_event_length = PM1_EVENT_LENGTH,
		.pm1_control_length = PM1_CONTROL_LENGTH,
		.c2_latency = NO_C2_LATENCY,
		.c3_latency = NO_C2_LATENCY,
		.century = RTC_CENTURY,
		.boot_flags = BOOT_LEGACY_DEVICES | BOOT_NO_VGA,
		.flags =
			FLAG_WBINVD | FLAG_C1 | FLAG_NO_SLEEP_BUTTON | FLAG_NO_RTC_WAKE | FLAG_RESET_REGISTER,
		.reset = {SPACE_IO, 8, 0, ACCESS_BYTE, POWER_RESET_PORT},
		.reset_value = POWER_RESET_VALUE,
		.long_dsdt = dsdt_at,
		.long_pm1a_event = {SPACE_IO, PM1_EVENT_LENGTH * 8, 0, ACCESS_WORD, POWER_EVENT_PORT},
		.long_pm1a_control = {SPACE_IO, PM1_CONTROL_LENGTH * 8, 0, ACCESS_WORD, POWER_CONTROL_PORT}};

	return append_table(tables, &fadt.header, sizeof(fadt));
}

static uint64_t append_madt(struct buffer *tables, uint32_t vcpus)
{
	_cleanup_buffer_ struct buffer madt = {0};
	const struct madt head = {.header = header("APIC", 4), .lapic = LAYOUT_LAPIC, .flags = MADT_HAS_PICS};
	/* The ids of IOAPICs and processors must differ. */
	const struct madt_ioapic ioapic = {1, sizeof(ioapic), (uint8_t)vcpus, 0, LAYOUT_IOAPIC, 0};
	const struct madt_override sci = {2, sizeof(sci), 0, POWER_SCI_GSI, POWER_SCI_GSI, MADT_LEVEL_HIGH};
	const struct madt_nmi nmi = {4, sizeof(nmi), MADT_ALL_PROCESSORS, 0, 1};

	buffer_append(&madt, &head, sizeof(head));
	for (uint32_t i = 0; i < vcpus; i++) {
		const struct madt_lapic lapic = {0, sizeof(lapic), (uint8_t)i, (uint8_t)i, MADT_ENABLED};

		buffer_append(&madt, &lapic, sizeof(lapic));
	}
	buffer_append(&madt, &ioapic, sizeof(ioapic));
	buffer_append(&madt, &sci, sizeof(sci));
	buffer_append(&madt, &nmi, sizeof(nmi));
	if (madt.failed) {
		tables->failed = true;
		return 0;
	}
	return append_table(tables, (struct header *)(void *)madt.data, madt.size);
}

static uint64_t append_xsdt(struct buffer *tables, uint64_t fadt, uint64_t madt)
{
	struct {
		struct header header;
		uint64_t tables[2];
	} PACKED xsdt = {header("XSDT", 1), {fadt, madt}};

	return append_table(tables, &xsdt.header, sizeof(xsdt));
}

int acpi_write(struct memory *memory, uint32_t vcpus, struct error *error)
{
	_cleanup_buffer_ struct buffer tables = {0};
	struct rsdp rsdp = {.signature = {'R', 'S', 'D', ' ', 'P', 'T', 'R', ' '},
		.oem = {'F', 'E', 'R', 'R', 'Y', ' '},
		.revision = 2,
		.length = sizeof(rsdp)};
	uint64_t fadt, madt;

	buffer_extend(&tables, sizeof(rsdp));
	fadt = append_fadt(&tables);
	madt = append_madt(&tables, vcpus);
	rsdp.xsdt = append_xsdt(&tables, fadt, madt);
	rsdp.checksum = checksum(&rsdp, offsetof(struct rsdp, length));
	rsdp.extended_checksum = checksum(&rsdp, sizeof(rsdp));
	if (tables.failed)
		return error_set(error, ENOMEM, "Out of memory while writing the ACPI tables.");
	memcpy(tables.data, &rsdp, sizeof(rsdp));
	if (tables.size > LAYOUT_ACPI_SIZE || memory_write(memory, LAYOUT_ACPI, tables.data, tables.size) < 0)
		return error_set(error, ENOMEM, "The guest's memory is too small for the ACPI tables.");
	return 0;
}
