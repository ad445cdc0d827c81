"""The guest's disks: they are flushed when it is saved or moved, and one that cannot be flushed fails that with a sentence."""

import contextlib
import os

import pytest
from test_checkpoints import runs_on
from test_errors import refusal
from test_native import LINE, arrived
from test_storage import break_down, mounted, mounted_again, place  # noqa: F401 (fixtures)


def start_with_disks(host, heartbeat, kernel, disks, *more):
    config = host.write_config("Native", kernel, 128, 1, LINE)
    with open(config, "a", encoding="utf-8") as file:
        file.write(f"disk = {disks}\n" + "".join(f"{line}\n" for line in more))
    host.xm("create", "-q", config)
    control = host.wait_guest()
    heartbeat.add(control.console())
    heartbeat.wait_ready()
    return control


def make(path, size=1 << 20):
    with open(path, "wb") as disk:
        disk.truncate(size)
    return path


@pytest.mark.parametrize("options", [[], ["--live"]], ids=["stopped", "live"])
def test_a_disk_that_cannot_be_flushed_fails_the_save(hosts, heartbeat, kernel, mounted, tmp_path, options):  # noqa: F811
    host, storage, path = hosts[0], mounted("300m"), f"{tmp_path}/c"
    good, bad = make(f"{tmp_path}/good"), make(f"{storage}/bad")
    start_with_disks(host, heartbeat, kernel, [f"file:{good},xvda,w", f"file:{bad},xvdb,w"])
    host.xm("save", "-c", *options, "Native", path)
    os.unlink(path)
    break_down(storage)
    said = refusal(host, "save", *options, "Native", path)
    assert "Disk xvdb cannot be flushed: Input/output error" in said
    assert not os.path.exists(path)
    runs_on(host, heartbeat)
    host.xm("destroy", "Native")
    mounted_again(storage)


def test_a_disk_that_cannot_be_flushed_fails_the_move(hosts, heartbeat, kernel, mounted, tmp_path):  # noqa: F811
    here, there = hosts
    storage = mounted("300m")
    start_with_disks(here, heartbeat, kernel, [f"file:{make(f'{tmp_path}/good')},xvda,w"])
    here.xm("migrate", "--live", "-p", str(there.port), "Native", "127.0.0.1")
    arrived(there, heartbeat)
    there.xm("destroy", "Native")
    disk = make(f"{storage}/bad")
    start_with_disks(here, heartbeat, kernel, [f"file:{disk},xvda,w!"])
    with open(disk, "rb"):  # the other host looks at the disk before; it finds it there
        here.xm("migrate", "-n", "-p", str(there.port), "Native", "127.0.0.1")
    with contextlib.ExitStack() as after:
        after.callback(lambda: mounted_again(storage))
        after.callback(lambda: here.xm("destroy", "Native"))
        break_down(storage)
        said = refusal(here, "migrate", "--live", "-p", str(there.port), "Native", "127.0.0.1")
        assert "disk" in said.lower() and "Input/output error" in said
        runs_on(here, heartbeat)
