/* What a peer says before it is accepted: HELLO, record heads, and an OFFER's description. */
#include "base/cleanup.h"
#include "carry/peer.h"
#include "state/description.h"
#include "state/digest.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	_cleanup_json_ json_t *description = NULL, *regions = json_pack("[{s:i, s:i, s:i}]", "gpa", 0, "size",
							   4194304, "offset", 0);
	uint8_t hello[HELLO_SIZE] = {0}, head[RECORD_HEAD_SIZE] = {0};
	uint64_t seal;
	struct hello said;
	struct record record;

	memcpy(hello, data, size < sizeof(hello) ? size : sizeof(hello));
	seal = digest_of(hello, 56);
	memcpy(hello + 56, &seal, sizeof(seal));
	hello_decode(&said, hello, &(struct error){0});
	memcpy(head, data, size < sizeof(head) ? size : sizeof(head));
	memset(head + 4, 0, 4);
	seal = digest_of(head, sizeof(head));
	memcpy(head + 4, &seal, 4);
	record_decode(&record, head, &(struct error){0});
	description = description_parse((const char *)data, size, 4 << 20, &(struct error){0});
	if (description)
		description_match_regions(description, regions, &(struct error){0});
	return 0;
}
