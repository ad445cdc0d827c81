"""What a guest sees of a long time in which it did not run: the date is right, and nothing in it was late."""

import os
import struct

import pytest
from checkpoint_file import number_after
from checkpoints import changed, get_ends
from ferrylab.observe import wait_until

GAP_S = 600
EXHAUSTIVE = os.environ.get("FERRY_EXHAUSTIVE") == "1"


def stopped_earlier(state):
    """The clock of a guest that was stopped so much longer ago."""
    at = number_after(state, "realtime")
    struct.pack_into("<Q", state, at, struct.unpack_from("<Q", state, at)[0] - GAP_S * 10**9)
    return state


def seconds_off(guest, host):
    """By how much a guest's date is not what it has to be, whatever time it takes to look at it: as much ahead of the host's
    as it was stopped earlier than it was."""
    before, there, after = (float(machine.run("bash -c 'echo $EPOCHREALTIME'").stdout) for machine in (host, guest, host))
    return max(before + GAP_S - there, there - after - GAP_S, 0)


@pytest.mark.skipif(not EXHAUSTIVE, reason="an emulated guest on a busy machine has no time between the steps: only with FERRY_EXHAUSTIVE=1, on a quiet one")
@pytest.mark.parametrize("vcpus", [1, 2])
def test_ten_minutes_in_a_file(host1, running_guest, tmp_path, vcpus):
    """Watchdogs of three minutes, as systemd's services have them, do not expire, and a timer rings once."""
    guest = running_guest(host1, memory=96, vcpus=vcpus)
    guest.pulse("watchdogs", 180, GAP_S // 2)
    uptime = float(guest.run("cut -d ' ' -f 1 /proc/uptime").stdout)
    guest.disconnect()
    host1.run("xm save TestGuest TestGuest.checkpt")
    get_ends(host1, "TestGuest.checkpt", tmp_path / "ends")
    file = changed(host1, "TestGuest.checkpt", tmp_path / "ends", state=stopped_earlier)
    host1.run(f"xm restore {file}")
    guest.wait_up()
    wait_until(lambda: seconds_off(guest, host1) <= 1, 60, "the right date")
    host1.run("for i in $(seq 600); do xm log | grep 'has made up for' && exit 0; sleep 0.1; done; exit 1")
    seen = wait_until(lambda: ready(guest.pulse_status("watchdogs")), 60, "services that say that they live")
    assert (seen["overdue"], seen["rings"]) == (0, 1), seen
    assert seen["longest_ms"] < 45000  # the last quarter of a watchdog's time; here, a guest of a slow host is not awaited at every step
    assert float(guest.run("cut -d ' ' -f 1 /proc/uptime").stdout) > uptime + GAP_S
    assert guest.kernel_complaints() == []


def ready(seen):
    return seen if seen["alive"] >= 8 * (GAP_S // 180) else None


def test_one_jump_where_that_is_wanted(lab, host1, running_guest, tmp_path):
    guest = running_guest(host1, memory=96, clock_over_pause="jump")
    guest.pulse("watchdogs", 180, GAP_S // 2)
    guest.disconnect()
    host1.run("xm save TestGuest TestGuest.checkpt")
    get_ends(host1, "TestGuest.checkpt", tmp_path / "ends")
    host1.run(f"xm restore {changed(host1, 'TestGuest.checkpt', tmp_path / 'ends', state=stopped_earlier)}")
    guest.wait_up()
    assert seconds_off(guest, host1) <= 1
    seen = wait_until(lambda: guest.pulse_status("watchdogs"), 60, "a look")
    print(seen)
    assert seen["longest_ms"] > GAP_S * 900
