#include "xm/domain.h"

#include "base/cleanup.h"
#include "base/raw_bytes.h"
#include "config/guest_config.h"
#include "config/sxp.h"

#include <errno.h>
#include <string.h>

int domain_read(struct domain *domain, const json_t *json, struct error *error)
{
	*domain = (struct domain){
		.name = json_string_value(json_object_get(json, "name")),
		.uuid = json_string_value(json_object_get(json, "uuid")),
		.state = json_string_value(json_object_get(json, "state")),
		.id = json_integer_value(json_object_get(json, "id")),
		.memory_mib = json_integer_value(json_object_get(json, "memory_mib")),
		.vcpus = json_integer_value(json_object_get(json, "vcpus")),
		.cpu_time_s = json_number_value(json_object_get(json, "cpu_time_s")),
		.started_at = json_integer_value(json_object_get(json, "started_at")),
		.config = json_object_get(json, "config"),
	};
	if (!domain->name || !domain->state || !json_is_integer(json_object_get(json, "id")))
		return error_set(
			error, EPROTO, "xend's answer describes no domain: do xm and xend fit together?");
	return 0;
}

int domain_path(char path[static 256], const char *name_or_id, const char *suffix, struct error *error)
{
	bool is_id = *name_or_id && strlen(name_or_id) < 18 &&
		     strspn(name_or_id, "0123456789") == strlen(name_or_id);

	/* What passes needs no escapes in a URL. */
	if (!is_id && strcmp(name_or_id, "Domain-0") != 0 && guest_name_check(name_or_id, NULL) < 0)
		return error_set(error, ENOENT, "Domain '%s' does not exist.", name_or_id);
	snprintf(path, 256, "/domains/%s%s", name_or_id, suffix);
	return 0;
}

int domain_get(struct client *client, const char *name_or_id, struct domain *domain, json_t **json,
	struct error *error)
{
	char path[256];
	int r = domain_path(path, name_or_id, "", error);

	if (r >= 0)
		r = client_call(client, "GET", path, NULL, json, error);
	return r < 0 ? r : domain_read(domain, *json, error);
}

int domain_is_guest(const char *name_or_id, const char *done, struct error *error)
{
	bool zero = *name_or_id && strspn(name_or_id, "0") == strlen(name_or_id);

	if (zero || !strcmp(name_or_id, "Domain-0"))
		return error_set(error, EINVAL, "Domain-0 is the host itself: it cannot be %s.", done);
	return 0;
}

void domain_print_header(FILE *out)
{
	fprintf(out, "%-32s %4s %8s %5s %-6s %8s\n", "Name", "ID", "Mem(MiB)", "VCPUs", "State", "Time(s)");
}

void domain_print_row(FILE *out, const struct domain *domain)
{
	fprintf(out, "%-32s %4lld %8lld %5lld %-6s %8.1f\n", domain->name, domain->id, domain->memory_mib,
		domain->vcpus, domain->state, domain->cpu_time_s);
}

int domain_print_long(FILE *out, const struct domain *domain, struct error *error)
{
	_cleanup_guest_config_ struct guest_config config = {0};
	_cleanup_buffer_ struct buffer text = {0};
	int r;

	if (domain->config && !json_is_null(domain->config) && json_object_size(domain->config)) {
		r = guest_config_from_json(&config, domain->config, error);
		if (r < 0)
			return r;
		guest_config_to_sxp(&config, &text);
	} else { /* the host has no configuration */
		char line[64];

		buffer_append(&text, "    ", 4);
		sxp_pair(&text, "name", domain->name);
		snprintf(line, sizeof(line), "\n    (memory %lld)\n    (vcpus %lld)\n", domain->memory_mib,
			domain->vcpus);
		buffer_append(&text, line, strlen(line));
	}
	if (text.failed)
		return error_set(error, ENOMEM, "Out of memory.");
	fprintf(out, "(domain\n    (domid %lld)\n", domain->id);
	fwrite(text.data, 1, raw_bytes_of((char *)text.data, text.size), out);
	fprintf(out, "    (state %s)\n    (cpu_time %.3f)\n", domain->state, domain->cpu_time_s);
	if (domain->started_at)
		fprintf(out, "    (start_time %lld)\n", domain->started_at);
	fprintf(out, ")\n");
	return 0;
}
