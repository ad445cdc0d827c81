#include "vmm/dev/blk_image.h"
#include "base/log.h"
#include "base/status.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define SECTOR 512u

static int examine_device(struct image *image, struct error *error)
{
	int block_size = 0;

	if (ioctl(image->fd, BLKGETSIZE64, &image->size) < 0 || ioctl(image->fd, BLKSSZGET, &block_size) < 0)
		return error_set(
			error, errno, "Unable to ask a block device for its size: %s.", strerror(errno));
	image->block_size = block_size < (int)SECTOR ? SECTOR : (uint32_t)block_size;
	return 0;
}

/* What O_DIRECT wants (statx(2), STATX_DIOALIGN, since Linux 6.1); else what a disk of `block_size` wants. */
static void direct_alignment(const struct image *image, unsigned *memory, unsigned *position)
{
	*memory = *position = image->block_size;
#ifdef STATX_DIOALIGN
	struct statx status;

	if (statx(image->fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &status) == 0 &&
		status.stx_mask & STATX_DIOALIGN && status.stx_dio_offset_align) {
		*memory = status.stx_dio_mem_align;
		*position = status.stx_dio_offset_align;
	}
#endif
}

int image_examine(struct image *image, int fd, bool read_only, struct error *error)
{
	int flags = fd < 0 ? 0 : fcntl(fd, F_GETFL);
	struct stat status;
	unsigned memory, position;

	if (fd < 0 && read_only) {
		*image = (struct image){.fd = -1, .block_size = SECTOR, .memory_alignment = 1};
		return 0;
	}
	if (flags < 0 || status_of(fd, &status) < 0)
		return error_set(error, errno, "Unable to examine a disk image: %s.", strerror(errno));
	*image = (struct image){
		.fd = fd, .size = (uint64_t)status.st_size, .block_size = SECTOR, .memory_alignment = 1};
	if (!S_ISREG(status.st_mode) && !S_ISBLK(status.st_mode))
		return error_set(error, EINVAL, "A disk image must be a regular file or a block device.");
	if (!read_only && (flags & O_ACCMODE) != O_RDWR)
		return error_set(
			error, EACCES, "A disk that the guest may write was opened for reading only.");
	image->is_device = S_ISBLK(status.st_mode);
	if (image->is_device) {
		int r = examine_device(image, error);

		if (r < 0)
			return r;
	}
	image->size -= image->size % image->block_size;
	image->cached = true;
	if (!(flags & O_DIRECT))
		return 0;
	direct_alignment(image, &memory, &position);
	if (position > SECTOR && S_ISREG(status.st_mode)) {
		if (fcntl(fd, F_SETFL, flags & ~O_DIRECT) < 0)
			return error_set(error, errno,
				"Unable to use a disk image through the host's cache: %s.", strerror(errno));
		return 0;
	}
	image->cached = false;
	/* Lengths of the pieces have to be whole blocks too. */
	image->memory_alignment = memory > position ? memory : position;
	return 0;
}

void image_forget(const struct image *image)
{
	int r = image->cached ? posix_fadvise(image->fd, 0, 0, POSIX_FADV_DONTNEED) : 0;

	if (r)
		log_warning("What this host's cache has of a disk image may be older than the image: %s.",
			strerror(r));
}

bool image_takes(const struct image *image, const struct iovec *iov, unsigned count)
{
	for (unsigned i = 0; i < count; i++)
		if (((uintptr_t)iov[i].iov_base | iov[i].iov_len) % image->memory_alignment)
			return false;
	return true;
}
