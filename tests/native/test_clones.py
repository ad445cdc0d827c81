"""Clones: one checkpoint restored under other names, beside the guest that it was taken of."""

import os
import time

import pytest
from heartbeat import Heartbeat
from test_errors import refusal
from test_native import names, start


@pytest.fixture
def host(hosts):
    return hosts[0]


@pytest.fixture
def checkpoint(host, heartbeat, kernel, tmp_path):
    path = f"{tmp_path}/Native.checkpt"
    start(host, heartbeat, kernel)
    host.xm("save", "-c", "Native", path)
    return path


class Clones:
    """The guests of a host, each with its own heartbeat, as they come."""

    def __init__(self, host):
        self.host, self.beats = host, {}

    def restore(self, checkpoint, name, *options):
        before = set(self.host.guests())
        self.host.xm("restore", "--name", name, *options, checkpoint)
        (uuid,) = set(self.host.guests()) - before
        return self.listen(uuid)

    def listen(self, uuid):
        from ferry import Control

        beats = self.beats[uuid] = Heartbeat()
        control = Control(self.host.guests()[uuid])
        beats.add(control.console())
        control.close()
        return uuid

    def all_beat(self, count=100):
        since = time.monotonic()
        for beats in self.beats.values():
            beats.wait_after(since, count=count)
            assert beats.whole()

    def close(self):
        for beats in self.beats.values():
            beats.close()


@pytest.fixture
def clones(host):
    made = Clones(host)
    yield made
    made.close()


@pytest.mark.parametrize("options", [[], ["--eager"]], ids=["lazy", "eager"])
def test_clones_run_beside_their_origin(host, heartbeat, checkpoint, clones, options):
    uuids = {clones.restore(checkpoint, f"Clone{number}", *options) for number in range(3)}
    assert len(uuids) == 3
    assert names(host) == ["Domain-0", "Native", "Clone0", "Clone1", "Clone2"]
    os.unlink(checkpoint)
    clones.all_beat()
    heartbeat.wait_after(time.monotonic(), count=100)
    assert heartbeat.whole()


def test_a_name_is_taken_once(host, checkpoint):
    assert "exists already" in refusal(host, "restore", "--name", "Native", checkpoint)
    assert "exists already" in refusal(host, "restore", checkpoint)
    assert "the checkpoint's guest has 0, and 1 are given" in refusal(
        host, "restore", "--name", "Two", checkpoint, "disk=['file:/none,xvda,w']")
