#include "carry/pack.h"
#include "base/bitmap.h"
#include "base/cleanup.h"
#include "carry/file_io.h"
#include "state/digest.h"

#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <string.h>
#include <sys/mman.h>
#include <zstd.h>

#define LEVEL 1

/* What a thread works with. */
struct bench {
	struct pack *pack;
	uint8_t *pages, *frame; /* an extent's size each, aligned for direct I/O */
	ZSTD_CCtx *context;
	struct file_io io; /* not queued: each request is carried out at once */
};

static uint64_t collect(struct bench *bench, uint64_t index)
{
	const uint64_t *stored = bench->pack->checkpoint->extents[index].stored;
	const uint8_t *ram = bench->pack->ram + index * CHECKPOINT_EXTENT_SIZE;
	uint64_t size = 0, first, count;

	for (uint64_t at = 0; (count = bitmap_run(stored, CHECKPOINT_EXTENT_PAGES, at, &first)) > 0;
		at = first + count) {
		memcpy(bench->pages + size, ram + first * CHECKPOINT_PAGE, count * CHECKPOINT_PAGE);
		size += count * CHECKPOINT_PAGE;
	}
	return size;
}

/* Gives back what an earlier, longer version of the extent has left. Only for the file's size. */
static int punch(const struct bench *bench, uint64_t index, uint64_t from, struct error *error)
{
	uint64_t at = CHECKPOINT_RAM_AT + index * CHECKPOINT_EXTENT_SIZE + from;

	if (from == CHECKPOINT_EXTENT_SIZE ||
		fallocate(bench->pack->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)at,
			(off_t)(CHECKPOINT_EXTENT_SIZE - from)) == 0 ||
		errno == EOPNOTSUPP || errno == ENOSYS || errno == EINTR)
		return 0;
	return error_set(error, errno, "Unable to write the checkpoint: %s.", strerror(errno));
}

static int write_plain(struct bench *bench, uint64_t index, struct error *error)
{
	const uint64_t *stored = bench->pack->checkpoint->extents[index].stored;
	uint64_t place = CHECKPOINT_RAM_AT + index * CHECKPOINT_EXTENT_SIZE, first, count;
	uint8_t *from = bench->pages;
	int r = 0;

	for (uint64_t at = 0; r == 0 && (count = bitmap_run(stored, CHECKPOINT_EXTENT_PAGES, at, &first)) > 0;
		at = first + count) {
		r = file_io_submit(
			&bench->io, from, count * CHECKPOINT_PAGE, place + first * CHECKPOINT_PAGE, 0, error);
		from += count * CHECKPOINT_PAGE;
	}
	return r;
}

static int pack_one(struct bench *bench, uint64_t index, struct error *error)
{
	struct checkpoint_extent *extent = &bench->pack->checkpoint->extents[index];
	uint64_t size = collect(bench, index), place = CHECKPOINT_RAM_AT + index * CHECKPOINT_EXTENT_SIZE;
	bool again = extent->length > 0;
	size_t packed, padded;

	extent->digest = digest_of(bench->pages, size);
	extent->kind = size ? EXTENT_PLAIN : EXTENT_EMPTY;
	extent->length = size;
	if (size == 0)
		return punch(bench, index, 0, error);
	/* It must save a page at least. */
	packed = ZSTD_compressCCtx(
		bench->context, bench->frame, size - CHECKPOINT_PAGE, bench->pages, size, LEVEL);
	if (ZSTD_isError(packed))
		return write_plain(bench, index, error);
	extent->kind = EXTENT_ZSTD;
	extent->length = packed;
	padded = ALIGN_UP(packed, (size_t)CHECKPOINT_PAGE);
	memset(bench->frame + packed, 0, padded - packed);
	if (file_io_submit(&bench->io, bench->frame, padded, place, 0, error) < 0)
		return -error->code;
	return again ? punch(bench, index, padded, error) : 0;
}

static void work(struct bench *bench)
{
	struct pack *pack = bench->pack;

	for (;;) {
		struct error error = {0};
		uint64_t index;
		int r;

		while (!pack->queued && !pack->ending)
			pthread_cond_wait(&pack->changed, &pack->lock);
		if (pack->ending)
			return;
		index = pack->queue[--pack->queued];
		pack->busy++;
		pthread_cond_broadcast(&pack->changed);
		pthread_mutex_unlock(&pack->lock);
		r = pack_one(bench, index, &error);
		pthread_mutex_lock(&pack->lock);
		pack->busy--;
		if (r < 0 && !pack->failure.code)
			pack->failure = error;
		pthread_cond_broadcast(&pack->changed);
	}
}

static void *run(void *argument)
{
	struct bench bench = {.pack = argument};
	struct pack *pack = argument;
	size_t room = 2 * CHECKPOINT_EXTENT_SIZE;
	void *pages = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	bench.io = (struct file_io){.fd = pack->fd, .writing = true};
	bench.context = ZSTD_createCCtx();
	bench.pages = pages;
	bench.frame = bench.pages + CHECKPOINT_EXTENT_SIZE;
	pthread_mutex_lock(&pack->lock);
	pack->ready++;
	if (pages == MAP_FAILED || !bench.context)
		error_set(&pack->failure, ENOMEM, "Out of memory for compressing the checkpoint.");
	pthread_cond_broadcast(&pack->changed);
	work(&bench);
	pthread_mutex_unlock(&pack->lock);
	if (pages != MAP_FAILED)
		munmap(pages, room);
	ZSTD_freeCCtx(bench.context);
	file_io_end(&bench.io);
	return NULL;
}

/* With the lock: what went wrong so far. */
static int judge(const struct pack *pack, struct error *error)
{
	return pack->failure.code ? error_set(error, pack->failure.code, "%s", pack->failure.text) : 0;
}

int pack_begin(struct pack *pack, int fd, struct error *error)
{
	int r = 0;

	*pack = (struct pack){.fd = fd};
	pthread_mutex_init(&pack->lock, NULL);
	pthread_cond_init(&pack->changed, NULL);
	/* One heap for all threads: making another takes calls that the sandbox does not have. */
	mallopt(M_ARENA_MAX, 1);
	while (r == 0 && pack->thread_count < PACK_THREADS) {
		r = pthread_create(&pack->threads[pack->thread_count], NULL, run, pack);
		pack->thread_count += r == 0;
	}
	if (r != 0)
		return error_set(error, r, "Unable to start a thread for compressing: %s.", strerror(r));
	pthread_mutex_lock(&pack->lock);
	while (pack->ready < pack->thread_count)
		pthread_cond_wait(&pack->changed, &pack->lock);
	r = judge(pack, error);
	pthread_mutex_unlock(&pack->lock);
	return r;
}

int pack_extent(struct pack *pack, uint64_t index, struct error *error)
{
	int r;

	pthread_mutex_lock(&pack->lock);
	while (pack->queued == PACK_QUEUE && !pack->failure.code)
		pthread_cond_wait(&pack->changed, &pack->lock);
	r = judge(pack, error);
	if (r == 0)
		pack->queue[pack->queued++] = index;
	pthread_cond_broadcast(&pack->changed);
	pthread_mutex_unlock(&pack->lock);
	return r;
}

int pack_drain(struct pack *pack, struct error *error)
{
	int r;

	pthread_mutex_lock(&pack->lock);
	while ((pack->queued || pack->busy) && !pack->failure.code)
		pthread_cond_wait(&pack->changed, &pack->lock);
	r = judge(pack, error);
	pthread_mutex_unlock(&pack->lock);
	return r;
}

void pack_end(struct pack *pack)
{
	if (!pack->thread_count)
		return;
	pthread_mutex_lock(&pack->lock);
	pack->ending = true;
	pthread_cond_broadcast(&pack->changed);
	pthread_mutex_unlock(&pack->lock);
	while (pack->thread_count)
		pthread_join(pack->threads[--pack->thread_count], NULL);
	pthread_cond_destroy(&pack->changed);
	pthread_mutex_destroy(&pack->lock);
}
