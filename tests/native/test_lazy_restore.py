"""A guest that runs before its memory is there: what may happen to the file, the carrier and xend meanwhile."""

import os
import signal
import subprocess
import time

import pytest

from test_native import arrived, names

TOUCHED = 192
LINE = f"tsc_khz=2000000 touch={TOUCHED} dirty={TOUCHED} rate=0"  # reads and rewrites all of it, as fast as it can
RAM_AT, EXTENT = 2 << 20, 2 << 20  # docs/checkpoint-format.md


@pytest.fixture
def host(hosts):
    return hosts[0]


@pytest.fixture
def checkpoint(host, heartbeat, kernel, tmp_path):
    path = f"{tmp_path}/Native.checkpt"
    config = host.write_config("Native", kernel, 256, 1, LINE)
    with open(config, "a", encoding="utf-8") as more:
        more.write("on_crash = 'destroy'\n")
    host.xm("create", "-q", config)
    heartbeat.add(host.wait_guest().console())
    heartbeat.wait_ready()
    host.xm("save", "Native", path)
    return path


def wait_until(true, what, seconds=30):
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
    except FileNotFoundError:
        return 0


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def restore_and_hold(host, path):
    """Restores; the carrier is stopped at once, with most of the memory still to come."""
    restorer = host.start_xm("restore", path)
    wait_until(lambda: carrier(host), "the carrier", 10)
    held = carrier(host)
    os.kill(held, signal.SIGSTOP)
    return restorer, held


def start_xend(host):
    host.process = subprocess.Popen([f"{host.build}/src/xend/xend", "foreground"], env=host.environment,
                                    stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    wait_until(lambda: subprocess.run([f"{host.build}/src/xm/xm", "list"], env=host.environment, check=False,
                                      capture_output=True).returncode == 0, "xend", 60)


def kill_xend(host):
    host.process.kill()
    host.process.wait()
    os.unlink(f"{host.root}/socket")


def nothing_left(host):
    wait_until(lambda: names(host) == ["Domain-0"], "the guest's end")
    wait_until(lambda: not host.guests(), "its directory's end")
    children = subprocess.run(["pgrep", "-P", str(host.process.pid)], check=False, capture_output=True, text=True).stdout
    assert children.split() == []


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


def test_destroy_at_once(host, checkpoint):
    for _ in range(5):
        host.xm("restore", checkpoint)
        began = time.monotonic()
        host.xm("destroy", "Native")
        assert time.monotonic() - began < 10
        nothing_left(host)


def test_destroy_while_nobody_brings_memory(host, checkpoint):
    restorer, held = restore_and_hold(host, checkpoint)
    time.sleep(0.2)
    began = time.monotonic()
    destroyer = host.start_xm("destroy", "Native")
    destroyer.finish()
    assert time.monotonic() - began < 10
    restorer.process.communicate(timeout=30)
    assert not alive(held)
    nothing_left(host)


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


def test_another_carrier_goes_on(host, heartbeat, checkpoint):
    restorer, held = restore_and_hold(host, checkpoint)
    time.sleep(0.1)
    os.kill(held, signal.SIGKILL)
    restorer.finish()
    filled(host)
    arrived(host, heartbeat)
    assert "another one goes on" in log(host)
    wait_until(lambda: not carrier(host), "its record's end")


def test_carriers_that_all_die(host, checkpoint):
    restorer, held = restore_and_hold(host, checkpoint)
    seen = set()
    end = time.monotonic() + 30
    while host.guests() and time.monotonic() < end:
        if held and held not in seen:
            os.kill(held, signal.SIGKILL)
            seen.add(held)
        held = carrier(host)
        if held and held not in seen:
            os.kill(held, signal.SIGSTOP)
    restorer.process.communicate(timeout=30)
    nothing_left(host)
    assert "its memory could not be read from" in log(host)


def test_xend_dies(host, heartbeat, checkpoint):
    restorer, held = restore_and_hold(host, checkpoint)
    restorer.finish()
    kill_xend(host)
    os.kill(held, signal.SIGCONT)
    start_xend(host)
    assert names(host) == ["Domain-0", "Native"]
    arrived(host, heartbeat)
    host.xm("save", "Native", f"{checkpoint}.again")
    host.xm("restore", f"{checkpoint}.again")
    arrived(host, heartbeat)


def test_xend_is_started_again_meanwhile(host, heartbeat, checkpoint):
    restorer, held = restore_and_hold(host, checkpoint)
    restorer.finish()
    host.process.terminate()
    host.process.wait(timeout=30)
    assert alive(held)
    threads = subprocess.Popen(["sh", "-c", f"sleep 2; kill -CONT {held}"])
    start_xend(host)
    threads.wait()
    filled(host)
    arrived(host, heartbeat)
    wait_until(lambda: not carrier(host), "its record's end")


def test_xend_and_carrier_die(host, heartbeat, checkpoint):
    restorer, held = restore_and_hold(host, checkpoint)
    restorer.finish()
    kill_xend(host)
    os.kill(held, signal.SIGKILL)
    start_xend(host)
    nothing_left(host)
    assert "restore it again" in log(host)
    host.xm("restore", checkpoint)
    filled(host)
    arrived(host, heartbeat)
