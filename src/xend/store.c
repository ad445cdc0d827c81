#include "xend/store.h"
#include "base/cleanup.h"
#include "xend/store_db.h"
#include "xend/store_schema.h"
#include "xend/uuid.h"

#include <errno.h>
#include <sqlite3.h>
#include <stdarg.h>
#include <string.h>

/* Another program may be at the database: at the start that is waited for; later all of xend waits meanwhile.
 */
#define START_BUSY_MS 5000
#define BUSY_MS 500

/* A ticket nobody has asked about for this long will not be asked about. */
#define TICKET_LIFETIME "90 * 86400"

static int failed(struct store *store, struct error *error)
{
	return error_set(error, sqlite3_errcode(store->db) == SQLITE_FULL ? ENOSPC : EIO,
		"Unable to write xend's database %s: %s.", sqlite3_db_filename(store->db, "main"),
		sqlite3_errmsg(store->db));
}

static void finalize(sqlite3_stmt **statement)
{
	sqlite3_finalize(*statement);
}
#define _cleanup_statement_ _cleanup_(finalize)

/* Prepares sql and binds one value for each letter of types: s text, i int64_t. */
static sqlite3_stmt *prepare(struct store *store, const char *sql, const char *types, va_list *values)
{
	sqlite3_stmt *statement = NULL;
	int r = sqlite3_prepare_v2(store->db, sql, -1, &statement, NULL);

	for (int i = 1; r == SQLITE_OK && *types; i++, types++)
		r = *types == 's' ? sqlite3_bind_text(
					    statement, i, va_arg(*values, const char *), -1, SQLITE_TRANSIENT)
				  : sqlite3_bind_int64(statement, i, va_arg(*values, int64_t));
	if (r == SQLITE_OK)
		return statement;
	sqlite3_finalize(statement);
	return NULL;
}

static int step(struct store *store, struct error *error, const char *sql, const char *types, va_list *values)
{
	_cleanup_statement_ sqlite3_stmt *statement = prepare(store, sql, types, values);
	int r;

	if (!statement)
		return failed(store, error);
	do
		r = sqlite3_step(statement);
	while (r == SQLITE_ROW);
	return r == SQLITE_DONE ? 0 : failed(store, error);
}

static int run(struct store *store, struct error *error, const char *sql, const char *types, ...)
{
	va_list values;
	int r;

	va_start(values, types);
	r = step(store, error, sql, types, &values);
	va_end(values);
	return r;
}

/* In WAL mode NORMAL syncs at checkpoints only (sqlite.org/pragma.html#pragma_synchronous). A transaction
 * ends as it began. */
static void be_hasty(struct store *store, bool hasty)
{
	if (sqlite3_get_autocommit(store->db))
		sqlite3_exec(store->db, hasty ? "PRAGMA synchronous = NORMAL" : "PRAGMA synchronous = FULL",
			NULL, NULL, NULL);
}

/* For what a power cut ends anyway: see store.h. */
static int run_hastily(struct store *store, struct error *error, const char *sql, const char *types, ...)
{
	va_list values;
	int r;

	va_start(values, types);
	be_hasty(store, true);
	r = step(store, error, sql, types, &values);
	be_hasty(store, false);
	va_end(values);
	return r;
}

int store_failed(struct store *store, struct error *error)
{
	return failed(store, error);
}

int store_run(struct store *store, bool hastily, struct error *error, const char *sql, const char *types, ...)
{
	va_list values;
	int r;

	va_start(values, types);
	be_hasty(store, hastily);
	r = step(store, error, sql, types, &values);
	be_hasty(store, false);
	va_end(values);
	return r;
}

/* The first column of the first row as a number; `none` where there is no row. */
static int ask(struct store *store, int64_t *value, int64_t none, struct error *error, const char *sql,
	const char *types, ...)
{
	_cleanup_statement_ sqlite3_stmt *statement = NULL;
	va_list values;
	int r;

	va_start(values, types);
	statement = prepare(store, sql, types, &values);
	va_end(values);
	if (!statement)
		return failed(store, error);
	r = sqlite3_step(statement);
	if (r != SQLITE_ROW && r != SQLITE_DONE)
		return failed(store, error);
	*value = r == SQLITE_ROW ? sqlite3_column_int64(statement, 0) : none;
	return 0;
}

int store_drop_namesake(struct store *store, const char *name, const char *uuid, struct error *error)
{
	return run_hastily(
		store, error, "DELETE FROM domains WHERE name = ? AND uuid <> ?", "ss", name, uuid);
}

static const char *text(sqlite3_stmt *statement, int column)
{
	return (const char *)sqlite3_column_text(statement, column);
}

static int new_boot(struct store *store, const char *boot_id, struct error *error)
{
	int64_t same;
	int r = ask(
		store, &same, 0, error, "SELECT 1 FROM host WHERE key = 'boot' AND value = ?", "s", boot_id);

	if (r < 0 || same)
		return r;
	r = store_begin(store, true, error);
	if (r >= 0)
		r = run(store, error, "DELETE FROM domains", "");
	if (r >= 0)
		r = run(store, error, "REPLACE INTO host VALUES ('next_id', '1'), ('boot', ?)", "s", boot_id);
	if (r >= 0)
		r = run(store, error,
			"DELETE FROM tickets WHERE changed_at < strftime('%s') - " TICKET_LIFETIME, "");
	if (r >= 0)
		r = store_commit(store, error);
	if (r < 0)
		store_rollback(store);
	return r;
}

/* Who the store is to other hosts: on the disk before any of them hears of it. */
static int name_records(struct store *store, struct error *error)
{
	_cleanup_statement_ sqlite3_stmt *statement = NULL;
	char drawn[37];
	int r = uuid_draw(drawn, error);

	if (r >= 0)
		r = run(store, error, "INSERT OR IGNORE INTO host VALUES ('records', ?)", "s", drawn);
	if (r < 0)
		return r;
	if (sqlite3_prepare_v2(store->db, "SELECT value FROM host WHERE key = 'records'", -1, &statement,
		    NULL) != SQLITE_OK ||
		sqlite3_step(statement) != SQLITE_ROW)
		return failed(store, error);
	snprintf(store->records, sizeof(store->records), "%s", text(statement, 0));
	return 0;
}

const char *store_records(const struct store *store)
{
	return store->records;
}

/* What writes first finds a database that is locked, or on a file system that is read-only. */
static int begin_use(struct store *store, const char *boot_id, struct error *error)
{
	int r = new_boot(store, boot_id, error);
	size_t length;

	if (r >= 0)
		r = name_records(store, error);
	if (r < 0) {
		length = strlen(error->text);
		snprintf(error->text + length, sizeof(error->text) - length,
			" Guests that run go on. Mend that and start xend again.");
	}
	return r;
}

int store_open(struct store **result, const char *path, const char *boot_id, struct error *error)
{
	struct store *store = calloc(1, sizeof(*store));
	int r = 0;

	if (!store)
		return error_set(error, ENOMEM, "Out of memory.");
	if (sqlite3_open(path, &store->db) != SQLITE_OK)
		r = error_set(error, EIO,
			"Unable to open xend's database %s: %s. Guests that run go on. Mend that and start "
			"xend again.",
			path, sqlite3_errmsg(store->db));
	if (r >= 0)
		sqlite3_busy_timeout(store->db, START_BUSY_MS);
	if (r >= 0)
		r = store_upgrade(store->db, error);
	if (r >= 0)
		r = begin_use(store, boot_id, error);
	if (r < 0) {
		store_close(store);
		return r;
	}
	sqlite3_busy_timeout(store->db, BUSY_MS);
	*result = store;
	return 0;
}

void store_close(struct store *store)
{
	if (!store)
		return;
	sqlite3_close(store->db);
	free(store);
}

int store_begin(struct store *store, bool lasting, struct error *error)
{
	be_hasty(store, !lasting);
	return run(store, error, "BEGIN IMMEDIATE", "");
}

int store_commit(struct store *store, struct error *error)
{
	int r = run(store, error, "COMMIT", "");

	be_hasty(store, false);
	return r;
}

void store_rollback(struct store *store)
{
	if (!sqlite3_get_autocommit(store->db))
		run(store, NULL, "ROLLBACK", "");
	be_hasty(store, false);
}

bool store_is_busy(const struct store *store)
{
	return !sqlite3_get_autocommit(store->db);
}

int store_next_id(struct store *store, unsigned *id, struct error *error)
{
	int64_t next;
	int r = ask(store, &next, 0, error,
		"UPDATE host SET value = value + 1 WHERE key = 'next_id' RETURNING value - 1", "");

	if (r >= 0)
		*id = (unsigned)next;
	return r;
}

int store_put_domain(struct store *store, const struct stored_domain *domain, struct error *error)
{
	_cleanup_free_ char *config = json_dumps(domain->config, JSON_COMPACT);
	_cleanup_free_ char *places =
		domain->places ? json_dumps(domain->places, JSON_COMPACT) : strdup("[]");

	if (!config || !places)
		return error_set(error, ENOMEM, "Out of memory.");
	return run_hastily(store, error,
		"INSERT INTO domains(uuid, name, id, phase, paused, restart_wanted, started_at, config,"
		" booted_ns, early_reboots, places, recorded_ns) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
		" ON CONFLICT(uuid) DO UPDATE SET name = excluded.name, id = excluded.id, phase = "
		"excluded.phase,"
		" paused = excluded.paused, restart_wanted = excluded.restart_wanted,"
		" started_at = excluded.started_at, config = excluded.config,"
		" booted_ns = excluded.booted_ns, early_reboots = excluded.early_reboots,"
		" places = excluded.places, recorded_ns = excluded.recorded_ns",
		"ssiiiiisiisi", domain->uuid, domain->name, (int64_t)domain->id, (int64_t)domain->phase,
		(int64_t)domain->paused, domain->restart_wanted_ns, domain->started_at, config,
		domain->booted_ns, (int64_t)domain->early_reboots, places, domain->recorded_ns);
}

int store_drop_domain(struct store *store, const char *uuid, struct error *error)
{
	return run_hastily(store, error, "DELETE FROM domains WHERE uuid = ?", "s", uuid);
}

int store_drop_domains(struct store *store, struct error *error)
{
	return run(store, error, "DELETE FROM domains", "");
}

int store_reserve_ids(struct store *store, unsigned next_id, struct error *error)
{
	/* What is no number is worth 0. */
	return run_hastily(store, error,
		"INSERT INTO host VALUES ('next_id', ?) ON CONFLICT(key) DO UPDATE SET value = excluded.value"
		" WHERE CAST(value AS INTEGER) < excluded.value",
		"i", (int64_t)next_id);
}

int store_each_domain(struct store *store, int (*visit)(void *context, const struct stored_domain *domain),
	void *context, struct error *error)
{
	_cleanup_statement_ sqlite3_stmt *statement = NULL;
	int r;

	if (sqlite3_prepare_v2(store->db,
		    "SELECT uuid, name, id, phase, paused, restart_wanted, started_at, config, booted_ns, "
		    "early_reboots, places, recorded_ns FROM domains ORDER BY id",
		    -1, &statement, NULL) != SQLITE_OK)
		return failed(store, error);
	while ((r = sqlite3_step(statement)) == SQLITE_ROW) {
		_cleanup_json_ json_t *config = json_loads(text(statement, 7), 0, NULL);
		_cleanup_json_ json_t *places = json_loads(text(statement, 10), 0, NULL);
		struct stored_domain domain = {
			.uuid = text(statement, 0),
			.name = text(statement, 1),
			.id = (unsigned)sqlite3_column_int64(statement, 2),
			.phase = (enum stored_phase)sqlite3_column_int(statement, 3),
			.paused = sqlite3_column_int(statement, 4),
			.restart_wanted_ns = sqlite3_column_int64(statement, 5),
			.started_at = sqlite3_column_int64(statement, 6),
			.booted_ns = sqlite3_column_int64(statement, 8),
			.early_reboots = (unsigned)sqlite3_column_int64(statement, 9),
			.config = config,
			.places = places,
			.recorded_ns = sqlite3_column_int64(statement, 11),
		};

		r = visit(context, &domain);
		if (r < 0)
			return r;
	}
	return r == SQLITE_DONE ? 0 : failed(store, error);
}

int store_put_ticket(struct store *store, const struct stored_ticket *ticket, struct error *error)
{
	/* RECEIVING while nobody stands still: OWNED then has less to wait for. */
	bool lasting = ticket->state == TICKET_RECEIVING || ticket->state == TICKET_OWNED ||
		       ticket->state == TICKET_REFUSED;

	return (lasting ? run : run_hastily)(store, error,
		"REPLACE INTO tickets(ticket, uuid, state, host, port, address, fingerprint, records, "
		"changed_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, strftime('%s'))",
		"ssisisss", ticket->ticket, ticket->uuid, (int64_t)ticket->state, ticket->host,
		(int64_t)ticket->port, ticket->address, ticket->fingerprint, ticket->records);
}

int store_drop_ticket(struct store *store, const char *ticket, struct error *error)
{
	return run_hastily(store, error, "DELETE FROM tickets WHERE ticket = ?", "s", ticket);
}

/* As text, for use in SQL. */
#define SOURCE_STATES "(1, 2)"
_Static_assert(TICKET_COMMITTED == 1 && TICKET_GONE == 2, "as in SOURCE_STATES");

int store_drop_departed(struct store *store, struct error *error)
{
	return run(store, error,
		"DELETE FROM tickets WHERE state IN " SOURCE_STATES
		" AND uuid NOT IN (SELECT uuid FROM domains)",
		"");
}

int store_drop_departures(struct store *store, const char *uuid, struct error *error)
{
	return run(
		store, error, "DELETE FROM tickets WHERE state IN " SOURCE_STATES " AND uuid = ?", "s", uuid);
}

int store_each_ticket(struct store *store, int (*visit)(void *context, const struct stored_ticket *ticket),
	void *context, struct error *error)
{
	_cleanup_statement_ sqlite3_stmt *statement = NULL;
	int r;

	if (sqlite3_prepare_v2(store->db,
		    "SELECT ticket, uuid, state, host, port, address, fingerprint, records "
		    "FROM tickets ORDER BY changed_at",
		    -1, &statement, NULL) != SQLITE_OK)
		return failed(store, error);
	while ((r = sqlite3_step(statement)) == SQLITE_ROW) {
		struct stored_ticket ticket = {
			.ticket = text(statement, 0),
			.uuid = text(statement, 1),
			.state = (enum ticket_state)sqlite3_column_int(statement, 2),
			.host = text(statement, 3),
			.port = (unsigned)sqlite3_column_int(statement, 4),
			.address = text(statement, 5),
			.fingerprint = text(statement, 6),
			.records = text(statement, 7),
		};

		/* Whose a guest is is not guessed. */
		if (ticket.state <= TICKET_NONE || ticket.state > TICKET_REFUSED)
			return error_set(error, EIO,
				"xend's database %s is damaged: the hand-over %s has no state. Guests that "
				"run go "
				"on. Put a copy of the database in its place and start xend again.",
				sqlite3_db_filename(store->db, "main"), ticket.ticket);
		r = visit(context, &ticket);
		if (r < 0)
			return r;
	}
	return r == SQLITE_DONE ? 0 : failed(store, error);
}

int store_ticket_state(struct store *store, const char *ticket, enum ticket_state *state, struct error *error)
{
	int64_t value;
	int r = ask(
		store, &value, TICKET_NONE, error, "SELECT state FROM tickets WHERE ticket = ?", "s", ticket);

	if (r >= 0)
		*state = (enum ticket_state)value;
	return r;
}

int store_add_leftover(struct store *store, const char *path, struct error *error)
{
	return run(store, error, "REPLACE INTO leftovers VALUES (?)", "s", path);
}

int store_drop_leftover(struct store *store, const char *path, struct error *error)
{
	return run(store, error, "DELETE FROM leftovers WHERE path = ?", "s", path);
}

json_t *store_leftovers(struct store *store)
{
	_cleanup_statement_ sqlite3_stmt *statement = NULL;
	json_t *paths = json_array();

	if (sqlite3_prepare_v2(store->db, "SELECT path FROM leftovers", -1, &statement, NULL) == SQLITE_OK)
		while (sqlite3_step(statement) == SQLITE_ROW)
			json_array_append_new(paths, json_string(text(statement, 0)));
	return paths;
}
