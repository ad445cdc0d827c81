"""Clones: one checkpoint restored under other names, beside the guest that it was taken of."""

import os
import signal
import subprocess
import time

import pytest
from enumeration import EXHAUSTIVE
from heartbeat import Heartbeat
from kills import READING, next_carrier_stops
from test_errors import refusal
from test_lazy_restore import EXTENT, RAM_AT, carrier_of, kill_xend, log, needs_strace, wait_until
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

    def pid(self, uuid):
        with open(f"{self.host.root}/run/guests/{uuid}/process", encoding="ascii") as record:
            return int(record.read().split()[0])

    def status(self, uuid):
        from ferry import Control

        control = Control(self.host.guests()[uuid])
        try:
            return control.call({"do": "status"})
        finally:
            control.close()

    def filled(self):
        for uuid in self.beats:
            wait_until(lambda uuid=uuid: not self.status(uuid)["filling"], "the memory of a clone")

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


@pytest.mark.parametrize("options", [[], ["--eager"], ["compressed"]], ids=["lazy", "eager", "compressed"])
def test_clones_run_beside_their_origin(host, heartbeat, checkpoint, clones, options):
    if options == ["compressed"]:
        host.xm("save", "-c", "-z", "-f", "Native", checkpoint)
        options = []
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


def test_clones_share_what_they_do_not_write(host, heartbeat, kernel, tmp_path, clones):
    """256 MiB touched, of which each goes on writing two and reads all the rest."""
    path = f"{tmp_path}/c"
    start(host, heartbeat, kernel, memory=320, line="tsc_khz=2000000 touch=256 dirty=2 rate=1000")
    host.xm("save", "Native", path)
    for number in range(6):
        clones.restore(path, f"Clone{number}")
    clones.filled()
    clones.all_beat(count=1000)
    assert 256 <= host.guest_memory_mib() < 1.5 * 256
    assert all(clones.status(uuid)["shared"] for uuid in clones.beats)
    for number in range(0, 6, 2):
        host.xm("destroy", f"Clone{number}")
    assert names(host) == ["Domain-0", "Clone1", "Clone3", "Clone5"]
    # The next one needs its file for nothing but what it is.
    last = clones.restore(path, "Last")
    wait_until(lambda: not clones.status(last)["filling"], "the memory")
    beats = clones.beats[last]
    beats.wait_after(time.monotonic(), count=200)
    assert beats.whole()


@pytest.mark.parametrize("how", ["save", "keep", "live", "migrate", "after a restart of xend"])
def test_a_clone_is_saved_and_moved_like_any_guest(hosts, host, heartbeat, checkpoint, clones, tmp_path, how):
    again, port = f"{tmp_path}/again", str(hosts[1].port)
    other = clones.restore(checkpoint, "Other")
    uuid = clones.restore(checkpoint, "Clone")
    if how.startswith("after"):
        clones.filled()
        kill_xend(host)
        host.start()
    if how == "migrate":
        assert "would take Clone" in host.xm("migrate", "--live", "--dryrun", "-p", port, "Clone", "127.0.0.1")
        assert clones.status(uuid)["shared"]
        host.xm("migrate", "--live", "-p", port, "Clone", "127.0.0.1")
        del clones.beats[uuid]
        heartbeat.beats.clear()
        heartbeat.add(hosts[1].wait_guest().console())
        heartbeat.wait_after(time.monotonic(), count=200)
        assert heartbeat.whole()
    else:
        host.xm("save", *{"keep": ["-c"], "live": ["-c", "--live"]}.get(how, []), "Clone", again)
        if how in ("keep", "live"):
            assert not clones.status(uuid)["shared"]
            clones.beats[uuid].wait_after(time.monotonic(), count=100)
            assert clones.beats[uuid].whole()
            host.xm("destroy", "Clone")
        del clones.beats[uuid]
        host.xm("restore", again)
        clones.listen(uuid)
    clones.all_beat()
    assert clones.status(other)["shared"]


def test_a_clone_whose_carrier_dies_gets_another(host, checkpoint, clones):
    first = clones.restore(checkpoint, "First")
    for number in range(3):
        uuid = clones.restore(checkpoint, f"Next{number}")
        process = carrier_of(host, uuid)
        if process:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                pass
    host.xm("destroy", "First")
    clones.beats.pop(first).close()
    clones.filled()
    clones.all_beat()


@needs_strace
@pytest.mark.skipif(not EXHAUSTIVE, reason="a further way to the same place, and it takes seconds: only with FERRY_EXHAUSTIVE=1")
def test_the_next_xend_has_a_carrier_for_a_clone(host, checkpoint, clones):
    stopped = next_carrier_stops(host, READING)
    restorer = host.start_xm("restore", "--name", "Clone", checkpoint)
    held = stopped()
    restorer.finish()
    (uuid,) = (uuid for uuid in host.guests() if carrier_of(host, uuid) == held)
    clones.listen(uuid)
    kill_xend(host)
    os.kill(held, signal.SIGKILL)
    host.start()
    clones.filled()
    clones.all_beat()
    assert clones.status(uuid)["shared"] and "another one goes on" in log(host)


def test_damage_ends_every_clone(host, checkpoint, clones):
    """And nobody sees it."""
    last = RAM_AT + (16 << 20) + (64 << 20) - EXTENT
    with open(checkpoint, "r+b") as file:
        file.seek(last + 4096 * 100 + 77)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 0x10]))
    for number in range(3):
        subprocess.run([f"{host.build}/src/xm/xm", "restore", "--name", f"Clone{number}", checkpoint],
                       env=host.environment, check=False, capture_output=True)
    wait_until(lambda: not set(names(host)) - {"Domain-0", "Native"}, "the clones' end")
    assert f"The checkpoint is damaged: memory in its bytes {last} to " in log(host)
