#include "carry/page_digests.h"
#include "carry/guest.h"
#include "state/digest.h"

#include <stdlib.h>

bool page_digests_begin(struct page_digests *digests, uint64_t pages)
{
	*digests = (struct page_digests){.of_page = calloc(pages, sizeof(*digests->of_page))};
	return digests->of_page;
}

void page_digests_free(struct page_digests *digests)
{
	free(digests->of_page);
	digests->of_page = NULL;
}

uint64_t page_digest(uint64_t page, const uint8_t *contents)
{
	const uint64_t placed[2] = {digest_of(contents, PAGE_SIZE), page};

	return digest_of(placed, sizeof(placed));
}

/* Another thread may look at it (proof.h). */
static void replace(struct page_digests *digests, uint64_t page, uint64_t digest)
{
	digests->sum += digest - digests->of_page[page];
	__atomic_store_n(&digests->of_page[page], digest, __ATOMIC_RELAXED);
}

void page_digests_set(struct page_digests *digests, uint64_t first, uint64_t count, const uint8_t *contents)
{
	for (uint64_t i = 0; i < count; i++)
		replace(digests, first + i, page_digest(first + i, contents + i * PAGE_SIZE));
}

bool page_digests_clear(struct page_digests *digests, uint64_t page)
{
	uint64_t before = digests->of_page[page];

	replace(digests, page, 0);
	return before != 0;
}
