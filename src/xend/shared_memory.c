#include "xend/shared_memory.h"
#include "base/channel.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "xend/guest.h"
#include "xend/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#define RESERVE_DIVISOR 8
#define LEAVE_MS 300000 /* all memory is copied */

static struct shared_memory *make(struct xend *xend, const char *identity, uint64_t mib, struct error *error)
{
	struct shared_memory *shared = calloc(1, sizeof(*shared));

	if (!shared || strlen(identity) >= sizeof(shared->identity)) {
		error_set(error, ENOMEM, "Out of memory.");
		free(shared);
		return NULL;
	}
	shared->ram = memory_create(mib, error);
	if (shared->ram < 0) {
		free(shared);
		return NULL;
	}
	memcpy(shared->identity, identity, strlen(identity) + 1);
	shared->mib = mib;
	shared->next = xend->shared_memories;
	xend->shared_memories = shared;
	return shared;
}

struct shared_memory *shared_memory_for(
	struct xend *xend, const char *identity, uint64_t mib, struct error *error)
{
	struct shared_memory *shared = xend->shared_memories;

	while (shared && (strcmp(shared->identity, identity) != 0 || shared->mib != mib))
		shared = shared->next;
	if (!shared)
		shared = make(xend, identity, mib, error);
	return shared ? shared_memory_ref(shared) : NULL;
}

struct shared_memory *shared_memory_ref(struct shared_memory *shared)
{
	shared->references++;
	return shared;
}

void shared_memory_unref(struct xend *xend, struct shared_memory *shared)
{
	struct shared_memory **at = &xend->shared_memories;

	if (!shared || --shared->references)
		return;
	while (*at != shared)
		at = &(*at)->next;
	*at = shared->next;
	close(shared->ram);
	free(shared);
}

int shared_memory_open(int ram, bool fill, struct error *error)
{
	char path[32];
	int fd;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", ram);
	fd = open(path, (fill ? O_RDWR : O_RDONLY) | O_CLOEXEC);
	if (fd < 0)
		return error_set(
			error, errno, "Unable to open the memory that clones share: %s.", strerror(errno));
	return fd;
}

uint64_t shared_memory_reserve_mib(const struct guest_config *config)
{
	return config->memory / RESERVE_DIVISOR;
}

uint64_t shared_memory_own_kib(const struct domain *domain)
{
	char path[32], line[128];
	_cleanup_fclose_ FILE *file = NULL;
	uint64_t kib = 0;

	snprintf(path, sizeof(path), "/proc/%d/status", (int)domain->pid);
	file = fopen(path, "re");
	while (file && fgets(line, sizeof(line), file))
		if (sscanf(line, "RssAnon: %" SCNu64, &kib) == 1)
			break;
	return kib;
}

/* Its memory fits twice for a moment: what it has of its own, and the copy. */
static int check_room(struct domain *domain, struct error *error)
{
	uint64_t free_mib, had = shared_memory_reserve_mib(&domain->config);
	int r = domain_memory_free(domain->xend, &free_mib, error);

	if (r < 0 || domain->config.memory <= free_mib + had)
		return r;
	return error_set(error, ENOMEM,
		"Domain '%s' shares its memory with other clones, and needs %" PRIu64
		" MiB of its own for this, but this host has %" PRIu64
		" MiB left for guests; end another guest first.",
		domain->config.name, domain->config.memory, free_mib);
}

static int open_pagemap(const struct domain *domain, struct error *error)
{
	char path[32];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/pagemap", (int)domain->pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	return fd < 0 ? error_set(error, errno, "Unable to read %s: %s.", path, strerror(errno)) : fd;
}

static int hand_over(struct domain *domain, int ram, int pagemap, struct error *error)
{
	_cleanup_json_ json_t *request =
		json_pack("{s:s, s:{s:i}, s:{s:i}}", "do", "own-memory", "ram", "fd", 0, "pagemap", "fd", 1);
	_cleanup_close_ int control = guest_connect(domain, error);
	const int fds[] = {ram, pagemap};
	int r;

	if (control < 0)
		return control;
	xend_unlock(domain->xend);
	r = channel_call(control, request, fds, ARRAY_SIZE(fds), NULL, LEAVE_MS, error);
	xend_lock(domain->xend);
	return r;
}

int shared_memory_leave(struct domain *domain, struct error *error)
{
	_cleanup_close_ int ram = -1, pagemap = -1;
	struct error ignored;
	int r;

	if (!domain->shared)
		return 0;
	r = check_room(domain, error);
	if (r < 0)
		return r;
	ram = memory_create(domain->config.memory, error);
	pagemap = ram < 0 ? -1 : open_pagemap(domain, error);
	if (ram < 0 || pagemap < 0)
		return -error->code;
	log_info("Domain '%s' gets memory of its own.", domain->config.name);
	r = guest_pause(domain, error);
	if (r >= 0)
		r = hand_over(domain, ram, pagemap, error);
	if (r >= 0) {
		cleanup_close(&domain->ram);
		domain->ram = take_fd(&ram);
		domain->shared = false;
		shared_memory_unref(domain->xend, domain->shared_memory);
		domain->shared_memory = NULL;
	}
	if (guest_carry_on(domain, r < 0 ? &ignored : error) < 0 && r >= 0)
		r = -error->code;
	return r;
}
