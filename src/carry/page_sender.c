#include "carry/page_sender.h"
#include "carry/clock.h"
#include "carry/copy.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define BATCH_PAGES                                                                                          \
	COPY_CHUNK_PAGES /* a PAGES record goes out when it has this many: they are still in the cache */

int page_sender_begin(struct page_sender *sender, struct wire *wire, struct page_sending *sending,
	uint64_t *digests, struct error *error)
{
	bool compresses = sending->compression != COMPRESSION_NO;

	*sender = (struct page_sender){.wire = wire, .sending = sending, .digests.of_page = digests};
	if (compresses)
		sender->compressed = malloc((size_t)(BATCH_PAGES + COPY_CHUNK_PAGES) * PAGE_SIZE);
	if (!compressor_begin(&sender->compressor, sending->compression, monotonic_ns()) ||
		(compresses && !sender->compressed))
		return error_set(error, ENOMEM, "Out of memory for compressing pages.");
	return 0;
}

void page_sender_end(struct page_sender *sender)
{
	compressor_end(&sender->compressor);
	free(sender->compressed);
	sender->compressed = NULL;
}

/* Waits as the rate limit says, unless xend or the peer interrupts. */
static int keep_rate(struct page_sender *sender, uint64_t bytes, struct error *error)
{
	struct page_sending *sending = sender->sending;
	int64_t began = monotonic_ns(), alive_at = began + WIRE_ALIVE_MS * NS_PER_MS;
	int64_t wait_ns = rate_take(&sending->rate, bytes, began), end = began + wait_ns;

	while (wait_ns >= NS_PER_MS) {
		int64_t now = monotonic_ns(), pause_ns = alive_at - now < wait_ns ? alive_at - now : wait_ns;
		int r = pause_ns > 0 ? wire_wait(sender->wire, (int)(pause_ns / NS_PER_MS), error) : 0;

		if (r == 2)
			r = wire_cancelled(sender->wire, error);
		else if (r == 1)
			r = peer_listen(sender->wire, error);
		else if (r == 0 && monotonic_ns() >= alive_at) {
			r = peer_send(sender->wire, RECORD_ALIVE, 0, NULL, 0, error);
			alive_at = monotonic_ns() + WIRE_ALIVE_MS * NS_PER_MS;
		}
		if (r < 0)
			return r;
		wait_ns = end - monotonic_ns();
	}
	sender->wire->waited_ns += monotonic_ns() - began;
	return 0;
}

int page_sender_flush(struct page_sender *sender, struct error *error)
{
	uint8_t head[RECORD_HEAD_SIZE];
	struct iovec parts[2 + PEER_RUNS_MAX];
	size_t runs_size = sender->run_count * sizeof(sender->runs[0]);
	uint64_t length = runs_size + sender->contents_size, pages = sender->page_count;
	int64_t waited = sender->wire->waited_ns;
	int r;

	if (sender->run_count == 0)
		return 0;
	record_encode(&(struct record){.type = RECORD_PAGES, .argument = sender->run_count, .length = length},
		head);
	parts[0] = (struct iovec){.iov_base = head, .iov_len = sizeof(head)};
	parts[1] = (struct iovec){.iov_base = sender->runs, .iov_len = runs_size};
	memcpy(parts + 2, sender->contents, sender->content_count * sizeof(parts[0]));
	r = wire_send(sender->wire, parts, 2 + sender->content_count, error);
	sender->run_count = sender->content_count = 0;
	sender->page_count = sender->contents_size = sender->compressed_size = 0;
	if (r == 0)
		r = peer_listen(sender->wire, error);
	if (r == 0)
		r = keep_rate(sender, length, error);
	compressor_measure(&sender->compressor, pages * PAGE_SIZE, length, sender->wire->waited_ns - waited,
		monotonic_ns());
	return r;
}

/* Room for one more run; the next add_run is to be given to the same record. */
static int make_room(struct page_sender *sender, struct error *error)
{
	bool full = sender->run_count == PEER_RUNS_MAX || sender->page_count >= BATCH_PAGES;

	return full ? page_sender_flush(sender, error) : 0;
}

static void add_run(struct page_sender *sender, uint64_t first, uint64_t count, uint32_t kind)
{
	sender->runs[sender->run_count++] =
		(struct peer_run){.first = first, .count = (uint32_t)count, .kind = kind};
}

int page_sender_pages(struct page_sender *sender, uint64_t first, uint64_t count, struct error *error)
{
	uint8_t *contents = sender->sending->guest->ram + first * PAGE_SIZE;
	struct iovec part = {.iov_base = contents, .iov_len = count * PAGE_SIZE};
	size_t compressed = 0;
	int r = make_room(sender, error);

	if (r < 0)
		return r;
	page_digests_set(&sender->digests, first, count, contents);
	if (sender->compressor.on) {
		uint8_t *room = sender->compressed + sender->compressed_size;

		compressed = compressor_pages(&sender->compressor, contents, count, room);
		if (compressed)
			part = (struct iovec){.iov_base = room, .iov_len = compressed};
		sender->compressed_size += compressed;
	}
	add_run(sender, first, count, compressed ? RUN_COMPRESSED | (uint32_t)compressed << 8 : RUN_CONTENTS);
	sender->contents[sender->content_count++] = part;
	sender->page_count += count;
	sender->contents_size += part.iov_len;
	return 0;
}

int page_sender_zeros(struct page_sender *sender, uint64_t first, uint64_t count, struct error *error)
{
	int r = make_room(sender, error);

	for (uint64_t page = first; page < first + count; page++)
		page_digests_clear(&sender->digests, page);
	if (r == 0)
		add_run(sender, first, count, RUN_ZERO);
	return r;
}

void page_sender_waited(struct page_sender *sender, int64_t waited_ns)
{
	compressor_measure(&sender->compressor, 0, 0, waited_ns, monotonic_ns());
}
