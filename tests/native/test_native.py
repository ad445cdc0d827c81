"""A guest that checks its own memory, saved, restored and moved at native speed."""

import fcntl
import json
import os
import time

import pytest
from ferry import Control

LINE = "tsc_khz=2000000 touch=64 dirty=16 rate=20000"


def start(host, heartbeat, kernel, name="Native", memory=128, line=LINE, vcpus=1):
    host.xm("create", "-q", host.write_config(name, kernel, memory, vcpus, line))
    control = host.wait_guest()
    heartbeat.add(control.console())
    heartbeat.wait_ready()
    return control


def arrived(host, heartbeat):
    """The guest beats on this host, and every page it reads is right."""
    heartbeat.add(host.wait_guest().console())
    heartbeat.wait_after(time.monotonic(), count=500)
    assert heartbeat.whole()


def names(host):
    return [line.split()[0] for line in host.xm("list").splitlines()[1:]]


def test_save_and_restore(hosts, heartbeat, kernel, tmp_path):
    checkpoint = f"{tmp_path}/Native.checkpt"
    start(hosts[0], heartbeat, kernel)
    assert hosts[0].xm("save", "Native", checkpoint) == ""
    assert names(hosts[0]) == ["Domain-0"]
    hosts[0].xm("restore", checkpoint)
    arrived(hosts[0], heartbeat)
    assert names(hosts[0]) == ["Domain-0", "Native"]


@pytest.mark.parametrize("options", [[], ["--eager"]], ids=["lazy", "eager"])
def test_a_restored_guest_may_wait(hosts, heartbeat, kernel, tmp_path, options):
    host, checkpoint = hosts[0], f"{tmp_path}/Native.checkpt"
    start(host, heartbeat, kernel)
    host.xm("save", "Native", checkpoint)
    host.xm("restore", "-p", *options, checkpoint)
    os.unlink(checkpoint)
    assert host.xm("list", "Native").split()[-2] == "--p---"
    heartbeat.forget()
    heartbeat.add(host.wait_guest().console(history=False))
    time.sleep(0.3)
    assert heartbeat.beats == []
    host.xm("unpause", "Native")
    arrived(host, heartbeat)


def test_again_and_again(hosts, heartbeat, kernel, tmp_path):
    """A hundred rounds with FERRY_EXHAUSTIVE=1."""
    host, checkpoint = hosts[0], f"{tmp_path}/Native.checkpt"
    start(host, heartbeat, kernel)
    for turn in range(100 if os.environ.get("FERRY_EXHAUSTIVE") == "1" else 15):
        host.xm("save", *[[], ["--live"], ["--compress"]][turn % 3], "Native", checkpoint)
        host.xm("restore", *[[], ["--eager"]][turn % 2], checkpoint)
        os.unlink(checkpoint)
        arrived(host, heartbeat)


def test_a_resume_ends_a_pause_that_is_under_way(hosts, heartbeat, kernel):
    """Whose pause it was may have died meanwhile: xend then asks on a connection of its own. The last word counts."""
    carrier = start(hosts[0], heartbeat, kernel)
    path, = hosts[0].guests().values()

    def pause():
        carrier.socket.send(json.dumps({"do": "pause"}).encode())

    def ask(what):
        xend = Control(path)
        said = xend.call({"do": what})
        xend.close()
        return said

    for turn in range(100):
        pause()
        ask("resume")
        carrier.socket.recv(65536)
        if turn % 10 == 0:
            heartbeat.wait_after(time.monotonic(), count=5)
    pause()
    ask("resume")
    ask("pause")
    carrier.socket.recv(65536)
    assert ask("status")["state"] == "paused"
    ask("resume")
    heartbeat.wait_after(time.monotonic(), count=50)


def test_the_log_of_written_pages_has_one_reader(hosts, heartbeat, kernel):
    """A carrier that has not heard yet that it is given up takes nothing from its successor, and turns nothing off for it."""
    late = start(hosts[0], heartbeat, kernel)
    path, = hosts[0].guests().values()
    carrier, xend = Control(path), Control(path)
    late.call({"do": "track", "on": True})
    carrier.call({"do": "track", "on": True})
    with pytest.raises(RuntimeError, match="not being tracked for you"):
        late.call({"do": "dirty"})
    late.call({"do": "track", "on": False})
    heartbeat.wait_after(time.monotonic(), count=50)
    assert carrier.call({"do": "dirty"})["pages"] > 0
    xend.call({"do": "track", "on": False})
    with pytest.raises(RuntimeError, match="not being tracked"):
        carrier.call({"do": "dirty"})
    for control in (late, carrier, xend):
        control.close()


def test_back_at_once(hosts, heartbeat, kernel, tmp_path):
    """xm does not wait for a guest's memory to be freed; who comes next does, for the same name, disk and memory."""
    here, there, checkpoint, disk = *hosts, f"{tmp_path}/Native.checkpt", f"{tmp_path}/disk"
    with open(disk, "wb") as file:
        file.truncate(1 << 20)
    config = here.write_config("Native", kernel, 1024, 1, LINE.replace("touch=64", "touch=800"))
    with open(config, "a", encoding="utf-8") as file:
        file.write(f"disk = ['file:{disk},xvda,w']\n")
    here.xm("create", "-q", config)
    heartbeat.add(here.wait_guest().console())
    heartbeat.wait_ready()
    for _ in range(4):
        here.xm("save", "Native", checkpoint)
        assert names(here) == ["Domain-0"]
        with open(disk, "rb+") as file:  # who has it on storage that both reach may begin at once
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        here.xm("restore", checkpoint)
        os.unlink(checkpoint)
        here.xm("migrate", "--live", "-p", str(there.port), "Native", "127.0.0.1")
        assert (names(here), names(there)) == (["Domain-0"], ["Domain-0", "Native"])
        here, there = there, here
    arrived(here, heartbeat)


@pytest.mark.parametrize("memory,touched,most", [(512, 64, 72), (1024, 120, 128)])
def test_a_checkpoint_holds_what_was_touched(hosts, heartbeat, kernel, tmp_path, memory, touched, most):
    checkpoint = f"{tmp_path}/Sparse.checkpt"
    start(hosts[0], heartbeat, kernel, "Sparse", memory, LINE.replace("touch=64", f"touch={touched}"))
    hosts[0].xm("save", "Sparse", checkpoint)
    assert touched << 20 <= os.stat(checkpoint).st_blocks * 512 < most << 20


@pytest.mark.parametrize("options", [["--live"], []], ids=["live", "warm"])
def test_migrate(hosts, heartbeat, kernel, options):
    start(hosts[0], heartbeat, kernel)
    hosts[0].xm("migrate", *options, "-p", str(hosts[1].port), "Native", "127.0.0.1")
    arrived(hosts[1], heartbeat)
    assert names(hosts[0]) == ["Domain-0"]
    assert names(hosts[1]) == ["Domain-0", "Native"]


def test_many_processors(hosts, heartbeat, kernel, tmp_path):
    """Of a guest that uses one of them: the state of all of them goes with it."""
    here, there, checkpoint = *hosts, f"{tmp_path}/Many.checkpt"
    here.xm("create", "-q", here.write_config("Many", kernel, 128, 128, LINE))
    control = here.wait_guest()
    heartbeat.add(control.console())
    heartbeat.wait_ready()
    assert here.xm("list", "Many").splitlines()[-1].split()[3] == "128"
    here.xm("save", "Many", checkpoint)
    here.xm("restore", checkpoint)
    arrived(here, heartbeat)
    for options in ([], ["--live"]):
        here.xm("migrate", *options, "-p", str(there.port), "Many", "127.0.0.1")
        here, there = there, here
        arrived(here, heartbeat)
    assert len(here.wait_guest().call({"do": "status"})["vcpus"]) == 128


def test_to_and_fro(hosts, heartbeat, kernel):
    start(hosts[0], heartbeat, kernel)
    for turn in range(50):
        here, there = hosts[turn % 2], hosts[1 - turn % 2]
        here.xm("migrate", "--live", "-p", str(there.port), "Native", "127.0.0.1")
        arrived(there, heartbeat)
