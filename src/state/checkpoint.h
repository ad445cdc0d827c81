/*
 * The checkpoint file: its numbers as structs, their encoding, and a reader that
 * judges a file. docs/checkpoint-format.md is the specification; names are its names.
 *
 * The reader is random access: after checkpoint_open every extent can be read
 * and checked by itself, in any order (restore reads them all; a restore that
 * follows the guest's faults reads one at a time).
 *
 * Writing: the carrier puts the RAM image in place itself (src/carry/save.c), then
 * calls checkpoint_finish.
 */
#pragma once

#include "base/buffer.h"
#include "base/error.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CHECKPOINT_PAGE 4096u
#define CHECKPOINT_RAM_AT (2ull << 20)
#define CHECKPOINT_RAM_MAX (1ull << 42)
#define CHECKPOINT_EXTENT_PAGES 512u
#define CHECKPOINT_EXTENT_SIZE (CHECKPOINT_EXTENT_PAGES * (uint64_t)CHECKPOINT_PAGE)
#define CHECKPOINT_STATE_MAX (64u << 20)

#define CHECKPOINT_ZSTD 1u /* mandatory feature: some extents are compressed */
#define CHECKPOINT_FEATURES CHECKPOINT_ZSTD

enum checkpoint_extent_kind { EXTENT_EMPTY = 0, EXTENT_PLAIN = 1, EXTENT_ZSTD = 2 };

struct checkpoint_extent {
	uint32_t kind;
	uint64_t offset, length;                       /* in the file, bytes */
	uint64_t digest;                               /* of the stored pages' contents */
	uint64_t stored[CHECKPOINT_EXTENT_PAGES / 64]; /* bit per page */
};

struct checkpoint {
	int fd;             /* borrowed */
	uint64_t file_size; /* bytes */
	uint64_t ram_size;  /* bytes */
	uint64_t stored_pages;
	int64_t taken_realtime_ns;
	uint32_t features; /* mandatory ones */
	uint8_t id[16];
	uint64_t header_digest;            /* as read: that of all other digests */
	json_t *description;               /* owned; see state/description.h */
	struct buffer state;               /* device-state records */
	struct checkpoint_extent *extents; /* owned */
	uint64_t extent_count;
	uint8_t *scratch; /* owned, an extent's size; only where there are compressed extents */
};

/* What of the file makes an extent: `size` bytes at `offset` go to `at` in its contents. Multiples of 4096.
 */
struct checkpoint_span {
	uint64_t offset;
	size_t at, size;
};

#define _cleanup_checkpoint_ __attribute__((cleanup(checkpoint_close)))

/* How many extents RAM of this size has, and how many pages extent `index` of them has. */
uint64_t checkpoint_extent_count(uint64_t ram_size);
unsigned checkpoint_extent_pages(uint64_t ram_size, uint64_t index);

/*
 * Reads and checks everything but RAM. The file is borrowed and must be readable at
 * any offset. -EINVAL or -EBADMSG with the verdict of "How a reader judges a file".
 */
int checkpoint_open(struct checkpoint *checkpoint, int fd, struct error *error);
void checkpoint_close(struct checkpoint *checkpoint);

/* Checks extent `index`, whose pages are at `content`, against its digest: -EBADMSG with a sentence that says
 * where. */
int checkpoint_verify_extent(
	const struct checkpoint *checkpoint, uint64_t index, const uint8_t *content, struct error *error);

/* Which part of the file an extent that is not empty is made of. */
struct checkpoint_span checkpoint_extent_span(const struct checkpoint *checkpoint, uint64_t index);

/*
 * Its span was read into `content` (an extent's size): puts the stored pages in their places and checks them.
 * What lies between them is undefined. -EBADMSG with a sentence that says where the damage is.
 */
int checkpoint_unpack_extent(
	struct checkpoint *checkpoint, uint64_t index, uint8_t *content, struct error *error);

/* Reads, unpacks and checks one extent that is not empty; `content` is page-aligned where the file is
 * O_DIRECT. */
int checkpoint_read_extent(
	struct checkpoint *checkpoint, uint64_t index, uint8_t *content, struct error *error);

/* The digest of an extent with these stored pages at `content` (its first page). */
uint64_t checkpoint_extent_digest(
	const uint64_t stored[CHECKPOINT_EXTENT_PAGES / 64], const uint8_t *content);

/*
 * Completes a file whose RAM image is in place and written: sections, footer, sync,
 * header, sync. Uses ram_size, taken_realtime_ns, description, state and extents of
 * `checkpoint` (kind and length of an extent only where it is compressed); fills the rest.
 */
int checkpoint_finish(struct checkpoint *checkpoint, struct error *error);
