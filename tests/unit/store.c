/* xend's database: which ones are taken, which are brought up to date, which are refused with a sentence. */
#include "base/cleanup.h"
#include "xend/store.h"

#include <fcntl.h>
#include <setjmp.h>
#include <sqlite3.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

static char root[64], path[128];

static int one_directory(void **state)
{
	(void)state;
	strcpy(root, "/tmp/xend-store-XXXXXX");
	if (!mkdtemp(root))
		return -1;
	snprintf(path, sizeof(path), "%s/xend.db", root);
	return 0;
}

static int no_directory(void **state)
{
	static const char *const endings[] = {"", "-wal", "-shm", "-journal"};
	char name[160];

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(endings); i++) {
		snprintf(name, sizeof(name), "%s%s", path, endings[i]);
		unlink(name);
	}
	return rmdir(root);
}

static void in_database(const char *sql)
{
	sqlite3 *db;

	assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
	assert_int_equal(sqlite3_exec(db, sql, NULL, NULL, NULL), SQLITE_OK);
	sqlite3_close(db);
}

static int version(void)
{
	sqlite3_stmt *statement;
	sqlite3 *db;
	int found;

	assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
	assert_int_equal(sqlite3_prepare_v2(db, "PRAGMA user_version", -1, &statement, NULL), SQLITE_OK);
	assert_int_equal(sqlite3_step(statement), SQLITE_ROW);
	found = sqlite3_column_int(statement, 0);
	sqlite3_finalize(statement);
	sqlite3_close(db);
	return found;
}

static void assert_opens(void)
{
	struct store *store;
	struct error error;

	if (store_open(&store, path, "boot", &error) < 0)
		fail_msg("%s", error.text);
	store_close(store);
}

static void assert_refused(const char *why, const char *what_to_do)
{
	struct store *store;
	struct error error;

	assert_true(store_open(&store, path, "boot", &error) < 0);
	assert_non_null(strstr(error.text, path));
	assert_non_null(strstr(error.text, why));
	assert_non_null(strstr(error.text, "Guests that run go on."));
	assert_non_null(strstr(error.text, what_to_do));
}

static int count_domain(void *context, const struct stored_domain *domain)
{
	assert_string_equal(domain->name, "TestGuest");
	++*(unsigned *)context;
	return 0;
}

/* As the first xend that had a database made it. */
static const char unnumbered[] =
	"CREATE TABLE host(key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;"
	"CREATE TABLE domains(uuid TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, id INTEGER NOT NULL UNIQUE,"
	" phase INTEGER NOT NULL, paused INTEGER NOT NULL, restart_wanted INTEGER NOT NULL,"
	" started_at INTEGER NOT NULL, config TEXT NOT NULL) WITHOUT ROWID;"
	"CREATE TABLE tickets(ticket TEXT PRIMARY KEY, uuid TEXT NOT NULL, state INTEGER NOT NULL,"
	" host TEXT NOT NULL, port INTEGER NOT NULL, changed_at INTEGER NOT NULL) WITHOUT ROWID;"
	"INSERT INTO host VALUES ('boot', 'boot'), ('next_id', '8');"
	"INSERT INTO domains VALUES ('u-1', 'TestGuest', 7, 1, 0, 0, 1000, '{}');"
	"INSERT INTO tickets VALUES ('t-1', 'u-1', 5, '', 0, strftime('%s'));";

static void a_database_without_a_number_is_brought_up_to_date(void **state)
{
	enum ticket_state found;
	unsigned count = 0, id;
	struct store *store;
	int newest;

	(void)state;
	assert_opens();
	newest = version();
	assert_true(newest >= 1);
	unlink(path);
	in_database(unnumbered);
	assert_int_equal(version(), 0);
	assert_opens();
	assert_int_equal(version(), newest);
	assert_opens();
	assert_int_equal(store_open(&store, path, "boot", NULL), 0);
	assert_int_equal(store_each_domain(store, count_domain, &count, NULL), 0);
	assert_int_equal(count, 1);
	assert_int_equal(store_next_id(store, &id, NULL), 0);
	assert_int_equal(id, 8);
	assert_int_equal(store_ticket_state(store, "t-1", &found, NULL), 0);
	assert_int_equal(found, TICKET_OWNED);
	assert_int_equal(
		store_trust(store, &(struct trusted_host){"host2", "10.0.0.2", "SHA256:x", 0}, NULL), 0);
	store_close(store);
}

static void a_newer_database_is_refused_and_left_as_it_is(void **state)
{
	struct stat before, after;

	(void)state;
	in_database("CREATE TABLE domains(everything TEXT); PRAGMA user_version = 1000000;");
	assert_int_equal(stat(path, &before), 0);
	assert_refused("has version 1000000", "Install that xend again");
	assert_int_equal(stat(path, &after), 0);
	assert_int_equal(before.st_size, after.st_size);
	assert_int_equal(before.st_mtim.tv_nsec, after.st_mtim.tv_nsec);
	assert_int_equal(version(), 1000000);
}

static void a_step_that_fails_changes_nothing(void **state)
{
	(void)state;
	/* The last table of the first step cannot be made, those before it can. */
	in_database("CREATE TABLE other(one TEXT); CREATE INDEX leftovers ON other(one);");
	assert_refused("there is already an index named leftovers", "start xend again");
	assert_int_equal(version(), 0);
	in_database("CREATE TABLE host(this TEXT);"); /* so the step's has not stayed */
}

static void what_is_no_database_is_refused(void **state)
{
	char page[4096];
	int file;

	(void)state;
	memset(page, 'x', sizeof(page));
	file = open(path, O_CREAT | O_WRONLY | O_TRUNC, 0600);
	assert_int_equal(write(file, page, sizeof(page)), sizeof(page));
	close(file);
	assert_refused("file is not a database", "move it away");
	assert_int_equal(unlink(path), 0);
	assert_int_equal(mkdir(path, 0700), 0);
	assert_refused("unable to open database file", "start xend again");
	assert_int_equal(rmdir(path), 0);
}

static void a_damaged_database_is_refused(void **state)
{
	char page[4096];
	struct stat size;
	int file;

	(void)state;
	in_database(unnumbered);
	assert_opens();
	assert_int_equal(stat(path, &size), 0);
	assert_true(size.st_size > 4 * (off_t)sizeof(page));
	memset(page, 0xa5, sizeof(page));
	file = open(path, O_WRONLY);
	for (off_t at = sizeof(page); at < size.st_size; at += (off_t)sizeof(page))
		assert_int_equal(pwrite(file, page, sizeof(page), at), sizeof(page));
	close(file);
	assert_refused("", "move it away");
	/* The first half of one. */
	unlink(path);
	in_database(unnumbered);
	assert_int_equal(stat(path, &size), 0);
	assert_int_equal(truncate(path, size.st_size / 2 / 4096 * 4096), 0);
	assert_refused("", "move it away");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(
			a_database_without_a_number_is_brought_up_to_date, one_directory, no_directory),
		cmocka_unit_test_setup_teardown(
			a_newer_database_is_refused_and_left_as_it_is, one_directory, no_directory),
		cmocka_unit_test_setup_teardown(
			a_step_that_fails_changes_nothing, one_directory, no_directory),
		cmocka_unit_test_setup_teardown(what_is_no_database_is_refused, one_directory, no_directory),
		cmocka_unit_test_setup_teardown(a_damaged_database_is_refused, one_directory, no_directory),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
