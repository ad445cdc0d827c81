/* Extents of a checkpoint's RAM: where they are, reading them, checking them. */
#include "base/bitmap.h"
#include "base/cleanup.h"
#include "state/checkpoint.h"
#include "state/digest.h"

#include <errno.h>
#include <string.h>
#include <zstd.h>

uint64_t checkpoint_extent_count(uint64_t ram_size)
{
	return (ram_size + CHECKPOINT_EXTENT_SIZE - 1) / CHECKPOINT_EXTENT_SIZE;
}

unsigned checkpoint_extent_pages(uint64_t ram_size, uint64_t index)
{
	uint64_t left = (ram_size - index * CHECKPOINT_EXTENT_SIZE) / CHECKPOINT_PAGE;

	return left < CHECKPOINT_EXTENT_PAGES ? (unsigned)left : CHECKPOINT_EXTENT_PAGES;
}

uint64_t checkpoint_extent_digest(const uint64_t stored[CHECKPOINT_EXTENT_PAGES / 64], const uint8_t *content)
{
	struct digest_stream stream;
	uint64_t first, count;

	digest_begin(&stream);
	for (uint64_t at = 0; (count = bitmap_run(stored, CHECKPOINT_EXTENT_PAGES, at, &first)) > 0;
		at = first + count)
		digest_add(&stream, content + first * CHECKPOINT_PAGE, count * CHECKPOINT_PAGE);
	return digest_end(&stream);
}

static int damaged(const struct checkpoint_extent *extent, struct error *error)
{
	return error_set(error, EBADMSG,
		"The checkpoint is damaged: memory in its bytes %llu to %llu is not as it was written.",
		(unsigned long long)extent->offset,
		(unsigned long long)(extent->offset + extent->length - 1));
}

int checkpoint_verify_extent(
	const struct checkpoint *checkpoint, uint64_t index, const uint8_t *content, struct error *error)
{
	const struct checkpoint_extent *extent = &checkpoint->extents[index];

	if (extent->kind == EXTENT_EMPTY ||
		checkpoint_extent_digest(extent->stored, content) == extent->digest)
		return 0;
	return damaged(extent, error);
}

/* From the first stored page to the last: what lies between costs less than asking more than once. */
struct checkpoint_span checkpoint_extent_span(const struct checkpoint *checkpoint, uint64_t index)
{
	const struct checkpoint_extent *extent = &checkpoint->extents[index];
	uint64_t first = 0, end = CHECKPOINT_EXTENT_PAGES;

	if (extent->kind == EXTENT_ZSTD)
		return (struct checkpoint_span){
			extent->offset, 0, (size_t)ALIGN_UP(extent->length, (uint64_t)CHECKPOINT_PAGE)};
	while (first < end && !bitmap_test(extent->stored, first))
		first++;
	while (end > first && !bitmap_test(extent->stored, end - 1))
		end--;
	return (struct checkpoint_span){extent->offset + first * CHECKPOINT_PAGE,
		(size_t)(first * CHECKPOINT_PAGE), (size_t)((end - first) * CHECKPOINT_PAGE)};
}

int checkpoint_unpack_extent(
	struct checkpoint *checkpoint, uint64_t index, uint8_t *content, struct error *error)
{
	const struct checkpoint_extent *extent = &checkpoint->extents[index];
	uint64_t size = bitmap_count(extent->stored, CHECKPOINT_EXTENT_PAGES) * CHECKPOINT_PAGE, first, count;
	const uint8_t *from = checkpoint->scratch;

	if (extent->kind != EXTENT_ZSTD)
		return checkpoint_verify_extent(checkpoint, index, content, error);
	/* A frame that wants to become larger than its pages is an error, and so is a smaller one. */
	if (ZSTD_decompress(checkpoint->scratch, size, content, extent->length) != size ||
		digest_of(checkpoint->scratch, size) != extent->digest)
		return damaged(extent, error);
	for (uint64_t at = 0; (count = bitmap_run(extent->stored, CHECKPOINT_EXTENT_PAGES, at, &first)) > 0;
		at = first + count) {
		memcpy(content + first * CHECKPOINT_PAGE, from, count * CHECKPOINT_PAGE);
		from += count * CHECKPOINT_PAGE;
	}
	return 0;
}

int checkpoint_read_extent(
	struct checkpoint *checkpoint, uint64_t index, uint8_t *content, struct error *error)
{
	struct checkpoint_span span = checkpoint_extent_span(checkpoint, index);

	for (size_t done = 0; done < span.size;) {
		ssize_t n = pread(checkpoint->fd, content + span.at + done, span.size - done,
			(off_t)(span.offset + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return error_set(error, errno,
				"Unable to read the checkpoint's memory in its bytes %llu to %llu: %s.",
				(unsigned long long)(span.offset + done),
				(unsigned long long)(span.offset + span.size - 1), strerror(errno));
		if (n == 0)
			return error_set(
				error, EBADMSG, "The checkpoint is truncated: it ends within its memory.");
		done += (size_t)n;
	}
	return checkpoint_unpack_extent(checkpoint, index, content, error);
}
