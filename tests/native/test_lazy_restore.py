"""A guest that runs before its memory is there: what may happen to the file, the carrier and xend meanwhile."""

import contextlib
import os
import shutil
import signal
import subprocess
import time

import pytest
from conftest import BUILD
from enumeration import EXHAUSTIVE
from kills import READING, next_carrier_stops, read
from test_native import arrived, names

TOUCHED = 96
LINE = f"tsc_khz=2000000 touch={TOUCHED} dirty={TOUCHED} rate=0"  # reads and rewrites all of it, as fast as it can
CARRIERS = 4  # that are tried, one after the other (src/xend/filling.c)
RAM_AT, EXTENT = 2 << 20, 2 << 20  # docs/checkpoint-format.md


needs_strace = pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")


@pytest.fixture
def host(hosts):
    return hosts[0]


@pytest.fixture
def checkpoint(host, heartbeat, kernel, tmp_path):
    path = f"{tmp_path}/Native.checkpt"
    config = host.write_config("Native", kernel, 128, 1, LINE)
    with open(config, "a", encoding="utf-8") as more:
        more.write("on_crash = 'destroy'\n")
    host.xm("create", "-q", config)
    heartbeat.add(host.wait_guest().console())
    heartbeat.wait_ready()
    host.xm("save", "Native", path)
    return path


def wait_until(true, what, seconds=120):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.005)


def filling(host):
    control = host.wait_guest()
    try:
        return control.call({"do": "status"})["filling"]
    finally:
        control.close()


def filled(host):
    wait_until(lambda: not filling(host), "the memory")


def log(host):
    with open(f"{host.root}/xend.log", encoding="utf-8") as file:
        return file.read()


def carrier(host):
    """The process that brings the guest here its memory, 0 where there is none."""
    return next((found for found in (carrier_of(host, uuid) for uuid in host.guests()) if found), 0)


def carrier_of(host, uuid):
    try:
        with open(f"{host.root}/run/guests/{uuid}/carrier", encoding="ascii") as record:
            return int(record.read().split()[0])
    except (OSError, IndexError):  # none; or of one that is just being started
        return 0


def alive(pid):
    return state(pid) not in ("", "Z", "X")


def state(pid):
    """As proc(5) has it; "" where there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
            return stat.read().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def restore_and_hold(host, path):
    """Restores; the guest's carrier has stopped with most of the memory still to come."""
    stopped = next_carrier_stops(host, READING)
    restorer = host.start_xm("restore", path)
    held = stopped()
    wait_until(lambda: carrier(host) == held, "the carrier's record")
    return restorer, held


def kill_xend(host):
    host.process.kill()
    host.process.wait()


def children(host, states):
    """Those of its xend's that are in none of these states."""
    found = []
    for task in os.listdir(f"/proc/{host.process.pid}/task"):
        found += read(f"/proc/{host.process.pid}/task/{task}/children").split()
    return [child for child in found if state(child) not in states]


def nothing_left(host, traced=False):
    """`traced`: a carrier was, by strace, which waits for its end in its parent's place."""
    wait_until(lambda: names(host) == ["Domain-0"], "the guest's end")
    wait_until(lambda: not host.guests(), "its directory's end")
    wait_until(lambda: not children(host, ("", "Z") if traced else ("",)), "the end of its processes")


@pytest.mark.parametrize("options", [[], ["--eager"]], ids=["lazy", "eager"])
def test_restore(host, heartbeat, checkpoint, options):
    host.xm("restore", *options, checkpoint)
    if options:
        assert not filling(host)
    arrived(host, heartbeat)
    filled(host)
    arrived(host, heartbeat)


def test_save_waits_for_the_memory(host, heartbeat, checkpoint):
    again = f"{checkpoint}.again"
    host.xm("restore", checkpoint)
    host.xm("save", "Native", again)
    os.unlink(checkpoint)
    host.xm("restore", again)
    arrived(host, heartbeat)
    filled(host)
    arrived(host, heartbeat)


def test_migrate_waits_for_the_memory(hosts, heartbeat, checkpoint):
    hosts[0].xm("restore", checkpoint)
    hosts[0].xm("migrate", "-p", str(hosts[1].port), "Native", "127.0.0.1")
    arrived(hosts[1], heartbeat)


@contextlib.contextmanager
def load(count):
    """So many busy loops beside everything."""
    busy = [subprocess.Popen(["nice", "-n", "10", "sh", "-c", "while :; do :; done"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in busy:
            loop.kill()
            loop.wait()


def test_restores_under_load(host, heartbeat, checkpoint):
    """200 with FERRY_EXHAUSTIVE=1. Nobody takes a guest that lives for one that has ended."""
    with load(6 if EXHAUSTIVE else 2):
        for _ in range(200 if EXHAUSTIVE else 3):
            host.xm("restore", checkpoint)
            filled(host)
            host.xm("destroy", "Native")
            nothing_left(host)
        host.xm("restore", checkpoint)
        filled(host)
        arrived(host, heartbeat)
    assert "has given up" not in log(host)
    assert log(host).count("has all of its memory") == (201 if EXHAUSTIVE else 4)


def test_destroy_at_once(host, checkpoint):
    for _ in range(5):
        host.xm("restore", checkpoint)
        host.xm("destroy", "Native")
        nothing_left(host)


@needs_strace
def test_destroy_while_nobody_brings_memory(host, checkpoint):
    """It does not wait for the memory, which never comes."""
    restorer, held = restore_and_hold(host, checkpoint)
    restorer.finish()
    began = time.monotonic()
    host.xm("destroy", "Native")
    assert time.monotonic() - began < 60
    assert not alive(held)
    nothing_left(host, traced=True)


def test_the_guest_dies(host, checkpoint):
    host.xm("restore", checkpoint)
    uuid = next(iter(host.guests()))
    with open(f"{host.root}/run/guests/{uuid}/process", encoding="ascii") as record:
        os.kill(int(record.read().split()[0]), signal.SIGKILL)
    nothing_left(host)


@pytest.mark.parametrize("replaced", [False, True], ids=["removed", "replaced"])
def test_file(host, heartbeat, checkpoint, replaced):
    host.xm("restore", checkpoint)
    if replaced:
        with open(f"{checkpoint}.other", "wb") as other:
            other.truncate(os.path.getsize(checkpoint))
        os.rename(f"{checkpoint}.other", checkpoint)
    else:
        os.unlink(checkpoint)
    filled(host)
    arrived(host, heartbeat)


def test_damage_ends_the_guest(host, checkpoint):
    last = RAM_AT + (16 << 20) + (TOUCHED << 20) - EXTENT  # the guest touches memory from 16 MiB on
    with open(checkpoint, "r+b") as file:
        file.seek(last + 4096 * 100 + 77)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 0x10]))
    host.xm("restore", checkpoint)
    nothing_left(host)
    assert f"its memory could not be read from {checkpoint}: The checkpoint is damaged: memory in its bytes {last} to " in log(host)
    assert os.path.exists(checkpoint)


@needs_strace
def test_another_carrier_goes_on(host, heartbeat, checkpoint):
    restorer, held = restore_and_hold(host, checkpoint)
    os.kill(held, signal.SIGKILL)
    restorer.finish()
    filled(host)
    arrived(host, heartbeat)
    assert "another one goes on" in log(host)
    wait_until(lambda: not carrier(host), "its record's end")


# Stands between xend and a carrier, and says in that one's place that the guest has ended when it is to go on alone.
MISTAKEN = """#!/usr/bin/python3
import json, os, select, socket, subprocess, sys
if not os.path.exists("{order}"):
    os.execv("{program}", ["{program}", *sys.argv[1:]])
os.unlink("{order}")
xend = socket.socket(fileno=3)
here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
words = [str(there.fileno()) if word == "3" else word for word in sys.argv[1:]]
carrier = subprocess.Popen(["{program}", *words], pass_fds=[there.fileno()])
there.close()
while True:
    for ready in select.select([xend, here], [], [])[0]:
        data, fds, _, _ = socket.recv_fds(ready, 1 << 17, 16)
        if ready is xend and json.loads(data or b"{{}}").get("do") == "go-on":
            carrier.kill()
            xend.send(json.dumps({{"event": "failed", "error": "The guest has ended.", "errno": 3}}).encode())
            carrier.wait()
            sys.exit()
        socket.send_fds(here if ready is xend else xend, [data], fds)
        for fd in fds:
            os.close(fd)
"""


@pytest.mark.skipif(not EXHAUSTIVE, reason="a further way to the same place, and it takes seconds: only with FERRY_EXHAUSTIVE=1")
def test_a_carrier_that_takes_its_guest_for_ended(host, heartbeat, checkpoint):
    """Wrongly: xend waits for that end, and has another carrier go on when it does not come."""
    program, order = f"{BUILD}/src/carry/ferry-carrier", f"{host.root}/order"
    link = f"{host.root}/libexec/ferry-carrier"
    os.unlink(link)
    with open(link, "w", encoding="ascii") as shim:
        shim.write(MISTAKEN.format(program=program, order=order))
    os.chmod(link, 0o755)
    with open(order, "wb"):
        pass
    host.xm("restore", checkpoint)
    wait_until(lambda: "has given up (The guest has ended.); another one goes on" in log(host), "its being given up")
    arrived(host, heartbeat)
    filled(host)
    arrived(host, heartbeat)


@needs_strace
def test_carriers_that_all_die(host, checkpoint):
    restorer, held = restore_and_hold(host, checkpoint)
    restorer.finish()
    for _ in range(CARRIERS - 1):
        stopped = next_carrier_stops(host, READING)
        os.kill(held, signal.SIGKILL)
        held = stopped()
    os.kill(held, signal.SIGKILL)
    nothing_left(host, traced=True)
    assert "its memory could not be read from" in log(host)


@needs_strace
def test_xend_dies(host, heartbeat, checkpoint):
    restorer, held = restore_and_hold(host, checkpoint)
    restorer.finish()
    kill_xend(host)
    os.kill(held, signal.SIGCONT)
    host.start()
    assert names(host) == ["Domain-0", "Native"]
    arrived(host, heartbeat)
    host.xm("save", "Native", f"{checkpoint}.again")
    host.xm("restore", f"{checkpoint}.again")
    arrived(host, heartbeat)


@needs_strace
def test_xend_is_started_again_meanwhile(host, heartbeat, checkpoint):
    restorer, held = restore_and_hold(host, checkpoint)
    restorer.finish()
    host.process.terminate()
    host.process.wait()
    assert alive(held)
    host.start()  # although nobody brings the memory meanwhile
    os.kill(held, signal.SIGCONT)
    filled(host)
    arrived(host, heartbeat)
    wait_until(lambda: not carrier(host), "its record's end")


@needs_strace
def test_xend_and_carrier_die(host, heartbeat, checkpoint):
    """Another xend has another carrier go on: the guest has run, and its disks fit no checkpoint any more."""
    restorer, held = restore_and_hold(host, checkpoint)
    restorer.finish()
    kill_xend(host)
    os.kill(held, signal.SIGKILL)
    host.start()
    arrived(host, heartbeat)
    filled(host)
    arrived(host, heartbeat)
    assert "another one goes on" in log(host)
    wait_until(lambda: not carrier(host), "its record's end")


@needs_strace
@pytest.mark.skipif(not EXHAUSTIVE, reason="a further way to the same place, and it takes seconds: only with FERRY_EXHAUSTIVE=1")
def test_the_carrier_dies_after_a_restart_of_xend(host, heartbeat, checkpoint):
    restorer, held = restore_and_hold(host, checkpoint)
    restorer.finish()
    kill_xend(host)
    host.start()
    os.unlink(checkpoint)  # xend has it open
    os.kill(held, signal.SIGKILL)
    filled(host)
    arrived(host, heartbeat)


@needs_strace
def test_xend_and_carrier_die_and_the_file_is_gone(host, heartbeat, checkpoint):
    restorer, held = restore_and_hold(host, checkpoint)
    restorer.finish()
    kill_xend(host)
    os.kill(held, signal.SIGKILL)
    os.rename(checkpoint, f"{checkpoint}.elsewhere")
    host.start()
    nothing_left(host)
    assert "restore it again" not in log(host) and "start it anew with xm create" in log(host)
    host.xm("restore", f"{checkpoint}.elsewhere")
    filled(host)
    arrived(host, heartbeat)
