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

void page_digests_set(struct page_digests *digests, uint64_t first, uint64_t count, const uint8_t *contents)
{
	for (uint64_t i = 0; i < count; i++) {
		uint64_t placed[2] = {digest_of(contents + i * PAGE_SIZE, PAGE_SIZE), first + i};
		uint64_t digest = digest_of(placed, sizeof(placed));

		digests->sum += digest - digests->of_page[first + i];
		digests->of_page[first + i] = digest;
	}
}

bool page_digests_clear(struct page_digests *digests, uint64_t page)
{
	uint64_t before = digests->of_page[page];

	digests->sum -= before;
	digests->of_page[page] = 0;
	return before != 0;
}
