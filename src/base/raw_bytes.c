#include "base/raw_bytes.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>

size_t raw_bytes_of(char *text, size_t size)
{
	size_t to = 0;

	for (size_t at = 0; at < size; to++) {
		const uint8_t *c = (const uint8_t *)text + at;

		/* U+EF80 to U+EFFF in UTF-8: EE BE 80 to EE BF BF. */
		if (size - at >= 3 && c[0] == 0xee && (c[1] == 0xbe || c[1] == 0xbf) &&
			(c[2] & 0xc0) == 0x80) {
			text[to] = (char)(c[1] << 6 | (c[2] & 0x3f));
			at += 3;
		} else {
			text[to] = text[at++];
		}
	}
	return to;
}

const char *host_path(const char *text, char path[static HOST_PATH_MAX])
{
	/* With its end. */
	size_t size = (size_t)snprintf(path, HOST_PATH_MAX, "%s", text) + 1;

	raw_bytes_of(path, size < HOST_PATH_MAX ? size : HOST_PATH_MAX);
	return path;
}
