/* xend-config.sxp: the expressions, and the options in them. */
#include "base/cleanup.h"
#include "config/sxp.h"
#include "config/xend_config.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	_cleanup_xend_config_ struct xend_config config = {0};
	_cleanup_value_ struct value list = {0};

	sxp_parse(&list, "fuzz", (const char *)data, size, NULL);
	/* The C library's regcomp takes gigabytes for (a{999}){999}; only root writes this file. */
	if (!memchr(data, '{', size))
		xend_config_parse(&config, "fuzz", (const char *)data, size, NULL);
	return 0;
}
