#include "state/checkpoint.h"
#include "base/bitmap.h"
#include "base/cleanup.h"
#include "base/status.h"
#include "state/description.h"
#include "state/digest.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>

#define VERSION 1
#define SECTIONS_MAX 16
#define SECTION_TABLE_AT 128
#define DIGEST_AT 4088
#define SECTION_MANDATORY 1u
#define EXTENT_ENTRY 96

static const char header_magic[8] = "FERRYCKP", footer_magic[8] = "FERRYEND";

enum section_kind { SECTION_DESCRIPTION = 1, SECTION_STATE, SECTION_EXTENTS, SECTION_KINDS };

struct section {
	uint32_t kind, flags;
	uint64_t offset, length, digest;
};

struct section_rule {
	const char *name;
	uint64_t most; /* bytes; of the extent table: per extent, and exactly that */
};

static const struct section_rule section_rules[SECTION_KINDS] = {
	[SECTION_DESCRIPTION] = {"description", DESCRIPTION_MAX},
	[SECTION_STATE] = {"device state", CHECKPOINT_STATE_MAX},
	[SECTION_EXTENTS] = {"extent table", EXTENT_ENTRY},
};

/* ---- reading ---- */

static int read_at(int fd, void *to, size_t size, uint64_t offset, const char *what, struct error *error)
{
	for (size_t done = 0; done < size;) {
		ssize_t n = pread(fd, (char *)to + done, size - done, (off_t)(offset + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return error_set(error, errno, "Unable to read the checkpoint's %s: %s.", what,
				strerror(errno));
		if (n == 0)
			return error_set(
				error, EBADMSG, "The checkpoint is truncated: it ends within its %s.", what);
		done += (size_t)n;
	}
	return 0;
}

static int damaged(struct error *error, const char *what)
{
	return error_set(error, EBADMSG, "The checkpoint is damaged: its %s is not as it was written.", what);
}

static bool all_zero(const uint8_t *data, size_t size)
{
	return size == 0 || (data[0] == 0 && memcmp(data, data + 1, size - 1) == 0);
}

/* The header's verdicts 1 to 5, and its numbers. */
static int decode_header(struct checkpoint *to, const uint8_t block[CHECKPOINT_PAGE],
	struct section sections[SECTIONS_MAX], uint32_t *section_count, struct error *error)
{
	struct cursor in = cursor_over(block, CHECKPOINT_PAGE), seal = cursor_over(block + DIGEST_AT, 8);
	uint32_t version, features, page_size;
	uint64_t ram_at;

	if (all_zero(block, CHECKPOINT_PAGE))
		return error_set(
			error, EINVAL, "The checkpoint was never finished: its save was interrupted.");
	if (memcmp(cursor_take(&in, 8), header_magic, 8) != 0)
		return error_set(error, EINVAL, "The file is not a checkpoint.");
	version = cursor_u32(&in);
	features = cursor_u32(&in);
	/* A newer layout may keep its digest elsewhere, so its number decides first; a wild one is damage. */
	if (version > VERSION && version < 1000)
		return error_set(error, EINVAL,
			"The checkpoint was written by a newer Ferry (format %u; this one reads %u).",
			version, VERSION);
	if (version != VERSION || cursor_u64(&seal) != digest_of(block, DIGEST_AT))
		return damaged(error, "header");
	if (features & ~CHECKPOINT_FEATURES)
		return error_set(error, EINVAL,
			"The checkpoint was written by a newer Ferry: it uses features (0x%x) that this one "
			"does not know.",
			features & ~CHECKPOINT_FEATURES);
	to->features = features;
	to->header_digest = digest_of(block, DIGEST_AT);
	cursor_u32(&in);
	page_size = cursor_u32(&in);
	to->file_size = cursor_u64(&in);
	ram_at = cursor_u64(&in);
	to->ram_size = cursor_u64(&in);
	to->taken_realtime_ns = (int64_t)cursor_u64(&in);
	to->stored_pages = cursor_u64(&in);
	*section_count = cursor_u32(&in);
	cursor_u32(&in);
	memcpy(to->id, cursor_take(&in, sizeof(to->id)), sizeof(to->id));
	if (page_size != CHECKPOINT_PAGE || ram_at != CHECKPOINT_RAM_AT || to->ram_size == 0 ||
		to->ram_size % CHECKPOINT_PAGE || to->ram_size > CHECKPOINT_RAM_MAX ||
		*section_count > SECTIONS_MAX || to->file_size > INT64_MAX ||
		to->file_size % CHECKPOINT_PAGE ||
		to->file_size < CHECKPOINT_RAM_AT + to->ram_size + CHECKPOINT_PAGE)
		return damaged(error, "header");
	in = cursor_over(block + SECTION_TABLE_AT, DIGEST_AT - SECTION_TABLE_AT);
	for (unsigned i = 0; i < *section_count; i++) {
		sections[i].kind = cursor_u32(&in);
		sections[i].flags = cursor_u32(&in);
		sections[i].offset = cursor_u64(&in);
		sections[i].length = cursor_u64(&in);
		sections[i].digest = cursor_u64(&in);
	}
	return 0;
}

static int check_end(const struct checkpoint *checkpoint, struct error *error)
{
	uint8_t block[CHECKPOINT_PAGE];
	struct cursor size = cursor_over(block + 8, 8), seal = cursor_over(block + DIGEST_AT, 8);
	struct stat status;
	int r;

	if (status_of(checkpoint->fd, &status) < 0)
		return error_set(error, errno, "Unable to look at the checkpoint: %s.", strerror(errno));
	if (S_ISREG(status.st_mode) && (uint64_t)status.st_size < checkpoint->file_size)
		return error_set(error, EBADMSG,
			"The checkpoint is truncated: %llu of its %llu bytes are there.",
			(unsigned long long)status.st_size, (unsigned long long)checkpoint->file_size);
	if (S_ISREG(status.st_mode) && (uint64_t)status.st_size > checkpoint->file_size)
		return error_set(
			error, EBADMSG, "The checkpoint is damaged: it is longer than it was written.");
	r = read_at(checkpoint->fd, block, sizeof(block), checkpoint->file_size - CHECKPOINT_PAGE, "footer",
		error);
	if (r < 0)
		return r;
	if (memcmp(block, footer_magic, 8) != 0 || cursor_u64(&size) != checkpoint->file_size ||
		memcmp(block + 16, checkpoint->id, sizeof(checkpoint->id)) != 0 ||
		cursor_u64(&seal) != digest_of(block, DIGEST_AT))
		return damaged(error, "footer");
	return 0;
}

/* Whether the entry's kind and place fit its pages: `all` of them are stored. */
static bool extent_is_sound(const struct checkpoint *checkpoint, uint64_t index, uint64_t all)
{
	const struct checkpoint_extent *extent = &checkpoint->extents[index];
	uint64_t size = (uint64_t)checkpoint_extent_pages(checkpoint->ram_size, index) * CHECKPOINT_PAGE;

	if (extent->kind == EXTENT_EMPTY)
		return all == 0;
	if (all == 0 || extent->offset != CHECKPOINT_RAM_AT + index * CHECKPOINT_EXTENT_SIZE)
		return false;
	if (extent->kind == EXTENT_PLAIN)
		return extent->length == size;
	return extent->kind == EXTENT_ZSTD && checkpoint->features & CHECKPOINT_ZSTD && extent->length > 0 &&
	       extent->length <= size;
}

/* Reads one section into `out`, after its place and length were found good. */
static int read_section(const struct checkpoint *checkpoint, const struct section *section,
	const struct section_rule *rule, struct buffer *out, struct error *error)
{
	uint64_t end = checkpoint->file_size - CHECKPOINT_PAGE;
	int r;

	if (section->length > rule->most || section->offset % CHECKPOINT_PAGE ||
		section->offset < CHECKPOINT_RAM_AT + checkpoint->ram_size || section->offset > end ||
		section->length > end - section->offset)
		return damaged(error, rule->name);
	buffer_clear(out);
	if (section->length && !buffer_extend(out, section->length))
		return error_set(
			error, ENOMEM, "Out of memory while reading the checkpoint's %s.", rule->name);
	r = read_at(checkpoint->fd, out->data, out->size, section->offset, rule->name, error);
	if (r < 0)
		return r;
	if (digest_of(out->data, out->size) != section->digest)
		return damaged(error, rule->name);
	return 0;
}

static int decode_extents(struct checkpoint *checkpoint, const struct buffer *table, struct error *error)
{
	struct cursor in = cursor_over(table->data, table->size);
	uint64_t stored = 0;

	checkpoint->extents = calloc(checkpoint->extent_count, sizeof(*checkpoint->extents));
	if (!checkpoint->extents)
		return error_set(error, ENOMEM, "Out of memory while reading the checkpoint's extent table.");
	for (uint64_t i = 0; i < checkpoint->extent_count; i++) {
		struct checkpoint_extent *extent = &checkpoint->extents[i];
		unsigned pages = checkpoint_extent_pages(checkpoint->ram_size, i);
		uint64_t all, inside;

		extent->kind = cursor_u32(&in);
		cursor_u32(&in);
		extent->offset = cursor_u64(&in);
		extent->length = cursor_u64(&in);
		extent->digest = cursor_u64(&in);
		for (unsigned word = 0; word < ARRAY_SIZE(extent->stored); word++)
			extent->stored[word] = cursor_u64(&in);
		all = bitmap_count(extent->stored, CHECKPOINT_EXTENT_PAGES);
		inside = bitmap_count(extent->stored, pages);
		if (in.failed || all != inside || !extent_is_sound(checkpoint, i, all))
			return damaged(error, "extent table");
		stored += all;
	}
	return stored == checkpoint->stored_pages ? 0 : damaged(error, "extent table");
}

static int read_sections(
	struct checkpoint *checkpoint, const struct section *sections, uint32_t count, struct error *error)
{
	_cleanup_buffer_ struct buffer description = {0}, table = {0};
	struct buffer *const targets[SECTION_KINDS] = {
		[SECTION_DESCRIPTION] = &description,
		[SECTION_STATE] = &checkpoint->state,
		[SECTION_EXTENTS] = &table,
	};
	uint32_t seen = 0;

	for (uint32_t i = 0; i < count; i++) {
		uint32_t kind = sections[i].kind;
		struct section_rule rule;
		int r;

		if (kind == 0 || kind >= SECTION_KINDS) {
			if (sections[i].flags & SECTION_MANDATORY)
				return error_set(error, EINVAL,
					"The checkpoint was written by a newer Ferry: it has a section (kind "
					"%u) that this one "
					"does not know.",
					kind);
			continue;
		}
		rule = section_rules[kind];
		if (seen & 1u << kind)
			return damaged(error, rule.name);
		seen |= 1u << kind;
		if (kind == SECTION_EXTENTS) {
			rule.most *= checkpoint->extent_count;
			if (sections[i].length != rule.most)
				return damaged(error, rule.name);
		}
		r = read_section(checkpoint, &sections[i], &rule, targets[kind], error);
		if (r < 0)
			return r;
	}
	for (unsigned kind = 1; kind < SECTION_KINDS; kind++)
		if (!(seen & 1u << kind))
			return damaged(error, section_rules[kind].name);
	checkpoint->description = description_parse(
		(const char *)description.data, description.size, checkpoint->ram_size, error);
	if (!checkpoint->description)
		return error_prefix(error, "The checkpoint is damaged. ");
	return decode_extents(checkpoint, &table, error);
}

int checkpoint_open(struct checkpoint *checkpoint, int fd, struct error *error)
{
	struct section sections[SECTIONS_MAX];
	uint8_t block[CHECKPOINT_PAGE];
	struct stat status;
	uint32_t section_count = 0;
	int r;

	*checkpoint = (struct checkpoint){.fd = fd};
	if (status_of(fd, &status) == 0 && S_ISREG(status.st_mode) && (size_t)status.st_size < sizeof(block))
		return error_set(error, EINVAL, "The file is not a checkpoint: it has only %lld bytes.",
			(long long)status.st_size);
	r = read_at(fd, block, sizeof(block), 0, "header", error);
	if (r < 0)
		return r;
	r = decode_header(checkpoint, block, sections, &section_count, error);
	if (r < 0)
		return r;
	checkpoint->extent_count = checkpoint_extent_count(checkpoint->ram_size);
	r = check_end(checkpoint, error);
	if (r < 0)
		return r;
	if (checkpoint->features & CHECKPOINT_ZSTD) {
		checkpoint->scratch = malloc(CHECKPOINT_EXTENT_SIZE);
		if (!checkpoint->scratch)
			return error_set(error, ENOMEM, "Out of memory while reading the checkpoint.");
	}
	return read_sections(checkpoint, sections, section_count, error);
}

void checkpoint_close(struct checkpoint *checkpoint)
{
	json_decref(checkpoint->description);
	buffer_free(&checkpoint->state);
	free(checkpoint->extents);
	free(checkpoint->scratch);
	*checkpoint = (struct checkpoint){.fd = -1};
}

/* ---- writing ---- */

/* Appends a section, padded to a page, to the bytes that follow the RAM image. */
static void put_section(struct buffer *tail, struct section *section, uint32_t kind, uint64_t tail_at,
	const void *data, size_t size)
{
	*section = (struct section){.kind = kind,
		.flags = SECTION_MANDATORY,
		.offset = tail_at + tail->size,
		.length = size,
		.digest = digest_of(data, size)};
	buffer_append(tail, data, size);
	buffer_extend(tail, ALIGN_UP(tail->size, CHECKPOINT_PAGE) - tail->size);
}

static void put_seal(struct buffer *out, size_t block_at)
{
	buffer_extend(out, block_at + DIGEST_AT - out->size);
	if (!out->failed)
		buffer_u64(out, digest_of(out->data + block_at, DIGEST_AT));
}

static void encode_extents(struct checkpoint *checkpoint, struct buffer *out)
{
	for (uint64_t i = 0; i < checkpoint->extent_count; i++) {
		struct checkpoint_extent *extent = &checkpoint->extents[i];
		uint64_t pages = bitmap_count(extent->stored, CHECKPOINT_EXTENT_PAGES);

		if (!pages || extent->kind != EXTENT_ZSTD)
			extent->kind = pages ? EXTENT_PLAIN : EXTENT_EMPTY;
		if (extent->kind == EXTENT_ZSTD)
			checkpoint->features |= CHECKPOINT_ZSTD;
		else
			extent->length = pages ? (uint64_t)checkpoint_extent_pages(checkpoint->ram_size, i) *
							 CHECKPOINT_PAGE
					       : 0;
		extent->offset = pages ? CHECKPOINT_RAM_AT + i * CHECKPOINT_EXTENT_SIZE : 0;
		buffer_u32(out, extent->kind);
		buffer_u32(out, 0);
		buffer_u64(out, extent->offset);
		buffer_u64(out, extent->length);
		buffer_u64(out, pages ? extent->digest : 0);
		for (unsigned word = 0; word < ARRAY_SIZE(extent->stored); word++)
			buffer_u64(out, extent->stored[word]);
		checkpoint->stored_pages += pages;
	}
}

static void encode_header(const struct checkpoint *checkpoint, const struct section *sections, uint32_t count,
	struct buffer *out)
{
	buffer_append(out, header_magic, sizeof(header_magic));
	buffer_u32(out, VERSION);
	buffer_u32(out, checkpoint->features);
	buffer_u32(out, 0);
	buffer_u32(out, CHECKPOINT_PAGE);
	buffer_u64(out, checkpoint->file_size);
	buffer_u64(out, CHECKPOINT_RAM_AT);
	buffer_u64(out, checkpoint->ram_size);
	buffer_u64(out, (uint64_t)checkpoint->taken_realtime_ns);
	buffer_u64(out, checkpoint->stored_pages);
	buffer_u32(out, count);
	buffer_u32(out, 0);
	buffer_append(out, checkpoint->id, sizeof(checkpoint->id));
	buffer_extend(out, SECTION_TABLE_AT - out->size);
	for (uint32_t i = 0; i < count; i++) {
		buffer_u32(out, sections[i].kind);
		buffer_u32(out, sections[i].flags);
		buffer_u64(out, sections[i].offset);
		buffer_u64(out, sections[i].length);
		buffer_u64(out, sections[i].digest);
	}
	put_seal(out, 0);
}

static int write_at(int fd, const struct buffer *data, uint64_t offset, struct error *error)
{
	for (size_t done = 0; done < data->size;) {
		ssize_t n = pwrite(fd, data->data + done, data->size - done, (off_t)(offset + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return error_set(error, n < 0 ? errno : EIO, "Unable to write the checkpoint: %s.",
				strerror(n < 0 ? errno : EIO));
		done += (size_t)n;
	}
	return 0;
}

static int sync_file(int fd, struct error *error)
{
	if (fsync(fd) < 0)
		return error_set(error, errno, "Unable to write the checkpoint: %s.", strerror(errno));
	return 0;
}

int checkpoint_finish(struct checkpoint *checkpoint, struct error *error)
{
	_cleanup_buffer_ struct buffer tail = {0}, table = {0}, header = {0};
	_cleanup_free_ char *description = json_dumps(checkpoint->description, JSON_COMPACT);
	uint64_t tail_at = CHECKPOINT_RAM_AT + checkpoint->ram_size;
	struct section sections[3];
	size_t footer_at;
	int r;

	checkpoint->stored_pages = 0;
	checkpoint->features = 0;
	if (checkpoint->state.size > CHECKPOINT_STATE_MAX)
		return error_set(error, E2BIG,
			"The guest's device state is too large for a checkpoint (%zu bytes).",
			checkpoint->state.size);
	if (getrandom(checkpoint->id, sizeof(checkpoint->id), 0) != (ssize_t)sizeof(checkpoint->id))
		return error_set(error, errno, "Unable to get random numbers: %s.", strerror(errno));
	encode_extents(checkpoint, &table);
	put_section(&tail, &sections[0], SECTION_DESCRIPTION, tail_at, description,
		description ? strlen(description) : 0);
	put_section(
		&tail, &sections[1], SECTION_STATE, tail_at, checkpoint->state.data, checkpoint->state.size);
	put_section(&tail, &sections[2], SECTION_EXTENTS, tail_at, table.data, table.size);
	footer_at = tail.size;
	checkpoint->file_size = tail_at + footer_at + CHECKPOINT_PAGE;
	buffer_append(&tail, footer_magic, sizeof(footer_magic));
	buffer_u64(&tail, checkpoint->file_size);
	buffer_append(&tail, checkpoint->id, sizeof(checkpoint->id));
	put_seal(&tail, footer_at);
	encode_header(checkpoint, sections, ARRAY_SIZE(sections), &header);
	if (!description || table.failed || tail.failed || header.failed)
		return error_set(error, ENOMEM, "Out of memory while writing the checkpoint.");
	r = write_at(checkpoint->fd, &tail, tail_at, error);
	if (r == 0)
		r = sync_file(checkpoint->fd, error);
	if (r == 0)
		r = write_at(checkpoint->fd, &header, 0, error);
	return r == 0 ? sync_file(checkpoint->fd, error) : r;
}
