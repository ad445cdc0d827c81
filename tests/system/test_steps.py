"""Hosts lose their power, lines are cut and processes killed at each step of a migration: a step is a record on its way.

Whatever ended is started again. Then one guest runs, or none where the host or the process that had it is gone, and it can be
created again; its journal is on its disk without gap or repeat, and nothing else is left on either host.
FERRY_EXHAUSTIVE=1 takes every step, otherwise some.
"""

import collections
import contextlib
import os
import re
import sqlite3
import sys
import time
from pathlib import Path

import pytest
from conftest import shut_down_and_check_disk
from ferrylab import LabError
from ferrylab.observe import wait_until
from ferrylab.outpost import Outpost

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

from enumeration import EXHAUSTIVE, Table  # noqa: E402
from line import Line, step_of  # noqa: E402
from tickets import open_tickets  # noqa: E402

ADDRESS, PORT = "10.0.0.50", 8002  # of the line: where either host finds the other
SIDES = ("source", "destination")
JOURNAL = "/var/journal/log"

# One word for each thing that is on a host because of a guest, or should not be there at all.
LOOK = """timeout 100 xm list | awk 'NR > 2 { print "domain" }'
ps -eo stat=,comm= | awk '$1 ~ /^Z/ { print "zombie"; next } $2 ~ /^ferry-(guest|carrier)/ { print $2 }'
ls /run/ferry/guests | sed 's/.*/guest-directory/'
ls /run/ferry/carriers | sed 's/.*/carrier-record/'
ls /sys/class/net | sed -nE 's/^(vif|tap).*/interface/p'
"""
NOTHING = collections.Counter()


def look(host):
    return collections.Counter(host.run(LOOK).stdout.split())


# What happens while a record is on its way: each is entered then, gives whether it came to pass, and is left once the line goes on.


def kill(program, side):
    @contextlib.contextmanager
    def happen(pair):
        host = pair.side(side)
        killed = host.run(f"kill -9 $(pidof {program})", check=False).status == 0
        yield killed
        if program == "xend":
            pair.lab.start_xend(host)

    return happen


def cut_power(side):
    @contextlib.contextmanager
    def happen(pair):
        host = pair.side(side)
        host.power_off()
        host.start()
        yield True
        pair.guest.disk.connect(host)
        pair.lab.start_xend(host)

    return happen


def cut_line(_):
    return contextlib.nullcontext(True)


# To whom it happens: what it is, how the line treats the record, and what is done.
CASES = {
    "source's xend": ("kill -9", "held", kill("xend", "source")),
    "destination's xend": ("kill -9", "held", kill("xend", "destination")),
    "source's carrier": ("kill -9", "held", kill("ferry-carrier", "source")),
    "destination's carrier": ("kill -9", "held", kill("ferry-carrier", "destination")),
    "source's guest": ("kill -9", "held", kill("ferry-guest", "source")),
    "destination's guest": ("kill -9", "held", kill("ferry-guest", "destination")),
    "line": ("cut", "within", cut_line),
    "source's power": ("cut", "swallowed", cut_power("source")),
    "destination's power": ("cut", "swallowed", cut_power("destination")),
}

SOME = [  # who, whether --live, the record
    ("destination's power", True, ("→", "PAGES", 1)),
    ("destination's power", False, ("→", "COMMIT", 1)),
    ("source's power", False, ("→", "COMMIT", 1)),
    ("destination's guest", False, ("→", "END", 1)),
    ("destination's carrier", True, ("←", "ROUND", 1)),
    ("source's carrier", False, ("←", "RECEIVED", 1)),
    ("source's xend", False, ("→", "COMMIT", 1)),
    ("destination's xend", False, ("←", "RUNNING", 1)),
    ("line", False, ("←", "RUNNING", 1)),
    ("source's guest", True, ("←", "RUNNING", 1)),
]


class Pair:
    """Two hosts, one guest, which is `here` and goes to `there` over a line."""

    def __init__(self, lab, line, directory):
        self.lab, self.line, self.directory = lab, line, directory
        self.here, self.there = lab.host1, lab.host2
        self.guest = lab.new_guest(memory=96)
        lab.on_hosts(lambda host: host.run("sync"))  # its configuration was written long ago, as it were
        self.durable = 0
        self.create()
        self.one = look(self.here)
        assert self.one["domain"] == 1 and look(self.there) == NOTHING

    def side(self, name):
        return self.here if name == "source" else self.there

    def turn(self):
        self.here, self.there = self.there, self.here

    def create(self):
        """Starts the guest here. What it was told to be on its disk is there; then it begins another journal."""
        self.guest.disconnect()
        self.line.arm(None, None, PORT, self.there.address)
        self.here.run(f"xm create {self.guest.name}")
        self.guest.wait_up()
        if self.durable:
            assert self.verified_records() >= self.durable
        self.guest.pulse("disk", JOURNAL, 100000)
        self.durable = 0

    def verified_records(self):
        return int(re.fullmatch(r"gapless_records (\d+)\n", self.guest.run(f"pulse verify {JOURNAL}").stdout)[1])

    def durable_records(self):
        return self.guest.pulse_status("disk")["durable_records"]

    def guest_is_right(self):
        """It is the one that there was, it writes on, and all that it was told to be on its disk is there."""
        durable = self.durable_records()
        assert self.verified_records() >= durable >= self.durable
        wait_until(lambda: self.durable_records() > durable, 120, "writing to go on")
        self.durable = durable

    def migrate(self, live, record=None, how=None, happen=None, guests=(1,)):
        """One migration, in which that happens while this record is on its way; then there are so many guests, or still one.
        Whether it came to that, xm's exit status (None: it ended with its host), what it said, where the guest is."""
        self.line.arm(record, how, PORT, self.there.address)
        mover = self.here.spawn(f"xm migrate {'--live' if live else ''} {self.guest.name} {ADDRESS}")
        wait_until(lambda: self.line.reached.is_set() or mover.poll() is not None, 300, f"the record {record}", 0.01)
        happened = self.line.reached.is_set()
        if happened:
            with happen(self) as happened:
                self.line.release()
        result = None if mover.lost else mover.wait()
        where = self.settle(guests if happened else (1,))
        return happened, result and result.status, result and result.stderr, where

    def settle(self, guests):
        """Until one of these numbers of guests is there, with what belongs to them and nothing else, and nothing is in doubt."""
        found, tickets = {}, {}

        def settled():
            found.update(zip(self.lab.ferry_hosts(), self.lab.on_hosts(look)))
            if any(things not in (self.one, NOTHING) for things in found.values()):
                return False
            tickets.update((host.name, self.tickets(host)) for host in found)
            return sum(things["domain"] for things in found.values()) in guests and not any(tickets.values())

        try:
            wait_until(settled, 300, "a settled hand-over")
        except LabError as error:
            pytest.fail(f"{error}: {found} {tickets}")
        return next((name for name in SIDES if found[self.side(name)] == self.one), "nowhere")

    def tickets(self, host):
        """Of hand-overs that are open, as on the host's disk."""
        for suffix in ("-wal", ""):  # in this order: what goes from the one to the other meanwhile is in both, not in neither
            content = host.run(f"cat /var/lib/xend/xend.db{suffix}", check=False).stdout_bytes
            (self.directory / f"{host.name}.db{suffix}").write_bytes(content)
        (self.directory / f"{host.name}.db-shm").unlink(missing_ok=True)
        try:
            return open_tickets(self.directory / f"{host.name}.db")
        except sqlite3.DatabaseError:
            return ["being written"]


def guests_after(case, record):
    """How many guests there may be."""
    handed_over = record[1] == "RUNNING"
    if case.endswith("power"):
        return (int(handed_over == (case == "source's power")),)
    return (0, 1) if case.endswith("guest") else (1,)


def judge(case, record, status, said, where):
    """What may come of a case."""
    if case in ("line", "source's carrier", "destination's carrier", "destination's xend"):
        assert where == ("destination" if status == 0 else "source"), said
    elif case == "source's guest":
        assert where != "source"
    elif case == "destination's guest":
        assert where == "source" or record[1] == "RUNNING" and where == "nowhere", said
    elif case == "source's power":
        assert where != "source"
    elif case == "destination's power":
        assert where != "destination" and status == 1 or record[1] == "RUNNING", said
        assert record[1] != "COMMIT" or "runs on here" in said, said


def steps_of(pair):
    """Whether --live, and the record: all those of an undisturbed migration in their order, of many PAGES the first and the last;
    then those that a first round certainly has while the guest runs on."""
    assert pair.migrate(live=False)[1::2] == (0, "destination")
    pair.turn()
    last = max(number for _, name, number in pair.line.seen if name == "PAGES")
    # ALIVE comes when nothing else does for a while.
    return [(False, record) for record in pair.line.seen
            if record[1] != "ALIVE" and (record[1] != "PAGES" or record[2] in (1, last))
            ] + [(True, record) for record in (("→", "PAGES", 1), ("→", "ROUND", 1), ("←", "ROUND", 1))]


@pytest.fixture(scope="module")
def line(the_lab):
    if os.geteuid() != 0:
        pytest.skip("the line needs a network namespace, which takes root")
    made = Line(ADDRESS, PORT, Outpost(the_lab, ADDRESS).enter)
    yield made
    made.close()


def attempt(pair, victim, live, record):
    """One case and what there is to say about it, for the table; afterwards the guest runs, and is right."""
    began = time.monotonic()
    happened, status, said, where = pair.migrate(live, record, *CASES[victim][1:], guests_after(victim, record))
    step = f"{'--live ' if live else ''}{step_of(record)}"
    print(f"{victim}, {step}: {time.monotonic() - began:.1f} s, {happened} {status} {where} {said!r}",
          file=sys.__stdout__)  # with pytest -s one sees how far it is
    if happened:
        judge(victim, record, status, said, where)
    else:
        assert (status, where) == (0, "destination"), said
    if where == "destination" or where == "nowhere" and record[1] == "RUNNING":
        pair.turn()
    if where == "nowhere":
        pair.create()
    pair.guest_is_right()
    return step, happened, status, where, "not there yet" if pair.line.reached.is_set() else "not reached"


@pytest.mark.parametrize("case", CASES if EXHAUSTIVE else ["some"])
def test_steps(lab, line, tmp_path, case, capsys):
    lab.secure(False)  # so that records can be told apart
    pair = Pair(lab, line, tmp_path)
    tables = collections.defaultdict(Table)
    try:
        for victim, live, record in [(case, *step) for step in steps_of(pair)] if EXHAUSTIVE else SOME:
            tables[victim].add(*attempt(pair, victim, live, record))
    finally:
        for victim, table in tables.items():
            table.print(f"{CASES[victim][0]} of the {victim} while a record is on its way", capsys)
    shut_down_and_check_disk(pair.guest, pair.here)
