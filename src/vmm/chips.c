#include "vmm/chips.h"
#include "base/cleanup.h"
#include "base/log.h"

#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>

static const struct field pic_fields[] = {
	FIELD(struct kvm_pic_state, last_irr, FIELD_U8),
	FIELD(struct kvm_pic_state, irr, FIELD_U8),
	FIELD(struct kvm_pic_state, imr, FIELD_U8),
	FIELD(struct kvm_pic_state, isr, FIELD_U8),
	FIELD(struct kvm_pic_state, priority_add, FIELD_U8),
	FIELD(struct kvm_pic_state, irq_base, FIELD_U8),
	FIELD(struct kvm_pic_state, read_reg_select, FIELD_U8),
	FIELD(struct kvm_pic_state, poll, FIELD_U8),
	FIELD(struct kvm_pic_state, special_mask, FIELD_U8),
	FIELD(struct kvm_pic_state, init_state, FIELD_U8),
	FIELD(struct kvm_pic_state, auto_eoi, FIELD_U8),
	FIELD(struct kvm_pic_state, rotate_on_auto_eoi, FIELD_U8),
	FIELD(struct kvm_pic_state, special_fully_nested_mode, FIELD_U8),
	FIELD(struct kvm_pic_state, init4, FIELD_U8),
	FIELD(struct kvm_pic_state, elcr, FIELD_U8),
	FIELD(struct kvm_pic_state, elcr_mask, FIELD_U8),
};
static const struct field_table pic_table = FIELD_TABLE("pic", 1, pic_fields);

/* A redirection table entry has the layout of the 82093AA data sheet, 3.2.4. */
static const struct field redirection_fields[] = {
	{"bits", FIELD_U64, 1, false, 0, sizeof(uint64_t), 1, FIELD_ALL, NULL},
};
static const struct field_table redirection_table = FIELD_TABLE("redirection", 1, redirection_fields);

static const struct field ioapic_fields[] = {
	FIELD(struct kvm_ioapic_state, base_address, FIELD_U64),
	FIELD(struct kvm_ioapic_state, ioregsel, FIELD_U32),
	FIELD(struct kvm_ioapic_state, id, FIELD_U32),
	FIELD(struct kvm_ioapic_state, irr, FIELD_U32),
	FIELD_NESTED(struct kvm_ioapic_state, redirtbl, KVM_IOAPIC_NUM_PINS, &redirection_table),
};
static const struct field_table ioapic_table = FIELD_TABLE("ioapic", 1, ioapic_fields);

static const struct field pit_channel_fields[] = {
	FIELD(struct kvm_pit_channel_state, count, FIELD_U32),
	FIELD(struct kvm_pit_channel_state, latched_count, FIELD_U16),
	FIELD(struct kvm_pit_channel_state, count_latched, FIELD_U8),
	FIELD(struct kvm_pit_channel_state, status_latched, FIELD_U8),
	FIELD(struct kvm_pit_channel_state, status, FIELD_U8),
	FIELD(struct kvm_pit_channel_state, read_state, FIELD_U8),
	FIELD(struct kvm_pit_channel_state, write_state, FIELD_U8),
	FIELD(struct kvm_pit_channel_state, write_latch, FIELD_U8),
	FIELD(struct kvm_pit_channel_state, rw_mode, FIELD_U8),
	FIELD(struct kvm_pit_channel_state, mode, FIELD_U8),
	FIELD(struct kvm_pit_channel_state, bcd, FIELD_U8),
	FIELD(struct kvm_pit_channel_state, gate, FIELD_U8),
	FIELD(struct kvm_pit_channel_state, count_load_time, FIELD_U64),
};
static const struct field_table pit_channel_table = FIELD_TABLE("pit_channel", 1, pit_channel_fields);

static const struct field pit_fields[] = {
	FIELD_NESTED(struct kvm_pit_state2, channels, 3, &pit_channel_table),
	FIELD(struct kvm_pit_state2, flags, FIELD_U32),
};
static const struct field_table pit_table = FIELD_TABLE("pit", 1, pit_fields);

struct chips {
	struct kvm_irqchip pic_master, pic_slave, ioapic;
	struct kvm_pit_state2 pit;
};

static const struct field chips_fields[] = {
	FIELD_NESTED(struct chips, pic_master.chip.pic, 1, &pic_table),
	FIELD_NESTED(struct chips, pic_slave.chip.pic, 1, &pic_table),
	FIELD_NESTED(struct chips, ioapic.chip.ioapic, 1, &ioapic_table),
	FIELD_NESTED(struct chips, pit, 1, &pit_table),
};
static const struct field_table chips_table = FIELD_TABLE("chips", 1, chips_fields);

static struct chips empty_chips(void)
{
	return (struct chips){.pic_master.chip_id = KVM_IRQCHIP_PIC_MASTER,
		.pic_slave.chip_id = KVM_IRQCHIP_PIC_SLAVE,
		.ioapic.chip_id = KVM_IRQCHIP_IOAPIC};
}

int chips_save(const struct kvm *kvm, struct buffer *out, struct error *error)
{
	struct chips chips = empty_chips();

	if (ioctl(kvm->vm, KVM_GET_IRQCHIP, &chips.pic_master) < 0 ||
		ioctl(kvm->vm, KVM_GET_IRQCHIP, &chips.pic_slave) < 0 ||
		ioctl(kvm->vm, KVM_GET_IRQCHIP, &chips.ioapic) < 0 ||
		ioctl(kvm->vm, KVM_GET_PIT2, &chips.pit) < 0)
		return error_set(error, errno,
			"KVM does not give the state of interrupt controllers and timer: %s.",
			strerror(errno));
	fields_save(out, &chips_table, 0, &chips);
	return 0;
}

int chips_load(const struct kvm *kvm, const struct cursor *records, struct error *error)
{
	struct chips chips = empty_chips();
	int r = fields_load(records, &chips_table, 0, &chips, error);

	if (r < 0)
		return r;
	if (ioctl(kvm->vm, KVM_SET_IRQCHIP, &chips.pic_master) < 0 ||
		ioctl(kvm->vm, KVM_SET_IRQCHIP, &chips.pic_slave) < 0 ||
		ioctl(kvm->vm, KVM_SET_IRQCHIP, &chips.ioapic) < 0 ||
		ioctl(kvm->vm, KVM_SET_PIT2, &chips.pit) < 0)
		return error_set(error, errno,
			"This host's KVM refuses the state of interrupt controllers and timer: %s.",
			strerror(errno));
	return 0;
}

/* Rate generator and square wave (82C54 data sheet, "Mode Definitions"). */
static bool is_periodic(const struct kvm_pit_channel_state *channel)
{
	return channel->mode == 2 || channel->mode == 3;
}

void chips_forget_ticks(const struct kvm *kvm)
{
	struct kvm_pit_state2 pit;

	if (ioctl(kvm->vm, KVM_GET_PIT2, &pit) < 0)
		log_warning("The guest's interval timer makes up for its pause: %s.", strerror(errno));
	else if (is_periodic(&pit.channels[0]) && ioctl(kvm->vm, KVM_SET_PIT2, &pit) < 0)
		log_warning("The guest's interval timer makes up for its pause: %s.", strerror(errno));
}
