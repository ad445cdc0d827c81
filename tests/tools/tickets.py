"""Hand-overs that are not settled, as xend has recorded them."""

import contextlib
import sqlite3

OPEN = {1: "COMMITTED", 2: "GONE", 3: "RECEIVING", 4: "RECEIVED"}  # src/xend/store.h


def open_tickets(path):
    """The states of those in a xend's database, which is only read."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=60)) as database:
        return [OPEN[state] for state, in database.execute("SELECT state FROM tickets") if state in OPEN]
