"""One owner, always: processes killed, lines cut and people interrupting at every step of a migration between two hosts.

Whatever died is started again. Then exactly one guest runs, the same one and not one that was booted anew, every page of it right; its
disk is locked; on the other host nothing is left of it: no process, run directory or ticket. At no time did both run.
FERRY_EXHAUSTIVE=1 takes every step, otherwise some.
"""

import collections
import contextlib
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import time

import pytest
from conftest import BUILD, free_port
from enumeration import EXHAUSTIVE, Table
from ferry import Control, Host
from heartbeat import Heartbeat
from kills import GUEST_CALLS, XEND_CALLS, Attached, ended_soon, enumerate_kills, lives, processes, read, wait_for
from line import Line, step_of
from pair import SIDES, Pair

POINTS = 11  # of each process, unless all are taken

pytestmark = pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")


# Processes that can be killed: each gives, for a point, a function that says afterwards whether it came to that.


def carrier(side):
    def arm(pair, point):
        wrapped = pair.carriers[(pair.here, pair.there)[side]]
        wrapped.order("all", point)
        return wrapped.withdraw

    return arm


def xend(side):
    def arm(pair, point):
        host = (pair.here, pair.there)[side]
        process = host.process
        trace = Attached(process.pid, pair.trace, XEND_CALLS, point)

        def killed():
            ended_soon(process)  # also at what it does once xm has ended
            trace.detach()
            return not lives(host, process)

        return killed

    return arm


def guest_that_goes(pair, point):
    pid, = processes(pair.here, "ferry-guest")
    trace = Attached(pid, pair.trace, GUEST_CALLS, point)

    def killed():
        trace.detach()
        return not os.path.exists(f"/proc/{pid}/exe") and "killed by SIGKILL" in read(pair.trace)

    return killed


def tracer_of(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        return int(re.search(r"TracerPid:\s+(\d+)", status.read()).group(1))


def guest_that_comes(pair, point):
    wrapped, host = pair.guests[pair.there], pair.there
    wrapped.order(GUEST_CALLS, point)

    def killed():
        came_to_it = wrapped.withdraw()
        for pid in processes(host, "ferry-guest"):  # it goes on without being traced
            if tracer_of(pid):
                os.kill(tracer_of(pid), signal.SIGINT)
                wait_for(lambda: not tracer_of(pid), "the end of the tracing")
        return came_to_it

    return killed


VICTIMS = {
    "source's xend": xend(0),
    "source's carrier": carrier(0),
    "source's guest": guest_that_goes,
    "destination's xend": xend(1),
    "destination's carrier": carrier(1),
    "destination's guest": guest_that_comes,
}


@pytest.fixture
def pair(hosts, kernel, tmp_path):
    return Pair(hosts, kernel, str(tmp_path))


@pytest.fixture
def clear_pair(clear_hosts, kernel, tmp_path):
    return Pair(clear_hosts, kernel, str(tmp_path))


@pytest.fixture
def spread_pair(spread_hosts, kernel, tmp_path):
    return Pair(spread_hosts, kernel, str(tmp_path))


@pytest.fixture
def clear_spread_pair(clear_spread_hosts, kernel, tmp_path):
    return Pair(clear_spread_hosts, kernel, str(tmp_path))


@pytest.mark.parametrize("victim", VICTIMS)
def test_kills(pair, victim, capsys):
    table = Table()
    is_guest = victim.endswith("guest")

    def attempt(point):
        if is_guest and pair.booted:  # who ends right after a boot is not started again; one who has arrived is
            assert pair.migrate()[2] == "destination"
            pair.turn()
            pair.booted = False
        status, said, where, killed = pair.migrate(lambda: VICTIMS[victim](pair, point))
        table.add(f"{point[0]} {point[1]}" if point else "-", killed or not point, status, where)
        if status == 0 and not is_guest:
            assert where == "destination"
        elif status and victim != "source's xend":
            assert where == "source" or is_guest, said
        if where == "destination":
            pair.turn()
        pair.booted = is_guest and bool(killed)
        pair.guest_is_right(same=not pair.booted)
        return killed

    try:
        enumerate_kills(attempt, pair.trace, POINTS)
    finally:
        table.print(f"kill -9 of the {victim}, at system call", capsys)


# The line between the hosts


@pytest.fixture
def line():
    made = Line()
    yield made
    made.close()


def records_of(pair, line, live):
    """Those of one undisturbed migration, in their order; of many PAGES the first and the last of each connection."""
    line.arm(None, None, pair.there.port)
    assert pair.migrate(live=live, port=line.port)[::2] == (0, "destination")
    pair.turn()
    last = {direction: number for direction, name, number in line.seen if name == "PAGES"}
    records = [record for record in line.seen if EXHAUSTIVE or record[1] != "PAGES" or record[2] in (1, last[record[0]])]
    # On a secured line they are many, of no name.
    return records if EXHAUSTIVE or len(records) < 40 else records[: -3 : len(records) // 20] + records[-3:]


@pytest.mark.parametrize("how, which", [("before", "clear_pair"), ("within", "clear_pair"), ("within", "pair"),
                                        ("within", "clear_spread_pair"), ("within", "spread_pair")])
def test_cuts(request, line, how, which, capsys):
    pair, table = request.getfixturevalue(which), Table()
    for record in records_of(pair, line, live=True):
        line.arm(record, how, pair.there.port)
        status, said, where, _ = pair.migrate(port=line.port)
        table.add(step_of(record), line.reached.is_set(), status, where)
        assert where == ("destination" if status == 0 else "source"), said
        if where == "destination":
            pair.turn()
        pair.guest_is_right()
    table.print(f"the line is cut {how} a record", capsys)


@pytest.mark.parametrize("hosts_fixture", ["spread_hosts", "clear_spread_hosts"])
@pytest.mark.parametrize("live", [True, False], ids=["live", "warm"])
def test_memory_goes_over_data_connections(request, kernel, tmp_path, line, hosts_fixture, live):
    pair = Pair(request.getfixturevalue(hosts_fixture), kernel, str(tmp_path))
    for _ in range(4):
        line.arm(None, None, pair.there.port)
        assert pair.migrate(live=live, port=line.port)[::2] == (0, "destination")
        pair.turn()
        assert {direction for direction, _, _ in line.seen} == {"→", "←", "→1", "←1", "→2", "←2"}
        assert not any(direction == "→" and name == "PAGES" for direction, name, _ in line.seen)
        pair.guest_is_right()


def test_interrupts(clear_pair, line, capsys):
    """^C while a record is on its way. Once COMMIT is, it is too late, and the migration goes on to its end."""
    pair, table = clear_pair, Table()
    for record in records_of(pair, line, live=False):
        line.arm(record, "held", pair.there.port)
        status, said, where, _ = pair.migrate(port=line.port, live=False, meanwhile=lambda mover: interrupt(mover, pair, line))
        table.add(step_of(record), line.reached.is_set(), status, where)
        assert where == ("destination" if record[1] in ("COMMIT", "RUNNING") else "source") or not line.reached.is_set(), said
        if where == "destination":
            pair.turn()
        pair.guest_is_right()
    table.print("^C while a record is on its way", capsys)


def reaches(mover, line):
    """Whether the record came, and the migration did not end without it."""
    wait_for(lambda: line.reached.is_set() or mover.poll() is not None, f"the record {line.at}")
    return line.reached.is_set()


def interrupt(mover, pair, line):
    given_up = "Domain 'Native' was not migrated to 127.0.0.1: Cancelled."
    before = read(f"{pair.here.root}/xend.log").count(given_up)
    if reaches(mover, line):
        mover.send_signal(signal.SIGINT)
        mover.wait(120)
        if line.at[1] in ("COMMIT", "RUNNING"):
            time.sleep(0.1)  # nothing is to happen
        else:
            wait_for(lambda: line.left() or read(f"{pair.here.root}/xend.log").count(given_up) > before, "that it is given up")
    line.release()


def cut_power(host):
    """Everything on it ends at once; what is not on its disk is gone, and the next start is another boot."""
    def living():  # xend's children are still xend for a moment
        return [pid for name in ("xend", "ferry-guest", "ferry-carrier") for pid in processes(host, name)]

    def end():
        for pid in living():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not living()

    wait_for(end, "the end of all that ran there")
    host.process.wait()
    shutil.rmtree(f"{host.root}/run")
    database = sqlite3.connect(f"{host.root}/state/xend.db")
    database.execute("UPDATE host SET value = value || '-' WHERE key = 'boot'")
    database.commit()
    database.close()


@pytest.mark.parametrize("side", SIDES)
def test_power_cuts(clear_pair, line, side, capsys):
    """A host goes down with all that is on it while a record is on its way. Its guest goes with it; whose it is, is clear."""
    pair, table = clear_pair, Table()
    for record in records_of(pair, line, live=False):
        handed_over = record[1] == "RUNNING"
        survives = handed_over if side == "source" else not handed_over

        def cut(mover):
            assert reaches(mover, line)
            cut_power(pair.here if side == "source" else pair.there)
            line.release()

        line.arm(record, "swallowed", pair.there.port)
        status, _, where, _ = pair.migrate(port=line.port, live=False, meanwhile=cut, guests=int(survives))
        table.add(step_of(record), True, status, where)
        assert where == (("destination" if handed_over else "source") if survives else "nowhere")
        if where == "nowhere":
            pair.create()
        elif where == "destination":
            pair.turn()
        pair.guest_is_right()
    table.print(f"the {side} loses its power while a record is on its way", capsys)


@pytest.mark.skipif(not EXHAUSTIVE, reason="each waits for the 30 s of silence after which a line is given up: only with FERRY_EXHAUSTIVE=1")
@pytest.mark.parametrize("record", [("→", "PAGES", 1), ("←", "RECEIVED", 1), ("→", "COMMIT", 1), ("←", "RUNNING", 1)], ids=str)
def test_a_line_that_falls_silent(clear_pair, line, record):
    pair = clear_pair
    line.arm(record, "swallowed", pair.there.port)
    status, said, where, _ = pair.migrate(port=line.port, patience=150)
    assert line.reached.is_set()
    assert where == ("destination" if status == 0 else "source"), said
    assert (where == "destination") == (record[1] == "RUNNING")
    if where == "destination":
        pair.turn()
    pair.guest_is_right()


# Hosts in trouble, and several people at once


@pytest.fixture
def little_memory():
    """A cgroup with a limit (cgroups.rst of version 1): for processes, by pid."""
    group = f"/sys/fs/cgroup/memory/ferry-{os.getpid()}"
    try:
        os.mkdir(group)
    except OSError as failure:
        pytest.skip(f"no memory cgroup can be made here, so no host has little memory: {failure}")

    def confine(pid, limit):
        for file, value in (("memory.limit_in_bytes", limit), ("cgroup.procs", pid)):
            with open(f"{group}/{file}", "w", encoding="ascii") as control:
                control.write(str(value))

    yield confine
    with open(f"{group}/cgroup.procs", encoding="ascii") as inside:
        for pid in inside.read().split():
            with contextlib.suppress(ProcessLookupError):  # ended meanwhile
                with open(f"{os.path.dirname(group)}/cgroup.procs", "w", encoding="ascii") as outside:
                    outside.write(pid)

    def removed():
        with contextlib.suppress(OSError):
            os.rmdir(group)
        return not os.path.exists(group)

    wait_for(removed, "the end of all in the cgroup")


def test_a_destination_that_runs_out_of_memory(pair, little_memory, capsys):
    table = Table()
    for mib in (4, 6, 8, 10, 14, 16):
        little_memory(pair.there.process.pid, mib << 20)
        status, said, where, _ = pair.migrate()
        table.add(f"of {mib} MiB", True, status, where)
        assert (status == 0) == (where == "destination"), said
        if where == "destination":
            pair.turn()
            break
        pair.guest_is_right()
        pair.there.process.kill()  # out of the cgroup
        pair.there.process.wait()
        pair.revive()
    pair.guest_is_right()
    table.print("the destination runs out of memory", capsys)


@pytest.fixture
def little_disk(clear_hosts):
    """A host whose xend keeps its records on a small file system, and a function that fills or frees that."""
    root = f"{os.path.dirname(clear_hosts[0].root)}/3"
    os.makedirs(f"{root}/state")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", f"{root}/state"], check=True)
    host = Host(root, BUILD, free_port(), clear_text=True)

    def fill(full):
        if full:
            with open(f"{root}/state/filler", "wb", buffering=0) as filler:
                for size in (1 << 16, 1 << 12):
                    try:
                        while filler.write(bytes(size)) == size:
                            pass
                    except OSError:
                        continue
        elif os.path.exists(f"{root}/state/filler"):
            os.unlink(f"{root}/state/filler")

    yield host, fill
    fill(False)
    host.close()
    wait_for(lambda: subprocess.run(["umount", f"{root}/state"], check=False).returncode == 0, "the end of all who use it")


def test_a_destination_whose_disk_is_full(clear_hosts, little_disk, line, kernel, tmp_path, capsys):
    """Where nothing can be recorded there, the guest stays; what is open is settled once there is room again."""
    there, fill = little_disk
    pair, table = Pair([clear_hosts[0], there], kernel, str(tmp_path)), Table()
    records = [record for record in records_of(pair, line, live=False) if record[1] != "PAGES" or record[2] == 1]
    for record in records:
        if pair.here is there:
            assert pair.migrate()[2] == "destination"
            pair.turn()
        line.arm(record, "held", there.port)

        def meanwhile(mover):
            if reaches(mover, line):
                fill(True)
            line.release()
            ended_soon(mover, 2)
            fill(False)
            mover.wait(240)
            there.process.terminate()  # what could not be recorded then is put right at its next start
            there.process.wait()

        status, said, where, _ = pair.migrate(port=line.port, live=False, meanwhile=meanwhile)
        table.add(step_of(record), line.reached.is_set(), status, where)
        assert where == ("destination" if status == 0 else "source"), said
        if where == "destination":
            pair.turn()
        pair.guest_is_right()
    table.print("the destination's disk is full while a record is on its way", capsys)


@pytest.fixture
def third_host(clear_hosts):
    host = Host(f"{os.path.dirname(clear_hosts[0].root)}/3", BUILD, free_port(), clear_text=True)
    yield host
    host.close()


def test_another_host_answers_in_the_destinations_place(clear_pair, third_host, line):
    """The guest runs at the destination, which was not heard to say so; who is asked about it knows nothing of it. The guest never
    runs twice, and once the destination can be asked it is the destination's."""
    pair = clear_pair
    pair.add(third_host)
    line.arm(("←", "RUNNING", 1), "swallowed", pair.there.port)

    def meanwhile(mover):
        assert reaches(mover, line)
        line.target = ("127.0.0.1", third_host.port)
        line.release()
        wait_for(lambda: "has other records than the host that the guest was handed over to" in read(f"{pair.here.root}/xend.log"),
                 "the other host's answer", log=f"{pair.here.root}/xend.log")
        time.sleep(1)  # would it run here too, that would be seen by now
        line.target = ("127.0.0.1", pair.there.port)

    status, said, where, _ = pair.migrate(port=line.port, live=False, meanwhile=meanwhile)
    assert (status, where) == (0, "destination"), said
    pair.turn()
    pair.guest_is_right()


def test_two_administrators(clear_pair, third_host, capsys):
    """Both migrate the guest, to different hosts, the one a moment after the other."""
    pair = clear_pair
    pair.add(third_host)
    outcomes = collections.Counter()
    for moment in range(0, 100, 4 if EXHAUSTIVE else 12):
        targets = [host for host in pair.hosts if host is not pair.here]
        movers = []
        for target in targets:
            movers.append(pair.start_xm("migrate", "--live", "-p", str(target.port), "Native", "127.0.0.1"))
            time.sleep(moment / 1000)
        said = [mover.communicate(timeout=300)[1] for mover in movers]
        winners = [target for target, mover in zip(targets, movers) if mover.returncode == 0]
        assert len(winners) == 1, said
        loser, = (words for words, mover in zip(said, movers) if mover.returncode)
        assert "is being migrated" in loser or "does not exist" in loser or "is being ended" in loser, loser
        outcomes[re.sub(r"Error: Domain 'Native' ", "", loser).strip()] += 1
        pair.settle()
        pair.here = winners[0]
        pair.guest_is_right()
    with capsys.disabled():
        print("\ntwo administrators at once: one succeeds, the other hears")
        for words, count in outcomes.items():
            print(f"  {count:3} × {words}")


def test_eight_each_way_at_once(hosts, kernel):
    running = []
    for number in range(16):
        host, name = hosts[number % 2], f"Guest{number}"
        host.xm("create", "-q", host.write_config(name, kernel, 32, 1, "tsc_khz=2000000 touch=2"))
        running.append((name, host, hosts[1 - number % 2]))
    movers = [here.start_xm("migrate", "--live", "-p", str(there.port), name, "127.0.0.1") for name, here, there in running]
    for mover in movers:
        mover.finish()
    for name, here, there in running:
        assert name in there.names() and name not in here.names()
    for host in hosts:
        for path in host.guests().values():
            beats = Heartbeat()
            beats.add(Control(path).console())
            beats.wait_after(time.monotonic(), count=20)
            assert beats.whole()
            beats.close()
