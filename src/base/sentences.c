#include "base/sentences.h"
#include "base/printable.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

int sentences_refused(struct error *error, const char *host, const json_t *objections)
{
	size_t count = json_array_size(objections);

	error_set(error, EPERM,
		count > 1 ? "%s refuses the guest, for %zu reasons:" : "%s refuses the guest:", host, count);
	for (size_t i = 0; i < count; i++) {
		const char *sentence = json_string_value(json_array_get(objections, i));
		size_t used = strlen(error->text);

		if (!sentence)
			continue;
		snprintf(error->text + used, sizeof(error->text) - used, "%s", count > 1 ? "\n  - " : " ");
		used = strlen(error->text);
		printable(sentence, strlen(sentence), PRINTABLE_LINE, error->text + used,
			sizeof(error->text) - used);
	}
	return -EPERM;
}
