#include "carry/guest.h"
#include "base/bitmap.h"
#include "base/channel.h"
#include "base/cleanup.h"
#include "base/status.h"
#include "carry/clock.h"
#include "carry/peer.h"
#include "state/checkpoint.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>

#define ANSWER_MS 60000 /* pause waits for the guest's disks */
#define LOOK_MS 1000

/* A peer that is not reachable any more shows when it is next needed. */
static int await_answer(const struct guest *guest, const json_t *request, struct error *error)
{
	int64_t end = monotonic_ns() + ANSWER_MS * NS_PER_MS;
	struct pollfd ready = {.fd = guest->channel, .events = POLLIN};

	while (poll(&ready, 1, LOOK_MS) <= 0) {
		if (monotonic_ns() >= end)
			return error_set(error, ETIMEDOUT, "No answer to '%s' within %d ms.",
				json_string_value(json_object_get(request, "do")), ANSWER_MS);
		if (guest->peer)
			peer_keep_alive(guest->peer, NULL);
	}
	return 0;
}

static int call(
	struct guest *guest, json_t *request, const int *fd, struct message *reply, struct error *error)
{
	_cleanup_json_ json_t *owned = request;
	struct message unwanted, *answer = reply ? reply : &unwanted;
	int r = channel_send(guest->channel, owned, fd, fd ? 1 : 0, error);

	*answer = (struct message){0};
	if (r == 0)
		r = await_answer(guest, owned, error);
	if (r == 0)
		r = channel_receive(guest->channel, answer, error);
	if (r == 0)
		r = channel_error_of(answer->body, error);
	if (r < 0 || !reply)
		message_free(answer);

	if (r == -EPIPE || r == -ECONNRESET)
		return error_set(error, -r, "The guest's process has ended.");
	return r < 0 ? error_prefix(error, "The guest's process: ") : 0;
}

/* Takes the descriptor `key` out of a reply and maps its first `size` bytes, which must be there. */
static int map_reply(struct message *reply, const char *key, uint64_t size, int protection, int *fd_out,
	void **map, struct error *error)
{
	_cleanup_close_ int fd = message_take_fd(reply, reply->body, key, NULL);
	struct stat status;

	if (fd < 0 || status_of(fd, &status) < 0 || (uint64_t)status.st_size < size)
		return error_set(error, EPROTO, "The guest's process gave no usable '%s'.", key);
	*map = mmap(NULL, size, protection, MAP_SHARED, fd, 0);
	if (*map == MAP_FAILED)
		return error_set(error, errno, "Unable to map the guest's '%s': %s.", key, strerror(errno));
	if (fd_out)
		*fd_out = take_fd(&fd);
	return 0;
}

int guest_open(struct guest *guest, int channel, enum guest_purpose purpose, struct error *error)
{
	_cleanup_message_ struct message reply = {0};
	json_int_t size;
	void *map;
	int r;

	*guest = (struct guest){.channel = channel, .ram_fd = -1};
	r = call(guest, json_pack("{s:s}", "do", "memory"), NULL, &reply, error);
	if (r < 0)
		return r;
	size = json_integer_value(json_object_get(reply.body, "size"));
	if (size <= 0 || (uint64_t)size > CHECKPOINT_RAM_MAX || size % PAGE_SIZE)
		return error_set(error, EPROTO, "The guest's process gave an impossible memory size.");
	if (purpose == GUEST_CARRY && json_is_true(json_object_get(reply.body, "shared")))
		return error_set(error, EBUSY, "The guest is a clone that still shares its memory.");
	r = map_reply(&reply, "ram", (uint64_t)size,
		purpose == GUEST_WRITE ? PROT_READ | PROT_WRITE : PROT_READ, &guest->ram_fd, &map, error);
	if (r < 0)
		return r;
	guest->ram = map;
	guest->size = (uint64_t)size;
	guest->pages = guest->size / PAGE_SIZE;
	size = json_integer_value(json_object_get(reply.body, "state_size"));
	guest->state_size = size > 0 && size <= CHECKPOINT_STATE_MAX ? (uint64_t)size : 0;
	guest->regions = json_incref(json_object_get(reply.body, "regions"));
	if (!guest->regions)
		guest->regions = json_array();
	return 0;
}

static void unmap_dirty(struct guest *guest)
{
	if (guest->dirty)
		munmap((void *)(uintptr_t)guest->dirty, bitmap_bytes(guest->pages));
	guest->dirty = NULL;
}

void guest_close(struct guest *guest)
{
	if (guest->slowed && !guest->left)
		guest_throttle(guest, 0, NULL);
	if (guest->dirty && !guest->left)
		guest_track(guest, false, NULL);
	unmap_dirty(guest);
	if (guest->ram)
		munmap(guest->ram, guest->size);
	if (guest->ram_fd >= 0)
		close(guest->ram_fd);
	if (guest->channel >= 0)
		close(guest->channel);
	json_decref(guest->regions);
	*guest = (struct guest){.channel = -1, .ram_fd = -1};
}

int guest_track(struct guest *guest, bool on, struct error *error)
{
	_cleanup_message_ struct message reply = {0};
	void *map;
	int r;

	unmap_dirty(guest);
	r = call(guest, json_pack("{s:s, s:b}", "do", "track", "on", on), NULL, &reply, error);
	if (r < 0 || !on)
		return r;
	r = map_reply(&reply, "bitmap", bitmap_bytes(guest->pages), PROT_READ, NULL, &map, error);
	if (r == 0)
		guest->dirty = map;
	return r;
}

int guest_dirty(struct guest *guest, uint64_t *pages, struct error *error)
{
	int r = call(guest, json_pack("{s:s}", "do", "dirty"), NULL, NULL, error);

	if (r == 0)
		*pages = bitmap_count(guest->dirty, guest->pages);
	return r;
}

int guest_throttle(struct guest *guest, unsigned percent, struct error *error)
{
	int r = call(
		guest, json_pack("{s:s, s:i}", "do", "throttle", "percent", (int)percent), NULL, NULL, error);

	if (r == 0)
		guest->slowed = percent > 0;
	return r;
}

int guest_pause(struct guest *guest, struct error *error)
{
	int r = call(guest, json_pack("{s:s}", "do", "pause"), NULL, NULL, error);

	guest->paused = r == 0;
	return r;
}

int guest_flush(struct guest *guest, bool begin, bool *done, struct error *error)
{
	_cleanup_message_ struct message reply = {0};
	int r = call(guest, json_pack("{s:s, s:b}", "do", "flush", "begin", begin), NULL, &reply, error);

	*done = r == 0 && json_is_true(json_object_get(reply.body, "done"));
	return r;
}

int guest_save_state(struct guest *guest, struct buffer *state, struct error *error)
{
	_cleanup_message_ struct message reply = {0};
	json_int_t size;
	void *map;
	int r = call(guest, json_pack("{s:s}", "do", "save-state"), NULL, &reply, error);

	if (r < 0)
		return r;
	size = json_integer_value(json_object_get(reply.body, "size"));
	if (size <= 0 || size > CHECKPOINT_STATE_MAX)
		return error_set(error, EPROTO, "The guest's process gave an impossible size of its state.");
	r = map_reply(&reply, "state", (uint64_t)size, PROT_READ, NULL, &map, error);
	if (r < 0)
		return r;
	buffer_clear(state);
	buffer_append(state, map, (size_t)size);
	munmap(map, (size_t)size);
	return state->failed ? error_set(error, ENOMEM, "Out of memory while saving the guest's state.") : 0;
}

int guest_faults(struct guest *guest, int *faults, uint64_t *base, struct error *error)
{
	_cleanup_message_ struct message reply = {0};
	const json_t *at;
	int r = call(guest, json_pack("{s:s}", "do", "faults"), NULL, &reply, error);

	if (r == -EPIPE || r == -ECONNRESET || r == -ETIMEDOUT)
		return r;
	if (r < 0)
		return error_set(error, EOPNOTSUPP, "The guest cannot wait for its memory.");
	at = json_object_get(reply.body, "base");
	*faults = message_take_fd(&reply, reply.body, "faults", NULL);
	if (*faults < 0 || !json_is_integer(at))
		return error_set(error, EPROTO, "The guest's process gave no usable 'faults'.");
	*base = (uint64_t)json_integer_value(at);
	return 0;
}

json_t *guest_state_request(const struct buffer *state, int *fd, struct error *error)
{
	*fd = memfd_create("ferry-state", MFD_CLOEXEC);
	if (*fd < 0 || write(*fd, state->data, state->size) != (ssize_t)state->size) {
		error_set(error, errno, "Unable to hand the guest its state: %s.", strerror(errno));
		return NULL;
	}
	return json_pack(
		"{s:s, s:{s:i}, s:I}", "do", "load-state", "state", "fd", 0, "size", (json_int_t)state->size);
}

int guest_load_state(struct guest *guest, const struct buffer *state, struct error *error)
{
	_cleanup_close_ int fd = -1;
	json_t *request = guest_state_request(state, &fd, error);

	return request ? call(guest, request, &fd, NULL, error) : -EIO;
}

int guest_translate_clock(struct guest *guest, int64_t realtime_offset_ns, struct error *error)
{
	return call(guest,
		json_pack("{s:s, s:I}", "do", "clock", "realtime_offset_ns", (json_int_t)realtime_offset_ns),
		NULL, NULL, error);
}
