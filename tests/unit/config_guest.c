/* Guest configurations: Python syntax, options, disks and vifs, JSON and S-expressions. */
#include "base/cleanup.h"
#include "base/raw_bytes.h"
#include "config/guest_config.h"
#include "config/python.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

static int parse(struct guest_config *config, const char *text, struct error *error)
{
	return guest_config_from_text(config, "/etc/xen/t", text, strlen(text), NULL, 0, error);
}

/* What a value means, written as JSON. */
static char *value_of(const char *text, struct error *error)
{
	_cleanup_python_ struct python_file file = {0};
	_cleanup_json_ json_t *json = NULL;

	if (python_parse(&file, "t", text, strlen(text), error) < 0)
		return NULL;
	json = value_to_json(&python_find(&file, "x")->value);
	return json_dumps(json, JSON_ENCODE_ANY | JSON_COMPACT);
}

static void the_chapters_listing_is_understood(void **state)
{
	static const char text[] =
		"name = \"TestGuest\"\n"
		"memory = \"64\"\nvcpus = 1\n"
		"disk = [ 'phy:/dev/VolumeGroup0/TestGuest-volume,xvda,w' ]   # LVM on ATA-over-Ethernet\n"
		"vif  = [ 'mac=00:16:3e:55:9d:b0, bridge=xenbr0' ]\n"
		"uuid = \"cc0029f5-10a1-e6d0-3c92-19b0ea021f21\"\n"
		"bootloader = \"/usr/bin/pygrub\"\nnographic = 1\n"
		"on_reboot = 'restart'\non_crash = 'restart'\n"
		"root = \"/dev/nfs\"\nnfs_server = '10.0.0.40'\nnfs_root = '/XenGuestRoots/TestGuest'\n";
	_cleanup_guest_config_ struct guest_config config = {0}, again = {0};
	_cleanup_json_ json_t *json = NULL, *second = NULL, *warnings = NULL;
	struct error error = {0};

	(void)state;
	assert_int_equal(parse(&config, text, &error), 0);
	assert_string_equal(config.name, "TestGuest");
	assert_int_equal(config.memory, 64);
	assert_int_equal(config.disk_count, 1);
	assert_int_equal(config.disks[0].kind, DISK_PHY);
	assert_string_equal(config.disks[0].target, "/dev/VolumeGroup0/TestGuest-volume");
	assert_string_equal(config.disks[0].device, "xvda");
	assert_int_equal(config.disks[0].mode, DISK_WRITE);
	assert_int_equal(config.vif_count, 1);
	assert_memory_equal(config.vifs[0].mac, "\x00\x16\x3e\x55\x9d\xb0", 6);
	assert_string_equal(config.vifs[0].bridge, "xenbr0");
	assert_string_equal(config.nfs_root, "/XenGuestRoots/TestGuest");
	assert_int_equal(config.on_poweroff, ACTION_DESTROY);
	assert_int_equal(config.on_crash, ACTION_RESTART);
	assert_int_equal(guest_config_complete(&config, &error), 0);

	warnings = guest_config_warnings(&config);
	assert_int_equal(json_array_size(warnings), 1);
	assert_string_equal(json_string_value(json_array_get(warnings, 0)),
		"The option 'bootloader' has no effect: the kernel is the file that kernel= names.");

	json = guest_config_to_json(&config);
	assert_int_equal(guest_config_from_json(&again, json, &error), 0);
	second = guest_config_to_json(&again);
	assert_true(json_equal(json, second));
}

static void values_mean_what_they_mean_in_python(void **state)
{
	static const struct {
		const char *text, *json;
	} cases[] = {
		{"x = 'a' \"b\" '''c\nd'''", "\"abc\\nd\""},
		{"x = ('a'\n  'b')", "\"ab\""},
		{"x = 'a' + \\\n 'b'", "\"ab\""},
		{"x = r'a\\n' + 'b\\x41\\101\\u00e9\\n'", "\"a\\\\nbAA\xc3\xa9\\n\""},
		{"x = 'it\\'s \\q'", "\"it's \\\\q\""},
		{"x = 'a\\\nb'", "\"ab\""},
		{"x = 0x10 + 0o17 + 017 + 0b11 + 1L", "50"},
		{"x = -5", "-5"},
		{"x = 0", "0"},
		{"x = [1, 'two', [True, False, None],]", "[1,\"two\",[true,false,null]]"},
		{"x = []", "[]"},
		{"x = ()", "[]"},
		{"x = (1)", "1"},
		{"x = (1,)", "[1]"},
		{"x = 1,", "[1]"},
		{"x = 1, 2", "[1,2]"},
		{"x = [1] + [2]", "[1,2]"},
		{"a = 3\nx = 'vm%d-%s' % (a, 'z')", "\"vm3-z\""},
		{"x = '%03d|%-4s|%x|%%' % (7, 'ab', 255)", "\"007|ab  |ff|%\""},
		{"x = '%05d' % -42", "\"-0042\""},
		{"a = b = 'q'; x = a + b", "\"qq\""},
		{"x = 'a'\nx += 'b'  # more", "\"ab\""},
		{"'''A text\nabout it'''\nx = 1\r\n", "1"},
		{"\xef\xbb\xbfx = 'caf\xc3\xa9'", "\"caf\xc3\xa9\""},
		{"x = [ # one\n 1, # two\n\n 2\n ]", "[1,2]"},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct error error = {0};
		_cleanup_free_ char *json = value_of(cases[i].text, &error);

		if (!json)
			fail_msg("%s: %s", cases[i].text, error.text);
		assert_string_equal(json, cases[i].json);
	}
}

static void mistakes_give_the_place_and_what_was_expected(void **state)
{
	static const struct {
		const char *text, *sentence;
	} cases[] = {
		{"name = 'a'\n\n\ndisk = [ ]]",
			"line 4, column 11: expected the end of the line, found ']'."},
		{"disk = ]", "line 1, column 8: expected a string, a number or a list, found ']'."},
		{"disk = [ 'phy:/dev/a,xvda,w'\nname = 'b'", "line 2, column 1: expected ',' or ']' (of the "
							     "'[' in line 1, column 8), found 'name'."},
		{"name = 'abc\nmemory = 1", "line 1, column 12: expected ' to end the string that begins in "
					    "line 1, column 8; found the end of the line."},
		{"x = '''abc",
			"line 1, column 11: expected ''' to end the string that begins in line 1, column 5; "
			"found the end of the file."},
		{"name", "line 1, column 5: expected '=' after 'name', found the end of the file."},
		{"name =\n", "line 1, column 7: expected a string, a number or a list, found the end of the "
			     "line."},
		{"name == 'a'", "line 1, column 6: expected '=' after 'name', found '=='."},
		{"name = Test", "line 1, column 8: expected a string, a number or a list, found the name "
				"'Test', which has no "
				"value before this line (text belongs in quotes)."},
		{"import os", "line 1, column 1: expected NAME = VALUE, found 'import': Python code is not "
			      "run, only values "
			      "are read."},
		{"name = os.uname()",
			"line 1, column 8: expected a string, a number or a list, found 'os.': functions are "
			"Python code, which is not run."},
		{"print('a')", "line 1, column 1: expected NAME = VALUE, found 'print': Python code is not "
			       "run, only values "
			       "are read."},
		{"if True:\n memory = 1",
			"line 1, column 1: expected NAME = VALUE, found 'if': Python code is not run, only "
			"values are read."},
		{"memory = 1\n  vcpus = 1",
			"line 2, column 3: expected no blanks before 'vcpus' at the beginning of a line."},
		{"memory = 64M", "line 1, column 10: expected a whole number, found '64M'."},
		{"memory = 1.5", "line 1, column 10: expected a whole number, found '1.5'."},
		{"memory = 99999999999999999999", "line 1, column 10: expected a number below 2^63, found "
						  "'99999999999999999999'."},
		{"memory = 'lots'", "line 1, column 10: memory: expected a whole number from 16 to 16777216, "
				    "found 'lots'."},
		{"memory = 4",
			"line 1, column 10: memory: expected a whole number from 16 to 16777216, found 4."},
		{"memory = [1]", "line 1, column 10: memory: expected a whole number from 16 to 16777216, "
				 "found a list."},
		{"name = 'a' + 1", "line 1, column 12: '+' joins two strings, two numbers or two lists, "
				   "found a string and a "
				   "number."},
		{"naem = 'a'", "line 1, column 1: unknown option 'naem': did you mean 'name'?"},
		{"kernle = '/a'", "line 1, column 1: unknown option 'kernle': did you mean 'kernel'?"},
		{"quux_frobnicate = 'a'", "line 1, column 1: unknown option 'quux_frobnicate'."},
		{"kernel = 'vmlinuz'",
			"line 1, column 10: kernel: expected a path that begins with '/', found 'vmlinuz'."},
		{"on_crash = 'explode'",
			"line 1, column 12: on_crash: expected destroy, restart, preserve, rename-restart, "
			"coredump-destroy or coredump-restart, found 'explode'."},
		{"name = 'a b'", "line 1, column 8: A domain's name is made of letters, digits and _ - . + : "
				 "only; 'a b' is "
				 "not."},
		{"name = 17", "line 1, column 8: A domain's name cannot be a number, as '17' is: that would "
			      "be an ID."},
		{"name = 'Domain-0'",
			"line 1, column 8: A domain's name cannot be 'Domain-0': that is the host."},
		{"uuid = 'x'", "line 1, column 8: uuid: expected a uuid such as "
			       "cc0029f5-10a1-e6d0-3c92-19b0ea021f21, found "
			       "'x'."},
		{"disk = ['phy:/dev/a,xvda,w', 'nbd:/dev/b,xvdb,w']",
			"line 1, column 30: disk 'nbd:/dev/b,xvdb,w': expected file:, phy: or tap:aio: "
			"before the path, found "
			"'nbd:/dev/b'."},
		{"disk = ['phy:/dev/a,xvda']",
			"line 1, column 9: disk 'phy:/dev/a,xvda': expected three words with commas "
			"between them, as in phy:/dev/vg/guest,xvda,w; found 2."},
		{"disk = ['file:\"/a,xvda,w']", "line 1, column 9: disk 'file:\"/a,xvda,w': expected \" at "
						"the end of the path and only there."},
		{"disk = [',xvda,w']", "line 1, column 9: disk ',xvda,w': expected file:, phy: or tap:aio: "
				       "and a path before the device; only a "
				       "drive that is empty, as in ,xvdb:cdrom,r, has none."},
		{"disk = ['phy:/dev/a,floppy,w']",
			"line 1, column 9: disk 'phy:/dev/a,floppy,w': expected a device such as "
			"xvda, sda1 or hdc as the second word, found 'floppy'."},
		{"disk = ['phy:/dev/a,xvda,x']",
			"line 1, column 9: disk 'phy:/dev/a,xvda,x': expected the mode r, w or w! as "
			"the third word, found 'x'."},
		{"disk = ['tap:qcow:/a,xvda,w']", "line 1, column 9: disk 'tap:qcow:/a,xvda,w': expected "
						  "tap:aio:, found 'tap:qcow:/a': only raw images can "
						  "be used (qemu-img convert -O raw makes one)."},
		{"disk = ['file:a,xvda,w']",
			"line 1, column 9: disk 'file:a,xvda,w': expected a path that begins with '/', "
			"found 'a'."},
		{"vif = ['mac=1:2']",
			"line 1, column 8: vif 'mac=1:2': expected six bytes such as 00:16:3e:55:9d:b0 after "
			"mac=, found '1:2'."},
		{"vif = ['mca=1:2']", "line 1, column 8: vif 'mca=1:2': expected mac=, bridge=, ip=, "
				      "script=, vifname=, rate=, "
				      "model= or type=, found 'mca='."},
		{"vif = ['script=../../bin/sh']",
			"line 1, column 8: vif 'script=../../bin/sh': expected a file in "
			"/etc/xen/scripts/ after script=, found '../../bin/sh'."},
		{"vif = ['rate=fast']",
			"line 1, column 8: vif 'rate=fast': expected a rate such as 10Mb/s or 1MB/s after "
			"rate=, found 'fast'."},
		{"vif = 7", "line 1, column 7: vif: expected a list of strings, found 7."},
		{"extra = 'a\\nb'", "line 1, column 9: extra: expected text in one line, found the control "
				    "character 0x0a in "
				    "it."},
		{"x = {'a': 1}", "line 1, column 5: expected a string, a number or a list (no option takes a "
				 "dictionary), "
				 "found '{'."},
		{"x = f'a'", "line 1, column 5: f-strings are Python code, which is not run: write \"…%s…\" "
			     "% NAME."},
		{"x = '\\x00'", "line 1, column 6: expected the code of a character, found 0x0."},
		{"x = '%d' % 'a'", "line 1, column 10: '%d' of the string cannot show a string."},
		{"x = '%d' % (1, 2)",
			"line 1, column 10: expected 1 values for the string left of '%', found 2."},
		{"x = \xff", "line 1, column 5: expected UTF-8 text, found the byte 0xff: is this a "
			     "configuration file?"},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		_cleanup_guest_config_ struct guest_config config = {0};
		struct error error = {0};
		char sentence[1024];

		assert_int_equal(parse(&config, cases[i].text, &error), -EINVAL);
		snprintf(sentence, sizeof(sentence), "/etc/xen/t, %s", cases[i].sentence);
		assert_string_equal(error.text, sentence);
		assert_null(config.name);
	}
}

static void the_command_line_wins(void **state)
{
	static const char *const overrides[] = {"memory=256", "disk=file:/a,xvda,w", "disk=phy:b,xvdb,r",
		"vmid=7", "extra=console=hvc0 quiet"};
	static const char text[] = "name = 'vm%d' % vmid\nmemory = 64\ndisk = ['phy:/dev/z,xvda,w']\n";
	_cleanup_guest_config_ struct guest_config config = {0};
	struct error error = {0};

	(void)state;
	assert_int_equal(guest_config_from_text(
				 &config, "t", text, strlen(text), overrides, ARRAY_SIZE(overrides), &error),
		0);
	assert_string_equal(config.name, "vm7");
	assert_int_equal(config.memory, 256);
	assert_int_equal(config.disk_count, 2);
	assert_string_equal(config.disks[0].target, "/a");
	assert_string_equal(config.disks[1].target, "/dev/b");
	assert_string_equal(config.extra, "console=hvc0 quiet");
}

static void mistakes_on_the_command_line_say_so(void **state)
{
	static const struct {
		const char *word, *sentence;
	} cases[] = {
		{"memory=much", "the command line: memory: expected a whole number from 16 to 16777216, "
				"found 'much'."},
		{"memmory=64", "the command line: unknown option 'memmory': did you mean 'memory'?"},
		{"memory", "the command line: expected NAME=VALUE, found 'memory'."},
		{"disk=['a'", "the command line, line 1, column 5: expected ',' or ']' (of the '[' in line "
			      "1, column 1), "
			      "found the end of the file."},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		_cleanup_guest_config_ struct guest_config config = {0};
		struct error error = {0};

		assert_int_equal(
			guest_config_from_text(&config, "t", "", 0, &cases[i].word, 1, &error), -EINVAL);
		assert_string_equal(error.text, cases[i].sentence);
	}
}

static void json_is_checked_like_a_file(void **state)
{
	static const struct {
		const char *json, *sentence;
	} cases[] = {
		{"[]", "A guest configuration is a JSON object of options."},
		{"{\"memory\": 1.5}", "memory: expected a string, a whole number or a list, found a number "
				      "with a fraction."},
		{"{\"memory\": -1}", "memory: expected a whole number from 16 to 16777216, found -1."},
		{"{\"memory\": true}",
			"memory: expected a whole number from 16 to 16777216, found True or False."},
		{"{\"name\": {}}", "name: expected a string, a whole number or a list, found an object."},
		{"{\"name\": \"a\\u0000b\"}", "name: expected text, found a NUL character in it."},
		{"{\"nmae\": \"a\"}", "unknown option 'nmae': did you mean 'name'?"},
		{"{\"disk\": [7]}", "disk: expected strings in the list, found 7."},
		{"{\"disk\": [\"file:/a\\nb,xvda,w\"]}",
			"disk: expected text in one line, found the control character 0x0a in it."},
		{"{\"vfb\": [[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]}",
			"vfb: lists may not be nested more than 16 deep."},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		_cleanup_guest_config_ struct guest_config config = {0};
		_cleanup_json_ json_t *json = json_loads(cases[i].json, JSON_ALLOW_NUL, NULL);
		struct error error = {0};

		assert_non_null(json);
		assert_true(guest_config_from_json(&config, json, &error) < 0);
		assert_string_equal(error.text, cases[i].sentence);
	}
}

static void what_is_not_given_is_drawn(void **state)
{
	_cleanup_guest_config_ struct guest_config config = {0};
	struct error error = {0};

	(void)state;
	assert_int_equal(parse(&config, "name = 'a'\nnics = 2\nvif = ['bridge=br1']", &error), 0);
	assert_int_equal(config.vif_count, 2);
	assert_false(config.vifs[1].has_mac);
	assert_int_equal(guest_config_complete(&config, &error), 0);
	assert_int_equal(strlen(config.uuid), 36);
	assert_int_equal(config.uuid[14], '4');
	assert_memory_equal(config.vifs[0].mac, "\x00\x16\x3e", 3);
	assert_memory_equal(config.vifs[1].mac, "\x00\x16\x3e", 3);
	assert_true(config.vifs[0].mac[3] < 0x80);
	assert_int_equal(config.memory, 128);
	assert_int_equal(config.vcpus, 1);
}

static void options_must_agree(void **state)
{
	static const struct {
		const char *text, *sentence;
	} cases[] = {
		{"memory = 64", "The guest configuration has no name: add name = \"…\"."},
		{"name = 'a'; memory = 64; maxmem = 32", "maxmem is 32 MiB, less than memory, 64 MiB."},
		{"name = 'a'; disk = ['phy:a,xvda,w', 'phy:b,xvda,w']",
			"disk: two entries are for the device xvda."},
		{"name = 'a'; vif = ['mac=00:16:3e:0:0:1', 'mac=00:16:3e:0:0:1']",
			"vif: two interfaces have the MAC address 00:16:3e:00:00:01."},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		_cleanup_guest_config_ struct guest_config config = {0};
		struct error error = {0};

		assert_int_equal(parse(&config, cases[i].text, &error), 0);
		assert_int_equal(guest_config_complete(&config, &error), -EINVAL);
		assert_string_equal(error.text, cases[i].sentence);
	}
}

static void devices_read_back_as_written(void **state)
{
	static const char *const disks[] = {",xvdz:cdrom,r", "file:/srv/with blank.img,xvda,w",
		"file:\"/srv/a, b,c\",xvda,w", "phy:\"/dev/it's \\\"it\\\"\\\\\",xvda,w!",
		"file:/srv/a.img,xvda,w", "phy:/dev/vg/a,sda1,r", "tap:aio:/srv/c,hdc:cdrom,r",
		"phy:/dev/nbd0,vda,w!"};
	static const char *const vifs[] = {"", "mac=00:16:3e:55:9d:b0, bridge=xenbr0",
		"mac=00:16:3e:55:9d:b0, bridge=br0, ip=10.0.0.5 fe80::1/64, script=vif-route, "
		"vifname=guest0, model=e1000, "
		"type=ioemu, rate=10Mb/s@20ms"};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(disks); i++) {
		_cleanup_(guest_disk_free) struct guest_disk disk = {0};
		_cleanup_free_ char *text = NULL;

		assert_int_equal(guest_disk_parse(&disk, disks[i], NULL), 0);
		text = guest_disk_text(&disk);
		assert_string_equal(text, disks[i]);
	}
	for (size_t i = 0; i < ARRAY_SIZE(vifs); i++) {
		_cleanup_(guest_vif_free) struct guest_vif vif = {0};
		_cleanup_free_ char *text = NULL;

		assert_int_equal(guest_vif_parse(&vif, vifs[i], NULL), 0);
		assert_int_equal(vif.rate_bytes_per_second, i == 2 ? 1250000 : 0);
		text = guest_vif_text(&vif);
		assert_string_equal(text, vifs[i]);
	}
}

/* Whatever the bytes are, JSON can carry them, and they come out as they were: those of UTF-8 too, and those
 * that a character has which stands for a byte. */
static void a_latin_1_file_keeps_its_bytes(void **state)
{
	static const char text[] =
		"# gr\xf6\xdf"
		"er\nname = 'a'\nkernel = '/k\xfcrzer'\nextra = 'a\xe4 \xc3\xa4 \xee\xbe\x80 \xff'\n"
		"disk = ['file:/b\xe4r,xvda,w']\n";
	_cleanup_guest_config_ struct guest_config config = {0}, again = {0};
	char path[] = "/tmp/ferry-latin-XXXXXX", place[HOST_PATH_MAX];
	_cleanup_close_ int fd = mkstemp(path);
	_cleanup_json_ json_t *json = NULL, *read = NULL;
	_cleanup_free_ char *carried = NULL;
	struct error error = {0};

	(void)state;
	assert_int_equal(write(fd, text, sizeof(text) - 1), sizeof(text) - 1);
	if (guest_config_from_file(&config, path, NULL, 0, &error) < 0)
		fail_msg("%s", error.text);
	unlink(path);
	json = guest_config_to_json(&config);
	carried = json_dumps(json, 0);
	assert_non_null(carried);
	read = json_loads(carried, 0, NULL);
	assert_int_equal(guest_config_from_json(&again, read, &error), 0);
	assert_string_equal(host_path(again.kernel, place), "/k\xfcrzer");
	assert_string_equal(host_path(again.disks[0].target, place), "/b\xe4r");
	assert_string_equal(host_path(again.extra, place), "a\xe4 \xc3\xa4 \xee\xbe\x80 \xff");
}

static void values_cannot_grow_without_bounds(void **state)
{
	char doubling[2048] = "x = 'aaaaaaaaaaaaaaaa'\n", nested[600] = "x = ";
	_cleanup_guest_config_ struct guest_config config = {0};
	struct error error = {0};

	(void)state;
	for (int i = 0; i < 60; i++)
		strcat(doubling, "x = x + x\n");
	assert_int_equal(parse(&config, doubling, &error), -EINVAL);
	assert_non_null(strstr(error.text, "become too large"));
	memset(nested + 4, '[', 500);
	assert_int_equal(parse(&config, nested, &error), -EINVAL);
	assert_non_null(strstr(error.text, "nested more than"));
	strcpy(doubling, "x = []\n");
	for (int i = 0; i < 40; i++)
		strcat(doubling, "x = [x, x]\n");
	assert_int_equal(parse(&config, doubling, &error), -EINVAL);
}

static void the_long_list_shows_every_part(void **state)
{
	static const char text[] =
		"name = 'a'\nuuid = 'cc0029f5-10a1-e6d0-3c92-19b0ea021f21'\nkernel = '/boot/k'\n"
		"root = '/dev/xvda ro'\nextra = \"it's\"\ndisk = ['file:/x,xvda:cdrom,r']\n"
		"vif = ['mac=00:16:3e:00:00:01, bridge=xenbr0']\n";
	_cleanup_guest_config_ struct guest_config config = {0};
	_cleanup_buffer_ struct buffer out = {0};

	(void)state;
	assert_int_equal(parse(&config, text, NULL), 0);
	guest_config_to_sxp(&config, &out);
	buffer_u8(&out, 0);
	assert_string_equal((const char *)out.data,
		"    (name a)\n"
		"    (uuid cc0029f5-10a1-e6d0-3c92-19b0ea021f21)\n"
		"    (memory 128)\n"
		"    (vcpus 1)\n"
		"    (cpu_weight 256)\n"
		"    (on_poweroff destroy)\n"
		"    (on_reboot restart)\n"
		"    (on_crash restart)\n"
		"    (image\n"
		"        (linux\n"
		"            (kernel /boot/k)\n"
		"            (root '/dev/xvda ro')\n"
		"            (args 'it\\'s')\n"
		"        )\n"
		"    )\n"
		"    (device (vif (mac 00:16:3e:00:00:01) (bridge xenbr0)))\n"
		"    (device (vbd (uname file:/x) (dev xvda:cdrom) (mode r)))\n");
}

static void options_without_effect_are_named(void **state)
{
	static const char text[] =
		"name = 'a'\nmaxmem = 128\ncpu_weight = 256\nvnc = 0\nvfb = ['vnc=1']\npci = []\n"
		"on_xend_start = 'ignore'\nclock_over_pause = 'stop'\ncpus = '0'\non_crash = "
		"'coredump-restart'\n"
		"vif = ['rate=1MB/s']\n";
	static const char kept[] = "name = 'a'\non_crash = 'rename-restart'\ndisk = ['file:/d,xvda,?']\n";
	_cleanup_guest_config_ struct guest_config config = {0};
	_cleanup_json_ json_t *warnings = NULL;

	(void)state;
	assert_int_equal(parse(&config, text, NULL), 0);
	warnings = guest_config_warnings(&config);
	assert_int_equal(json_array_size(warnings), 4);
	assert_non_null(strstr(json_string_value(json_array_get(warnings, 0)), "'cpus'"));
	assert_non_null(strstr(json_string_value(json_array_get(warnings, 1)), "'vfb'"));
	assert_non_null(strstr(json_string_value(json_array_get(warnings, 2)), "'coredump'"));
	assert_non_null(strstr(json_string_value(json_array_get(warnings, 3)), "'rate='"));
	for (const char *mode = "wr"; *mode; mode++) {
		_cleanup_guest_config_ struct guest_config other = {0};
		_cleanup_json_ json_t *found = NULL;
		char filled[sizeof(kept)];

		memcpy(filled, kept, sizeof(kept));
		*strchr(filled, '?') = *mode;
		assert_int_equal(parse(&other, filled, NULL), 0);
		found = guest_config_warnings(&other);
		assert_int_equal(json_array_size(found), *mode == 'w');
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_chapters_listing_is_understood),
		cmocka_unit_test(values_mean_what_they_mean_in_python),
		cmocka_unit_test(mistakes_give_the_place_and_what_was_expected),
		cmocka_unit_test(the_command_line_wins),
		cmocka_unit_test(mistakes_on_the_command_line_say_so),
		cmocka_unit_test(json_is_checked_like_a_file),
		cmocka_unit_test(what_is_not_given_is_drawn),
		cmocka_unit_test(options_must_agree),
		cmocka_unit_test(devices_read_back_as_written),
		cmocka_unit_test(a_latin_1_file_keeps_its_bytes),
		cmocka_unit_test(values_cannot_grow_without_bounds),
		cmocka_unit_test(the_long_list_shows_every_part),
		cmocka_unit_test(options_without_effect_are_named),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
