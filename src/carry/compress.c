#include "carry/compress.h"
#include "carry/clock.h"
#include "carry/guest.h"

#include <errno.h>
#include <lz4.h>
#include <stdlib.h>
#include <string.h>

/* A sender that waits for so much of its time is limited by the line. */
#define LINE_LIMITS 0.3
/* One that compresses and still waits so much has processor to spare, or a peer that has none. */
#define LINE_STILL_LIMITS 0.1
/* LZ4 compresses hardly more than this in a ns: a line as fast needs no help. */
#define FAST_LINE 0.8
/* At least this much more memory is to get through, and a block is to be this much smaller. */
#define GAIN 1.1
#define PATIENCE_MAX 64u /* stretches */

int compression_from_text(const char *text, enum compression *wanted, struct error *error)
{
	static const char *const names[] = {
		[COMPRESSION_AUTO] = "auto", [COMPRESSION_YES] = "yes", [COMPRESSION_NO] = "no"};

	*wanted = COMPRESSION_AUTO;
	for (unsigned i = 0; text && i <= COMPRESSION_NO; i++)
		if (strcmp(text, names[i]) == 0) {
			*wanted = (enum compression)i;
			return 0;
		}
	return text ? error_set(error, EINVAL, "Compression is yes, no or auto, not '%s'.", text) : 0;
}

bool compression_may_gain(double waits_ns, double whole_ns, double gain)
{
	return waits_ns > LINE_LIMITS * whole_ns && whole_ns * FAST_LINE > 1 && gain >= GAIN;
}

bool compressor_begin(struct compressor *compressor, enum compression wanted, int64_t now_ns)
{
	*compressor = (struct compressor){
		.wanted = wanted, .on = wanted == COMPRESSION_YES, .stretch.began = now_ns};
	if (wanted != COMPRESSION_NO)
		compressor->copy = malloc(COMPRESS_PAGES * PAGE_SIZE);
	return wanted == COMPRESSION_NO || compressor->copy;
}

void compressor_end(struct compressor *compressor)
{
	free(compressor->copy);
	compressor->copy = NULL;
}

size_t compressor_pages(struct compressor *compressor, const uint8_t *pages, size_t count, uint8_t *out)
{
	size_t size = count * PAGE_SIZE;
	int done;

	if (count > COMPRESS_PAGES)
		return 0;
	memcpy(compressor->copy, pages, size);
	done = LZ4_compress_default(
		(const char *)compressor->copy, (char *)out, (int)size, (int)((double)size / GAIN));
	return done > 0 ? (size_t)done : 0;
}

static void try_later(struct compressor *compressor)
{
	unsigned patience = 2u << (compressor->failures < 8 ? compressor->failures : 8);

	compressor->on = false;
	compressor->patience = patience < PATIENCE_MAX ? patience : PATIENCE_MAX;
	compressor->failures++;
}

/* A stretch without compression is over. */
static void judge_plain(struct compressor *compressor, const struct stretch *stretch, double ns)
{
	bool limits = (double)stretch->waited_ns > LINE_LIMITS * ns;

	compressor->line = limits ? (double)stretch->line_bytes / ns : 0;
	if (compressor->patience)
		compressor->patience--;
	else if (limits && compressor->line < FAST_LINE) {
		compressor->on = true;
		compressor->patience = PATIENCE_MAX;
	}
}

/*
 * What counts is how much memory gets through. A sender that waits says little here: it may wait for a peer
 * whose processor is busy unpacking.
 */
static void judge_compressed(struct compressor *compressor, const struct stretch *stretch, double ns)
{
	bool waits = (double)stretch->waited_ns > LINE_STILL_LIMITS * ns;
	double memory = (double)stretch->memory_bytes;

	if (waits && memory < (double)stretch->line_bytes * GAIN) {
		/* This memory does not compress; what comes next may, and a trial costs little. */
		compressor->on = false;
		compressor->patience = 1;
	} else if (memory / ns < compressor->line * GAIN) {
		try_later(compressor);
	} else {
		compressor->failures = 0;
		/* How fast the line is cannot be seen now: look once in a while. */
		if (compressor->patience-- == 0) {
			compressor->on = false;
			compressor->patience = 0;
		}
	}
}

void compressor_measure(struct compressor *compressor, uint64_t memory_bytes, uint64_t line_bytes,
	int64_t waited_ns, int64_t now_ns)
{
	struct stretch *stretch = &compressor->stretch;
	int64_t ns = now_ns - stretch->began;

	stretch->memory_bytes += memory_bytes;
	stretch->line_bytes += line_bytes;
	stretch->waited_ns += waited_ns;
	if (compressor->wanted != COMPRESSION_AUTO || ns < COMPRESS_STRETCH_NS)
		return;
	if (compressor->on)
		judge_compressed(compressor, stretch, (double)ns);
	else
		judge_plain(compressor, stretch, (double)ns);
	*stretch = (struct stretch){.began = now_ns};
}

bool decompress_pages(const uint8_t *block, size_t size, uint8_t *pages, size_t count)
{
	int room = (int)(count * PAGE_SIZE);

	return LZ4_decompress_safe((const char *)block, (char *)pages, (int)size, room) == room;
}
