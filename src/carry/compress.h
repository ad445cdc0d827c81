/*
 * Pages compressed on their way to a peer, as LZ4 blocks (lz4's doc/lz4_Block_format.md), and
 * whether that is worth it: only where the line is slower than the processor.
 *
 * That is measured while pages are sent, in stretches of some 50 ms. A sender that mostly
 * waits for its line tries to compress; it goes on if more memory gets through than before.
 */
#pragma once

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define COMPRESS_PAGES 256u /* of one piece, at most */
#define COMPRESS_STRETCH_NS 50000000ll

enum compression { COMPRESSION_AUTO, COMPRESSION_YES, COMPRESSION_NO };

/* What was sent, and what it took. */
struct stretch {
	int64_t began, waited_ns; /* monotonic ns; of it waiting for the line */
	uint64_t memory_bytes, line_bytes;
};

struct compressor {
	enum compression wanted;
	bool on; /* pages are to be compressed now */
	struct stretch stretch;
	double line;       /* bytes per ns that the line took when it was the limit; 0: it was not */
	unsigned patience; /* stretches until compressing is tried again, or, while on, until the line is */
	unsigned failures; /* trials that gained nothing, in a row */
	uint8_t *copy;     /* owned: a piece of memory that nobody writes to meanwhile */
};

/* "auto", "yes", "no"; NULL is "auto". */
int compression_from_text(const char *text, enum compression *wanted, struct error *error);

/* Whether a sender that was told to find out by itself (COMPRESSION_AUTO) would compress: it waits for the
 * line for so much of the time that a byte takes (`whole_ns`), and then so many times as much gets through.
 */
bool compression_may_gain(double waits_ns, double whole_ns, double gain);

/* False when out of memory. */
bool compressor_begin(struct compressor *compressor, enum compression wanted, int64_t now_ns);
void compressor_end(struct compressor *compressor);

/*
 * Compresses up to COMPRESS_PAGES pages, which may change meanwhile (they are copied first), to `out`, which
 * has room for as many. Returns the bytes it came to, 0 where that saves too little.
 */
size_t compressor_pages(struct compressor *compressor, const uint8_t *pages, size_t count, uint8_t *out);

/* After each send: what went over the line for how much memory, and for how long the line was waited for. */
void compressor_measure(struct compressor *compressor, uint64_t memory_bytes, uint64_t line_bytes,
	int64_t waited_ns, int64_t now_ns);

/* The pages of a block that a peer sent: true only if it is whole and gives exactly `count` pages. */
bool decompress_pages(const uint8_t *block, size_t size, uint8_t *pages, size_t count);
