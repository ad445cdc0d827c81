/*
 * The state of what KVM emulates beside the processors: the two PICs, the
 * IOAPIC and the interval timer (PIT), as field tables.
 */
#pragma once

#include "state/fields.h"
#include "vmm/kvm.h"

int chips_save(const struct kvm *kvm, struct buffer *out, struct error *error);
int chips_load(const struct kvm *kvm, const struct cursor *records, struct error *error);

/*
 * KVM's timer has ticked on while no vCPU ran, and keeps every tick to deliver it later: the guest, whose
 * time has stood still meanwhile, shall not get them. One that rings once only is left alone.
 */
void chips_forget_ticks(const struct kvm *kvm);
