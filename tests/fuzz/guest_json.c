/* A guest configuration as JSON from anybody. What is accepted must read back as it was. */
#include "base/cleanup.h"
#include "config/guest_config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	_cleanup_json_ json_t *json =
		json_loadb((const char *)data, size, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, NULL);
	_cleanup_guest_config_ struct guest_config config = {0}, again = {0};
	_cleanup_json_ json_t *written = NULL, *second = NULL;
	struct error error = {0};

	if (!json || guest_config_from_json(&config, json, &error) < 0)
		return 0;
	written = guest_config_to_json(&config);
	if (!written || guest_config_from_json(&again, written, &error) < 0)
		abort();
	second = guest_config_to_json(&again);
	if (!json_equal(written, second))
		abort();
	return 0;
}
