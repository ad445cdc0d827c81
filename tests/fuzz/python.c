/* A guest configuration's text, and what is made of it: options, JSON and back, the long list. */
#include "base/cleanup.h"
#include "config/guest_config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	_cleanup_guest_config_ struct guest_config config = {0}, again = {0};
	_cleanup_json_ json_t *json = NULL, *second = NULL, *warnings = NULL;
	_cleanup_buffer_ struct buffer out = {0};
	struct error error = {0};

	if (guest_config_from_text(&config, "fuzz", (const char *)data, size, NULL, 0, &error) < 0) {
		if (!error.code || !*error.text)
			abort();
		return 0;
	}
	warnings = guest_config_warnings(&config);
	guest_config_to_sxp(&config, &out);
	if (guest_config_complete(&config, &error) < 0)
		return 0;
	json = guest_config_to_json(&config);
	if (!json || guest_config_from_json(&again, json, &error) < 0)
		abort();
	second = guest_config_to_json(&again);
	if (!json_equal(json, second))
		abort();
	return 0;
}
