#include "fake_guest.h"
#include "base/bitmap.h"
#include "base/cleanup.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <cmocka.h>

static uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

void fake_guest_fill(struct fake_guest *guest, uint64_t first, uint64_t count, uint64_t seed)
{
	seed = seed * 2 + 0x9e3779b97f4a7c15;
	for (uint64_t page = first; page < first + count; page++)
		for (unsigned i = 0; i < FAKE_PAGE / 8; i++) {
			uint64_t value = page % 5 == 4 ? 0 : next_random(&seed);

			memcpy(guest->ram + page * FAKE_PAGE + i * 8, &value, 8);
		}
}

uint64_t fake_guest_allocated(const struct fake_guest *guest)
{
	struct stat status;

	assert_int_equal(fstat(guest->ram_fd, &status), 0);
	return (uint64_t)status.st_blocks * 512 / FAKE_PAGE;
}

static int64_t now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000ll + now.tv_nsec / 1000;
}

#define BURST 16u /* pages */

/*
 * All that a guest would have written by now, however seldom the writer's thread had a processor: that may
 * not decide whether a guest writes faster than it is copied. Now and then a page becomes zero. With the
 * lock.
 */
static void write_on(struct fake_guest *guest)
{
	int64_t now = now_us(),
		bursts = (now - guest->written_at_us) / (60 + 50 * 100 / (100 - guest->slowed));
	/* More would write the same pages once more. */
	int64_t most = (int64_t)(guest->working_set / BURST * 2 + 1);

	if (!bursts)
		return;
	guest->written_at_us = now;
	if (!guest->running || !guest->working_set)
		return;
	for (int64_t i = (bursts < most ? bursts : most) * BURST; i > 0; i--) {
		uint64_t page = next_random(&guest->seed) % guest->working_set;
		uint64_t *at = (uint64_t *)(void *)(guest->ram + page * FAKE_PAGE);

		if (next_random(&guest->seed) % 16 == 0)
			memset(at, 0, FAKE_PAGE);
		else
			__atomic_store_n(&at[next_random(&guest->seed) % (FAKE_PAGE / 8)], guest->seed,
				__ATOMIC_RELAXED);
		bitmap_set(guest->dirty, page);
	}
	if (guest->scatters && next_random(&guest->seed) % 8 == 0) {
		uint64_t page = next_random(&guest->seed) % guest->pages;

		memset(guest->ram + page * FAKE_PAGE, (int)(guest->seed % 255) + 1, FAKE_PAGE / 2);
		bitmap_set(guest->dirty, page);
	}
}

/* Writes as a guest would: without regard for who reads. */
static void *write_memory(void *context)
{
	struct fake_guest *guest = context;

	while (!guest->ended) {
		pthread_mutex_lock(&guest->lock);
		write_on(guest);
		pthread_mutex_unlock(&guest->lock);
		usleep(50 * 100 / (100 - guest->slowed));
	}
	return NULL;
}

static json_t *describe_memory(const struct fake_guest *guest)
{
	return json_pack("{s:b, s:{s:i}, s:I, s:[{s:i, s:I, s:i}]}", "ok", 1, "ram", "fd", 0, "size",
		(json_int_t)(guest->pages * FAKE_PAGE), "regions", "gpa", 0, "size",
		(json_int_t)(guest->pages * FAKE_PAGE), "offset", 0);
}

static struct uffdio_range whole(const struct fake_guest *guest)
{
	return (struct uffdio_range){.start = (uintptr_t)guest->ram, .len = guest->pages * FAKE_PAGE};
}

static void end_faults(struct fake_guest *guest)
{
	struct uffdio_range range = whole(guest);

	if (guest->faults >= 0 && !guest->filled)
		assert_int_equal(ioctl(guest->faults, UFFDIO_UNREGISTER, &range), 0);
}

void fake_guest_wait_for_memory(struct fake_guest *guest)
{
	_cleanup_close_ int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_MISSING_SHMEM};
	struct uffdio_register catch = {.range = whole(guest), .mode = UFFDIO_REGISTER_MODE_MISSING};

	if (device < 0)
		skip();
	guest->faults = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	assert_true(guest->faults >= 0);
	assert_int_equal(ioctl(guest->faults, UFFDIO_API, &api), 0);
	assert_int_equal(ioctl(guest->faults, UFFDIO_REGISTER, &catch), 0);
}

/* Answers one request; the caller holds the lock. */
static json_t *answer(struct fake_guest *guest, struct message *request, int *fd)
{
	const char *verb = json_string_value(json_object_get(request->body, "do"));
	size_t words = bitmap_words(guest->pages);

	if (strcmp(verb, "memory") == 0) {
		*fd = dup(guest->ram_fd);
		return describe_memory(guest);
	}
	if (strcmp(verb, "track") == 0) {
		guest->tracking = json_is_true(json_object_get(request->body, "on"));
		memset(guest->dirty, 0, words * 8);
		*fd = guest->tracking ? dup(guest->bitmap_fd) : -1;
		return guest->tracking ? json_pack("{s:b, s:{s:i}}", "ok", 1, "bitmap", "fd", 0)
				       : json_pack("{s:b}", "ok", 1);
	}
	if (strcmp(verb, "dirty") == 0) {
		write_on(guest);
		memcpy(guest->bitmap, guest->dirty, words * 8);
		memset(guest->dirty, 0, words * 8);
		if (guest->forgets) {
			bitmap_clear(guest->bitmap, 0);
			guest->ram[0]++;
		}
		return json_pack("{s:b, s:I}", "ok", 1, "pages",
			(json_int_t)bitmap_count(guest->bitmap, guest->pages));
	}
	if (strcmp(verb, "throttle") == 0) {
		write_on(guest);
		guest->slowed = (unsigned)json_integer_value(json_object_get(request->body, "percent"));
		if (guest->slowed > guest->slowed_most)
			guest->slowed_most = guest->slowed;
		return json_pack("{s:b}", "ok", 1);
	}
	if (strcmp(verb, "faults") == 0 && guest->faults >= 0) {
		*fd = dup(guest->faults);
		return json_pack("{s:b, s:{s:i}, s:I}", "ok", 1, "faults", "fd", 0, "base",
			(json_int_t)(uintptr_t)guest->ram);
	}
	if (strcmp(verb, "filled") == 0) {
		if (guest->when_told)
			guest->when_told(guest);
		end_faults(guest);
		guest->filled = true;
		return json_pack("{s:b}", "ok", 1);
	}
	if (strcmp(verb, "flush") == 0 && !guest->flush_unknown) {
		if (json_is_true(json_object_get(request->body, "begin"))) {
			guest->flushes++;
			guest->flushed_paused = !guest->running;
			guest->flush_looks = guest->flush_takes;
		}
		if (guest->flush_fails && !guest->running)
			return json_pack("{s:s, s:i}", "error", "Disk xvda cannot be flushed.", "errno", EIO);
		return json_pack(
			"{s:b, s:b}", "ok", 1, "done", guest->flush_looks ? guest->flush_looks-- == 0 : 1);
	}
	if (strcmp(verb, "clock") == 0 && guest->loaded && !guest->clock_told) {
		guest->clock_offset_ns =
			json_integer_value(json_object_get(request->body, "realtime_offset_ns"));
		guest->clock_told = true;
		return json_pack("{s:b}", "ok", 1);
	}
	if (strcmp(verb, "pause") == 0) {
		sleep(guest->pause_s);
		guest->running = false;
		guest->pauses++;
		return json_pack("{s:b}", "ok", 1);
	}
	if (strcmp(verb, "save-state") == 0 && !guest->running) {
		*fd = memfd_create("state", 0);
		if (write(*fd, guest->state, guest->state_size) != (ssize_t)guest->state_size)
			return NULL;
		return json_pack("{s:b, s:{s:i}, s:I}", "ok", 1, "state", "fd", 0, "size",
			(json_int_t)guest->state_size);
	}
	if (strcmp(verb, "load-state") == 0 && !guest->refuses_state) {
		_cleanup_close_ int state = message_take_fd(request, request->body, "state", NULL);
		ssize_t size = pread(state, guest->state, sizeof(guest->state), 0);

		sleep(guest->load_s);
		guest->state_size = size > 0 ? (size_t)size : 0;
		memcpy(&guest->seen, guest->ram + guest->looks_at * FAKE_PAGE, sizeof(guest->seen));
		guest->loaded = true;
		return json_pack("{s:b}", "ok", 1);
	}
	return json_pack("{s:s, s:i}", "error", "This guest cannot do that.", "errno", EINVAL);
}

static void *serve(void *context)
{
	struct fake_guest *guest = context;
	struct message request;

	while (channel_receive(guest->server_end, &request, NULL) == 0) {
		_cleanup_close_ int fd = -1;
		_cleanup_json_ json_t *reply = NULL;

		pthread_mutex_lock(&guest->lock);
		reply = answer(guest, &request, &fd);
		pthread_mutex_unlock(&guest->lock);
		message_free(&request);
		if (channel_send(guest->server_end, reply, &fd, fd >= 0 ? 1 : 0, NULL) < 0)
			break;
	}
	return NULL;
}

void fake_guest_begin(struct fake_guest *guest, uint64_t pages)
{
	int pair[2];

	*guest = (struct fake_guest){
		.pages = pages, .faults = -1, .seed = 88172645463325252, .written_at_us = now_us()};
	guest->ram_fd = memfd_create("ram", MFD_CLOEXEC);
	guest->bitmap_fd = memfd_create("bitmap", MFD_CLOEXEC);
	assert_int_equal(ftruncate(guest->ram_fd, (off_t)(pages * FAKE_PAGE)), 0);
	assert_int_equal(ftruncate(guest->bitmap_fd, (off_t)bitmap_bytes(pages)), 0);
	guest->ram = mmap(NULL, pages * FAKE_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, guest->ram_fd, 0);
	guest->bitmap =
		mmap(NULL, bitmap_bytes(pages), PROT_READ | PROT_WRITE, MAP_SHARED, guest->bitmap_fd, 0);
	assert_true(guest->ram != MAP_FAILED && guest->bitmap != MAP_FAILED);
	guest->dirty = calloc(bitmap_words(pages), 8);
	guest->state_size =
		(size_t)snprintf(guest->state, sizeof(guest->state), "state of %p", (void *)guest);
	pthread_mutex_init(&guest->lock, NULL);
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	guest->server_end = pair[0];
	guest->carrier_end = pair[1];
	pthread_create(&guest->server, NULL, serve, guest);
	pthread_create(&guest->writer, NULL, write_memory, guest);
}

void fake_guest_run(struct fake_guest *guest, uint64_t working_set)
{
	pthread_mutex_lock(&guest->lock);
	guest->working_set = working_set;
	guest->written_at_us = now_us();
	guest->running = true;
	pthread_mutex_unlock(&guest->lock);
}

void fake_guest_end(struct fake_guest *guest)
{
	guest->ended = true;
	end_faults(guest);
	shutdown(guest->server_end, SHUT_RDWR);
	pthread_join(guest->server, NULL);
	pthread_join(guest->writer, NULL);
	close(guest->server_end);
	close(guest->carrier_end);
	cleanup_close(&guest->faults);
	close(guest->ram_fd);
	close(guest->bitmap_fd);
	munmap(guest->ram, guest->pages * FAKE_PAGE);
	munmap(guest->bitmap, bitmap_bytes(guest->pages));
	free(guest->dirty);
	pthread_mutex_destroy(&guest->lock);
}

/* ---- the carrier as a thread ---- */

static void *carry(void *context)
{
	struct carrier_thread *carrier = context;
	struct error error = {0};
	struct job job;

	if (job_begin(&job, carrier->carrier_channel, &error) == 0) {
		if (carrier->run(&job, NULL, &error) < 0)
			job_failed(&job, &error);
		job_end(&job);
	}
	close(carrier->carrier_channel);
	return NULL;
}

void carrier_thread_begin(struct carrier_thread *carrier,
	int (*run)(struct job *job, confine_function *confine, struct error *error))
{
	int pair[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	*carrier = (struct carrier_thread){.channel = pair[0], .carrier_channel = pair[1], .run = run};
	pthread_create(&carrier->thread, NULL, carry, carrier);
}

void carrier_thread_end(struct carrier_thread *carrier)
{
	if (carrier->channel >= 0)
		close(carrier->channel);
	carrier->channel = -1;
	pthread_join(carrier->thread, NULL);
}

void carrier_accept(struct carrier_thread *carrier, struct fake_guest *guest)
{
	_cleanup_json_ json_t *answer = json_pack("{s:s, s:{s:i}}", "do", "accept", "ram", "fd", 0);

	carrier->shows = guest;
	channel_send(carrier->channel, answer, &guest->ram_fd, 1, NULL); /* it may have ended */
}

bool carrier_event_is_aside(struct carrier_thread *carrier, const struct message *event)
{
	const char *heard = json_string_value(json_object_get(event->body, "event"));
	_cleanup_json_ json_t *answer = NULL;

	if (!heard || !carrier->shows || strcmp(heard, "guest") != 0)
		return heard && strcmp(heard, "progress") == 0;
	answer = json_pack("{s:s, s:{s:i}}", "do", "guest", "guest", "fd", 0);
	/* Where its line has broken meanwhile it does not hear that any more. */
	channel_send(carrier->channel, answer, &carrier->shows->carrier_end, 1, NULL);
	return true;
}

struct message carrier_event(struct carrier_thread *carrier, const char *name)
{
	for (;;) {
		struct message message;
		struct error error = {0};
		const char *heard;

		if (channel_receive(carrier->channel, &message, &error) < 0)
			fail_msg("waiting for '%s': %s", name, error.text);
		heard = json_string_value(json_object_get(message.body, "event"));
		if (heard && strcmp(heard, name) == 0)
			return message;
		if (!carrier_event_is_aside(carrier, &message))
			fail_msg("waiting for '%s', heard '%s': %s", name, heard ? heard : "?",
				json_string_value(json_object_get(message.body, "error")));
		message_free(&message);
	}
}

void carrier_say(struct carrier_thread *carrier, json_t *body, const int *fds, unsigned count)
{
	struct error error = {0};

	if (channel_send(carrier->channel, body, fds, count, &error) < 0)
		fail_msg("%s", error.text);
	json_decref(body);
}
