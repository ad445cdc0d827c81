/* What the store has of other hosts: whom this one trusts, whom it knows, and which guests went to them. */
#include "base/cleanup.h"
#include "xend/store_db.h"

#include <errno.h>
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

/* ---- trust ---- */

int store_trust(struct store *store, const struct trusted_host *host, struct error *error)
{
	int r = store_begin(store, true, error);

	/* A host has one key: with another, its former one is trusted under no other name of it either. */
	if (r >= 0)
		r = store_run(store, false, error,
			"DELETE FROM trusted WHERE fingerprint IN (SELECT fingerprint FROM trusted WHERE "
			"host = ? AND fingerprint <> ?)",
			"ss", host->host, host->fingerprint);
	if (r >= 0)
		r = store_run(store, false, error,
			"REPLACE INTO trusted(host, address, fingerprint, since) VALUES (?, ?, ?, "
			"strftime('%s'))",
			"sss", host->host, host->address, host->fingerprint);
	if (r >= 0)
		r = store_commit(store, error);
	if (r < 0)
		store_rollback(store);
	return r;
}

/* The rows whose key is revoked with ?1. */
#define SAME_KEY                                                                                             \
	"fingerprint IN (SELECT fingerprint FROM trusted WHERE host = ?1 OR (address = ?1 AND NOT EXISTS "   \
	"(SELECT 1 FROM trusted WHERE host = ?1)))"

static int add_names(struct store *store, const char *host, json_t *names, struct error *error)
{
	_cleanup_statement_ sqlite3_stmt *statement = NULL;
	int r;

	if (sqlite3_prepare_v2(store->db, "SELECT host FROM trusted WHERE " SAME_KEY " ORDER BY host", -1,
		    &statement, NULL) != SQLITE_OK ||
		sqlite3_bind_text(statement, 1, host, -1, SQLITE_TRANSIENT) != SQLITE_OK)
		return store_failed(store, error);
	while ((r = sqlite3_step(statement)) == SQLITE_ROW)
		json_array_append_new(names, json_string(text(statement, 0)));
	return r == SQLITE_DONE ? 0 : store_failed(store, error);
}

int store_distrust(struct store *store, const char *host, json_t *names, struct error *error)
{
	int known, r = store_begin(store, true, error);

	if (r >= 0)
		r = add_names(store, host, names, error);
	if (r >= 0)
		r = store_run(store, false, error,
			"DELETE FROM peers WHERE host = ?1 OR host IN (SELECT host FROM trusted "
			"WHERE " SAME_KEY " UNION SELECT address FROM trusted WHERE " SAME_KEY ")",
			"s", host);
	known = r >= 0 ? sqlite3_changes(store->db) : 0;
	if (r >= 0)
		r = store_run(store, false, error, "DELETE FROM trusted WHERE " SAME_KEY, "s", host);
	if (r >= 0)
		r = store_commit(store, error);
	if (r < 0) {
		store_rollback(store);
		return r;
	}
	return known || json_array_size(names)
		       ? 0
		       : error_set(error, ENOENT, "%s is not among the trusted hosts; xm trust lists them.",
				 host);
}

int store_each_trusted(struct store *store, int (*visit)(void *context, const struct trusted_host *host),
	void *context, struct error *error)
{
	_cleanup_statement_ sqlite3_stmt *statement = NULL;
	int r;

	if (sqlite3_prepare_v2(store->db,
		    "SELECT host, address, fingerprint, since FROM trusted ORDER BY host", -1, &statement,
		    NULL) != SQLITE_OK)
		return store_failed(store, error);
	while ((r = sqlite3_step(statement)) == SQLITE_ROW) {
		struct trusted_host host = {
			.host = text(statement, 0),
			.address = text(statement, 1),
			.fingerprint = text(statement, 2),
			.since = sqlite3_column_int64(statement, 3),
		};

		r = visit(context, &host);
		if (r < 0)
			return error_set(error, -r, "Unable to list the trusted hosts: %s.", strerror(-r));
	}
	return r == SQLITE_DONE ? 0 : store_failed(store, error);
}

/* ---- peers ---- */

int store_put_peer(
	struct store *store, const char *host, const char *address, unsigned port, struct error *error)
{
	int r = *address ? store_run(store, true, error, "DELETE FROM peers WHERE host = ? AND port = ?",
				   "si", host, (int64_t)port)
			 : 0;

	return r < 0 ? r
		     : store_run(store, true, error,
			       "REPLACE INTO peers(host, port, seen_at) VALUES (?, ?, strftime('%s'))", "si",
			       *address ? address : host, (int64_t)port);
}

int store_each_peer(struct store *store, int (*visit)(void *context, const char *host, unsigned port),
	void *context, struct error *error)
{
	_cleanup_statement_ sqlite3_stmt *statement = NULL;
	int r;

	if (sqlite3_prepare_v2(store->db, "SELECT host, port FROM peers ORDER BY seen_at DESC", -1,
		    &statement, NULL) != SQLITE_OK)
		return store_failed(store, error);
	while ((r = sqlite3_step(statement)) == SQLITE_ROW) {
		r = visit(context, text(statement, 0), (unsigned)sqlite3_column_int(statement, 1));
		if (r < 0)
			return r;
	}
	return r == SQLITE_DONE ? 0 : store_failed(store, error);
}

int store_put_destination(struct store *store, const char *name, const char *host, struct error *error)
{
	return store_run(store, true, error,
		"REPLACE INTO destinations(name, host, went_at) VALUES (?, ?, strftime('%s'))", "ss", name,
		host);
}

int store_destination(
	struct store *store, const char *name, char *host, size_t size, int64_t *went_at, struct error *error)
{
	_cleanup_statement_ sqlite3_stmt *statement = NULL;
	int r = sqlite3_prepare_v2(
		store->db, "SELECT host, went_at FROM destinations WHERE name = ?", -1, &statement, NULL);

	*went_at = 0;
	if (r == SQLITE_OK)
		r = sqlite3_bind_text(statement, 1, name, -1, SQLITE_TRANSIENT);
	if (r == SQLITE_OK)
		r = sqlite3_step(statement);
	if (r == SQLITE_DONE)
		return 0;
	if (r != SQLITE_ROW)
		return store_failed(store, error);
	snprintf(host, size, "%s", text(statement, 0));
	*went_at = sqlite3_column_int64(statement, 1);
	return 0;
}

int store_drop_destination(struct store *store, const char *name, struct error *error)
{
	int r = store_run(store, true, error, "DELETE FROM destinations WHERE name = ?", "s", name);

	return r < 0 ? r
		     : store_run(
			       store, true, error, "UPDATE moves SET returned = 1 WHERE name = ?", "s", name);
}

/* ---- migrations ---- */

int store_put_move(struct store *store, const struct stored_move *move, struct error *error)
{
	return store_run(store, true, error,
		"REPLACE INTO moves(number, name, id, host, state, began_at, ended_at, returned, result, why)"
		" VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
		"isisiiiiss", move->number, move->name, (int64_t)move->id, move->host, (int64_t)move->state,
		move->began_at, move->ended_at, (int64_t)move->returned, move->result, move->why);
}

int store_drop_moves(struct store *store, int64_t before, struct error *error)
{
	return store_run(store, true, error, "DELETE FROM moves WHERE number < ?", "i", before);
}

int store_each_move(struct store *store, int (*visit)(void *context, const struct stored_move *move),
	void *context, struct error *error)
{
	_cleanup_statement_ sqlite3_stmt *statement = NULL;
	int r;

	if (sqlite3_prepare_v2(store->db,
		    "SELECT number, name, id, host, state, began_at, ended_at, returned, result, why FROM "
		    "moves "
		    "ORDER BY number",
		    -1, &statement, NULL) != SQLITE_OK)
		return store_failed(store, error);
	while ((r = sqlite3_step(statement)) == SQLITE_ROW) {
		struct stored_move move = {
			.number = sqlite3_column_int64(statement, 0),
			.name = text(statement, 1),
			.id = (unsigned)sqlite3_column_int64(statement, 2),
			.host = text(statement, 3),
			.state = (unsigned)sqlite3_column_int(statement, 4),
			.began_at = sqlite3_column_int64(statement, 5),
			.ended_at = sqlite3_column_int64(statement, 6),
			.returned = sqlite3_column_int(statement, 7),
			.result = text(statement, 8),
			.why = text(statement, 9),
		};

		r = visit(context, &move);
		if (r < 0)
			return error_set(error, -r, "Unable to read xend's database: %s.", strerror(-r));
	}
	return r == SQLITE_DONE ? 0 : store_failed(store, error);
}
