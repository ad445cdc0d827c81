#include "xend/store_schema.h"
#include "base/cleanup.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/*
 * Step n leads from version n to version n + 1 (PRAGMA user_version). A step is never changed: whoever adds a
 * table or a column adds a step at the end.
 */
static const char *const steps[] = {
	/* Databases from before there were versions have these tables, and version 0. */
	"CREATE TABLE IF NOT EXISTS host(key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;"
	"CREATE TABLE IF NOT EXISTS domains(uuid TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, id INTEGER NOT "
	"NULL UNIQUE,"
	" phase INTEGER NOT NULL, paused INTEGER NOT NULL, restart_wanted INTEGER NOT NULL,"
	" started_at INTEGER NOT NULL, config TEXT NOT NULL) WITHOUT ROWID;"
	"CREATE TABLE IF NOT EXISTS tickets(ticket TEXT PRIMARY KEY, uuid TEXT NOT NULL, state INTEGER NOT "
	"NULL,"
	" host TEXT NOT NULL, port INTEGER NOT NULL, changed_at INTEGER NOT NULL) WITHOUT ROWID;"
	"CREATE TABLE IF NOT EXISTS peers(host TEXT, port INTEGER, seen_at INTEGER NOT NULL, PRIMARY "
	"KEY(host, port)) WITHOUT ROWID;"
	"CREATE TABLE IF NOT EXISTS trusted(host TEXT PRIMARY KEY COLLATE NOCASE, address TEXT NOT NULL,"
	" fingerprint TEXT NOT NULL, since INTEGER NOT NULL) WITHOUT ROWID;"
	"CREATE TABLE IF NOT EXISTS destinations(name TEXT PRIMARY KEY, host TEXT NOT NULL, went_at INTEGER "
	"NOT NULL) WITHOUT ROWID;"
	"CREATE TABLE IF NOT EXISTS leftovers(path TEXT PRIMARY KEY) WITHOUT ROWID;",
	"CREATE TABLE saves(uuid TEXT PRIMARY KEY, path TEXT NOT NULL, aside TEXT NOT NULL,"
	" device INTEGER NOT NULL, inode INTEGER NOT NULL, keep INTEGER NOT NULL) WITHOUT ROWID;",
	/* Of the tickets that are there already it is not known whom they were given to. */
	"ALTER TABLE tickets ADD COLUMN address TEXT NOT NULL DEFAULT '';"
	"ALTER TABLE tickets ADD COLUMN fingerprint TEXT NOT NULL DEFAULT '';"
	"ALTER TABLE tickets ADD COLUMN records TEXT NOT NULL DEFAULT '';",
	/* Who had been told to reboot by then is taken at its word for as long as from the host's boot. */
	"ALTER TABLE domains ADD COLUMN booted_ns INTEGER NOT NULL DEFAULT 0;"
	"ALTER TABLE domains ADD COLUMN early_reboots INTEGER NOT NULL DEFAULT 0;",
	"CREATE TABLE endings(name TEXT PRIMARY KEY, uuid TEXT NOT NULL, id INTEGER NOT NULL, ended_at "
	"INTEGER "
	"NOT NULL, reason TEXT NOT NULL, exit TEXT NOT NULL, detail TEXT NOT NULL, next TEXT NOT NULL,"
	" file TEXT NOT NULL, console TEXT NOT NULL) WITHOUT ROWID;",
	/* A save whose storage does not answer may be followed by another of the same guest. */
	"ALTER TABLE saves RENAME TO saves_by_guest;"
	"CREATE TABLE saves(uuid TEXT NOT NULL, path TEXT NOT NULL, aside TEXT NOT NULL, device INTEGER NOT "
	"NULL, inode INTEGER NOT NULL, fate INTEGER NOT NULL, PRIMARY KEY(uuid, path, inode)) WITHOUT ROWID;"
	"INSERT INTO saves SELECT uuid, path, aside, device, inode, keep FROM saves_by_guest;"
	"DROP TABLE saves_by_guest;",
	"CREATE TABLE moves(number INTEGER PRIMARY KEY, name TEXT NOT NULL, id INTEGER NOT NULL,"
	" host TEXT NOT NULL, state INTEGER NOT NULL, began_at INTEGER NOT NULL, ended_at INTEGER NOT NULL,"
	" returned INTEGER NOT NULL, result TEXT NOT NULL, why TEXT NOT NULL);",
	"ALTER TABLE domains ADD COLUMN places TEXT NOT NULL DEFAULT '[]';"
	"ALTER TABLE domains ADD COLUMN recorded_ns INTEGER NOT NULL DEFAULT 0;",
	/* A file system gives the number of a removed file to the next one. */
	"ALTER TABLE saves ADD COLUMN header INTEGER NOT NULL DEFAULT 0;",
	/* Which was the latest no clock tells: it may have been set back. */
	"ALTER TABLE endings ADD COLUMN number INTEGER NOT NULL DEFAULT 0;"
	"UPDATE endings SET number = (SELECT COUNT(*) FROM endings AS earlier"
	" WHERE earlier.ended_at <= endings.ended_at);",
};

static int unusable(sqlite3 *db, struct error *error)
{
	int code = sqlite3_errcode(db);

	if (code == SQLITE_FULL)
		return error_set(error, ENOSPC, "Unable to write xend's database %s: %s.",
			sqlite3_db_filename(db, "main"), sqlite3_errmsg(db));
	return error_set(error, EIO, "Unable to use xend's database %s: %s. Guests that run go on. %s.",
		sqlite3_db_filename(db, "main"), sqlite3_errmsg(db),
		code == SQLITE_NOTADB || code == SQLITE_CORRUPT ? "Put a copy of it in its place, or move it "
								  "away (the hosts that are trusted are then "
								  "to be trusted again) and start xend again"
								: "Mend that and start xend again");
}

static void finalize(sqlite3_stmt **statement)
{
	sqlite3_finalize(*statement);
}

static int read_version(sqlite3 *db, int *version, struct error *error)
{
	__attribute__((cleanup(finalize))) sqlite3_stmt *statement = NULL;

	if (sqlite3_prepare_v2(db, "PRAGMA user_version", -1, &statement, NULL) != SQLITE_OK ||
		sqlite3_step(statement) != SQLITE_ROW)
		return unusable(db, error);
	*version = sqlite3_column_int(statement, 0);
	return 0;
}

static int check(sqlite3 *db, struct error *error)
{
	__attribute__((cleanup(finalize))) sqlite3_stmt *statement = NULL;
	const char *found;

	if (sqlite3_prepare_v2(db, "PRAGMA quick_check(1)", -1, &statement, NULL) != SQLITE_OK ||
		sqlite3_step(statement) != SQLITE_ROW)
		return unusable(db, error);
	found = (const char *)sqlite3_column_text(statement, 0);
	if (found && strcmp(found, "ok") == 0)
		return 0;
	return error_set(error, EIO,
		"xend's database %s is damaged (%s). Guests that run go on. Put a copy of it in its place, "
		"or "
		"move it away (the hosts that are trusted are then to be trusted again) and start xend "
		"again.",
		sqlite3_db_filename(db, "main"), found ? found : "no more is known");
}

static int step_up(sqlite3 *db, int from, struct error *error)
{
	char commit[64];
	int r;

	/* The number is written in the transaction as well. */
	snprintf(commit, sizeof(commit), "PRAGMA user_version = %d; COMMIT", from + 1);
	if (sqlite3_exec(db, "BEGIN IMMEDIATE", NULL, NULL, NULL) == SQLITE_OK &&
		sqlite3_exec(db, steps[from], NULL, NULL, NULL) == SQLITE_OK &&
		sqlite3_exec(db, commit, NULL, NULL, NULL) == SQLITE_OK)
		return 0;
	r = unusable(db, error);
	if (!sqlite3_get_autocommit(db))
		sqlite3_exec(db, "ROLLBACK", NULL, NULL, NULL);
	return r;
}

int store_upgrade(sqlite3 *db, struct error *error)
{
	const int newest = (int)ARRAY_SIZE(steps);
	int version = 0, r = read_version(db, &version, error);

	if (r < 0)
		return r;
	if (version > newest || version < 0)
		return error_set(error, ENOTSUP,
			"xend's database %s has version %d, and this xend (%s) knows none after %d: a newer "
			"xend "
			"has written it. Guests that run go on. Install that xend again and start it.",
			sqlite3_db_filename(db, "main"), version, FERRY_VERSION, newest);
	r = check(db, error);
	if (r >= 0 && sqlite3_exec(db, "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;", NULL, NULL,
			      NULL) != SQLITE_OK)
		r = unusable(db, error);
	for (; r >= 0 && version < newest; version++)
		r = step_up(db, version, error);
	return r;
}
