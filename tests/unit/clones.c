/* Clones: what of a configuration is theirs; memory that they share, filled once, written apart, left with
 * what each has of its own. */
#include "base/cleanup.h"
#include "carry/shared.h"
#include "vmm/memory.h"
#include "vmm/own_memory.h"
#include "xend/clone.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#define PAGE 4096u
#define PAGES 1200u /* more than are copied at once */
#define SIZE ((uint64_t)PAGES * PAGE)

static int new_memory(void)
{
	int fd = memfd_create("test", MFD_CLOEXEC);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, SIZE), 0);
	return fd;
}

static int reopen(int fd, int flags)
{
	char path[32];
	int another;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	another = open(path, flags | O_CLOEXEC);
	assert_true(another >= 0);
	return another;
}

static void put(int fd, unsigned page, uint8_t value)
{
	uint8_t content[PAGE];

	memset(content, value, sizeof(content));
	assert_int_equal(pwrite(fd, content, sizeof(content), (off_t)page * PAGE), sizeof(content));
}

static uint8_t shown(const struct memory *memory, unsigned page)
{
	return *(const volatile uint8_t *)(memory->base + (uint64_t)page * PAGE + 100);
}

static uint64_t kept(int fd)
{
	struct stat status;

	assert_int_equal(fstat(fd, &status), 0);
	return (uint64_t)status.st_blocks * 512 / PAGE;
}

static void a_clone_leaves_with_all_that_it_sees(void **state)
{
	static const unsigned common[] = {0, 5, 6, 511, 512, 1000, 1199};
	_cleanup_close_ int base = new_memory(), pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	struct memory one, two;
	struct error error;
	int own = new_memory();
	uint64_t before;

	(void)state;
	for (unsigned i = 0; i < ARRAY_SIZE(common); i++)
		put(base, common[i], (uint8_t)(10 + i));
	assert_int_equal(memory_map(&one, reopen(base, O_RDONLY), SIZE, true, &error), 0);
	assert_int_equal(memory_map(&two, reopen(base, O_RDONLY), SIZE, true, &error), 0);
	memset(one.base + 6ull * PAGE, 77, PAGE);   /* written over what is shared */
	memset(one.base + 700ull * PAGE, 78, PAGE); /* and where nothing was */
	memset(one.base + 512ull * PAGE, 0, PAGE);
	assert_int_equal(shown(&one, 900), 0);
	before = kept(base);

	assert_int_equal(memory_own(&one, own, pagemap, &error), 0);
	assert_false(one.shared);
	assert_int_equal(one.fd, own);
	assert_int_equal(kept(base), before);
	assert_int_equal(kept(own), 7); /* zeros are no pages */
	for (unsigned page = 0; page < PAGES; page++) {
		uint8_t expected = page == 6 ? 77 : page == 700 ? 78 : page == 512 ? 0 : shown(&two, page);

		if (shown(&one, page) != expected)
			fail_msg("page %u is %u", page, shown(&one, page));
	}
	assert_int_equal(shown(&two, 6), 12);
	memset(one.base + 5ull * PAGE, 99, PAGE);
	assert_int_equal(shown(&two, 5), 11);
	memory_unmap(&one);
	memory_unmap(&two);
}

static void a_clone_that_cannot_leave_stays(void **state)
{
	_cleanup_close_ int base = new_memory(), small = memfd_create("small", MFD_CLOEXEC),
			    no_map = open("/dev/null", O_RDONLY | O_CLOEXEC), own = new_memory();
	struct memory one;
	struct error error;

	(void)state;
	put(base, 3, 3);
	assert_int_equal(memory_map(&one, reopen(base, O_RDONLY), SIZE, true, &error), 0);
	assert_int_equal(memory_own(&one, small, no_map, &error), -EINVAL);
	assert_int_equal(memory_own(&one, own, no_map, &error), -EIO);
	assert_true(one.shared);
	assert_int_equal(shown(&one, 3), 3);
	memory_unmap(&one);
}

static void carriers_fill_it_together(void **state)
{
	_cleanup_close_ int base = new_memory();
	static uint8_t content[4 * PAGE];
	struct shared one, two;
	struct error error;
	int device[2];

	(void)state;
	for (unsigned i = 0; i < 2; i++) {
		device[i] = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
		if (device[i] < 0)
			skip();
	}
	if (shared_open(&one, reopen(base, O_RDWR), device[0], SIZE, &error) < 0) {
		close(device[1]);
		shared_close(&one);
		skip();
	}
	assert_int_equal(shared_open(&two, reopen(base, O_RDWR), device[1], SIZE, &error), 0);
	assert_true(shared_lead(&one) && shared_lead(&one) && !shared_lead(&two));
	memset(content, 1, sizeof(content));
	assert_int_equal(shared_place(&one, 10, 2, content, &error), 0);
	assert_true(shared_has(&two, 10, 2));
	assert_false(shared_has(&two, 10, 3));
	assert_false(shared_has(&two, 9, 1));
	memset(content, 2, sizeof(content));
	assert_int_equal(shared_place(&two, 9, 4, content, &error), 0);
	assert_true(shared_has(&one, 9, 4));
	for (unsigned page = 9; page < 13; page++)
		assert_int_equal(one.map[page * PAGE], page == 10 || page == 11 ? 1 : 2);
	shared_close(&one);
	assert_true(shared_lead(&two));
	shared_close(&two);
}

static void configure(struct guest_config *config, const char *more)
{
	_cleanup_free_ char *text = NULL;
	struct error error;

	assert_true(asprintf(&text,
			    "name = 'One'\nmemory = 64\nuuid = 'cc0029f5-10a1-e6d0-3c92-19b0ea021f21'\n%s",
			    more) > 0);
	if (guest_config_from_text(config, "test", text, strlen(text), NULL, 0, &error) < 0 ||
		guest_config_complete(config, &error) < 0)
		fail_msg("%s", error.text);
}

static int clone_as(struct guest_config *config, const char *disk, const char *vif, struct error *error)
{
	_cleanup_json_ json_t *disks = disk ? json_loads(disk, 0, NULL) : NULL;
	_cleanup_json_ json_t *vifs = vif ? json_loads(vif, 0, NULL) : NULL;

	return clone_config(
		config, &(struct clone_options){.name = "Two", .disk = disks, .vif = vifs}, error);
}

static void a_clone_is_somebody_else(void **state)
{
	_cleanup_guest_config_ struct guest_config config = {0};
	static const uint8_t mac[6] = {0x00, 0x16, 0x3e, 0x55, 0x9d, 0xb0};
	struct error error;

	(void)state;
	configure(&config, "disk = ['file:/ro,xvda,r']\n"
			   "vif = ['mac=00:16:3e:55:9d:b0, bridge=xenbr0, vifname=mine', 'bridge=xenbr1']\n");
	assert_int_equal(clone_as(&config, NULL, NULL, &error), 0);
	assert_string_equal(config.name, "Two");
	assert_string_not_equal(config.uuid, "cc0029f5-10a1-e6d0-3c92-19b0ea021f21");
	assert_int_equal(strlen(config.uuid), 36);
	assert_memory_not_equal(config.vifs[0].mac, mac, 6);
	assert_memory_equal(config.vifs[0].mac, mac, 3);
	assert_memory_not_equal(config.vifs[0].mac, config.vifs[1].mac, 6);
	assert_null(config.vifs[0].vifname);
	assert_string_equal(config.vifs[0].bridge, "xenbr0");
	assert_string_equal(config.disks[0].target, "/ro");
}

static void a_clone_has_devices_of_its_own(void **state)
{
	static const char base[] =
		"disk = ['phy:/dev/vg/a,hda1,w', 'file:/ro,hdb,r']\nvif = ['bridge=xenbr0']\n";
	static const struct {
		const char *disk, *vif, *sentence;
	} wrong[] = {
		{NULL, NULL, "A clone cannot have disk /dev/vg/a (hda1)"},
		{"[]", NULL, "has 2, and 0 are given"},
		{"{}", NULL, "has 2, and 0 are given"},
		{"[1, 2]", NULL, ""},
		{"[\"file:/b,hda1,r\", \"file:/ro,hdb,r\"]", NULL, "was writable (w) in the checkpoint"},
		{"[\"file:/b,hda1,w\", \"file:/ro,hdb,w\"]", NULL, "was read-only (r) in the checkpoint"},
		{"[\"file:/b,hda1,w\", \"file:/ro,hdb,r\"]", "[]", "vif= must list all"},
		{"[\"file:/b,hda1,w\", \"file:/ro,hdb,r\"]", "[\"mac=x\"]", "mac"},
	};
	_cleanup_guest_config_ struct guest_config right = {0};
	struct error error;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
		_cleanup_guest_config_ struct guest_config config = {0};

		configure(&config, base);
		assert_true(clone_as(&config, wrong[i].disk, wrong[i].vif, &error) < 0);
		if (!strstr(error.text, wrong[i].sentence))
			fail_msg("%zu: %s", i, error.text);
	}
	configure(&right, base);
	assert_int_equal(clone_as(&right, "[\"file:/b,xvda,w\", \"file:/other,xvdb,r\"]",
				 "[\"bridge=br7, mac=00:16:3e:00:00:07\"]", &error),
		0);
	assert_string_equal(right.disks[0].target, "/b");
	assert_string_equal(right.disks[0].device, "hda1"); /* its guest goes on seeing the same */
	assert_string_equal(right.disks[1].target, "/other");
	assert_string_equal(right.vifs[0].bridge, "br7");
	assert_int_equal(right.vifs[0].mac[5], 7);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_clone_is_somebody_else),
		cmocka_unit_test(a_clone_has_devices_of_its_own),
		cmocka_unit_test(a_clone_leaves_with_all_that_it_sees),
		cmocka_unit_test(a_clone_that_cannot_leave_stays),
		cmocka_unit_test(carriers_fill_it_together),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
