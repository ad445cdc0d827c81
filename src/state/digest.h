/*
 * The digest of checkpoints and of the relocation protocol: XXH3-64, seed 0
 * (xxHash 0.8 specification), with the best vector code that the processor has.
 *
 *	digest_of(data, size)
 *
 *	struct digest_stream stream;
 *	digest_begin(&stream);
 *	digest_add(&stream, data, size);	// as often as there are pieces
 *	digest_end(&stream)
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define XXH_STATIC_LINKING_ONLY
#include <xxhash.h>

struct digest_stream {
	XXH3_state_t state;
};

uint64_t digest_of(const void *data, size_t size);
void digest_begin(struct digest_stream *stream);
void digest_add(struct digest_stream *stream, const void *data, size_t size);
uint64_t digest_end(const struct digest_stream *stream);
