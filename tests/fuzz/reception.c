/*
 * What a destination reads from its source once it has accepted: the input is a row of
 * records, each
 *	u8 type (0x80 set: head not checked right), u8 argument, u8 extra length, then for PAGES `argument`
 *runs of 4 bytes (first, count, kind, -), for others `extra length` bytes of payload; heads, lengths and page
 *contents are made to fit, so that what lies behind the checks is reached.
 */
#include "base/cleanup.h"
#include "carry/receive.h"
#include "state/digest.h"

#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>

#define PAGES 64u
#define PAGE 4096u

static void put_pages(struct buffer *out, struct cursor *in, struct record *record, uint8_t extra)
{
	struct buffer runs = {0};
	uint64_t contents = 0;

	for (uint64_t i = 0; i < record->argument; i++) {
		uint8_t first = cursor_u8(in), count = cursor_u8(in), kind = cursor_u8(in);

		buffer_u64(&runs, first);
		buffer_u32(&runs, count);
		buffer_u32(&runs, kind);
		contents += kind == RUN_CONTENTS ? count : 0;
	}
	record->length = runs.size + contents * PAGE + extra;
	buffer_extend(out, RECORD_HEAD_SIZE);
	record_encode(record, out->data + out->size - RECORD_HEAD_SIZE);
	buffer_append(out, runs.data, runs.size);
	if (out->size < 1 << 17) {
		uint8_t *at = buffer_extend(out, contents * PAGE + extra);

		if (at)
			memset(at, (int)record->argument, contents * PAGE + extra);
	}
	buffer_free(&runs);
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
	uint8_t *ram;
	int pair[2];

	while (cursor_left(&in) && stream.size < 1 << 17)
		put_record(&stream, &in);
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0 ||
		ftruncate(ram_fd, PAGES * PAGE) < 0)
		return 0;
	ram = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, ram_fd, 0);
	send(pair[0], stream.data, stream.size, MSG_DONTWAIT | MSG_NOSIGNAL);
	shutdown(pair[0], SHUT_WR);
	if (wire_adopt(&wire, &nobody, pair[1], "peer", NULL) == 0 &&
		reception_begin(&reception, &wire, ram, ram_fd, PAGES, NULL) == 0) {
		reception_run(&reception, &nobody, &(struct error){0});
		reception_end(&reception);
	}
	wire_close(&wire);
	close(pair[0]);
	munmap(ram, PAGES * PAGE);
	return 0;
}
