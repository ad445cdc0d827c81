/*
 * The checkpoint reader. The input does not lie in the way of the digests: it is laid over a
 * whole small checkpoint, and then what the digests cover is digested anew (unless the input's
 * first byte says not to), so that what lies behind them is reached.
 *
 *	u8 which digests to leave alone (1 header, 2 sections, 4 footer), u8 length of description, u8 length
 *of state, then description and state (none: a valid one), then bytes XORed over header, extent table,
 *footer.
 */
#include "state/checkpoint.h"
#include "state/description.h"
#include "state/digest.h"
#include "state/fields.h"
#include "base/cleanup.h"

#include <string.h>
#include <sys/mman.h>

#define RAM_PAGES 1024u /* two extents */
#define TAIL_AT (CHECKPOINT_RAM_AT + RAM_PAGES * CHECKPOINT_PAGE)
#define DIGEST_AT 4088

static const char description[] =
	"{\"domain\":{\"name\":\"x\",\"uuid\":\"cc0029f5-10a1-e6d0-3c92-19b0ea021f21\","
	"\"memory_mib\":4},\"regions\":[{\"gpa\":0,\"size\":4194304,\"offset\":0}]}";

/* header, description, state, extents, footer: a block each */
struct image {
	uint8_t header[4096], blocks[3][4096], footer[4096];
	uint64_t lengths[3];
};

static void put(uint8_t *at, uint64_t value, unsigned size)
{
	memcpy(at, &value, size);
}

static void fill(struct image *image, struct cursor *in)
{
	uint8_t *header = image->header, *extent = image->blocks[2];
	size_t description_size = cursor_u8(in), state_size = cursor_u8(in);
	const void *given;

	memcpy(header, "FERRYCKP", 8);
	put(header + 8, 1, 4);
	put(header + 20, CHECKPOINT_PAGE, 4);
	put(header + 24, TAIL_AT + 4 * 4096, 8);
	put(header + 32, CHECKPOINT_RAM_AT, 8);
	put(header + 40, RAM_PAGES * (uint64_t)CHECKPOINT_PAGE, 8);
	put(header + 56, 1, 8);
	put(header + 64, 3, 4);
	memcpy(image->blocks[0], description, sizeof(description) - 1);
	image->lengths[0] = sizeof(description) - 1;
	given = cursor_take(in, description_size);
	if (given && description_size) {
		memcpy(image->blocks[0], given, description_size);
		image->lengths[0] = description_size;
	}
	given = cursor_take(in, state_size);
	if (given)
		memcpy(image->blocks[1], given, state_size);
	image->lengths[1] = given ? state_size : 0;
	put(extent, EXTENT_PLAIN, 4);
	put(extent + 8, CHECKPOINT_RAM_AT, 8);
	put(extent + 16, CHECKPOINT_EXTENT_SIZE, 8);
	put(extent + 32, 1, 8);
	image->lengths[2] = 2 * 96;
	memcpy(image->footer, "FERRYEND", 8);
	put(image->footer + 8, TAIL_AT + 4 * 4096, 8);
}

static void lay_over(uint8_t *over, size_t size, struct cursor *in)
{
	size_t left = cursor_left(in);
	const uint8_t *bytes;

	size = size < left ? size : left;
	bytes = cursor_take(in, size);
	for (size_t i = 0; i < size; i++)
		over[i] ^= bytes[i];
}

static void digest_anew(struct image *image, uint8_t leave, const uint8_t *page)
{
	uint8_t *header = image->header;

	for (unsigned i = 0; i < 3; i++) {
		uint8_t *entry = header + 128 + 32 * i;

		put(entry, i + 1, 4);
		put(entry + 4, 1, 4);
		put(entry + 8, TAIL_AT + i * 4096, 8);
		put(entry + 16, image->lengths[i], 8);
		if (!(leave & 2))
			put(entry + 24, digest_of(image->blocks[i], image->lengths[i]), 8);
	}
	put(image->blocks[2] + 24, digest_of(page, CHECKPOINT_PAGE), 8);
}

static void read_all(int fd)
{
	_cleanup_checkpoint_ struct checkpoint checkpoint = {0};
	_cleanup_free_ uint8_t *content = malloc(CHECKPOINT_EXTENT_SIZE);
	struct record_head head;
	struct cursor records;

	if (checkpoint_open(&checkpoint, fd, &(struct error){0}) < 0)
		return;
	records = cursor_over(checkpoint.state.data, checkpoint.state.size);
	while (fields_next(&records, &head, NULL) > 0)
		;
	for (uint64_t i = 0; i < checkpoint.extent_count; i++)
		if (checkpoint.extents[i].kind != EXTENT_EMPTY)
			checkpoint_read_extent(&checkpoint, i, content, NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const uint8_t page[CHECKPOINT_PAGE] = "contents";
	static int fd = -1;
	struct image *image = calloc(1, sizeof(*image));
	struct cursor in = cursor_over(data, size);
	uint8_t leave = cursor_u8(&in);

	if (fd < 0)
		fd = memfd_create("checkpoint", 0);
	fill(image, &in);
	digest_anew(image, leave, page);
	lay_over(image->header, 256, &in);
	lay_over(image->blocks[2], 192, &in);
	lay_over(image->footer, 64, &in);
	if (!(leave & 2))
		put(image->header + 128 + 64 + 24, digest_of(image->blocks[2], image->lengths[2]), 8);
	if (!(leave & 1))
		put(image->header + DIGEST_AT, digest_of(image->header, DIGEST_AT), 8);
	if (!(leave & 4))
		put(image->footer + DIGEST_AT, digest_of(image->footer, DIGEST_AT), 8);
	if (ftruncate(fd, TAIL_AT + 4 * 4096) == 0 && pwrite(fd, image->header, 4096, 0) == 4096 &&
		pwrite(fd, page, sizeof(page), CHECKPOINT_RAM_AT) == 4096 &&
		pwrite(fd, image->blocks, 3 * 4096, TAIL_AT) == 3 * 4096 &&
		pwrite(fd, image->footer, 4096, TAIL_AT + 3 * 4096) == 4096)
		read_all(fd);
	free(image);
	return 0;
}
