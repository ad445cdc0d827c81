/* The block device when its host's storage is flushed, slowly or in vain. */
#include "host_disk.h"
#include "base/cleanup.h"
#include "vmm/dev/blk_device.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

static void a_disk_is_flushed_running_and_paused(void **state)
{
	struct fixture f;
	struct error error;

	(void)state;
	set_up(&f, "/var/tmp", false, false);
	assert_int_equal(answer(&f, 0, VIRTIO_BLK_T_OUT, 0, 65536), VIRTIO_BLK_S_OK);
	assert_int_equal(flush(&f, &error), 0);
	rig_pause(f.rig);
	assert_int_equal(flush(&f, &error), 0);
	/* One that begins while another is under way is another, and both are over in the end. */
	f.disk->class->flush(f.disk, true, &error);
	assert_int_equal(flush(&f, &error), 0);
	rig_resume(f.rig);
	assert_int_equal(answer(&f, 0, VIRTIO_BLK_T_IN, 0, 65536), VIRTIO_BLK_S_OK);
	/* And the disk may go while one is under way. */
	f.disk->class->flush(f.disk, true, &error);
	tear_down(&f);
}

static void a_flush_that_fails_names_the_disk_and_the_guest_hears_of_it(void **state)
{
	_cleanup_close_ int no_file = open("/", O_PATH | O_CLOEXEC), aside = -1;
	struct fixture f;
	struct error error;

	(void)state;
	set_up(&f, "/var/tmp", false, false);
	aside = dup(f.image);
	assert_int_equal(
		dup3(no_file, f.image, O_CLOEXEC), f.image); /* whatever is done with it is an error */
	assert_int_equal(flush(&f, &error), -EBADF);
	assert_string_equal(error.text, "Disk xvda cannot be flushed: Bad file descriptor. What the guest "
					"has written may not be on it.");
	assert_int_equal(dup3(aside, f.image, O_CLOEXEC), f.image);
	/* The kernel tells of lost writes once, and it has told us. */
	assert_int_equal(answer(&f, 0, VIRTIO_BLK_T_FLUSH, 0, 0), VIRTIO_BLK_S_IOERR);
	assert_int_equal(answer(&f, 1, VIRTIO_BLK_T_FLUSH, 0, 0), VIRTIO_BLK_S_OK);
	assert_int_equal(flush(&f, &error), 0);
	tear_down(&f);
}

/* The host's own flush, as if it had been under way for long, ends: well, or (with another descriptor) not.
 */
static void end_slow_flush(struct fixture *f, int fd)
{
	struct virtio_blk *blk = (struct virtio_blk *)f->disk;
	struct io_uring_sqe *sqe = io_uring_get_sqe(&blk->ring.ring);

	io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC);
	io_uring_sqe_set_data(sqe, (void *)1);
	assert_int_equal(io_uring_submit(&blk->ring.ring), 1);
}

static bool one_waits(void *context)
{
	const struct virtio_blk *blk = (struct virtio_blk *)((struct fixture *)context)->disk;

	return blk->in_flight == 0 && blk->beside;
}

static bool two_wait(void *context)
{
	return one_waits(context) &&
	       ((struct virtio_blk *)((struct fixture *)context)->disk)->beside->next_free;
}

static void the_guests_flush_waits_for_the_hosts_and_does_no_work_meanwhile(void **state)
{
	_cleanup_close_ int no_file = open("/", O_PATH | O_CLOEXEC);
	struct fixture f;
	struct error error;

	(void)state;
	set_up(&f, "/var/tmp", false, false);
	for (unsigned fails = 0; fails < 2; fails++) {
		struct virtio_blk *blk = (struct virtio_blk *)f.disk;
		uint8_t expected = fails ? VIRTIO_BLK_S_IOERR : VIRTIO_BLK_S_OK;
		unsigned before = *blk->ring.ring.cq.ktail;

		blk->flushing = FLUSH_RUNNING;
		assert_int_equal(blk_flush(f.disk, true, &error), -EINPROGRESS); /* another follows */
		ask(&f, 0, VIRTIO_BLK_T_FLUSH, 0, 0);
		ask(&f, 1, VIRTIO_BLK_T_FLUSH, 0, 0);
		rig_run_until(f.rig, two_wait, &f);
		rig_run(f.rig, 20);
		assert_int_equal(*blk->ring.ring.cq.ktail - before, 2);
		assert_false(driver_has_used(&f.driver, 0));
		assert_true(f.disk->class->busy(f.disk)); /* a pause waits for the answers */
		/* What is no flush goes on. */
		assert_int_equal(answer(&f, 2, VIRTIO_BLK_T_OUT, 0, 4096), VIRTIO_BLK_S_OK);
		assert_int_equal(*status_of(&f, 0), 0xee);
		end_slow_flush(&f, fails ? no_file : f.image);
		driver_wait(&f.driver, 0);
		driver_wait(&f.driver, 0);
		assert_int_equal(*status_of(&f, 0), expected);
		assert_int_equal(*status_of(&f, 1), expected);
		assert_false(f.disk->class->busy(f.disk));
		assert_int_equal(answer(&f, 0, VIRTIO_BLK_T_FLUSH, 0, 0), VIRTIO_BLK_S_OK);
		while (blk_flush(f.disk, false, &error) == -EINPROGRESS)
			rig_run(f.rig, 1);
	}
	/* And the disk may go while one waits. */
	((struct virtio_blk *)f.disk)->flushing = FLUSH_RUNNING;
	ask(&f, 0, VIRTIO_BLK_T_FLUSH, 0, 0);
	rig_run_until(f.rig, one_waits, &f);
	end_slow_flush(&f, f.image);
	tear_down(&f);
}

static void a_pause_waits_for_a_flush_that_waits(void **state)
{
	struct fixture f;
	unsigned settled;

	(void)state;
	set_up(&f, "/var/tmp", false, false);
	((struct virtio_blk *)f.disk)->flushing = FLUSH_RUNNING;
	ask(&f, 0, VIRTIO_BLK_T_FLUSH, 0, 0);
	rig_run_until(f.rig, one_waits, &f);
	settled = f.rig->settled;
	end_slow_flush(&f, f.image);
	rig_pause(f.rig);
	assert_true(f.rig->settled > settled);
	assert_int_equal(*status_of(&f, 0), VIRTIO_BLK_S_OK);
	rig_resume(f.rig);
	tear_down(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_disk_is_flushed_running_and_paused),
		cmocka_unit_test(a_flush_that_fails_names_the_disk_and_the_guest_hears_of_it),
		cmocka_unit_test(the_guests_flush_waits_for_the_hosts_and_does_no_work_meanwhile),
		cmocka_unit_test(a_pause_waits_for_a_flush_that_waits),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
