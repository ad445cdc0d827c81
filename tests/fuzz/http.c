/* What listens on xend's socket answers xm with anything. In one piece and in pieces the same has to come of
 * it. */
#include "base/cleanup.h"
#include "xm/http.h"

#include <errno.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int keep(void *context, const char *bytes, size_t size)
{
	if (!size)
		abort();
	buffer_append(context, bytes, size);
	return 0;
}

/* Pieces of `piece` bytes, each in memory of its own, so that a byte read beyond it shows. */
static int take(
	struct http_answer *answer, const uint8_t *data, size_t size, size_t piece, struct buffer *body)
{
	int r = 0;

	for (size_t at = 0; at < size && r >= 0; at += piece) {
		size_t part = piece < size - at ? piece : size - at;
		_cleanup_free_ char *bytes = malloc(part);

		if (!bytes)
			abort();
		memcpy(bytes, data + at, part);
		r = http_answer_take(answer, bytes, part, keep, body);
	}
	return r < 0 ? r : http_answer_end(answer);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct http_answer whole = {0}, cut = {0};
	_cleanup_buffer_ struct buffer body = {0}, same = {0};
	int r = take(&whole, data, size, size ? size : 1, &body);

	if (take(&cut, data, size, size % 5 + 1, &same) != r || whole.status != cut.status ||
		whole.part != cut.part || whole.fault != cut.fault || body.size != same.size ||
		(body.size && memcmp(body.data, same.data, body.size) != 0))
		abort();
	if (body.size > size || (whole.fault != NULL) != (r == -EPROTO) ||
		(r == 0) != (whole.part == HTTP_COMPLETE))
		abort();
	return 0;
}
