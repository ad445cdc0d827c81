/* What stands against a guest's being here: its name, its uuid, memory, disks and network of the others. */
#include "base/cleanup.h"
#include "base/printable.h"
#include "xend/disks.h"
#include "xend/domain.h"
#include "xend/memory.h"
#include "xend/shared_memory.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

/* As if `without` (NULL: nobody) had none. */
static int memory_free(struct xend *xend, const struct domain *without, uint64_t *mib, struct error *error)
{
	uint64_t promised_mib = 0, taken_kib = 0;
	struct host_memory host;
	int r = host_memory_read(&host, error);

	if (r < 0)
		return r;
	for (struct domain *domain = xend->domains; domain; domain = domain->next) {
		if (domain == without)
			continue;
		if (domain->shared_memory) {
			uint64_t own_kib = shared_memory_own_kib(domain),
				 reserve_mib = shared_memory_reserve_mib(&domain->config);

			promised_mib += GUEST_OVERHEAD_MIB +
					(own_kib / 1024 > reserve_mib ? own_kib / 1024 : reserve_mib);
			taken_kib += own_kib;
		} else {
			promised_mib += domain->config.memory + GUEST_OVERHEAD_MIB;
			taken_kib += memory_taken_kib(domain->ram);
		}
	}
	for (struct shared_memory *shared = xend->shared_memories; shared; shared = shared->next) {
		promised_mib += shared->mib;
		taken_kib += memory_taken_kib(shared->ram);
	}
	*mib = memory_free_mib(&host, promised_mib, taken_kib, xend->config.dom0_min_mem);
	return 0;
}

/* Who wants to be a domain. */
struct newcomer {
	const struct guest_config *config;
	bool is_clone;             /* its memory is that of the shared memory, which is counted already */
	const struct domain *self; /* who is in the list already, else NULL */
};

static int admit_name(struct xend *xend, const struct newcomer *newcomer, size_t index, struct error *error)
{
	const struct guest_config *config = newcomer->config;
	const struct domain *other = domain_by_name(xend, config->name);

	(void)index;
	if (!other)
		return 0;
	return error_set(error, EEXIST,
		"Domain '%s' exists already with ID %u; destroy or rename that one first, or choose "
		"another name.",
		config->name, other->id);
}

static int admit_uuid(struct xend *xend, const struct newcomer *newcomer, size_t index, struct error *error)
{
	const struct guest_config *config = newcomer->config;
	const struct domain *other = domain_by_uuid(xend, config->uuid);

	(void)index;
	if (!other)
		return 0;
	return error_set(error, EEXIST,
		"The uuid %s of domain '%s' is in use by domain '%s' with ID %u: they are the same "
		"guest. Destroy "
		"that one first.",
		config->uuid, config->name, other->config.name, other->id);
}

static int admit_memory(struct xend *xend, const struct newcomer *newcomer, size_t index, struct error *error)
{
	const struct guest_config *config = newcomer->config;
	uint64_t memory = newcomer->is_clone ? shared_memory_reserve_mib(config) : config->memory, free_mib;
	uint64_t needed = memory + GUEST_OVERHEAD_MIB;
	int r = memory_free(xend, newcomer->self, &free_mib, error);

	(void)index;
	if (r < 0 || needed <= free_mib)
		return r;
	if (newcomer->is_clone)
		return error_set(error, ENOMEM,
			"Domain '%s' needs %" PRIu64 " MiB beside the %" PRIu64
			" MiB that clones of its checkpoint share, but this host has %" PRIu64
			" MiB left for guests; end another guest.",
			config->name, needed, config->memory, free_mib);
	return error_set(error, ENOMEM,
		"Domain '%s' needs %" PRIu64 " MiB (memory=%" PRIu64
		" and %d for running it), but this host has "
		"%" PRIu64 " MiB left for guests; end another guest or lower memory=.",
		config->name, needed, memory, GUEST_OVERHEAD_MIB, free_mib);
}

/* No guest here has this disk of the configuration, unless both only read it. */
static int admit_disk(struct xend *xend, const struct newcomer *newcomer, size_t index, struct error *error)
{
	const struct guest_config *config = newcomer->config;
	const struct guest_disk *mine = &config->disks[index];

	if (mine->mode == DISK_WRITE_SHARED || !*mine->target)
		return 0;
	if (disks_check_twin(config, index, error) < 0)
		return -error->code;
	for (struct domain *domain = xend->domains; domain; domain = domain->next)
		for (size_t j = 0; domain != newcomer->self && j < domain->config.disk_count; j++) {
			const struct guest_disk *theirs = &domain->config.disks[j];

			if (mine->mode == DISK_READ_ONLY && theirs->mode == DISK_READ_ONLY)
				continue;
			if (disk_same(mine, theirs))
				return error_set(error, EBUSY,
					"Disk %s (%s) of domain '%s' is in use by domain '%s' (ID "
					"%u); end that "
					"domain first, or give each its own disk.",
					mine->target, mine->device, config->name, domain->config.name,
					domain->id);
		}
	return 0;
}

/* Two devices of one address on one bridge take each other's packets. */
static int admit_vif(struct xend *xend, const struct newcomer *newcomer, size_t index, struct error *error)
{
	const struct guest_vif *mine = &newcomer->config->vifs[index];

	for (struct domain *domain = xend->domains; domain && mine->has_mac; domain = domain->next)
		for (size_t j = 0; !domain->preserved && j < domain->config.vif_count; j++) {
			const struct guest_vif *theirs = &domain->config.vifs[j];

			if (!theirs->has_mac || memcmp(mine->mac, theirs->mac, sizeof(mine->mac)) != 0 ||
				(mine->bridge && theirs->bridge && strcmp(mine->bridge, theirs->bridge) != 0))
				continue;
			return error_set(error, EEXIST,
				"Domain '%s' has the MAC address %02x:%02x:%02x:%02x:%02x:%02x on the same "
				"bridge as domain '%s' would have it; give one of them another (mac= of "
				"vif).",
				domain->config.name, mine->mac[0], mine->mac[1], mine->mac[2], mine->mac[3],
				mine->mac[4], mine->mac[5], newcomer->config->name);
		}
	return 0;
}

/* Calls `refused` for each objection until it returns something negative. */
static int each_objection(struct xend *xend, const struct newcomer *newcomer,
	int (*refused)(void *context, const struct error *error), void *context, struct error *error)
{
	const struct {
		int (*admit)(struct xend *xend, const struct newcomer *newcomer, size_t index,
			struct error *error);
		size_t times;
	} checks[] = {{admit_name, 1}, {admit_uuid, 1}, {admit_memory, 1},
		{admit_disk, newcomer->config->disk_count}, {admit_vif, newcomer->config->vif_count}};

	for (size_t i = 0; i < ARRAY_SIZE(checks); i++)
		for (size_t j = 0; j < checks[i].times; j++)
			if (checks[i].admit(xend, newcomer, j, error) < 0 && refused(context, error) < 0)
				return -error->code;
	return 0;
}

static int the_first_counts(void *context, const struct error *error)
{
	(void)context;
	return -error->code;
}

int domain_admit(struct xend *xend, const struct guest_config *config, bool is_clone, struct error *error)
{
	return each_objection(xend, &(struct newcomer){.config = config, .is_clone = is_clone},
		the_first_counts, NULL, error);
}

int domain_admit_again(struct domain *domain, struct error *error)
{
	const struct newcomer newcomer = {.config = &domain->config, .self = domain};
	int r = admit_memory(domain->xend, &newcomer, 0, error);

	for (size_t i = 0; r >= 0 && i < domain->config.disk_count; i++)
		r = admit_disk(domain->xend, &newcomer, i, error);
	return r;
}

static int add_objection(void *context, const struct error *error)
{
	json_array_append_new(context, printable_sentence(error->text));
	return 0;
}

void domain_objections(struct xend *xend, const struct guest_config *config, json_t *objections)
{
	struct error error;

	each_objection(xend, &(struct newcomer){.config = config}, add_objection, objections, &error);
}

int domain_memory_free(struct xend *xend, uint64_t *mib, struct error *error)
{
	return memory_free(xend, NULL, mib, error);
}
