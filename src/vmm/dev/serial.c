#include "vmm/dev/serial.h"
#include "base/cleanup.h"
#include "vmm/bus.h"
#include "vmm/interrupts.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define COM1_PORT 0x3f8u
#define COM1_GSI 4u
#define FIFO_SIZE 16u

/* Registers by offset (PC16550D, table II); the first two are the divisor while LCR_DIVISOR is set. */
enum {
	DATA,
	INTERRUPT_ENABLE,
	INTERRUPT_ID,
	LINE_CONTROL,
	MODEM_CONTROL,
	LINE_STATUS,
	MODEM_STATUS,
	SCRATCH
};

#define IER_RECEIVED 0x01u
#define IER_TRANSMITTER_EMPTY 0x02u
#define IIR_NONE 0x01u
#define IIR_TRANSMITTER_EMPTY 0x02u
#define IIR_RECEIVED 0x04u
#define IIR_FIFOS 0xc0u
#define FCR_ENABLE 0x01u
#define FCR_CLEAR_RECEIVER 0x02u
#define LCR_DIVISOR 0x80u
#define MCR_DTR 0x01u
#define MCR_RTS 0x02u
#define MCR_OUT1 0x04u
#define MCR_OUT2 0x08u
#define MCR_LOOP 0x10u
#define LSR_DATA 0x01u
#define LSR_OVERRUN 0x02u
#define LSR_TRANSMITTER_EMPTY 0x60u /* holding register and shift register */
#define MSR_CTS 0x10u
#define MSR_DSR 0x20u
#define MSR_RI 0x40u
#define MSR_DCD 0x80u

struct serial {
	struct device device;
	struct platform *platform;
	struct bus_range range;
	struct console_port port;
	uint8_t divisor[2], interrupt_enable, fifo_control, line_control, modem_control, line_status, scratch;
	bool transmitter_interrupt; /* the transmitter has become empty and the guest has not been told yet */
	bool line;                  /* the interrupt line's level */
	uint32_t received;          /* bytes in fifo */
	uint8_t fifo[FIFO_SIZE];
};

static const struct field serial_fields[] = {
	FIELD(struct serial, divisor, FIELD_U8),
	FIELD(struct serial, interrupt_enable, FIELD_U8),
	FIELD(struct serial, fifo_control, FIELD_U8),
	FIELD(struct serial, line_control, FIELD_U8),
	FIELD(struct serial, modem_control, FIELD_U8),
	FIELD(struct serial, line_status, FIELD_U8),
	FIELD(struct serial, scratch, FIELD_U8),
	FIELD(struct serial, transmitter_interrupt, FIELD_BOOL),
	FIELD(struct serial, line, FIELD_BOOL),
	FIELD(struct serial, received, FIELD_U32),
	FIELD(struct serial, fifo, FIELD_U8),
};
static const struct field_table serial_state = FIELD_TABLE("serial", 1, serial_fields);

/* What the interrupt identification register says (PC16550D, table IV). */
static uint8_t interrupt_id(const struct serial *serial)
{
	if (serial->interrupt_enable & IER_RECEIVED && serial->received)
		return IIR_RECEIVED;
	if (serial->interrupt_enable & IER_TRANSMITTER_EMPTY && serial->transmitter_interrupt)
		return IIR_TRANSMITTER_EMPTY;
	return IIR_NONE;
}

static void update_line(struct serial *serial)
{
	bool line = interrupt_id(serial) != IIR_NONE;

	if (line == serial->line)
		return;
	serial->line = line;
	interrupts_line(serial->platform->interrupts, COM1_GSI, line);
}

static unsigned fifo_depth(const struct serial *serial)
{
	return serial->fifo_control & FCR_ENABLE ? FIFO_SIZE : 1;
}

static void receive(struct serial *serial, uint8_t byte)
{
	if (serial->received < fifo_depth(serial))
		serial->fifo[serial->received++] = byte;
	else
		serial->line_status |= LSR_OVERRUN;
}

/* Takes typed bytes as long as there is room for them. */
static void take_input(void *context)
{
	struct serial *serial = context;
	unsigned depth = fifo_depth(serial);

	if (serial->modem_control & MCR_LOOP || serial->received >= depth)
		return;
	serial->received += (uint32_t)console_input(
		&serial->port, serial->fifo + serial->received, depth - serial->received);
	update_line(serial);
}

static uint8_t read_data(struct serial *serial)
{
	uint8_t byte = 0;

	if (serial->received) {
		byte = serial->fifo[0];
		serial->received--;
		memmove(serial->fifo, serial->fifo + 1, serial->received);
		take_input(serial);
	}
	return byte;
}

/* In loop-back mode the modem's inputs are its outputs (PC16550D, 8.6.7). */
static uint8_t modem_status(const struct serial *serial)
{
	unsigned outputs = serial->modem_control;

	if (!(outputs & MCR_LOOP))
		return MSR_CTS | MSR_DSR | MSR_DCD;
	return (uint8_t)((outputs & MCR_RTS ? MSR_CTS : 0) | (outputs & MCR_DTR ? MSR_DSR : 0) |
			 (outputs & MCR_OUT1 ? MSR_RI : 0) | (outputs & MCR_OUT2 ? MSR_DCD : 0));
}

static uint8_t read_register(struct serial *serial, uint64_t offset)
{
	uint8_t value;

	switch (offset) {
	case DATA:
		return serial->line_control & LCR_DIVISOR ? serial->divisor[0] : read_data(serial);
	case INTERRUPT_ENABLE:
		return serial->line_control & LCR_DIVISOR ? serial->divisor[1] : serial->interrupt_enable;
	case INTERRUPT_ID:
		value = interrupt_id(serial);
		if (value == IIR_TRANSMITTER_EMPTY)
			serial->transmitter_interrupt = false;
		return value | (serial->fifo_control & FCR_ENABLE ? IIR_FIFOS : 0);
	case LINE_CONTROL:
		return serial->line_control;
	case MODEM_CONTROL:
		return serial->modem_control;
	case LINE_STATUS:
		value = serial->line_status;
		serial->line_status &= (uint8_t)~LSR_OVERRUN;
		return value | LSR_TRANSMITTER_EMPTY | (serial->received ? LSR_DATA : 0);
	case MODEM_STATUS:
		return modem_status(serial);
	default:
		return serial->scratch;
	}
}

static void transmit(struct serial *serial, uint8_t byte)
{
	if (serial->modem_control & MCR_LOOP)
		receive(serial, byte);
	else
		console_output(&serial->port, &byte, sizeof(byte));
	serial->transmitter_interrupt = true;
}

static void write_register(struct serial *serial, uint64_t offset, uint8_t value)
{
	bool enabled;

	switch (offset) {
	case DATA:
		if (serial->line_control & LCR_DIVISOR)
			serial->divisor[0] = value;
		else
			transmit(serial, value);
		break;
	case INTERRUPT_ENABLE:
		if (serial->line_control & LCR_DIVISOR) {
			serial->divisor[1] = value;
			break;
		}
		/* Enabling the interrupt of an empty transmitter raises it (PC16550D, 8.6.5). */
		enabled = value & ~serial->interrupt_enable & IER_TRANSMITTER_EMPTY;
		serial->interrupt_enable = value & 0x0f;
		if (enabled)
			serial->transmitter_interrupt = true;
		break;
	case INTERRUPT_ID: /* the FIFO control register when written */
		if (value & FCR_CLEAR_RECEIVER || (value ^ serial->fifo_control) & FCR_ENABLE)
			serial->received = 0;
		serial->fifo_control = value & 0xc9;
		break;
	case LINE_CONTROL:
		serial->line_control = value;
		break;
	case MODEM_CONTROL:
		serial->modem_control = value & 0x1f;
		break;
	case SCRATCH:
		serial->scratch = value;
		break;
	default: /* the status registers are read-only */
		break;
	}
	take_input(serial);
}

static void serial_read(void *context, uint64_t offset, void *data, unsigned size)
{
	struct serial *serial = context;

	(void)size; /* byte registers: a wider access reads the first, the rest is all ones */
	*(uint8_t *)data = read_register(serial, offset);
	update_line(serial);
}

static void serial_write(void *context, uint64_t offset, const void *data, unsigned size)
{
	struct serial *serial = context;

	(void)size;
	write_register(serial, offset, *(const uint8_t *)data);
	update_line(serial);
}

static int serial_after_load(struct device *device, struct error *error)
{
	struct serial *serial = CONTAINER_OF(device, struct serial, device);

	if (serial->received > FIFO_SIZE)
		return error_set(error, EINVAL, "The serial port's state has %u bytes in a FIFO of %u.",
			serial->received, FIFO_SIZE);
	interrupts_line(serial->platform->interrupts, COM1_GSI, serial->line);
	return 0;
}

static void serial_free(struct device *device)
{
	struct serial *serial = CONTAINER_OF(device, struct serial, device);

	console_port_remove(&serial->port);
	bus_remove(serial->platform->ports, &serial->range);
	free(serial);
}

static const struct device_class serial_class = {
	.state = &serial_state,
	.after_load = serial_after_load,
	.free = serial_free,
};

struct device *serial_new(struct platform *platform, struct console_hub *hub, struct error *error)
{
	struct serial *serial = calloc(1, sizeof(*serial));

	if (!serial) {
		error_set(error, ENOMEM, "Out of memory while making the serial port.");
		return NULL;
	}
	serial->device.class = &serial_class;
	serial->platform = platform;
	serial->range = (struct bus_range){.name = "COM1",
		.base = COM1_PORT,
		.size = 8,
		.read = serial_read,
		.write = serial_write,
		.context = serial};
	serial->port = (struct console_port){.input = take_input, .context = serial};
	if (bus_add(platform->ports, &serial->range) < 0) {
		error_set(error, EEXIST, "The serial port's I/O ports are taken.");
		free(serial);
		return NULL;
	}
	console_port_add(hub, &serial->port);
	platform_add(platform, &serial->device);
	return &serial->device;
}
