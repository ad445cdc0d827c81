/*
 * What a destination reads from its source once it has accepted: the input is a row of
 * records, each
 *	u8 type (0x80 set: head not checked right), u8 argument, u8 extra length, then for PAGES `argument`
 * runs of 3 bytes (first, count, kind) and a fourth for a compressed one (how it is damaged), for others
 *`extra length` bytes of payload; heads, lengths and page contents are made to fit, so that what lies behind
 *the checks is reached.
 */
#include "base/cleanup.h"
#include "carry/receive.h"
#include "state/digest.h"

#include <lz4.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>

#define PAGES 64u
#define PAGE 4096u

/* The contents of one run; a compressed one's size goes into its kind. `twist` damages it. */
static uint32_t put_contents(struct buffer *contents, uint32_t count, uint32_t kind, uint8_t twist)
{
	static uint8_t pages[0x100 * PAGE], block[LZ4_COMPRESSBOUND(0x100 * PAGE)];
	int size;

	if (contents->size > 1 << 17 || (kind != RUN_CONTENTS && kind != RUN_COMPRESSED))
		return kind;
	for (size_t i = 0; i < count * PAGE; i++)
		pages[i] = (uint8_t)(i * i / 512 + count);
	if (kind == RUN_CONTENTS) {
		buffer_append(contents, pages, count * PAGE);
		return kind;
	}
	size = LZ4_compress_default(
		(const char *)pages, (char *)block, (int)(count * PAGE), (int)sizeof(block));
	if (size <= 0)
		return kind;
	if (twist)
		block[(size_t)twist * 37 % (size_t)size] ^= twist;
	if (twist == 0xff)
		size--;
	buffer_append(contents, block, (size_t)size);
	return kind | (uint32_t)size << 8;
}

static void put_pages(struct buffer *out, struct cursor *in, struct record *record, uint8_t extra)
{
	_cleanup_buffer_ struct buffer runs = {0}, contents = {0};

	for (uint64_t i = 0; i < record->argument; i++) {
		uint8_t first = cursor_u8(in), count = cursor_u8(in), kind = cursor_u8(in);
		uint8_t twist = kind == RUN_COMPRESSED ? cursor_u8(in) : 0;

		buffer_u64(&runs, first);
		buffer_u32(&runs, count);
		buffer_u32(&runs, put_contents(&contents, count, kind, twist));
	}
	buffer_extend(&contents, extra);
	record->length = runs.size + contents.size;
	buffer_extend(out, RECORD_HEAD_SIZE);
	record_encode(record, out->data + out->size - RECORD_HEAD_SIZE);
	buffer_append(out, runs.data, runs.size);
	buffer_append(out, contents.data, contents.size);
}

static void put_record(struct buffer *out, struct cursor *in)
{
	uint8_t type = cursor_u8(in), argument = cursor_u8(in), extra = cursor_u8(in);
	struct record record = {.type = type & 0x1f, .argument = argument, .length = extra};
	size_t at = out->size;

	if (record.type == RECORD_PAGES) {
		put_pages(out, in, &record, extra);
	} else {
		const void *payload = extra <= cursor_left(in) ? cursor_take(in, extra) : NULL;

		record.length = payload ? extra : 0;
		if (record.type == RECORD_STATE)
			record.argument = digest_of(payload, record.length);
		buffer_extend(out, RECORD_HEAD_SIZE);
		record_encode(&record, out->data + at);
		buffer_append(out, payload, record.length);
	}
	if (type & 0x80 && !out->failed)
		out->data[at + 4 + type % 20] ^= 0x40;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	_cleanup_close_ int ram_fd = memfd_create("ram", MFD_CLOEXEC);
	_cleanup_buffer_ struct buffer stream = {0};
	struct cursor in = cursor_over(data, size);
	struct job nobody = {.channel = -1};
	struct reception reception;
	struct wire wire;
	int pair[2];

	while (cursor_left(&in) && stream.size < 1 << 17)
		put_record(&stream, &in);
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0 ||
		ftruncate(ram_fd, PAGES * PAGE) < 0)
		return 0;
	send(pair[0], stream.data, stream.size, MSG_DONTWAIT | MSG_NOSIGNAL);
	shutdown(pair[0], SHUT_WR);
	if (wire_adopt(&wire, &nobody, pair[1], "peer", NULL) == 0 &&
		reception_begin(&reception, &wire, ram_fd, PAGES, NULL) == 0) {
		reception.receiver.compressed = true;
		reception_run(&reception, &nobody, &(struct error){0});
		reception_end(&reception);
	}
	wire_close(&wire);
	close(pair[0]);
	return 0;
}
