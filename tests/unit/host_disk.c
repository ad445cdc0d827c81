#include "host_disk.h"
#include "base/cleanup.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/virtio_blk.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <cmocka.h>

static struct fixture *holding;

static void hold(void *machine, const char *why)
{
	(void)machine;
	holding->holds++;
	snprintf(holding->why, sizeof(holding->why), "%s", why);
}

void open_disk(struct fixture *f, struct rig *rig, const struct virtio_blk_options *options)
{
	struct error error = {0};

	rig->platform.hold = hold;
	f->image = open(f->path, O_RDWR | O_CLOEXEC);
	f->disk = virtio_blk_new(&rig->platform, SLOT, f->image, options, &error);
	if (!f->disk)
		fail_msg("%s", error.text);
}

void set_up(struct fixture *f, const char *directory, bool full_is_error, bool no_discard)
{
	const struct virtio_blk_options options = {
		.serial = "xvda", .full_is_error = full_is_error, .no_discard = no_discard};
	int fd;

	memset(f, 0, sizeof(*f));
	holding = f;
	snprintf(f->path, sizeof(f->path), "%s/ferry-disk-XXXXXX", directory);
	fd = mkstemp(f->path);
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, IMAGE_SIZE), 0);
	close(fd);
	f->rig = rig_new();
	open_disk(f, f->rig, &options);
	driver_probe(&f->driver, f->rig, SLOT);
	driver_start(&f->driver, ALL, 256);
	f->headers = rig_allocate(f->rig, 4096);
	f->statuses = rig_allocate(f->rig, 4096);
	f->data = rig_allocate(f->rig, 4 << 20);
}

void tear_down(struct fixture *f)
{
	rig_free(f->rig);
	unlink(f->path);
}

uint8_t *status_of(struct fixture *f, unsigned number)
{
	return (uint8_t *)rig_at(f->rig, f->statuses) + number;
}

void ask(struct fixture *f, unsigned number, uint32_t type, uint64_t sector, uint32_t size)
{
	struct virtio_blk_outhdr *header = (struct virtio_blk_outhdr *)rig_at(f->rig, f->headers) + number;
	const struct piece pieces[] = {{f->headers + number * sizeof(*header), sizeof(*header), false},
		{f->data + number * 65536, size, type == VIRTIO_BLK_T_IN}, {f->statuses + number, 1, true}};
	const struct piece short_pieces[] = {pieces[0], pieces[2]};

	*header = (struct virtio_blk_outhdr){.type = type, .sector = sector};
	*status_of(f, number) = 0xee;
	driver_add(&f->driver, 0, size ? pieces : short_pieces, size ? 3 : 2, false);
	driver_kick(&f->driver, 0);
}

uint8_t answer(struct fixture *f, unsigned number, uint32_t type, uint64_t sector, uint32_t size)
{
	ask(f, number, type, sector, size);
	driver_wait(&f->driver, 0);
	return *status_of(f, number);
}

struct flushing {
	struct fixture *f;
	struct error error;
	int result;
};

static bool flushed(void *context)
{
	struct flushing *flushing = context;

	flushing->result = flushing->f->disk->class->flush(flushing->f->disk, false, &flushing->error);
	return flushing->result != -EINPROGRESS;
}

int flush(struct fixture *f, struct error *error)
{
	struct flushing flushing = {.f = f};

	flushing.result = f->disk->class->flush(f->disk, true, &flushing.error);
	if (flushing.result == -EINPROGRESS)
		rig_run_until(f->rig, flushed, &flushing);
	*error = flushing.error;
	return flushing.result;
}
