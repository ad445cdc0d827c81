"""A host loses its power in a migration: afterwards the guest runs on the other, or can be started there; never on both."""

import contextlib
import re
import sqlite3
import time

import pytest
from conftest import domain, nothing_left, shut_down_and_check_disk
from ferrylab import TimedOut
from ferrylab.observe import wait_until

RECEIVED, COMMITTED = 4, 1  # tickets, src/xend/store.h


def tickets(host, tmp_path):
    """The states that its xend has recorded: the database as it is on the disk now, or none where xend was just writing it."""
    for suffix in ("-wal", ""):  # in this order: what goes from the one to the other meanwhile is in both, not in neither
        content = host.run(f"cat /var/lib/xend/xend.db{suffix}", check=False).stdout_bytes
        (tmp_path / f"{host.name}.db{suffix}").write_bytes(content)
    (tmp_path / f"{host.name}.db-shm").unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(tmp_path / f"{host.name}.db")) as database:
        try:
            return [state for state, in database.execute("SELECT state FROM tickets")]
        except sqlite3.DatabaseError:
            return []


def signal(host, name, program):
    host.run(f"kill -{name} $(pidof {program})")


def arrived_bytes(host):
    return int(host.run("cat /sys/class/net/eth0/statistics/rx_bytes").stdout)


def migrate_until_committed(source, destination, tmp_path):
    """A migration that stands still after the source has recorded COMMIT and before it has sent it."""
    received, committed = tickets(destination, tmp_path).count(RECEIVED), tickets(source, tmp_path).count(COMMITTED)

    def has_committed():
        return tickets(source, tmp_path).count(COMMITTED) > committed

    before = arrived_bytes(destination)
    mover = source.spawn(f"xm migrate -r 20 TestGuest {destination.address}")
    # Memory is on its way for ten seconds and more: xend has no part in it until all is received.
    wait_until(lambda: arrived_bytes(destination) > before + (3 << 20), 120, "memory to be sent")
    signal(source, "STOP", "xend")
    wait_until(lambda: tickets(destination, tmp_path).count(RECEIVED) > received, 120, "all to be received")

    def let_ask():
        """Lets the carrier ask, while xend cannot answer; then xend answer, while the carrier cannot pass it on."""
        time.sleep(1)
        signal(source, "STOP", "ferry-carrier")
        signal(source, "CONT", "xend")
        try:
            return wait_until(has_committed, 5, "COMMIT to be recorded")
        except TimedOut:
            signal(source, "STOP", "xend")
            if has_committed():
                signal(source, "CONT", "xend")
                return True
            signal(source, "CONT", "ferry-carrier")
            return False

    wait_until(let_ask, 120, "COMMIT to be recorded")
    return mover


def check_unharmed(guest):
    """The guest writes on, and all that it was told to be on its disk is there."""
    durable = guest.pulse_status("disk")["durable_records"]
    assert durable_records(guest) >= durable
    wait_until(lambda: guest.pulse_status("disk")["durable_records"] > durable, 120, "writing to go on")


def durable_records(guest):
    return int(re.fullmatch(r"gapless_records (\d+)\n", guest.run("pulse verify /var/journal/log").stdout)[1])


@pytest.fixture
def let_run(lab):
    """Nothing stays stopped."""
    yield
    for host in lab.ferry_hosts():
        host.run("kill -CONT $(pidof xend ferry-carrier)", check=False)


def test_power_cuts(lab, host1, host2, running_guest, tmp_path, let_run):
    guest = running_guest(host1, memory=96)
    guest.pulse("disk", "/var/journal/log", 20000)
    for host in (host1, host2):  # the guest's configuration was written long ago, as it were
        host.run("sync")

    # The destination, while it receives memory.
    mover = host1.spawn(f"xm migrate --live -r 20 TestGuest {host2.address}")
    wait_until(lambda: domain(host2, "TestGuest"), 120, "the reception")
    host2.power_off()
    lab.repair()
    assert mover.wait().status == 1
    nothing_left(host2)
    check_unharmed(guest)

    # The destination, when it is open who has the guest.
    mover = migrate_until_committed(host1, host2, tmp_path)
    host2.power_off()
    signal(host1, "CONT", "ferry-carrier")
    lab.repair()
    result = mover.wait()
    assert result.status == 1 and "runs on here" in result.stderr, result
    nothing_left(host2)
    check_unharmed(guest)

    # The source, then: the guest's memory is gone with it, its disk is as it was, and nobody else runs it.
    durable = guest.pulse_status("disk")["durable_records"]
    migrate_until_committed(host1, host2, tmp_path)
    guest.disconnect()
    host1.power_off()
    lab.repair()
    nothing_left(host2)
    nothing_left(host1)
    host2.run(f"xm create {guest.name}")
    guest.wait_up()
    assert durable_records(guest) >= durable
    shut_down_and_check_disk(guest, host2)
