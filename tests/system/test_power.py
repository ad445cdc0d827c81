"""A host loses its power in a migration: afterwards the guest runs on the other, or can be started there; never on both."""

import re
import sqlite3
import time

import pytest
from conftest import domain, leftovers, shut_down_and_check_disk
from ferrylab.observe import wait_until

RECEIVED, COMMITTED = 4, 1  # tickets, src/xend/store.h


def tickets(host, tmp_path):
    """The states that its xend has recorded: the database as it is on the disk now."""
    for suffix in ("", "-wal"):
        content = host.get(f"/var/lib/xend/xend.db{suffix}")
        (tmp_path / f"{host.name}.db{suffix}").write_bytes(content)
    (tmp_path / f"{host.name}.db-shm").unlink(missing_ok=True)
    database = sqlite3.connect(tmp_path / f"{host.name}.db")
    states = [state for state, in database.execute("SELECT state FROM tickets")]
    database.close()
    return states


def signal(host, name, program):
    host.run(f"kill -{name} $(pidof {program})")


def migrate_until_committed(source, destination, tmp_path):
    """A migration that stands still after the source has recorded COMMIT and before it has sent it."""
    mover = source.spawn(f"xm migrate TestGuest {destination.address}")
    wait_until(lambda: source.run("pidof ferry-carrier", check=False).stdout, 40, "the source's carrier")
    signal(source, "STOP", "xend")
    wait_until(lambda: RECEIVED in tickets(destination, tmp_path), 60, "all to be received")
    time.sleep(1)
    signal(source, "STOP", "ferry-carrier")
    signal(source, "CONT", "xend")
    wait_until(lambda: COMMITTED in tickets(source, tmp_path), 40, "COMMIT to be recorded")
    return mover


def check_unharmed(guest):
    """The guest writes on, and all that it was told to be on its disk is there."""
    durable = guest.pulse_status("disk")["durable_records"]
    assert durable_records(guest) >= durable
    wait_until(lambda: guest.pulse_status("disk")["durable_records"] > durable, 20, "writing to go on")


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
        host.run("sync", timeout=60)

    # The destination, while it receives memory.
    mover = host1.spawn(f"xm migrate --live -r 20 TestGuest {host2.address}")
    wait_until(lambda: domain(host2, "TestGuest"), 40, "the reception")
    host2.power_off()
    lab.repair()
    assert mover.wait(90).status == 1
    assert leftovers(host2) == []
    check_unharmed(guest)

    # The destination, when it is open who has the guest.
    mover = migrate_until_committed(host1, host2, tmp_path)
    host2.power_off()
    signal(host1, "CONT", "ferry-carrier")
    lab.repair()
    result = mover.wait(90)
    assert result.status == 1 and "runs on here" in result.stderr, result
    assert leftovers(host2) == []
    check_unharmed(guest)

    # The source, then: the guest's memory is gone with it, its disk is as it was, and nobody else runs it.
    durable = guest.pulse_status("disk")["durable_records"]
    migrate_until_committed(host1, host2, tmp_path)
    guest.disconnect()
    host1.power_off()
    lab.repair()
    wait_until(lambda: leftovers(host2) == [], 60, "the end of the reception")
    assert leftovers(host1) == []
    host2.run(f"xm create {guest.name}", timeout=60)
    guest.wait_up()
    assert durable_records(guest) >= durable
    shut_down_and_check_disk(guest, host2)
