/* How guests end, in xend's database: saves whose outcome is open, and how those ended that are gone. */
#include "base/cleanup.h"
#include "xend/store_db.h"

#include <string.h>

static void finalize(sqlite3_stmt **statement)
{
	sqlite3_finalize(*statement);
}
#define _cleanup_statement_ _cleanup_(finalize)

static const char *text(sqlite3_stmt *statement, int column)
{
	return (const char *)sqlite3_column_text(statement, column);
}

int store_put_save(struct store *store, const struct stored_save *save, struct error *error)
{
	return store_run(store, false, error,
		"REPLACE INTO saves(uuid, path, aside, device, inode, fate, header) VALUES (?, ?, ?, ?, ?, "
		"?, ?)",
		"sssiiii", save->uuid, save->path, save->aside, (int64_t)save->device, (int64_t)save->inode,
		(int64_t)save->fate, (int64_t)save->header);
}

int store_fail_saves(struct store *store, const char *uuid, const char *path, struct error *error)
{
	return store_run(store, false, error, "UPDATE saves SET fate = ? WHERE uuid = ? AND path = ?", "iss",
		(int64_t)SAVE_FAILED, uuid, path);
}

int store_drop_save(struct store *store, const char *uuid, uint64_t inode, struct error *error)
{
	return store_run(store, true, error, "DELETE FROM saves WHERE uuid = ? AND inode = ?", "si", uuid,
		(int64_t)inode);
}

int store_each_save(struct store *store, int (*visit)(void *context, const struct stored_save *save),
	void *context, struct error *error)
{
	_cleanup_statement_ sqlite3_stmt *statement = NULL;
	int r;

	if (sqlite3_prepare_v2(store->db, "SELECT uuid, path, aside, device, inode, fate, header FROM saves",
		    -1, &statement, NULL) != SQLITE_OK)
		return store_failed(store, error);
	while ((r = sqlite3_step(statement)) == SQLITE_ROW) {
		struct stored_save save = {
			.uuid = text(statement, 0),
			.path = text(statement, 1),
			.aside = text(statement, 2),
			.device = (uint64_t)sqlite3_column_int64(statement, 3),
			.inode = (uint64_t)sqlite3_column_int64(statement, 4),
			.fate = (enum save_fate)sqlite3_column_int(statement, 5),
			.header = (uint64_t)sqlite3_column_int64(statement, 6),
		};

		r = visit(context, &save);
		if (r < 0)
			return error_set(error, -r, "Unable to read xend's database: %s.", strerror(-r));
	}
	return r == SQLITE_DONE ? 0 : store_failed(store, error);
}

int store_put_ending(
	struct store *store, const struct stored_ending *ending, unsigned most, struct error *error)
{
	int r = store_run(store, true, error,
		"REPLACE INTO endings(name, uuid, id, ended_at, reason, exit, detail, next, file, console, "
		"number)"
		" VALUES (?, ?, ?, strftime('%s'), ?, ?, ?, ?, ?, ?,"
		" (SELECT IFNULL(MAX(number), 0) + 1 FROM endings))",
		"ssissssss", ending->name, ending->uuid, (int64_t)ending->id, ending->reason, ending->exit,
		ending->detail, ending->then, ending->file, ending->console);

	return r < 0 ? r
		     : store_run(store, true, error,
			       "DELETE FROM endings WHERE name IN (SELECT name FROM endings ORDER BY "
			       "number DESC LIMIT -1 OFFSET ?)",
			       "i", (int64_t)most);
}

int store_find_ending(struct store *store, const char *name_or_id,
	int (*found)(void *context, const struct stored_ending *ending), void *context, struct error *error)
{
	_cleanup_statement_ sqlite3_stmt *statement = NULL;
	int r = sqlite3_prepare_v2(store->db,
		"SELECT name, uuid, id, ended_at, reason, exit, detail, next, file, console FROM endings"
		" WHERE name = ?1 OR CAST(id AS TEXT) = ?1 ORDER BY name = ?1 DESC, number DESC LIMIT 1",
		-1, &statement, NULL);

	if (r == SQLITE_OK)
		r = sqlite3_bind_text(statement, 1, name_or_id, -1, SQLITE_TRANSIENT);
	if (r == SQLITE_OK)
		r = sqlite3_step(statement);
	if (r == SQLITE_DONE)
		return 0;
	if (r != SQLITE_ROW)
		return store_failed(store, error);
	return found(context, &(struct stored_ending){
				      .name = text(statement, 0),
				      .uuid = text(statement, 1),
				      .id = (unsigned)sqlite3_column_int64(statement, 2),
				      .ended_at = sqlite3_column_int64(statement, 3),
				      .reason = text(statement, 4),
				      .exit = text(statement, 5),
				      .detail = text(statement, 6),
				      .then = text(statement, 7),
				      .file = text(statement, 8),
				      .console = text(statement, 9),
			      });
}
