#include "state/digest.h"

#include <xxh_x86dispatch.h>

uint64_t digest_of(const void *data, size_t size)
{
	return XXH3_64bits(data, size);
}

void digest_begin(struct digest_stream *stream)
{
	XXH3_INITSTATE(&stream->state);
	XXH3_64bits_reset(&stream->state);
}

void digest_add(struct digest_stream *stream, const void *data, size_t size)
{
	XXH3_64bits_update(&stream->state, data, size);
}

uint64_t digest_end(const struct digest_stream *stream)
{
	return XXH3_64bits_digest(&stream->state);
}
