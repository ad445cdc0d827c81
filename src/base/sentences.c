#include "base/sentences.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

void sentence_printable(char *text)
{
	for (; *text; text++)
		if ((unsigned char)*text < 0x20 || *text == 0x7f)
			*text = ' ';
}

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
		snprintf(error->text + used, sizeof(error->text) - used, "%s%s", count > 1 ? "\n  - " : " ",
			sentence);
		sentence_printable(error->text + used + (count > 1 ? 1 : 0));
	}
	return -EPERM;
}
