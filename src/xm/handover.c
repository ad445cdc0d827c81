#include "xm/handover.h"

#include "base/cleanup.h"
#include "xm/domain.h"

#include <errno.h>
#include <stdio.h>

static int explain(struct xm *xm, const char *path, struct error *error)
{
	_cleanup_json_ json_t *reply = NULL;
	const json_t *lines;
	int r = client_call(&xm->client, "GET", path, NULL, &reply, error);

	if (r < 0)
		return r;
	lines = json_object_get(reply, "explanation");
	for (size_t i = 0; i < json_array_size(lines); i++) {
		const char *line = json_string_value(json_array_get(lines, i));

		printf("%s\n", line ? line : "");
	}
	return 0;
}

int handover_resolve(struct xm *xm, const struct arguments *arguments, struct error *error)
{
	bool keep = option_given(arguments, "keep"), forget = option_given(arguments, "forget");
	const char *domain = arguments->words[0];
	_cleanup_json_ json_t *body = NULL;
	char path[256];
	int r;

	if (arguments->word_count != 1 || (keep && forget) || !option_given(arguments, "resolve")) {
		xm->wrong_arguments = true;
		return error_set(error, EINVAL,
			"xm migrate --resolve takes a <Domain>, and --keep or --forget where you are sure.");
	}
	r = domain_is_guest(domain, "migrated", error);
	if (r >= 0)
		r = domain_path(path, domain, "/handover", error);
	if (r < 0 || (!keep && !forget))
		return r < 0 ? r : explain(xm, path, error);
	body = json_pack("{s:s}", "settle", keep ? "keep" : "forget");
	return client_call(&xm->client, "POST", path, body, NULL, error);
}
