/* The tables of xend's database, and what an older xend's lack of them is made up by. */
#pragma once

#include "base/error.h"

#include <sqlite3.h>

/*
 * Looks whether the database is one that this xend understands, and brings it up to date. One of a newer
 * xend, one that is damaged and what is no database are refused, each with a sentence that says what to do,
 * and not written to.
 */
int store_upgrade(sqlite3 *db, struct error *error);
