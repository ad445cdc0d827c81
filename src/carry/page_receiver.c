#include "carry/page_receiver.h"
#include "carry/compress.h"
#include "carry/guest.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void page_receiver_end(struct page_receiver *receiver)
{
	free(receiver->contents);
	free(receiver->unpacked);
	receiver->contents = receiver->unpacked = NULL;
}

static int breaks_protocol(const struct page_receiver *receiver, const char *how, struct error *error)
{
	return error_set(error, EPROTO, "%s breaks the relocation protocol: %s.", receiver->wire->peer, how);
}

/* Whether the run is within one of the stripes that travel over this connection. */
static bool is_ours(const struct page_receiver *receiver, const struct peer_run *run)
{
	uint64_t stripe = run->first / PEER_STRIPE_PAGES,
		 last = (run->first + run->count - 1) / PEER_STRIPE_PAGES;

	return receiver->stripes == 0 || (stripe == last && stripe % receiver->stripes == receiver->stripe);
}

/* Whether a run is one at all: of a known kind, with a fitting size, within RAM. */
static bool run_is_sound(const struct page_receiver *receiver, const struct peer_run *run)
{
	uint32_t kind = RUN_KIND(run->kind), size = RUN_SIZE(run->kind);
	bool fits = kind == RUN_COMPRESSED
			    ? receiver->compressed && size > 0 && size < (uint64_t)run->count * PAGE_SIZE
			    : kind <= RUN_ZERO && size == 0;

	return fits && run->count > 0 && run->first < receiver->pages &&
	       run->count <= receiver->pages - run->first && is_ours(receiver, run);
}

/* The runs of a PAGES record: all within RAM, and with contents as its length says. */
static int check_runs(const struct page_receiver *receiver, const struct record *record,
	const struct peer_run *runs, struct error *error)
{
	uint64_t pages = 0, size = record->argument * sizeof(*runs);

	for (uint64_t i = 0; i < record->argument; i++) {
		const struct peer_run *run = &runs[i];

		if (!run_is_sound(receiver, run))
			return breaks_protocol(receiver,
				"pages outside the guest's memory, of another connection, or of an unknown "
				"kind",
				error);
		pages += run->kind == RUN_ZERO ? 0 : run->count;
		size += RUN_KIND(run->kind) == RUN_COMPRESSED ? RUN_SIZE(run->kind)
			: run->kind == RUN_CONTENTS           ? (uint64_t)run->count * PAGE_SIZE
							      : 0;
	}
	if (pages > PEER_PAGES_MAX || record->length != size)
		return breaks_protocol(receiver, "a record's length is wrong", error);
	return 0;
}

/* Pages that had contents and are zero now. */
static int clear_pages(struct page_receiver *receiver, const struct peer_run *run, struct error *error)
{
	for (uint64_t page = run->first; page < run->first + run->count; page++)
		if (page_digests_clear(&receiver->digests, page) &&
			fallocate(receiver->ram_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				(off_t)(page * PAGE_SIZE), PAGE_SIZE) < 0)
			return error_set(error, errno, "Unable to clear pages of the guest's memory: %s.",
				strerror(errno));
	return 0;
}

/*
 * Pages go into the guest's memory from a buffer that stays in the processor's cache: written, a fresh page
 * is neither zeroed nor mapped before (bench/NOTES.md).
 */
static int put_pages(struct page_receiver *receiver, const struct peer_run *run, const uint8_t *contents,
	struct error *error)
{
	size_t size = run->count * (size_t)PAGE_SIZE, done = 0;

	page_digests_set(&receiver->digests, run->first, run->count, contents);
	while (done < size) {
		ssize_t n = pwrite(receiver->ram_fd, contents + done, size - done,
			(off_t)(run->first * PAGE_SIZE + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return error_set(error, n < 0 ? errno : EIO,
				"Unable to fill the guest's memory: %s. Is there enough on this host?",
				strerror(n < 0 ? errno : EIO));
		done += (size_t)n;
	}
	atomic_fetch_add_explicit(&receiver->received, run->count, memory_order_relaxed);
	return 0;
}

/* Compressed runs are smaller than their pages, and there are PEER_PAGES_MAX of those at most. */
static int unpack(
	struct page_receiver *receiver, const struct peer_run *run, const uint8_t *block, struct error *error)
{
	if (!receiver->unpacked)
		receiver->unpacked = malloc((size_t)PEER_PAGES_MAX * PAGE_SIZE);
	if (!receiver->unpacked)
		return error_set(error, ENOMEM, "Out of memory for compressed pages.");
	return decompress_pages(block, RUN_SIZE(run->kind), receiver->unpacked, run->count)
		       ? 0
		       : breaks_protocol(receiver, "compressed pages are damaged", error);
}

/* All contents are here. */
static int take_runs(
	struct page_receiver *receiver, const struct peer_run *runs, uint64_t run_count, struct error *error)
{
	const uint8_t *contents = receiver->contents;
	int r = 0;

	for (uint64_t i = 0; r == 0 && i < run_count; i++) {
		const struct peer_run *run = &runs[i];

		if (run->kind == RUN_ZERO) {
			r = clear_pages(receiver, run, error);
		} else if (RUN_KIND(run->kind) == RUN_COMPRESSED) {
			r = unpack(receiver, run, contents, error);
			if (r == 0)
				r = put_pages(receiver, run, receiver->unpacked, error);
			contents += RUN_SIZE(run->kind);
		} else {
			r = put_pages(receiver, run, contents, error);
			contents += run->count * (size_t)PAGE_SIZE;
		}
	}
	return r;
}

int page_receiver_take(struct page_receiver *receiver, const struct record *record, struct error *error)
{
	struct peer_run runs[PEER_RUNS_MAX];
	struct iovec part = {.iov_base = runs, .iov_len = record->argument * sizeof(runs[0])};
	size_t size;
	int r;

	if (record->length < part.iov_len)
		return breaks_protocol(receiver, "a record is too short", error);
	if (!receiver->contents)
		receiver->contents = malloc((size_t)PEER_PAGES_MAX * PAGE_SIZE);
	if (!receiver->contents)
		return error_set(error, ENOMEM, "Out of memory for the pages that are to come.");
	size = record->length - part.iov_len;
	r = wire_receive(receiver->wire, &part, 1, error);
	if (r == 0)
		r = check_runs(receiver, record, runs, error);
	part = (struct iovec){.iov_base = receiver->contents, .iov_len = size};
	if (r == 0)
		r = wire_receive(receiver->wire, &part, 1, error);
	return r == 0 ? take_runs(receiver, runs, record->argument, error) : r;
}
