#include "state/disk_content.h"
#include "base/cleanup.h"
#include "state/digest.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define BLOCK 4096u
#define PIECE (1u << 20)         /* read at once */
#define GRAIN (64u << 10)        /* of the whole: those that are zero do not count */
#define WHOLE_MAX (512ull << 20) /* bytes with contents that are read at all */
#define WHOLE_AGAIN_MAX (4 * WHOLE_MAX)
#define BEGINNING (4ull << 20)
#define END (1ull << 20)
#define PASSES_MOST 24u
#define WIDTH_LEAST (1ull << 20) /* no grid is narrower */

/* How long each may take: after the sample's time no further pass is begun, which takes as long as all
 * before. */
static const struct content_patience {
	int64_t whole_ns, sample_ns;
	unsigned passes_least;
} patient = {3000000000ll, 1000000000ll, 8}, hurried = {100000000ll, 100000000ll, 4};

static int64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000ll + now.tv_nsec;
}

/* `size`, a multiple of BLOCK, from `at`; what lies behind the disk's end is zero. */
static int read_at(int fd, uint8_t *to, size_t size, uint64_t at, struct error *error)
{
	size_t done = 0;

	while (done < size) {
		ssize_t got = pread(fd, to + done, size - done, (off_t)(at + done));

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return error_set(error, errno, "it cannot be read at byte %" PRIu64 ": %s", at + done,
				strerror(errno));
		done += (size_t)got;
		/* O_DIRECT: behind a part of a block there is nothing more. */
		if (got == 0 || done % BLOCK)
			break;
	}
	memset(to + done, 0, size - done);
	return 0;
}

static bool is_zero(const uint8_t *bytes, size_t size)
{
	return bytes[0] == 0 && memcmp(bytes, bytes + 1, size - 1) == 0;
}

/* Where the next contents begin, at or behind `at`; the disk's size where there are none. */
static uint64_t next_data(int fd, uint64_t at, uint64_t size)
{
	off_t found = lseek(fd, (off_t)at, SEEK_DATA);

	if (found < 0)
		return errno == ENXIO ? size : at;
	return (uint64_t)found / PIECE * PIECE > at ? (uint64_t)found / PIECE * PIECE : at;
}

/* 1: done; 0: it took too long. Each grain that is not zero counts with its place. */
static int digest_whole(
	int fd, uint64_t size, uint8_t *piece, int64_t until, uint64_t *digest, struct error *error)
{
	struct digest_stream stream;

	digest_begin(&stream);
	for (uint64_t at = 0; (at = next_data(fd, at, size)) < size; at += PIECE) {
		int r = read_at(fd, piece, PIECE, at, error);

		if (r < 0)
			return r;
		for (uint64_t grain = 0; grain < PIECE; grain += GRAIN) {
			uint64_t place = at + grain;

			if (is_zero(piece + grain, GRAIN))
				continue;
			digest_add(&stream, &place, sizeof(place));
			digest_add(&stream, piece + grain, GRAIN);
		}
		if (until && now_ns() > until)
			return 0;
	}
	*digest = digest_end(&stream);
	return 1;
}

static int add_stretch(
	struct digest_stream *stream, int fd, uint8_t *piece, uint64_t from, uint64_t to, struct error *error)
{
	for (uint64_t at = from; at < to; at += PIECE) {
		size_t size = to - at < PIECE ? (size_t)(to - at) : PIECE;
		int r = read_at(fd, piece, size, at, error);

		if (r < 0)
			return r;
		digest_add(stream, piece, size);
	}
	return 0;
}

/* Pass p: the middles of the 2^(p-1) parts into which the passes before have cut the disk. */
static int add_pass(struct digest_stream *stream, int fd, uint8_t *piece, uint64_t size, unsigned pass,
	struct error *error)
{
	uint64_t blocks = size / BLOCK;
	int r = 0;

	for (uint64_t i = 1; r == 0 && i < 1ull << pass; i += 2) {
		uint64_t block = (uint64_t)((unsigned __int128)blocks * i >> pass);

		r = read_at(fd, piece, BLOCK, block * BLOCK, error);
		digest_add(stream, piece, BLOCK);
	}
	return r;
}

static bool pass_is_of_use(uint64_t size, unsigned pass)
{
	return pass <= PASSES_MOST && size >> (pass - 1) > WIDTH_LEAST;
}

/* *passes: so many, or, with `patience`, as many as there is time for, which it then says. */
static int digest_sample(int fd, uint64_t size, uint8_t *piece, const struct content_patience *patience,
	unsigned *passes, uint64_t *digest, struct error *error)
{
	uint64_t end = (size + BLOCK - 1) / BLOCK * BLOCK, tail = end > END ? end - END : 0;
	bool limited = patience != NULL;
	int64_t until = now_ns() + (patience ? patience->sample_ns : 0);
	struct digest_stream stream;
	unsigned pass = 1;
	int r;

	digest_begin(&stream);
	r = add_stretch(&stream, fd, piece, 0, end < BEGINNING ? end : BEGINNING, error);
	if (r == 0)
		r = add_stretch(&stream, fd, piece, tail / BLOCK * BLOCK, end, error);
	for (; r == 0 &&
		(limited ? pass_is_of_use(size, pass) && (pass <= patience->passes_least || now_ns() < until)
			 : pass <= *passes);
		pass++)
		r = add_pass(&stream, fd, piece, size, pass, error);
	*passes = pass - 1;
	*digest = digest_end(&stream);
	return r;
}

static void *new_piece(struct error *error)
{
	void *piece = aligned_alloc(BLOCK, PIECE);

	if (!piece)
		error_set(error, ENOMEM, "out of memory");
	return piece;
}

static json_t *text_of(uint64_t digest)
{
	char text[17];

	snprintf(text, sizeof(text), "%016" PRIx64, digest);
	return json_string(text);
}

json_t *disk_content(int fd, uint64_t size, uint64_t used, bool hurry, struct error *error)
{
	const struct content_patience *patience = hurry ? &hurried : &patient;
	_cleanup_free_ uint8_t *piece = new_piece(error);
	_cleanup_json_ json_t *content = json_object();
	unsigned passes = 0;
	uint64_t digest;
	int r = 0;

	if (!piece || !content)
		return NULL;
	if (used <= WHOLE_MAX)
		r = digest_whole(fd, size, piece, now_ns() + patience->whole_ns, &digest, error);
	if (r > 0)
		json_object_set_new(content, "whole", text_of(digest));
	/* Also where the whole is known: a copy whose holes are filled is too much to be read again. */
	if (r >= 0)
		r = digest_sample(fd, size, piece, patience, &passes, &digest, error);
	if (r < 0)
		return NULL;
	json_object_set_new(content, "sample", text_of(digest));
	json_object_set_new(content, "passes", json_integer((json_int_t)passes));
	return take_pointer(content);
}

static bool read_digest(const json_t *content, const char *key, uint64_t *digest)
{
	const char *text = json_string_value(json_object_get(content, key));

	if (!text || strspn(text, "0123456789abcdef") != 16 || text[16])
		return false;
	*digest = strtoull(text, NULL, 16);
	return true;
}

int disk_content_compare(int fd, uint64_t size, uint64_t used, const json_t *content,
	enum content_verdict *verdict, struct error *error)
{
	_cleanup_free_ uint8_t *piece = new_piece(error);
	json_int_t given = json_integer_value(json_object_get(content, "passes"));
	unsigned passes = given > 0 && given <= PASSES_MOST ? (unsigned)given : 0;
	uint64_t then, now;
	int r;

	*verdict = CONTENT_UNKNOWN;
	if (!piece)
		return -ENOMEM;
	if (read_digest(content, "whole", &then) && used <= WHOLE_AGAIN_MAX) {
		r = digest_whole(fd, size, piece, 0, &now, error);
		if (r > 0)
			*verdict = now == then ? CONTENT_SAME : CONTENT_CHANGED;
		return r < 0 ? r : 0;
	}
	if (!read_digest(content, "sample", &then) || (!passes && given))
		return 0;
	r = digest_sample(fd, size, piece, NULL, &passes, &now, error);
	if (r == 0)
		*verdict = now == then ? CONTENT_ALIKE : CONTENT_CHANGED;
	return r;
}
