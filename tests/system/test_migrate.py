"""Relocation: M3 to M8 of the chapter, with guests that would notice harm."""

import time

import pytest

from conftest import check_unharmed, domain, make_busy, nothing_left, shut_down_and_check_disk
from ferrylab.observe import Download, Ping


@pytest.mark.parametrize("vcpus", [1, 4])
@pytest.mark.parametrize("live", ["", "--live"])
def test_busy_guest_moves_and_comes_back(lab, host1, host2, running_guest, vcpus, live):
    """M3, M4: same address, same hardware address, connections survive; to and fro."""
    lab.secure(vcpus == 1)
    guest = running_guest(host1, vcpus=vcpus, memory=160)
    make_busy(guest, vcpus)
    boot = guest.run("cat /proc/sys/kernel/random/boot_id; cat /sys/class/net/e*/address").stdout
    for source, target in ((host1, host2), (host2, host1)):
        which = domain(source, "TestGuest")[0] if source is host1 else "TestGuest"
        source.run(f"xm migrate {live} {which} {target.address}")
        assert domain(target, "TestGuest")[1:3] == (160, vcpus)
        nothing_left(source)
        # The line to the agent is a connection made before the move: it must have survived.
        line = guest.line()
        assert guest.run("cat /proc/sys/kernel/random/boot_id; cat /sys/class/net/e*/address").stdout == boot
        assert guest.line() is line
        check_unharmed(guest)
    shut_down_and_check_disk(guest, host1)


def test_download_goes_on_and_ping_hardly_notices(lab, host1, host2, running_guest):
    """M6, M7"""
    guest = running_guest(host1)
    download = Download(lab, guest.address).wait_flowing()
    # What the emulation itself stands still for shows in replies of hosts, too.
    hosts = [Ping(lab.workstation, host.address, interval=0.1).wait_reply() for host in (host1, host2)]
    ping = Ping(lab.workstation, guest.address).wait_reply()
    host1.run(f"xm migrate -l TestGuest {host2.address}")
    report = ping.wait_reply(100).stop()
    standstill_ms = sum(host.stop().longest_gap_ms for host in hosts)
    assert download.stop() >= 1
    print(report)
    # Emulated hosts: speed is measured in bench/, not here.
    assert report.longest_gap_ms < 2000 + standstill_ms, (report, standstill_ms)
    assert report.lost < 0.1 * report.sent + standstill_ms / 10, (report, standstill_ms)
    assert domain(host2, "TestGuest")


def test_rate_is_kept(host1, host2, running_guest):
    """M5: megabits per second."""
    guest = running_guest(host1)
    guest.run("head -c 16000000 /dev/urandom > /dev/shm/filler")
    guest.disconnect()
    started = time.monotonic()
    host1.run(f"xm migrate --live -r 20 TestGuest {host2.address}")
    # At least the incompressible 16 MB have to go through 2.5 MB/s.
    assert time.monotonic() - started > 5
    assert domain(host2, "TestGuest")


def test_another_id_when_it_is_taken(lab, host1, host2, running_guest):
    """M8"""
    other = running_guest(host2, wait=False, name="Other", address="10.0.0.6", memory=96)
    running_guest(host1, memory=96)
    other.wait_up()
    host1.run(f"xm migrate --live TestGuest {host2.address}")
    assert domain(host2, "Other")[0] != domain(host2, "TestGuest")[0]


def test_refusals_leave_the_guest_running(lab, host1, host2, running_guest):
    """A name that is taken, an address where nobody listens, memory that is not there: nothing happens."""
    other = running_guest(host2, wait=False, address="10.0.0.6", memory=96)
    guest = running_guest(host1, memory=96)
    other.wait_up()
    number = domain(host1, "TestGuest")[0]
    for target in (host2.address, "10.0.0.77", "no-such-host", lab.storage.address):
        result = host1.run(f"xm migrate --live TestGuest {target}", check=False)
        assert result.status == 1 and result.stderr.startswith("Error: "), result
        assert domain(host1, "TestGuest")[0] == number
        assert guest.run("echo here").stdout == "here\n"
