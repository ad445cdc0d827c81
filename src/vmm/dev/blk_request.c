#include "vmm/dev/blk_request.h"

#include <linux/virtio_blk.h>
#include <stdlib.h>
#include <string.h>

#define BOUNCE_SIZE (256u << 10)

bool request_into_guest(const struct request *request)
{
	return request->type == VIRTIO_BLK_T_IN || request->type == VIRTIO_BLK_T_GET_ID;
}

void request_skip(struct request *request, uint64_t bytes)
{
	while (bytes && request->count) {
		struct iovec *piece = &request->iov[request->first];
		uint64_t here = piece->iov_len < bytes ? piece->iov_len : bytes;

		piece->iov_base = (char *)piece->iov_base + here;
		piece->iov_len -= here;
		bytes -= here;
		if (piece->iov_len == 0) {
			request->first++;
			request->count--;
		}
	}
}

unsigned request_bounce_part(const struct request *request)
{
	uint64_t left = request->size - request->done;

	return left < BOUNCE_SIZE ? (unsigned)left : BOUNCE_SIZE;
}

bool request_add_bounce(struct request *request)
{
	void *bounce;

	if (posix_memalign(&bounce, 4096, BOUNCE_SIZE))
		return false;
	memset(bounce, 0, BOUNCE_SIZE);
	request->bounce = bounce;
	return true;
}

bool request_dissect(struct request *request, uint64_t *sector)
{
	struct virtio_chain *chain = &request->chain;
	unsigned pieces = chain->readable + chain->writable;
	struct virtio_blk_outhdr header;
	struct iovec *last;

	/* A chain may also consist of nothing but empty pieces, which are not counted. */
	if (chain->writable == 0 ||
		iov_read(request->iov, chain->readable, 0, &header, sizeof(header)) != sizeof(header))
		return false;
	last = &request->iov[pieces - 1];
	for (unsigned i = 0; i < pieces; i++)
		request->length[i] = (uint32_t)request->iov[i].iov_len;
	request->type = header.type;
	*sector = header.sector;
	request->done = 0;
	request->allocate = 0;
	last->iov_len--;
	request->length[pieces - 1]--;
	request->status = (uint8_t *)last->iov_base + last->iov_len;
	request->status_gpa = request->gpa[pieces - 1] + last->iov_len;
	if (request_into_guest(request)) {
		request->first = chain->readable;
		request->count = chain->writable - (last->iov_len == 0);
		request->size = chain->writable_bytes - 1;
	} else {
		request->first = 0;
		request->count = chain->readable;
		request_skip(request, sizeof(header));
		request->size = chain->readable_bytes - sizeof(header);
	}
	return true;
}
