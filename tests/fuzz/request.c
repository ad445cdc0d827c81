/* What a client says to xend before the body of its request. */
#include "xend/http.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *text = malloc(size + 1);
	struct http_head head;
	struct error error;

	memcpy(text, data, size);
	text[size] = 0;
	if (http_parse_head(text, &head, &error) == 0 &&
		(!*head.method || !*head.path || head.body > HTTP_BODY_MAX))
		abort();
	free(text);
	return 0;
}
