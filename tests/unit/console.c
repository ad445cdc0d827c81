/* The virtio console between a guest's rings and streams attached to the hub. */
#include "rig.h"
#include "base/cleanup.h"
#include "vmm/console_hub.h"
#include "vmm/dev/console.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <cmocka.h>

#define SLOT 1

enum { RECEIVE, TRANSMIT };

struct fixture {
	struct rig *rig;
	struct driver driver;
	int terminal; /* the person's end */
	uint64_t buffer;
};

static void add_console(struct fixture *f, struct rig *rig)
{
	struct error error = {0};
	struct console_hub *hub = console_hub_new(&rig->platform, 16, &error);
	int ends[2];

	assert_non_null(hub);
	assert_non_null(virtio_console_new(&rig->platform, SLOT, hub, &error));
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends), 0);
	assert_int_equal(console_attach(hub, ends[0], false, &error), 0);
	f->terminal = ends[1];
}

static void set_up(struct fixture *f)
{
	f->rig = rig_new();
	add_console(f, f->rig);
	driver_probe(&f->driver, f->rig, SLOT);
	driver_start(&f->driver, UINT64_MAX, 16);
	f->buffer = rig_allocate(f->rig, 1 << 20);
}

static void tear_down(struct fixture *f)
{
	rig_free(f->rig);
	close(f->terminal);
}

static void assert_shown(struct fixture *f, const char *text)
{
	char shown[4096] = "";
	size_t size = 0;

	for (unsigned i = 0; i < 1000 && size < strlen(text); i++) {
		ssize_t r = recv(f->terminal, shown + size, sizeof(shown) - 1 - size, MSG_DONTWAIT);

		if (r > 0)
			size += (size_t)r;
		else
			rig_run(f->rig, 1);
	}
	shown[size] = '\0';
	assert_string_equal(shown, text);
}

static void provide(struct fixture *f, uint32_t size)
{
	driver_add(&f->driver, RECEIVE, &(struct piece){f->buffer + 4096, size, true}, 1, false);
	driver_kick(&f->driver, RECEIVE);
}

static void output_comes_out(void **state)
{
	struct fixture f;

	(void)state;
	set_up(&f);
	memcpy(rig_at(f.rig, f.buffer), "hello, world", 12);
	const struct piece pieces[] = {{f.buffer, 7, false}, {f.buffer + 7, 5, false}};
	driver_add(&f.driver, TRANSMIT, pieces, 2, false);
	driver_kick(&f.driver, TRANSMIT);
	assert_int_equal(driver_wait(&f.driver, TRANSMIT).len, 0);
	assert_shown(&f, "hello, world");
	/* A giant is cut, and answered. */
	driver_add(&f.driver, TRANSMIT, &(struct piece){f.buffer, 1 << 20, false}, 1, false);
	driver_kick(&f.driver, TRANSMIT);
	driver_wait(&f.driver, TRANSMIT);
	tear_down(&f);
}

static void input_waits_for_buffers(void **state)
{
	struct fixture f;
	struct vring_used_elem used;

	(void)state;
	set_up(&f);
	assert_int_equal(send(f.terminal, "list\n", 5, 0), 5);
	rig_run(f.rig, 5);
	assert_false(driver_has_used(&f.driver, RECEIVE));
	rig_track(f.rig);
	provide(&f, 3);
	used = driver_wait(&f.driver, RECEIVE);
	assert_int_equal(used.len, 3);
	assert_memory_equal(rig_at(f.rig, f.buffer + 4096), "lis", 3);
	assert_true(rig_is_dirty(f.rig, f.buffer + 4096));
	provide(&f, 100);
	used = driver_wait(&f.driver, RECEIVE);
	assert_int_equal(used.len, 2);
	assert_memory_equal(rig_at(f.rig, f.buffer + 4096), "t\n", 2);
	/* And buffers wait for input. */
	provide(&f, 100);
	rig_run(f.rig, 3);
	assert_false(driver_has_used(&f.driver, RECEIVE));
	assert_int_equal(send(f.terminal, "x", 1, 0), 1);
	assert_int_equal(driver_wait(&f.driver, RECEIVE).len, 1);
	tear_down(&f);
}

static void a_moved_console_goes_on(void **state)
{
	struct fixture f;
	struct rig *other = rig_new();
	_cleanup_buffer_ struct buffer saved = {0};
	struct error error = {0};

	(void)state;
	set_up(&f);
	provide(&f, 100);
	rig_run(f.rig, 3);
	rig_pause(f.rig);
	assert_int_equal(send(f.terminal, "early", 5, 0), 5);
	rig_run(f.rig, 3);
	assert_false(driver_has_used(&f.driver, RECEIVE));
	saved = rig_save(f.rig);
	memcpy(other->memory.base, f.rig->memory.base, RIG_MEMORY);
	tear_down(&f);
	f.rig = f.driver.rig = other;
	add_console(&f, other);
	assert_int_equal(rig_load(other, &saved, &error), 0);
	f.driver.rings[RECEIVE].used = rig_at(other, f.driver.rings[RECEIVE].used_gpa);
	f.driver.rings[RECEIVE].available = rig_at(other, f.driver.rings[RECEIVE].available_gpa);
	rig_resume(other);
	assert_int_equal(driver_wait(&f.driver, RECEIVE).len, 5);
	assert_memory_equal(rig_at(other, f.buffer + 4096), "early", 5);
	tear_down(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(output_comes_out),
		cmocka_unit_test(input_waits_for_buffers),
		cmocka_unit_test(a_moved_console_goes_on),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
