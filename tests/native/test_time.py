"""A guest's time over a pause and a save: right again at once, in steps that are short for what waits in it.

What the guest itself sees of it is told in tests/system: here its clock is looked at as KVM tells it. (The processor's
counter cannot be set everywhere where the guest of these tests runs.)"""

import json
import os
import re
import socket
import struct
import time

import pytest
from checkpoint_file import number_after
from ferry import Control
from kills import wait_for

GAP_S, STEP_S = 5, 2  # catch_up.c: STEP_LEAST
SLACK_S = 1.5  # a machine with more to do than processors


def clocks(state):
    """Of a device state: the guest's clock, and at which real time that was; in seconds."""
    return tuple(struct.unpack_from("<Q", state, number_after(state, name))[0] / 1e9 for name in ("kvmclock", "realtime"))


class Timed:
    """The guest that runs on this host, and its time."""

    def __init__(self, host, kernel, clock=None):
        self.host = host
        config = host.write_config("Native", kernel, 64, 2, "tsc_khz=2000000 touch=8 dirty=1 rate=5000")
        if clock:
            with open(config, "a", encoding="utf-8") as file:
                file.write(f"clock_over_pause = '{clock}'\n")
        host.xm("create", "-q", config)
        self.first = self.look()

    def look(self, resume=True):
        """Its clock: paused for a moment where it runs, or as they were when it was paused."""
        path, = self.host.guests().values()
        control = Control(path)
        try:
            wait_for(lambda: not control.call({"do": "status"})["filling"], "its memory")
            control.call({"do": "pause"})
            control.socket.send(json.dumps({"do": "save-state"}).encode())
            said, descriptors, _, _ = socket.recv_fds(control.socket, 65536, 4)
            assert json.loads(said)["ok"]
            with open(descriptors[0], "rb") as state:
                state.seek(0)
                seen = clocks(state.read())
            if resume:
                control.call({"do": "resume"})
        finally:
            control.close()
        return seen

    def behind(self):
        """By how many seconds the clock has gone on less than real time, since it was started."""
        clock = self.look()[0]
        return time.time() - self.first[1] - (clock - self.first[0])

    def steps(self):
        with open(f"{self.host.root}/xend.log", encoding="utf-8") as log:
            return [int(steps) for steps in re.findall(r"has made up for [0-9.]+ s, in (\d+) steps", log.read())]


def stand_still(guest, how, tmp_path):
    if how == "pause":
        guest.host.xm("pause", "Native")
        time.sleep(GAP_S)
        guest.host.xm("unpause", "Native")
        return
    guest.host.xm("save", "Native", f"{tmp_path}/Native.checkpt")
    time.sleep(GAP_S)
    guest.host.xm("restore", f"{tmp_path}/Native.checkpt")


@pytest.mark.parametrize("how", ["pause", "lazy"])
def test_time_catches_up_in_steps(hosts, kernel, tmp_path, how):
    guest = Timed(hosts[0], kernel)
    stand_still(guest, how, tmp_path)
    # It never rests, and each step waits for what it gets of a processor, not for what passes.
    wait_for(guest.steps, "its clock to have caught up")
    assert abs(guest.behind()) < SLACK_S
    steps, = guest.steps()
    assert GAP_S / STEP_S <= steps <= (GAP_S + 4 * SLACK_S) / STEP_S + 2


def test_one_jump_where_that_is_wanted(hosts, kernel, tmp_path):
    guest = Timed(hosts[0], kernel, "jump")
    stand_still(guest, "lazy", tmp_path)
    assert abs(guest.behind()) < SLACK_S
    assert guest.steps() == []


def test_no_time_passes_where_that_is_wanted(hosts, kernel, tmp_path):
    guest = Timed(hosts[0], kernel, "stop")
    stand_still(guest, "pause", tmp_path)
    assert GAP_S - 0.1 < guest.behind() < GAP_S + 4 * SLACK_S
    assert guest.steps() == []


def test_what_was_not_made_up_is_not_lost(hosts, kernel):
    """Stopped again in the middle, and moved then: on the other host it makes up for the rest."""
    guest = Timed(hosts[0], kernel)
    hosts[0].xm("pause", "Native")
    time.sleep(GAP_S)
    path, = hosts[0].guests().values()
    control = Control(path)
    control.call({"do": "resume"})
    control.call({"do": "pause"})
    control.close()
    clock, realtime = guest.look(resume=False)
    assert time.time() - guest.first[1] - (clock - guest.first[0]) > STEP_S
    assert abs((realtime - guest.first[1]) - (clock - guest.first[0])) < 0.1  # as if it had been stopped then
    hosts[0].xm("migrate", "-p", str(hosts[1].port), "Native", "127.0.0.1")
    guest.host = hosts[1]
    hosts[1].xm("unpause", "Native")
    time.sleep(1)
    assert abs(guest.behind()) < SLACK_S


def test_short_pauses_are_no_gaps(hosts, kernel):
    guest = Timed(hosts[0], kernel)
    for _ in range(5):
        hosts[0].xm("pause", "Native")
        hosts[0].xm("unpause", "Native")
    assert abs(guest.behind()) < SLACK_S
    assert guest.steps() == []
