/*
 * The state of what KVM emulates beside the processors: the two PICs, the
 * IOAPIC and the interval timer (PIT), as field tables.
 */
#pragma once

#include "state/fields.h"
#include "vmm/kvm.h"

int chips_save(const struct kvm *kvm, struct buffer *out, struct error *error);
int chips_load(const struct kvm *kvm, const struct cursor *records, struct error *error);
