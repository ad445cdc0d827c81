"""Real guests are found again by a xend whose database is lost, and one that is stopped meanwhile is left alone."""

import glob
import os
import signal

import pytest
from test_lazy_restore import checkpoint, filled, host, kill_xend, log, needs_strace, restore_and_hold, wait_until  # noqa: F401 (fixtures)
from test_native import arrived, names, start


def lose_database(host):
    for left in glob.glob(f"{host.root}/state/xend.db*"):
        os.unlink(left)


def guest_of(host):
    with open(glob.glob(f"{host.root}/run/guests/*/process")[0], encoding="ascii") as record:
        return int(record.read().split()[0])


@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "by-its-process"])
def test_the_database_is_lost(hosts, heartbeat, kernel, tmp_path, recorded):
    host = hosts[0]
    start(host, heartbeat, kernel)
    process = guest_of(host)
    kill_xend(host)
    lose_database(host)
    if not recorded:
        os.unlink(glob.glob(f"{host.root}/run/guests/*/domain")[0])
    host.start()
    assert names(host) == ["Domain-0", "Native"] and guest_of(host) == process
    assert host.xm("list", "Native").split()[-5] == "1"  # its ID, by which its process's user is known
    arrived(host, heartbeat)
    host.xm("save", "Native", f"{tmp_path}/c")
    host.xm("restore", f"{tmp_path}/c")
    arrived(host, heartbeat)


@needs_strace
def test_its_memory_goes_on_coming(host, heartbeat, checkpoint):  # noqa: F811
    restorer, held = restore_and_hold(host, checkpoint)
    restorer.finish()
    kill_xend(host)
    lose_database(host)
    os.kill(held, signal.SIGCONT)
    host.start()
    assert names(host) == ["Domain-0", "Native"]
    filled(host)
    arrived(host, heartbeat)


def test_a_guest_is_stopped_while_xend_starts(hosts, heartbeat, kernel):
    host = hosts[0]
    start(host, heartbeat, kernel)
    process = guest_of(host)
    kill_xend(host)
    os.kill(process, signal.SIGSTOP)
    try:
        host.start()
        assert names(host) == ["Domain-0", "Native"]
        wait_until(lambda: "is not found again so far" in log(host), "its being missed")
    finally:
        os.kill(process, signal.SIGCONT)
    arrived(host, heartbeat)
    assert guest_of(host) == process
