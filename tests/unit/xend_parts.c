/* xend's parts that need no process: store, machine description, memory arithmetic, disks, checkpoint files.
 */
#include "base/cleanup.h"
#include "xend/checkpoint_file.h"
#include "xend/disks.h"
#include "xend/domain.h"
#include "xend/errand.h"
#include "xend/handover.h"
#include "xend/machine.h"
#include "xend/memory.h"
#include "xend/store.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <cmocka.h>

static char root[64];

static void path_in_root(char path[256], const char *name)
{
	snprintf(path, 256, "%s/%s", root, name);
}

static struct store *reopen(struct store *store, const char *boot)
{
	char path[256];
	struct error error;

	store_close(store);
	path_in_root(path, "xend.db");
	assert_int_equal(store_open(&store, path, boot, &error), 0);
	return store;
}

static int one_directory(void **state)
{
	(void)state;
	strcpy(root, "/tmp/xend-parts-XXXXXX");
	return mkdtemp(root) ? 0 : -1;
}

static int remove_entry(const char *path, const struct stat *info, int flag, struct FTW *walk)
{
	(void)info;
	(void)flag;
	(void)walk;
	return remove(path);
}

static int no_directory(void **state)
{
	(void)state;
	return nftw(root, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

static int count_domain(void *context, const struct stored_domain *domain)
{
	assert_string_equal(domain->name, "TestGuest");
	assert_int_equal(domain->id, 7);
	assert_int_equal(domain->phase, STORED_LIVE);
	assert_true(domain->paused);
	assert_int_equal(json_integer_value(json_object_get(domain->config, "memory")), 64);
	++*(unsigned *)context;
	return 0;
}

static void the_store_forgets_guests_but_no_tickets_with_the_boot(void **state)
{
	struct store *store = reopen(NULL, "boot-1");
	_cleanup_json_ json_t *config = json_pack("{s:i}", "memory", 64);
	struct stored_ticket ticket = {"t-1", "u-1", TICKET_OWNED, "", 0, "", "", ""};
	struct stored_domain domain = {.uuid = "u-1",
		.name = "TestGuest",
		.id = 7,
		.phase = STORED_LIVE,
		.paused = true,
		.config = config};
	enum ticket_state found;
	unsigned id, count = 0;

	(void)state;
	assert_int_equal(store_next_id(store, &id, NULL), 0);
	assert_int_equal(id, 1);
	assert_int_equal(store_put_domain(store, &domain, NULL), 0);
	assert_int_equal(store_put_ticket(store, &ticket, NULL), 0);
	store = reopen(store, "boot-1");
	assert_int_equal(store_each_domain(store, count_domain, &count, NULL), 0);
	assert_int_equal(count, 1);
	assert_int_equal(store_next_id(store, &id, NULL), 0);
	assert_int_equal(id, 2);
	domain.uuid = "u-2"; /* the same name twice */
	assert_true(store_put_domain(store, &domain, NULL) < 0);
	store = reopen(store, "boot-2");
	assert_int_equal(store_each_domain(store, count_domain, &count, NULL), 0);
	assert_int_equal(count, 1);
	assert_int_equal(store_next_id(store, &id, NULL), 0);
	assert_int_equal(id, 1);
	assert_int_equal(store_ticket_state(store, "t-1", &found, NULL), 0);
	assert_int_equal(found, TICKET_OWNED);
	assert_int_equal(store_ticket_state(store, "t-2", &found, NULL), 0);
	assert_int_equal(found, TICKET_NONE);
	store_close(store);
}

static enum ticket_state state_in(struct store *store, const char *ticket)
{
	enum ticket_state found;

	assert_int_equal(store_ticket_state(store, ticket, &found, NULL), 0);
	return found;
}

/* Otherwise a guest that comes back would be taken for one that is to be ended. */
static void tickets_of_guests_that_have_left_are_dropped(void **state)
{
	struct store *store = reopen(NULL, "boot-6");
	_cleanup_json_ json_t *config = json_pack("{s:i}", "memory", 64);
	struct stored_domain here = {
		.uuid = "u-3", .name = "Here", .id = 7, .phase = STORED_LIVE, .config = config};

	(void)state;
	assert_int_equal(store_put_domain(store, &here, NULL), 0);
	for (enum ticket_state made = TICKET_COMMITTED; made <= TICKET_REFUSED; made++) {
		struct stored_ticket left = {
			(char[]){'l', (char)('0' + made), 0}, "u-4", made, "", 0, "", "", ""};
		struct stored_ticket open = {
			(char[]){'o', (char)('0' + made), 0}, "u-3", made, "", 0, "", "", ""};

		assert_int_equal(store_put_ticket(store, &left, NULL), 0);
		assert_int_equal(store_put_ticket(store, &open, NULL), 0);
	}
	assert_int_equal(store_drop_departed(store, NULL), 0);
	for (enum ticket_state made = TICKET_COMMITTED; made <= TICKET_REFUSED; made++) {
		assert_int_equal(state_in(store, (char[]){'o', (char)('0' + made), 0}), made);
		assert_int_equal(state_in(store, (char[]){'l', (char)('0' + made), 0}),
			made <= TICKET_GONE ? TICKET_NONE : made);
	}
	assert_int_equal(store_drop_departures(store, "u-3", NULL), 0);
	assert_int_equal(state_in(store, "o1"), TICKET_NONE);
	assert_int_equal(state_in(store, "o2"), TICKET_NONE);
	assert_int_equal(state_in(store, "o5"), TICKET_OWNED);
	store_close(store);
}

/* A xend with a store, whose lock this thread holds. */
static struct xend *locked_xend(const char *boot)
{
	struct xend *xend = calloc(1, sizeof(*xend));
	struct error error;

	assert_non_null(xend);
	if (xend_init(xend, &error) < 0)
		fail_msg("%s", error.text);
	xend->store = reopen(NULL, boot);
	xend->config.storage_timeout = 60;
	xend_lock(xend);
	return xend;
}

static void free_xend(struct xend *xend)
{
	while (xend->workers)
		xend_wait(xend, -1);
	xend_unlock(xend);
	store_close(xend->store);
	xend_free(xend);
	free(xend);
}

static void leftovers_are_removed_at_the_next_start(void **state)
{
	struct xend *xend = locked_xend("boot-3");
	_cleanup_json_ json_t *left = NULL;
	char path[256];

	(void)state;
	path_in_root(path, "half");
	assert_int_equal(store_add_leftover(xend->store, path, NULL), 0);
	close(open(path, O_CREAT | O_WRONLY, 0600));
	xend->store = reopen(xend->store, "boot-3");
	checkpoint_file_recover(xend);
	assert_int_equal(access(path, F_OK), -1);
	left = store_leftovers(xend->store);
	assert_int_equal(json_array_size(left), 0);
	free_xend(xend);
}

struct slow {
	int gate;
	bool *late;
};

static int wait_at_the_gate(void *context, struct error *error)
{
	struct slow *slow = context;
	char byte;

	return read(slow->gate, &byte, 1) == 1 ? 0 : error_set(error, EIO, "The gate is gone.");
}

static void note_late(void *context)
{
	struct slow *slow = context;

	*slow->late = true;
	free(slow);
}

static void an_errand_is_not_waited_for_for_ever(void **state)
{
	static const struct errand errand = {.run = wait_at_the_gate, .late = note_late, .patience_ms = 50};
	static const struct errand patient = {.run = wait_at_the_gate, .late = note_late};
	struct xend *xend = locked_xend("boot-8");
	_cleanup_close_ int cancel = eventfd(1, EFD_CLOEXEC);
	bool late[2] = {false, false};
	struct error error;
	int gate[2];

	(void)state;
	assert_int_equal(pipe(gate), 0);
	for (unsigned i = 0; i < 2; i++) {
		struct slow *slow = malloc(sizeof(*slow));

		assert_non_null(slow);
		*slow = (struct slow){.gate = gate[0], .late = &late[i]};
		assert_int_equal(errand_run(xend, i ? &patient : &errand, &slow, i ? cancel : -1, &error),
			i ? -ECANCELED : -ETIMEDOUT);
		assert_null(slow);
	}
	assert_false(late[0] || late[1]);
	assert_int_equal(write(gate[1], "go", 2), 2);
	free_xend(xend);
	assert_true(late[0] && late[1]);
	close(gate[0]);
	close(gate[1]);
}

/* A xend with a store and one domain, enough for the hand-over's records. */
static struct domain *any_domain(struct xend *xend, const char *uuid)
{
	_cleanup_json_ json_t *json =
		json_pack("{s:s, s:s, s:i, s:s}", "name", uuid, "uuid", uuid, "memory", 64, "kernel", "/k");
	struct guest_config config = {0};
	struct domain *domain;
	struct error error;

	assert_int_equal(guest_config_from_json(&config, json, &error), 0);
	domain = domain_adopt(xend, &config, 1 + (xend->domains != NULL));
	assert_non_null(domain);
	return domain;
}

static enum ticket_state state_of(struct xend *xend, const char *ticket)
{
	return state_in(xend->store, ticket);
}

#define U1 "00000000-0000-4000-8000-000000000001"
#define U2 "00000000-0000-4000-8000-000000000002"

static void a_ticket_is_owned_only_after_it_was_received(void **state)
{
	static struct xend xend;
	struct domain *domain;
	struct error error;

	(void)state;
	xend.store = reopen(NULL, "boot-4");
	pthread_cond_init(&xend.changed, NULL);
	domain = any_domain(&xend, U1);
	assert_true(handover_own(domain, "a", &error) < 0);
	assert_int_equal(domain->phase, DOMAIN_STARTING);
	assert_int_equal(handover_receiving(&xend, "a", U1, &error), 0);
	assert_true(handover_receiving(&xend, "a", U1, &error) < 0); /* nobody takes it twice */
	assert_true(handover_own(domain, "a", &error) < 0);
	assert_int_equal(handover_received(&xend, "a", U1, &error), 0);
	assert_int_equal(handover_own(domain, "a", &error), 0);
	assert_int_equal(domain->phase, DOMAIN_LIVE);
	handover_refuse(&xend, "a", U1); /* too late */
	assert_int_equal(state_of(&xend, "a"), TICKET_OWNED);
	assert_string_equal(handover_answer(&xend, "a", &error), "owned");
	domain_forget(domain);
	store_close(xend.store);
}

static void who_is_asked_refuses_for_ever(void **state)
{
	static struct xend xend;
	struct domain *domain;
	struct error error;

	(void)state;
	xend.store = reopen(NULL, "boot-5");
	pthread_cond_init(&xend.changed, NULL);
	domain = any_domain(&xend, U2);
	assert_string_equal(handover_answer(&xend, "b", &error), "unknown");
	assert_int_equal(handover_receiving(&xend, "b", U2, &error), 0);
	assert_int_equal(handover_received(&xend, "b", U2, &error), 0);
	assert_string_equal(handover_answer(&xend, "b", &error), "refused");
	assert_true(handover_own(domain, "b", &error) < 0); /* the COMMIT that comes now is too late */
	assert_int_equal(domain->phase, DOMAIN_STARTING);
	assert_string_equal(handover_answer(&xend, "b", &error), "refused");
	domain_forget(domain);
	store_close(xend.store);
}

static char *command_line(const char *json)
{
	_cleanup_guest_config_ struct guest_config config = {0};
	_cleanup_json_ json_t *parsed = json_loads(json, 0, NULL);
	struct error error = {0};

	if (guest_config_from_json(&config, parsed, &error) < 0)
		fail_msg("%s", error.text);
	return machine_command_line(&config);
}

static void command_lines_are_as_xen_made_them(void **state)
{
	static const struct {
		const char *config, *line;
	} cases[] = {
		{"{}", ""},
		{"{'root': '/dev/xvda1 ro', 'disk': ['phy:/dev/a,xvda,w'], 'extra': '4 quiet'}",
			"root=/dev/vda1 ro 4 quiet"},
		{"{'root': '/dev/sda1 ro', 'disk': ['phy:/dev/b,sda2,w', 'phy:/dev/a,sda1,w']}",
			"root=/dev/vdb ro"},
		{"{'root': '/dev/hda ro', 'disk': ['phy:/dev/a,hdb,w', 'phy:/dev/b,hda,w']}",
			"root=/dev/vdb ro"},
		{"{'root': '/dev/vda', 'disk': ['phy:/dev/a,xvda,w']}", "root=/dev/vda"},
		{"{'root': '/dev/mapper/x ro'}", "root=/dev/mapper/x ro"},
		{"{'extra': 'root=/dev/xvda  rw', 'disk': ['phy:/dev/a,xvda,w']}", "root=/dev/vda rw"},
		{"{'root': '/dev/nfs', 'nfs_server': '10.0.0.40', 'nfs_root': '/r', 'ip': '10.0.0.5', "
		 "'netmask': "
		 "'255.255.255.0', 'extra': 'x'}",
			"ip=10.0.0.5:10.0.0.40::255.255.255.0::eth0:off root=/dev/nfs nfsroot=10.0.0.40:/r "
			"x"},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		char json[512];
		_cleanup_free_ char *line = NULL;

		snprintf(json, sizeof(json), "%s", cases[i].config);
		for (char *c = json; *c; c++)
			*c = *c == '\'' ? '"' : *c;
		line = command_line(json);
		assert_string_equal(line, cases[i].line);
	}
}

static void a_machine_has_its_devices_in_their_slots(void **state)
{
	_cleanup_guest_config_ struct guest_config config = {0};
	_cleanup_json_ json_t *json = json_pack("{s:s, s:s, s:s, s:i, s:[s, s], s:[s]}", "name", "G", "uuid",
				      U1, "kernel", "/k", "memory", 64, "disk", "phy:/dev/a,xvda,w",
				      "file:/b,xvdb,r", "vif", "mac=00:16:3e:55:9d:b0"),
			      *machine = NULL;
	struct machine_files files;
	struct message_fds list = {0};
	struct error error;
	json_t *disk;

	(void)state;
	machine_files_init(&files);
	files.kernel = 10;
	files.disks[1] = 11;
	files.taps[0] = 12;
	assert_int_equal(guest_config_from_json(&config, json, &error), 0);
	assert_int_equal(guest_config_complete(&config, &error), 0);
	machine = machine_describe(&config, &files, false, 1024, &list);
	assert_non_null(machine);
	disk = json_array_get(json_object_get(machine, "disks"), 1);
	assert_int_equal(json_integer_value(json_object_get(disk, "slot")), 5);
	assert_true(json_is_true(json_object_get(disk, "read_only")));
	assert_int_equal(
		list.fds[json_integer_value(json_object_get(json_object_get(disk, "image"), "fd"))], 11);
	assert_int_equal(json_integer_value(json_object_get(
				 json_array_get(json_object_get(machine, "nets"), 0), "slot")),
		20);
	assert_true(json_is_null(json_object_get(json_object_get(machine, "boot"), "ramdisk")));
}

static void memory_is_promised_before_it_is_taken(void **state)
{
	struct host_memory host = {.total_kib = 1024000, .available_kib = 819200};

	(void)state;
	assert_int_equal(memory_free_mib(&host, 0, 0, 0), 800);
	assert_int_equal(memory_free_mib(&host, 300, 0, 0), 500);      /* none of it touched yet */
	assert_int_equal(memory_free_mib(&host, 300, 307200, 0), 700); /* all of it: seen in available */
	assert_int_equal(memory_free_mib(&host, 0, 0, 256), 744);
	assert_int_equal(memory_free_mib(&host, 2000, 0, 0), 0);
	assert_int_equal(memory_free_mib(&host, 0, 0, 2000), 0);
}

static void a_disk_is_locked_while_it_is_open(void **state)
{
	struct guest_disk writer = {.kind = DISK_FILE, .device = "xvda", .mode = DISK_WRITE}, reader, sharer;
	_cleanup_close_ int one = -1, two = -1, three = -1;
	struct error error;
	char path[256];

	(void)state;
	path_in_root(path, "disk");
	close(open(path, O_CREAT | O_WRONLY, 0600));
	writer.target = path;
	reader = sharer = writer;
	reader.mode = DISK_READ_ONLY;
	sharer.mode = DISK_WRITE_SHARED;
	one = disk_open(&writer, "G", DISK_LOCK_NOW, &error);
	assert_true(one >= 0);
	assert_int_equal(disk_open(&writer, "H", DISK_LOCK_NOW, &error), -EBUSY);
	assert_int_equal(disk_open(&reader, "H", DISK_LOCK_NOW, &error), -EBUSY);
	two = disk_open(&sharer, "H", DISK_LOCK_NOW, &error);
	assert_true(two >= 0);
	three = disk_open(&writer, "H", DISK_LOCK_LATER, &error);
	assert_true(three >= 0);
	assert_int_equal(disk_lock(three, &writer), -EBUSY);
	close(take_fd(&one));
	assert_int_equal(disk_lock(three, &writer), 0);
}

static void two_names_of_one_disk_are_known(void **state)
{
	struct xend *xend = locked_xend("boot-9");
	char path[4][256];
	struct guest_disk disks[] = {{.target = path[0]}, {.target = path[1]}, {.target = path[2]},
		{.target = path[3]}, {.target = "/nonexistent"}};
	struct guest_config config = {.disks = disks, .disk_count = ARRAY_SIZE(disks)};
	struct error error;

	(void)state;
	path_in_root(path[0], "disk");
	path_in_root(path[1], "disk-by-another-name");
	path_in_root(path[2], "disk-linked");
	path_in_root(path[3], "other-disk");
	close(open(path[0], O_CREAT | O_WRONLY, 0600));
	close(open(path[3], O_CREAT | O_WRONLY, 0600));
	assert_int_equal(symlink(path[0], path[1]), 0);
	assert_int_equal(link(path[0], path[2]), 0);
	assert_true(disk_same(&disks[0], &disks[0]));
	assert_false(disk_same(&disks[0], &disks[1]));
	if (disks_look(xend, &config, 0, -1, &error) < 0)
		fail_msg("%s", error.text);
	assert_true(disk_same(&disks[0], &disks[1]) && disk_same(&disks[1], &disks[2]));
	assert_false(disk_same(&disks[0], &disks[3]) || disk_same(&disks[3], &disks[4]));
	assert_false(disks[4].place.known);
	free_xend(xend);
}

static struct checkpoint_file *write_checkpoint(
	struct xend *xend, const char *path, bool force, const char *text)
{
	struct checkpoint_file *file = NULL;
	struct error error = {0};

	if (checkpoint_file_create(&file, xend, path, force, -1, &error) < 0)
		fail_msg("%s", error.text);
	assert_int_equal(write(checkpoint_file_fd(file), text, strlen(text)), strlen(text));
	return file;
}

static void read_back(const char *path, const char *text)
{
	char found[64] = "";
	_cleanup_close_ int fd = open(path, O_RDONLY);

	assert_true(fd >= 0 && read(fd, found, sizeof(found) - 1) >= 0);
	assert_string_equal(found, text);
}

#define SAVED_UUID "00000000-0000-4000-8000-0000000000aa"

static void publish(struct checkpoint_file **file)
{
	struct error error = {0};

	if (checkpoint_file_publish(file, SAVED_UUID, false, &error) < 0)
		fail_msg("%s", error.text);
}

static void write_whole(struct xend *xend, const char *path, bool force, const char *text)
{
	struct checkpoint_file *file = write_checkpoint(xend, path, force, text);

	publish(&file);
	assert_int_equal(checkpoint_file_record_staying(file, NULL), 0);
	checkpoint_file_stays(file);
	checkpoint_file_discard(&file);
	read_back(path, text);
}

/* In the file's directory. */
static void only_file_is(const char *path)
{
	struct dirent *entry;
	char directory[256];
	unsigned count = 0;
	DIR *opened;

	snprintf(directory, sizeof(directory), "%.*s", (int)(strrchr(path, '/') - path), path);
	opened = opendir(directory);
	assert_non_null(opened);
	while ((entry = readdir(opened)))
		if (entry->d_name[0] != '.') {
			assert_string_equal(entry->d_name, strrchr(path, '/') + 1);
			count++;
		}
	closedir(opened);
	assert_int_equal(count, access(path, F_OK) == 0);
}

static void path_in_directory(char path[256], const char *directory)
{
	path_in_root(path, directory);
	assert_int_equal(mkdir(path, 0700), 0);
	strcat(path, "/checkpoint");
}

static void a_checkpoint_has_its_name_only_when_it_is_whole(void **state)
{
	struct xend *xend = locked_xend("boot-6");
	struct checkpoint_file *file;
	struct error error;
	char path[256];

	(void)state;
	path_in_directory(path, "whole");
	file = write_checkpoint(xend, path, false, "one");
	assert_int_equal(access(path, F_OK), -1);
	checkpoint_file_discard(&file);
	only_file_is(path);
	write_whole(xend, path, false, "two");
	assert_int_equal(checkpoint_file_create(&file, xend, path, false, -1, &error), -EEXIST);
	checkpoint_file_discard(&file);
	file = write_checkpoint(xend, path, true, "three");
	read_back(path, "two");
	checkpoint_file_discard(&file);
	read_back(path, "two");
	write_whole(xend, path, true, "three");
	only_file_is(path);
	free_xend(xend);
}

/* The guest's end could not be recorded: what was under the name is there again. */
static void a_published_checkpoint_that_does_not_stay_is_taken_back(void **state)
{
	struct xend *xend = locked_xend("boot-7");
	struct checkpoint_file *file;
	struct error error = {0};
	char path[256];

	(void)state;
	path_in_directory(path, "back");
	for (unsigned old = 0; old < 2; old++)
		for (unsigned said = 0; said < 2; said++) {
			file = write_checkpoint(xend, path, true, "new");
			publish(&file);
			read_back(path, "new");
			if (said)
				assert_int_equal(checkpoint_file_take_back(&file, &error), 0);
			checkpoint_file_discard(&file);
			only_file_is(path);
			if (old)
				read_back(path, "old");
			else
				assert_int_equal(access(path, F_OK), -1);
			if (!old && said)
				write_whole(xend, path, false, "old");
		}
	free_xend(xend);
}

static struct domain *saved_guest(struct xend *xend, bool dead)
{
	struct guest_config config = {.name = strdup("Saved"), .uuid = strdup(SAVED_UUID), .memory = 32};
	struct domain *domain;

	domain = domain_adopt(xend, &config, 7);
	assert_non_null(domain);
	domain->phase = DOMAIN_LIVE;
	domain->dead = dead;
	return domain;
}

/* xend is killed between the file's getting its name and the record of the guest's end. */
static void a_next_xend_decides_whether_the_guest_or_its_file_goes_on(void **state)
{
	static const struct {
		bool dead, old, forgotten,
			failed; /* failed: the guest had gone on, the file could not be removed */
		const char *then;
	} cases[] = {{false, false, false, false, ""}, {false, true, false, false, "old"},
		{true, false, false, false, "new"}, {true, true, false, false, "new"},
		{false, true, true, false, "new"}, {true, true, false, true, "old"},
		{false, true, true, true, "old"}, {false, false, true, true, ""}};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct xend *xend = locked_xend("boot-8");
		struct checkpoint_file *file;
		struct domain *domain;
		char path[256], name[16];

		snprintf(name, sizeof(name), "next-%zu", i);
		path_in_directory(path, name);
		if (cases[i].old)
			write_whole(xend, path, false, "old");
		file = write_checkpoint(xend, path, true, "new");
		publish(&file); /* and no more: this xend is dead, its file open until the end */
		if (cases[i].failed)
			assert_int_equal(store_fail_saves(xend->store, SAVED_UUID, path, NULL), 0);
		xend->store = reopen(xend->store, cases[i].forgotten ? "boot-9" : "boot-8");
		domain = cases[i].forgotten ? NULL : domain_ref(saved_guest(xend, cases[i].dead));
		checkpoint_file_recover(xend);
		if (*cases[i].then)
			read_back(path, cases[i].then);
		else
			assert_int_equal(access(path, F_OK), -1);
		only_file_is(path);
		if (domain) {
			assert_int_equal(
				domain->phase, cases[i].dead && !cases[i].failed ? DOMAIN_GONE : DOMAIN_LIVE);
			domain_forget(domain);
			domain_unref(domain);
		}
		checkpoint_file_recover(xend);
		only_file_is(path);
		close(checkpoint_file_fd(file));
		free(file);
		free_xend(xend);
	}
}

/* It was removed by hand, as was asked for, and a later save of whoever got its name and, as file systems do,
 * its number. */
static void a_file_that_is_another_by_now_is_left_alone(void **state)
{
	struct xend *xend = locked_xend("boot-10");
	struct checkpoint_file *file;
	char path[256], begin[1024];

	(void)state;
	for (unsigned another = 0; another < 2; another++) {
		path_in_directory(path, another ? "another" : "the-same");
		memset(begin, 'a', sizeof(begin));
		begin[sizeof(begin) - 1] = 0;
		file = write_checkpoint(xend, path, false, begin);
		publish(&file); /* and no more: this xend is dead, its file open until the end */
		assert_int_equal(store_fail_saves(xend->store, SAVED_UUID, path, NULL), 0);
		if (another)
			assert_int_equal(pwrite(checkpoint_file_fd(file), "b", 1, 100), 1);
		xend->store = reopen(xend->store, "boot-10");
		checkpoint_file_recover(xend);
		assert_int_equal(access(path, F_OK), another ? 0 : -1);
		checkpoint_file_recover(xend);
		assert_int_equal(access(path, F_OK), another ? 0 : -1);
		unlink(path);
		close(checkpoint_file_fd(file));
		free(file);
	}
	free_xend(xend);
}

/* Not of the clock on the wall, and a guest that did not follow powers off for good later on. */
static void a_wish_to_reboot_is_forgotten_after_a_while(void **state)
{
	static struct xend xend;
	struct domain domain = {.xend = &xend};

	(void)state;
	assert_false(domain_restart_is_wanted(&domain));
	domain_want_restart(&domain, true);
	assert_true(domain_restart_is_wanted(&domain));
	domain.restart_wanted_ns -= (RESTART_WANTED_S - 60) * INT64_C(1000000000);
	assert_true(domain_restart_is_wanted(&domain));
	domain.restart_wanted_ns -= 60 * INT64_C(1000000000);
	assert_false(domain_restart_is_wanted(&domain));
	domain_want_restart(&domain, true);
	domain_want_restart(&domain, false);
	assert_false(domain_restart_is_wanted(&domain));
}

static void what_travels_is_checked_like_a_configuration(void **state)
{
	static struct xend xend;
	struct domain *domain;
	_cleanup_json_ json_t *good = NULL;
	_cleanup_guest_config_ struct guest_config config = {0}, other = {0};
	struct error error;
	bool paused;

	(void)state;
	xend.store = reopen(NULL, "boot-7");
	pthread_cond_init(&xend.changed, NULL);
	domain = any_domain(&xend, U1);
	domain->paused = true;
	good = domain_pack(domain);
	assert_int_equal(domain_unpack(good, &config, &paused, &error), 0);
	assert_true(paused);
	assert_string_equal(config.uuid, U1);
	json_object_set_new(good, "name", json_string("Other"));
	assert_true(domain_unpack(good, &other, &paused, &error) < 0);
	guest_config_free(&other);
	json_object_set_new(json_object_get(good, "config"), "kernel", json_integer(3));
	assert_true(domain_unpack(good, &other, &paused, &error) < 0);
	guest_config_free(&other);
	json_object_del(good, "config");
	assert_true(domain_unpack(good, &other, &paused, &error) < 0);
	domain_forget(domain);
	store_close(xend.store);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_store_forgets_guests_but_no_tickets_with_the_boot),
		cmocka_unit_test(tickets_of_guests_that_have_left_are_dropped),
		cmocka_unit_test(leftovers_are_removed_at_the_next_start),
		cmocka_unit_test(an_errand_is_not_waited_for_for_ever),
		cmocka_unit_test(a_ticket_is_owned_only_after_it_was_received),
		cmocka_unit_test(who_is_asked_refuses_for_ever),
		cmocka_unit_test(command_lines_are_as_xen_made_them),
		cmocka_unit_test(a_machine_has_its_devices_in_their_slots),
		cmocka_unit_test(memory_is_promised_before_it_is_taken),
		cmocka_unit_test(two_names_of_one_disk_are_known),
		cmocka_unit_test(a_disk_is_locked_while_it_is_open),
		cmocka_unit_test(a_checkpoint_has_its_name_only_when_it_is_whole),
		cmocka_unit_test(a_published_checkpoint_that_does_not_stay_is_taken_back),
		cmocka_unit_test(a_next_xend_decides_whether_the_guest_or_its_file_goes_on),
		cmocka_unit_test(a_file_that_is_another_by_now_is_left_alone),
		cmocka_unit_test(a_wish_to_reboot_is_forgotten_after_a_while),
		cmocka_unit_test(what_travels_is_checked_like_a_configuration),
	};

	return cmocka_run_group_tests(tests, one_directory, no_directory);
}
