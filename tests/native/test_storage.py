"""Storage that fails under a checkpoint: a save fails with a sentence, the guest runs on and nothing is left; a restore that
cannot read ends with a sentence."""

import contextlib
import fcntl
import os
import signal
import struct
import subprocess
import time

import pytest
from kills import READING, WRITING, next_carrier_stops, processes
from test_checkpoints import runs_on
from test_errors import refusal
from test_lazy_restore import filled, log, needs_strace, restore_and_hold, wait_until
from test_native import arrived, start

LINE = "tsc_khz=2000000 touch=96 dirty=2 rate=2000"
SHUTDOWN = 0x8004587d  # EXT4_IOC_SHUTDOWN (Linux, fs/ext4/ext4.h): every access is an I/O error from then on
WITHOUT_FLUSH = struct.pack("I", 2)
FREEZE, THAW = 0xc0045877, 0xc0045878  # FIFREEZE, FITHAW (Linux, include/uapi/linux/fs.h): whoever writes waits, and cannot be killed

def run(*words):
    return subprocess.run(words, check=False, capture_output=True).returncode == 0


@pytest.fixture
def host(hosts, heartbeat, kernel):
    start(hosts[0], heartbeat, kernel, memory=128, line=LINE)
    return hosts[0]


@pytest.fixture
def place(tmp_path):
    made = tmp_path / "place"
    made.mkdir()
    yield made
    run("umount", made)


@pytest.fixture
def mounted(tmp_path, place):
    """mounted(below) is a file system that has 400 MiB, on storage that has `below`."""
    under = tmp_path / "below"
    under.mkdir()

    def mount(below):
        image = under / "image"
        if not run("mount", "-t", "tmpfs", "-o", f"size={below}", "none", under):
            pytest.skip("nothing can be mounted here (no CAP_SYS_ADMIN): storage that fails was not tried")
        if not (run("truncate", "-s", "400M", image) and run("mkfs.ext4", "-q", "-O", "^has_journal", image) and
                run("mount", "-o", "loop", image, place)):
            pytest.skip("no loop device or ext4 here: storage that fails was not tried")
        return place

    yield mount
    run("umount", place)
    wait_until(lambda: not os.path.ismount(under) or run("umount", under), "the loop device's end")


def mounted_again(place):
    """What was used of it, and the loop device, may be some moments late to be let go of."""
    wait_until(lambda: run("umount", place), "the end of all who use it")
    wait_until(lambda: run("mount", "-o", "loop", f"{place.parent}/below/image", place), "the file system")


def break_down(place):
    directory = os.open(place, os.O_RDONLY)
    try:
        fcntl.ioctl(directory, SHUTDOWN, WITHOUT_FLUSH)
    finally:
        os.close(directory)


def order(place, what):
    directory = os.open(place, os.O_RDONLY)
    try:
        fcntl.ioctl(directory, what, 0)
    finally:
        os.close(directory)


def not_saved(host, heartbeat, place, sentence, *options):
    before = set(os.listdir(place))
    said = refusal(host, "save", *options, "Native", f"{place}/c")
    assert sentence in said, said
    assert set(os.listdir(place)) == before
    runs_on(host, heartbeat)


def test_a_directory_that_is_read_only(host, heartbeat, place):
    if not run("mount", "-t", "tmpfs", "-o", "ro", "none", place):
        pytest.skip("nothing can be mounted here (no CAP_SYS_ADMIN): a directory that is read-only was not tried")
    not_saved(host, heartbeat, place, f"Unable to write file {place}/c: Read-only file system")


@pytest.mark.parametrize("options", [[], ["--live"]], ids=["stopped", "live"])
def test_storage_that_has_less_than_it_says(host, heartbeat, mounted, options):
    not_saved(host, heartbeat, mounted("40m"), "Unable to write the checkpoint: ", *options)


@needs_strace
@pytest.mark.parametrize("options", [[], ["--live"], ["--compress"]], ids=["stopped", "live", "compressed"])
def test_a_disk_that_breaks_while_it_is_written(host, heartbeat, mounted, options):
    place = mounted("300m")
    stopped = next_carrier_stops(host, WRITING)
    saving = host.start_xm("save", *options, "Native", f"{place}/c")
    held = stopped()
    break_down(place)
    os.kill(held, signal.SIGCONT)
    with pytest.raises(RuntimeError, match="Error: .*Input/output error"):
        saving.finish()
    runs_on(host, heartbeat)
    # What is left of it below a file system that broke down, its repair tells; there is no name.
    mounted_again(place)
    assert os.listdir(place) == ["lost+found"]


def test_a_disk_that_breaks_while_it_is_read(host, heartbeat, mounted):
    place = mounted("300m")
    path = f"{place}/c"
    host.xm("save", "Native", path)
    mounted_again(place)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        break_down(place)
        said = refusal(host, "restore", "--eager", path)
    finally:
        os.close(descriptor)
    assert path in said and "Input/output error" in said
    mounted_again(place)
    host.xm("restore", "--eager", path)
    arrived(host, heartbeat)


@needs_strace
@pytest.mark.parametrize("options", [[], ["--live", "--force"]], ids=["stopped", "live"])
def test_storage_that_does_not_answer(hosts, heartbeat, kernel, mounted, options):
    """Who waits for it cannot even be killed; the guest and xend do not wait."""
    host = hosts[0]
    with open(f"{host.root}/xend-config.sxp", "a", encoding="utf-8") as config:
        config.write("(storage-timeout 2)\n")
    host.process.terminate()
    host.process.wait()
    host.start()
    start(host, heartbeat, kernel, memory=128, line=LINE)
    place = mounted("300m")
    stopped = next_carrier_stops(host, WRITING)
    saving = host.start_xm("save", *options, "Native", f"{place}/c")
    held = stopped()
    order(place, FREEZE)
    try:
        with contextlib.suppress(ProcessLookupError):  # given up already, while the storage was being frozen
            os.kill(held, signal.SIGCONT)
        with pytest.raises(RuntimeError, match="The checkpoint's storage has not answered for 2 s"):
            saving.finish()
        heartbeat.wait_after(time.monotonic(), count=200)
        # What begins while it is so: nothing can be made there, and what is asked of xend meanwhile is answered.
        another = host.start_xm("save", "Native", f"{place}/d")
        assert "Native" in host.xm("list")
        with pytest.raises(RuntimeError, match=f"Unable to write file {place}/d: its storage has not answered for 2 s"):
            another.finish()
        heartbeat.wait_after(time.monotonic(), count=200)
    finally:
        order(place, THAW)
    wait_until(lambda: os.listdir(place) == ["lost+found"] and not processes(host, "ferry-carrier"), "the end of all that waited")
    runs_on(host, heartbeat)
    host.xm("save", "Native", f"{place}/c")


@needs_strace
def test_storage_that_fails_now_and_then_under_a_guest_that_waits_for_its_memory(host, heartbeat, mounted, tmp_path):
    """The guest has run and written its disks: it is not given up for one read that failed, nor for a second one later."""
    with open(f"{host.root}/xend-config.sxp", "a", encoding="utf-8") as config:
        config.write("(storage-timeout 3)\n")
    place = mounted("300m")
    path, image, whole = f"{place}/c", f"{place.parent}/below/image", f"{tmp_path}/whole"
    host.xm("save", "Native", path)
    mounted_again(place)
    assert run("cp", "--sparse=always", image, whole)
    host.process.terminate()
    host.process.wait()
    host.start()
    restorer, held = restore_and_hold(host, path)
    restorer.finish()

    def fails(carrier, times):
        os.truncate(image, 1 << 20)  # what is behind that is an I/O error now
        os.kill(carrier, signal.SIGCONT)
        wait_until(lambda: log(host).count("This is tried again until storage-timeout") == times, "a read that failed")
        assert "Native" in host.xm("list")

    fails(held, 1)
    began = time.monotonic()
    stopped = next_carrier_stops(host, (READING[0], 2 * READING[1]))  # when it has brought something
    assert run("cp", "--sparse=always", whole, image)
    held = stopped()
    time.sleep(max(0, began + 3.5 - time.monotonic()))
    fails(held, 2)
    host.process.terminate()  # a xend that is stopped meanwhile leaves it to the next one
    host.process.wait()
    host.start()
    assert "Native" in host.xm("list")
    assert run("cp", "--sparse=always", whole, image)
    arrived(host, heartbeat)
    filled(host)
    host.xm("destroy", "Native")
