#include "vmm/dev/blk_discard.h"
#include "base/cleanup.h"
#include "vmm/dev/blk_device.h"

#include <errno.h>
#include <linux/fs.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>

static void *work(void *context)
{
	struct virtio_blk *blk = context;
	struct discarder *discarder = &blk->discarder;
	const uint64_t one = 1;

	pthread_mutex_lock(&discarder->lock);
	for (;;) {
		struct request *request = discarder->todo;
		uint64_t range[2];

		if (discarder->stop)
			break;
		if (!request) {
			pthread_cond_wait(&discarder->more, &discarder->lock);
			continue;
		}
		discarder->todo = request->next_free;
		range[0] = request->position;
		range[1] = request->size;
		pthread_mutex_unlock(&discarder->lock);
		/* A hint: where the device cannot do even this, nothing is lost. */
		ioctl(blk->image.fd, BLKDISCARD, range);
		pthread_mutex_lock(&discarder->lock);
		request->next_free = discarder->done;
		discarder->done = request;
		while (write(discarder->finished.fd, &one, sizeof(one)) < 0 && errno == EINTR)
			;
	}
	pthread_mutex_unlock(&discarder->lock);
	return NULL;
}

static void finished(void *context, uint32_t events)
{
	struct virtio_blk *blk = context;
	struct discarder *discarder = &blk->discarder;
	struct request *done;
	uint64_t times;

	(void)events;
	if (read(discarder->finished.fd, &times, sizeof(times)) < 0)
		return;
	pthread_mutex_lock(&discarder->lock);
	done = discarder->done;
	discarder->done = NULL;
	pthread_mutex_unlock(&discarder->lock);
	while (done) {
		struct request *request = done;

		done = request->next_free;
		blk->in_flight--;
		blk_answer(blk, request, VIRTIO_BLK_S_OK);
	}
	blk_submit(blk);
	virtqueue_flush(blk_queue(blk));
	if (!blk_is_busy(blk))
		virtio_settled(&blk->virtio);
	virtqueue_again(blk_queue(blk));
}

static int start(struct virtio_blk *blk)
{
	struct discarder *discarder = &blk->discarder;
	_cleanup_close_ int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	struct loop *loop = blk->virtio.pci.platform->loop;

	if (fd < 0)
		return -errno;
	discarder->finished = (struct watch){.fd = fd, .handler = finished, .context = blk};
	if (loop_add(loop, &discarder->finished, EPOLLIN, NULL) < 0)
		return -ENOMEM;
	pthread_mutex_init(&discarder->lock, NULL);
	pthread_cond_init(&discarder->more, NULL);
	if (pthread_create(&discarder->thread, NULL, work, blk)) {
		loop_remove(loop, &discarder->finished);
		return -EAGAIN;
	}
	take_fd(&fd);
	discarder->started = true;
	return 0;
}

int discarder_take(struct virtio_blk *blk, struct request *request)
{
	struct discarder *discarder = &blk->discarder;
	int r = discarder->started ? 0 : start(blk);

	if (r < 0)
		return r;
	pthread_mutex_lock(&discarder->lock);
	request->next_free = discarder->todo;
	discarder->todo = request;
	pthread_cond_signal(&discarder->more);
	pthread_mutex_unlock(&discarder->lock);
	blk->in_flight++;
	return 0;
}

void discarder_end(struct virtio_blk *blk)
{
	struct discarder *discarder = &blk->discarder;

	if (!discarder->started)
		return;
	pthread_mutex_lock(&discarder->lock);
	discarder->stop = true;
	pthread_cond_signal(&discarder->more);
	pthread_mutex_unlock(&discarder->lock);
	pthread_join(discarder->thread, NULL);
	for (struct request *request; (request = discarder->todo ? discarder->todo : discarder->done);) {
		*(discarder->todo ? &discarder->todo : &discarder->done) = request->next_free;
		blk_give_back(blk, request);
		blk->in_flight--;
	}
	loop_remove(blk->virtio.pci.platform->loop, &discarder->finished);
	close(discarder->finished.fd);
}
