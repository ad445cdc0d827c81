"""Migrations that fail, in many ways, one after the other: nothing of them is left on either host.

A dozen; FERRY_EXHAUSTIVE=1 makes 500.
"""

import collections
import os
import signal
import sqlite3

import pytest
from enumeration import EXHAUSTIVE
from kills import ended_soon, processes, wait_for
from line import Line
from pair import Pair

FAILURES = 500 if EXHAUSTIVE else 12
FIRST = 4  # after these everything that is made once has been made
KNOWN = 3  # the other host at its own port, at the line's and at the one where nobody listens
REMEMBERED = 65  # moves (ENDED_MAX in src/xend/moves.c), and one that is under way
CUTS = [("→", "HELLO", 1), ("→", "TIME", 2), ("→", "OFFER", 1), ("←", "ACCEPT", 1), ("→", "PAGES", 1), ("→", "ROUND", 1), ("←", "ROUND", 1),
        ("→", "STATE", 1), ("→", "END", 1), ("←", "RECEIVED", 1), ("→", "COMMIT", 1)]


@pytest.fixture
def line():
    made = Line()
    yield made
    made.close()


def descriptors(pid):
    """Those of a process, by what they are; the numbers of sockets, pipes and memory files say nothing."""
    found = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            found.append(os.readlink(f"/proc/{pid}/fd/{fd}").split(":")[0])
        except OSError:  # closed meanwhile
            continue
    return sorted(found)


def rows(host):
    """How many there are in each table of what xend keeps."""
    with sqlite3.connect(f"file:{host.root}/state/xend.db?mode=ro", uri=True) as store:
        tables = [name for name, in store.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {table: store.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables}


def files(host):
    return sorted(os.path.join(directory, name) for part in ("run", "state") for directory, _, names in os.walk(f"{host.root}/{part}")
                  for name in names)


def left_over(hosts):
    """What could grow, of each host: tickets apart, of which refused ones are kept for a while on purpose, and the latest moves."""
    found = []
    for host in hosts:
        guests = processes(host, "ferry-guest")
        kept = rows(host)
        kept.pop("tickets")
        assert kept.pop("moves") <= REMEMBERED
        assert kept.pop("peers") <= KNOWN
        found.append({"xend": descriptors(host.process.pid), "guests": [fd for pid in guests for fd in descriptors(pid)], "rows": kept,
                      "carriers": processes(host, "ferry-carrier"), "files": files(host)})
    return found


def fail(pair, line, number):
    """One migration that does not succeed."""
    options = [["--live"], [], ["--live", "--compress=yes"]][number % 3]
    how = number % 4
    if how == 0:  # nobody listens
        port = 1
    elif how == 1:
        line.arm(None, None, pair.there.port)
        options, port = ["--live", "-r", "8", "--timeout", "1", "--on-stall", "cancel"], line.port
    else:
        line.arm(CUTS[number % len(CUTS)], "before", pair.there.port)
        port = line.port
    mover = pair.start_xm("migrate", *options, "-p", str(port), "Native", "127.0.0.1")
    if how == 2 and number % 8 == 2:
        ended_soon(mover, 0.05)
        mover.send_signal(signal.SIGINT)
    said = mover.communicate(timeout=120)[1]
    assert mover.returncode == 1 or how == 2, said
    assert pair.settle() == "source" or mover.returncode == 0, said


def test_nothing_is_left(clear_hosts, kernel, tmp_path, line, capsys):
    pair = Pair(clear_hosts, kernel, str(tmp_path))
    before = None
    for number in range(FAILURES):
        fail(pair, line, number)
        if pair.here.names() == []:  # interrupted too late: it went
            pair.turn()
            before = None
        if before is None and number >= FIRST:
            before = left_over((pair.here, pair.there))

    def grown():
        """What there is more of than before."""
        more = []
        for was, now in zip(before, left_over((pair.here, pair.there))):
            more += [(what, +(collections.Counter(now[what]) - collections.Counter(was[what]))) for what in now]
        return [(what, added) for what, added in more if added]

    assert before is not None
    wait_for(lambda: not grown(), None, timeout=30)
    assert not grown(), f"after {FAILURES} failed migrations: {grown()}"
    pair.guest_is_right()
    with capsys.disabled():
        print(f"\n{FAILURES} failed migrations: no descriptor, record, file or process more on either host")
