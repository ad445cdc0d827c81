"""Checkpoints of a guest that checks its own memory: compressed, kept, live, broken off, without room."""

import os
import pty
import re
import signal
import subprocess

import time

import pytest
from conftest import BUILD, TOP
from kills import WRITING, next_carrier_stops
from test_lazy_restore import needs_strace, wait_until
from test_native import LINE, arrived, names, start

MIB = 1 << 20
FIVE_HUNDRED = "tsc_khz=2000000 touch=500 dirty=8 rate=20000"


def verify(path):
    """Whole, as somebody else reads it and as xm does."""
    subprocess.run([f"{TOP}/tools/ferry-checkpoint.py", "verify", path], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([f"{BUILD}/src/xm/xm", "checkpoint", "--verify", path], check=True, stdout=subprocess.DEVNULL)


def on_disk(path):
    return os.stat(path).st_blocks * 512


@pytest.fixture
def small_place(tmp_path):
    """A file system of 40 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "none", place], check=False).returncode != 0:
        pytest.skip("nothing can be mounted here (no CAP_SYS_ADMIN): a file system that is full was not tried")
    yield place
    wait_until(lambda: subprocess.run(["umount", place], check=False).returncode == 0, "the end of all who use it")


def runs_on(host, heartbeat):
    heartbeat.wait_after(time.monotonic(), count=200)
    assert heartbeat.whole() and names(host) == ["Domain-0", "Native"]
    wait_until(lambda: not os.listdir(f"{host.root}/run/carriers"), "the carriers' end")


@pytest.mark.parametrize("options", [["--compress"], ["--compress", "--live"]], ids=["compressed", "live"])
def test_a_compressed_one_is_smaller_and_comes_back(hosts, heartbeat, kernel, tmp_path, options):
    host, path = hosts[0], f"{tmp_path}/c"
    start(host, heartbeat, kernel, line=LINE + " entropy=0")
    assert host.xm("save", *options, "Native", path) == ""
    verify(path)
    assert on_disk(path) < 64 * MIB // 4
    host.xm("restore", path)
    arrived(host, heartbeat)


def test_a_guest_that_is_kept_runs_on_and_its_checkpoint_is_whole(hosts, heartbeat, kernel, tmp_path):
    host, path = hosts[0], f"{tmp_path}/c"
    start(host, heartbeat, kernel)
    for options in (["--checkpoint"], ["-c", "--live", "--force"], ["-c", "-z", "-f"]):
        assert host.xm("save", *options, "Native", path) == ""
        verify(path)
        runs_on(host, heartbeat)
    host.xm("destroy", "Native")
    host.xm("restore", path)
    arrived(host, heartbeat)
    assert os.listdir(tmp_path) == ["c"]


def test_force_replaces_the_file_only_by_a_whole_one(hosts, heartbeat, kernel, small_place):
    host, path = hosts[0], f"{small_place}/c"
    start(host, heartbeat, kernel)
    with open(path, "w", encoding="ascii") as file:
        file.write("old")
    with pytest.raises(RuntimeError):
        host.xm("save", "--force", "Native", path)
    with open(path, encoding="ascii") as file:
        assert file.read() == "old"
    runs_on(host, heartbeat)


def test_live_saving_hardly_stops_the_guest(hosts, heartbeat, kernel, tmp_path):
    host, gaps = hosts[0], {}
    start(host, heartbeat, kernel, memory=1024, line=FIVE_HUNDRED)
    for options in ([], ["--live"]) * 3:
        begin = time.monotonic()
        host.xm("save", "-c", "-f", *options, "Native", f"{tmp_path}/c")
        heartbeat.wait_after(time.monotonic(), count=100)
        stopped, went_on = heartbeat.gap(begin, time.monotonic())
        gaps.setdefault(bool(options), []).append(went_on - stopped)
    verify(f"{tmp_path}/c")
    runs_on(host, heartbeat)
    assert min(gaps[True]) < min(gaps[False]) / 2, gaps


def test_too_little_space_is_seen_before_anything_is_written(hosts, heartbeat, kernel, small_place):
    host = hosts[0]
    start(host, heartbeat, kernel)
    with pytest.raises(RuntimeError, match=r"it needs 6[4-9] MiB, but the file system has (39|40) MiB left"):
        host.xm("save", "Native", f"{small_place}/c")
    assert os.listdir(small_place) == []
    runs_on(host, heartbeat)


def test_pages_of_zeros_need_no_space(hosts, heartbeat, kernel, small_place):
    """The guest has 64 MiB, of which all but the first pages are made zero behind its back; it never looks there."""
    host = hosts[0]
    control = start(host, heartbeat, kernel, line="tsc_khz=2000000 touch=4")
    (ram,) = receive_fds(control, {"do": "memory"})
    with os.fdopen(ram, "r+b") as file:
        file.seek(32 * MIB)
        file.write(bytes(64 * MIB))
    host.xm("save", "Native", f"{small_place}/c")
    verify(f"{small_place}/c")


def receive_fds(control, request):
    import json
    import socket

    control.socket.sendmsg([json.dumps(request).encode()])
    _answer, descriptors, _flags, _address = socket.recv_fds(control.socket, 65536, 4)
    return descriptors


@pytest.mark.parametrize("options", [[], ["--live"]], ids=["stopped", "live"])
def test_space_that_runs_out_midway_costs_nothing(hosts, heartbeat, kernel, small_place, options):
    """How small a compressed one becomes is not known before: it is begun."""
    host = hosts[0]
    start(host, heartbeat, kernel, memory=256, line="tsc_khz=2000000 touch=160 dirty=8 rate=2000")
    with pytest.raises(RuntimeError, match="Unable to write the checkpoint: No space left on device"):
        host.xm("save", "--compress", *options, "Native", f"{small_place}/c")
    assert os.listdir(small_place) == [] and on_disk(small_place) == 0
    assert os.statvfs(small_place).f_bavail == os.statvfs(small_place).f_blocks
    runs_on(host, heartbeat)


@needs_strace
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["interrupted", "killed"])
@pytest.mark.parametrize("options", [[], ["--live"], ["--compress"]], ids=["stopped", "live", "compressed"])
def test_a_save_that_is_broken_off_leaves_the_guest_running(hosts, heartbeat, kernel, tmp_path, options, how):
    host = hosts[0]
    start(host, heartbeat, kernel, memory=256, line=LINE.replace("touch=64", "touch=200"))
    stopped = next_carrier_stops(host, WRITING)  # it gets no further, and is killed for not listening
    saving = host.start_xm("save", *options, "Native", f"{tmp_path}/c")
    stopped()
    saving.process.send_signal(how)
    saving.process.communicate(timeout=120)
    assert saving.process.returncode != 0
    wait_until(lambda: not os.listdir(f"{host.root}/run/carriers"), "the carrier's end")
    runs_on(host, heartbeat)
    assert os.listdir(tmp_path) == []


def test_a_terminal_shows_progress(hosts, heartbeat, kernel, tmp_path):
    host = hosts[0]
    start(host, heartbeat, kernel, memory=1024, line=FIVE_HUNDRED)
    terminal, other = pty.openpty()
    saving = subprocess.Popen([f"{BUILD}/src/xm/xm", "save", "-z", "Native", f"{tmp_path}/c"], env=host.environment,
                              stdout=subprocess.PIPE, stderr=other)
    os.close(other)
    shown = b""
    while True:
        try:
            shown += os.read(terminal, 65536)
        except OSError:
            break
    out, _ = saving.communicate(timeout=120)
    os.close(terminal)
    assert saving.returncode == 0 and out == b""
    assert re.search(rb"\rSaving Native \[#* *\] +\d+%  \d+ of 5\d\d MB  \d+ MB/s  \d:\d\d left", shown), shown
    assert shown.endswith(b"\r\x1b[K")
