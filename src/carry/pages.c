#include "carry/pages.h"
#include "base/bitmap.h"
#include "carry/guest.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

int pages_present(int ram_fd, uint64_t pages, uint64_t *present, struct error *error)
{
	off_t end = (off_t)(pages * PAGE_SIZE), data = 0, hole;

	memset(present, 0, bitmap_bytes(pages));
	while (data < end) {
		data = lseek(ram_fd, data, SEEK_DATA);
		if (data < 0 && errno == ENXIO)
			return 0;
		hole = data < 0 ? -1 : lseek(ram_fd, data, SEEK_HOLE);
		if (hole < 0)
			return error_set(error, errno, "Unable to look through the guest's memory: %s.",
				strerror(errno));
		for (uint64_t page = (uint64_t)data / PAGE_SIZE;
			page < pages && page * PAGE_SIZE < (uint64_t)hole; page++)
			bitmap_set(present, page);
		data = hole;
	}
	return 0;
}

typedef uint64_t vector __attribute__((vector_size(32), may_alias));

/* Most pages that are not zero show it in their first bytes; the others are read 256 bytes a step. */
static inline __attribute__((always_inline)) bool all_zero(const uint8_t *page)
{
	const vector *at = (const vector *)(const void *)page, *end = at + PAGE_SIZE / sizeof(vector);

	for (; at < end; at += 8) {
		vector any = at[0] | at[1] | at[2] | at[3] | at[4] | at[5] | at[6] | at[7];

		if (any[0] | any[1] | any[2] | any[3])
			return false;
	}
	return true;
}

static __attribute__((target("avx2"))) bool all_zero_avx2(const uint8_t *page)
{
	return all_zero(page);
}

bool page_is_zero(const uint8_t *page)
{
	return __builtin_cpu_supports("avx2") ? all_zero_avx2(page) : all_zero(page);
}

uint64_t pages_alike(const uint8_t *first, uint64_t count, bool *zero)
{
	uint64_t alike = 1;

	*zero = page_is_zero(first);
	while (alike < count && page_is_zero(first + alike * PAGE_SIZE) == *zero)
		alike++;
	return alike;
}
