/* What a peer or a checkpoint says a guest is: refused with a sentence, or good for a machine. */
#include "base/cleanup.h"
#include "xend/domain.h"
#include "xend/machine.h"

#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	_cleanup_guest_config_ struct guest_config config = {0};
	_cleanup_json_ json_t *json = json_loadb((const char *)data, size, JSON_REJECT_DUPLICATES, NULL),
			      *machine = NULL;
	struct message_fds list = {0};
	struct machine_files files;
	struct error error = {0};
	bool paused;

	if (!json)
		return 0;
	if (domain_unpack(json, &config, &paused, &error) < 0) {
		if (!error.text[0])
			abort();
		return 0;
	}
	machine_files_init(&files);
	machine = machine_describe(&config, &files, false, 1024, &list);
	if (!machine || list.count > CHANNEL_FDS_MAX)
		abort();
	return 0;
}
