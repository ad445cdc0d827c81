/*
 * What the guests here share: ports, the time, and the numbers on their command line. They run in ring 3,
 * entered by start.S, with all memory and all devices' registers mapped one to one.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define PORT 0x3f8

struct start_info { /* xen/include/public/arch-x86/hvm/start_info.h */
	uint32_t magic, version, flags, modules;
	uint64_t module_list, command_line;
};

void main(const struct start_info *info);

static inline void put(uint8_t byte)
{
	__asm__ volatile("outb %0, %1" : : "a"(byte), "Nd"((uint16_t)PORT));
}

static inline uint64_t tsc(void)
{
	uint32_t low, high;

	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
	return (uint64_t)high << 32 | low;
}

/* The number after `key` on the command line, or `otherwise`. */
static inline uint64_t option(const char *line, const char *key, uint64_t otherwise)
{
	for (; *line; line++) {
		const char *at = line, *k = key;
		uint64_t value = 0;

		while (*k && *at == *k)
			at++, k++;
		if (*k)
			continue;
		while (*at >= '0' && *at <= '9')
			value = value * 10 + (uint64_t)(*at++ - '0');
		return value;
	}
	return otherwise;
}
