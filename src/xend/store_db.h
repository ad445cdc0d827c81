/* What the files of the store share. */
#pragma once

#include "xend/store.h"

#include <sqlite3.h>

struct store {
	sqlite3 *db;
	char records[37];
};

/* The sentence for what SQLite has just refused. */
int store_failed(struct store *store, struct error *error);

/* Runs sql with one value for each letter of types: s text, i int64_t. `hastily`: for what a power cut ends
 * anyway (store.h). */
int store_run(
	struct store *store, bool hastily, struct error *error, const char *sql, const char *types, ...);
