#include "carry/proof.h"
#include "base/bitmap.h"
#include "carry/clock.h"
#include "carry/page_digests.h"
#include "carry/pages.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#define STEP_PAGES 64u /* a small part of a ms */

int proof_begin(struct proof *proof, const struct guest *guest, const uint64_t *sent, struct error *error)
{
	*proof = (struct proof){.guest = guest,
		.sent = sent,
		.suspects = calloc(bitmap_words(guest->pages), sizeof(uint64_t))};
	return proof->suspects ? 0 : error_set(error, ENOMEM, "Out of memory for the carrier's page maps.");
}

void proof_end(struct proof *proof)
{
	free(proof->suspects);
	proof->suspects = NULL;
}

/* Of what was sent of the page last; another thread may be sending it. */
static uint64_t digest_sent(const struct proof *proof, uint64_t page)
{
	return __atomic_load_n(&proof->sent[page], __ATOMIC_RELAXED);
}

void proof_lap(struct proof *proof)
{
	proof->left = proof->guest->pages;
	proof->data = 0; /* it may have more by now */
}

/* Whether the guest has this page; one that it has not is not read, since that would give it one. */
static bool is_there(struct proof *proof, uint64_t page)
{
	off_t data;

	if (page < proof->data)
		return false;
	data = lseek(proof->guest->ram_fd, (off_t)(page * PAGE_SIZE), SEEK_DATA);
	proof->data = data < 0 ? proof->guest->pages : (uint64_t)data / PAGE_SIZE;
	return page == proof->data;
}

static bool is_as_sent(struct proof *proof, uint64_t page)
{
	const uint8_t *contents = proof->guest->ram + page * PAGE_SIZE;
	uint64_t sent = digest_sent(proof, page);

	return sent ? page_digest(page, contents) == sent : !is_there(proof, page) || page_is_zero(contents);
}

static int lost(uint64_t page, struct error *error)
{
	return error_set(error, EBADMSG,
		"Page %llu of the guest's memory is not what was sent or saved of it, although nothing told "
		"that it was written since: given up, and the guest runs on here. This is a fault of Ferry "
		"or of "
		"this host's kernel; please report it.",
		(unsigned long long)page);
}

int proof_step(struct proof *proof, bool still, struct error *error)
{
	int64_t began = monotonic_ns();
	uint64_t count = proof->left < STEP_PAGES ? proof->left : STEP_PAGES;
	int r = 0;

	for (uint64_t i = 0; r == 0 && i < count; i++) {
		uint64_t page = proof->at;

		if (!is_as_sent(proof, page)) {
			if (still)
				r = lost(page, error);
			bitmap_set(proof->suspects, page);
		}
		proof->at = (page + 1) % proof->guest->pages;
		if (proof->at == 0)
			proof->data = 0;
	}
	proof->left -= count;
	proof->passed += count;
	proof->spent_ns += monotonic_ns() - began;
	return r;
}

int proof_clear(struct proof *proof, struct error *error)
{
	uint64_t pages = proof->guest->pages, page, count;

	proof->data = 0; /* these need not be ahead */
	for (uint64_t at = 0; (count = bitmap_run(proof->suspects, pages, at, &page)) > 0; at = page + count)
		for (uint64_t i = page; i < page + count; i++)
			if (!is_as_sent(proof, i))
				return lost(i, error);
	return 0;
}

void proof_sent_again(struct proof *proof, uint64_t first, uint64_t count)
{
	for (uint64_t page = first; page < first + count; page++)
		bitmap_clear(proof->suspects, page);
}

int64_t proof_left_ns(const struct proof *proof)
{
	return proof->passed
		       ? (int64_t)((double)proof->spent_ns / (double)proof->passed * (double)proof->left)
		       : 0;
}
