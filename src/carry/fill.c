#include "carry/fill.h"
#include "base/bitmap.h"
#include "base/cleanup.h"

#include <errno.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#define MISSES_AT_ONCE 16
#define FOLLOW_MS 20 /* how soon a clone's carrier sees what another has brought */

enum extent_progress { ABSENT, WANTED, READING, PRESENT };

static int begin_buffers(struct fill *fill, struct error *error)
{
	void *room = mmap(NULL, FILL_SLOTS * CHECKPOINT_EXTENT_SIZE, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	fill->buffer = room == MAP_FAILED ? NULL : room;
	fill->progress = calloc(fill->checkpoint->extent_count, 1);
	if (!fill->buffer || !fill->progress)
		return error_set(error, ENOMEM, "Out of memory while reading the checkpoint.");
	for (unsigned i = 0; i < FILL_SLOTS; i++)
		fill->slots[i].content = fill->buffer + i * CHECKPOINT_EXTENT_SIZE;
	for (uint64_t i = 0; i < fill->checkpoint->extent_count; i++)
		if (fill->checkpoint->extents[i].kind == EXTENT_EMPTY)
			fill->progress[i] = PRESENT;
		else
			fill->missing++;
	return 0;
}

static int content_read(void *context, uint64_t tag, struct error *error);

int fill_begin(struct fill *fill, struct job *job, struct guest *guest, struct checkpoint *checkpoint,
	struct file_io *io, struct error *error)
{
	int r;

	*fill = (struct fill){.job = job,
		.guest = guest,
		.checkpoint = checkpoint,
		.io = io,
		.faults = -1,
		.shared = SHARED_NONE};
	r = guest_faults(guest, &fill->faults, &fill->base, error);
	if (r == 0)
		r = begin_buffers(fill, error);
	if (r < 0)
		return r;
	io->completed = content_read;
	io->context = fill;
	return 0;
}

void fill_share(struct fill *fill, struct shared *shared)
{
	fill->shared = *shared;
	*shared = SHARED_NONE;
}

void fill_end(struct fill *fill)
{
	if (fill->buffer)
		munmap(fill->buffer, FILL_SLOTS * CHECKPOINT_EXTENT_SIZE);
	free(fill->progress);
	shared_close(&fill->shared);
	cleanup_close(&fill->faults);
	*fill = (struct fill){.faults = -1, .shared = SHARED_NONE};
}

/* ---- into the guest ---- */

/* Who follows a living guest for which this was said wrongly needs to know what it was that told so. */
static int ended(const char *sign, struct error *error)
{
	return error_set(error, ESRCH, "The guest has ended before all of its memory was there (%s).", sign);
}

static int refused(int code, struct error *error)
{
	if (code == ESRCH)
		return ended("its process has no memory any more: ESRCH", error);
	/* A process that is ending has left its guest's memory, but not yet its own. */
	if (code == ENOENT)
		return ended("its memory is not mapped, or not waited for, any more: ENOENT", error);
	return error_set(error, code, "The guest's process does not take its memory: %s.", strerror(code));
}

static int wake(struct fill *fill, uint64_t page, uint64_t count, struct error *error)
{
	struct uffdio_range range = {.start = fill->base + page * PAGE_SIZE, .len = count * PAGE_SIZE};

	return ioctl(fill->faults, UFFDIO_WAKE, &range) < 0 ? refused(errno, error) : 0;
}

/* Gives the guest pages. One that is there already (an earlier carrier's) stays, and who waits for it is
 * woken. */
static int place(
	struct fill *fill, uint64_t page, uint64_t count, const uint8_t *content, struct error *error)
{
	if (fill->shared.ram >= 0) {
		int r = shared_place(&fill->shared, page, count, content, error);

		fill->brought = true; /* what was there has not been read */
		return r < 0 ? r : wake(fill, page, count, error);
	}
	for (uint64_t done = 0, size = count * PAGE_SIZE; done < size;) {
		struct uffdio_copy copy = {.dst = fill->base + page * PAGE_SIZE + done,
			.src = (uintptr_t)content + done,
			.len = size - done};

		if (ioctl(fill->faults, UFFDIO_COPY, &copy) == 0) {
			fill->brought = true;
			return 0;
		}
		if (errno == EAGAIN) { /* a part of it, or the guest's memory map is just changing */
			done += copy.copy > 0 ? (uint64_t)copy.copy : 0;
			continue;
		}
		if (errno != EEXIST)
			return refused(errno, error);
		if (wake(fill, page + done / PAGE_SIZE, 1, error) < 0)
			return -error->code;
		done += PAGE_SIZE;
	}
	return 0;
}

static int place_zeros(struct fill *fill, uint64_t page, struct error *error)
{
	struct uffdio_zeropage zero = {.range = {.start = fill->base + page * PAGE_SIZE, .len = PAGE_SIZE}};

	while (ioctl(fill->faults, UFFDIO_ZEROPAGE, &zero) < 0) {
		if (errno == EEXIST)
			return wake(fill, page, 1, error);
		/* The guest's process has heard that all is there since we read who misses this page, and so
		 * has ended everybody's waiting. */
		if (errno == ENOENT && fill->told)
			return 0;
		if (errno != EAGAIN)
			return refused(errno, error);
	}
	return 0;
}

static int place_extent(struct fill *fill, uint64_t index, const uint8_t *content, struct error *error)
{
	const uint64_t *stored = fill->checkpoint->extents[index].stored;
	uint64_t first, count;
	int r = 0;

	for (uint64_t at = 0; r == 0 && (count = bitmap_run(stored, CHECKPOINT_EXTENT_PAGES, at, &first)) > 0;
		at = first + count)
		r = place(fill, index * CHECKPOINT_EXTENT_PAGES + first, count, content + first * PAGE_SIZE,
			error);
	return r;
}

/* Whether another clone's carrier has brought all of the extent. */
static bool shared_already(const struct fill *fill, uint64_t index)
{
	const uint64_t *stored = fill->checkpoint->extents[index].stored;
	uint64_t first, count;

	if (fill->shared.ram < 0)
		return false;
	for (uint64_t at = 0; (count = bitmap_run(stored, CHECKPOINT_EXTENT_PAGES, at, &first)) > 0;
		at = first + count)
		if (!shared_has(&fill->shared, index * CHECKPOINT_EXTENT_PAGES + first, count))
			return false;
	return true;
}

/* ---- out of the file ---- */

/* Once: xend may not be reading, and the guest does not wait for that. */
static void say_that_it_comes(struct fill *fill)
{
	const struct progress progress = {.round = 1, .total_bytes = fill->checkpoint->ram_size};

	if (!fill->alone || !fill->brought || fill->said_so)
		return;
	fill->said_so = true;
	job_progress(fill->job, &progress, true);
}

static int content_read(void *context, uint64_t tag, struct error *error)
{
	struct fill *fill = context;
	struct fill_slot *slot = &fill->slots[tag];
	int r = checkpoint_unpack_extent(fill->checkpoint, slot->extent, slot->content, error);

	if (r == 0)
		r = place_extent(fill, slot->extent, slot->content, error);
	if (r < 0)
		return r;
	fill->progress[slot->extent] = PRESENT;
	fill->missing--;
	slot->used = false;
	fill->used--;
	say_that_it_comes(fill);
	return 0;
}

static int read_extent(struct fill *fill, uint64_t index, struct error *error)
{
	struct checkpoint_span span = checkpoint_extent_span(fill->checkpoint, index);
	unsigned free = 0;

	while (fill->slots[free].used)
		free++;
	fill->slots[free].used = true;
	fill->slots[free].extent = index;
	fill->used++;
	fill->progress[index] = READING;
	return file_io_submit(
		fill->io, fill->slots[free].content + span.at, span.size, span.offset, free, error);
}

/* The next extent in the file's order that nobody has brought or brings. False: there is none, or not for us.
 */
static bool find_next(struct fill *fill)
{
	for (; fill->next < fill->checkpoint->extent_count; fill->next++) {
		uint8_t *progress = &fill->progress[fill->next];

		if (*progress >= READING)
			continue;
		if (shared_already(fill, fill->next)) {
			*progress = PRESENT;
			fill->missing--;
		} else {
			return fill->shared.ram < 0 || shared_lead(&fill->shared);
		}
	}
	return false;
}

/* Begins reads: what is waited for, then, once the guest runs, what comes next in the file. */
static int begin_reads(struct fill *fill, struct error *error)
{
	unsigned begun = 0;
	int r = 0;

	while (r == 0 && fill->wanted_count && fill->used < FILL_SLOTS) {
		uint64_t index = fill->wanted[0];

		memmove(fill->wanted, fill->wanted + 1, --fill->wanted_count * sizeof(fill->wanted[0]));
		if (fill->progress[index] == WANTED)
			r = read_extent(fill, index, error);
	}
	for (; r == 0 && fill->alone && fill->used < FILL_AHEAD && begun < FILL_AHEAD && find_next(fill);
		begun++)
		r = read_extent(fill, fill->next++, error);
	return r;
}

/* ---- what happens ---- */

static int missed(struct fill *fill, uint64_t address, struct error *error)
{
	uint64_t page = (address - fill->base) / PAGE_SIZE, index = page / CHECKPOINT_EXTENT_PAGES;

	if (address < fill->base || page >= fill->checkpoint->ram_size / PAGE_SIZE)
		return error_set(error, EPROTO, "The guest's process misses memory that it does not have.");
	if (fill->checkpoint->extents[index].kind == EXTENT_EMPTY ||
		!bitmap_test(fill->checkpoint->extents[index].stored, page % CHECKPOINT_EXTENT_PAGES))
		return place_zeros(fill, page, error);
	if (fill->progress[index] == PRESENT || (fill->shared.ram >= 0 && shared_has(&fill->shared, page, 1)))
		return wake(fill, page, 1, error);
	if (fill->progress[index] == ABSENT && fill->wanted_count < FILL_WANTED_MAX) {
		fill->wanted[fill->wanted_count++] = index;
		fill->progress[index] = WANTED;
	}
	return 0;
}

static int take_misses(struct fill *fill, struct error *error)
{
	struct uffd_msg misses[MISSES_AT_ONCE];
	ssize_t size = read(fill->faults, misses, sizeof(misses));
	int r = 0;

	if (size < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (size <= 0)
		return refused(size < 0 ? errno : ESRCH, error);
	for (size_t i = 0; r == 0 && i < (size_t)size / sizeof(misses[0]); i++)
		if (misses[i].event == UFFD_EVENT_PAGEFAULT)
			r = missed(fill, misses[i].arg.pagefault.address, error);
	return r;
}

static int take_answer(struct fill *fill, struct error *error)
{
	_cleanup_message_ struct message answer = {0};
	int r = channel_receive(fill->guest->channel, &answer, error);

	if (r == -EPIPE || r == -ECONNRESET)
		return ended("its process has closed the connection", error);
	if (r == 0)
		r = channel_error_of(answer.body, error);
	if (r < 0)
		return error_prefix(error, "The guest's process: ");
	fill->asked = false;
	return 0;
}

static int hear_xend(struct fill *fill, struct error *error)
{
	_cleanup_message_ struct message said = {0};
	int r = job_answer(fill->job, &said, error);

	if (r < 0 && fill->alone) { /* nobody to give up for */
		fill->xend_gone = true;
		return 0;
	}
	if (r == 0 && strcmp(job_verb(&said), "go-on") == 0)
		fill->alone = true;
	return r;
}

static int serve_next(struct fill *fill, struct error *error)
{
	bool more = fill->alone && fill->missing && fill->used == 0;
	int patience = !more ? -1 : fill->shared.ram >= 0 && !fill->shared.leads ? FOLLOW_MS : 0;
	struct pollfd ready[] = {
		{.fd = fill->faults, .events = POLLIN},
		{.fd = fill->guest->channel, .events = POLLIN},
		{.fd = fill->xend_gone ? -1 : fill->job->channel, .events = POLLIN},
		{.fd = fill->used ? file_io_poll_fd(fill->io) : -1, .events = POLLIN},
	};
	int r = 0;

	if (poll(ready, ARRAY_SIZE(ready), patience) < 0)
		return errno == EINTR ? 0 : error_set(error, errno, "Unable to wait: %s.", strerror(errno));
	if (ready[0].revents)
		r = take_misses(fill, error);
	if (r == 0 && ready[1].revents)
		r = take_answer(fill, error);
	if (r == 0 && ready[2].revents)
		r = hear_xend(fill, error);
	if (r == 0 && ready[3].revents)
		r = file_io_take(fill->io, error);
	return r == 0 ? begin_reads(fill, error) : r;
}

int fill_repeat(struct fill *fill, struct error *error)
{
	return wake(fill, 0, fill->checkpoint->ram_size / PAGE_SIZE, error);
}

int fill_call(struct fill *fill, json_t *request, const int *fd, struct error *error)
{
	_cleanup_json_ json_t *owned = request;
	int r = channel_send(fill->guest->channel, owned, fd, fd ? 1 : 0, error);

	fill->asked = r == 0;
	while (r == 0 && fill->asked)
		r = serve_next(fill, error);
	return r;
}

int fill_complete(struct fill *fill, struct error *error)
{
	int r = 0;

	while (r == 0 && (fill->missing || !fill->alone))
		r = serve_next(fill, error);
	if (r < 0)
		return r;
	fill->told = true;
	return fill_call(fill, json_pack("{s:s}", "do", "filled"), NULL, error);
}
