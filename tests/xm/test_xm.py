"""What xm prints, sends and returns, command by command, against a small xend that answers as told."""
import fcntl
import json
import os
import pathlib
import pty
import re
import signal
import socket
import struct
import subprocess
import termios
import threading
import time

import pytest

from conftest import GUEST, HOST, XM

LIST = """\
Name                               ID Mem(MiB) VCPUs State   Time(s)
Domain-0                            0      511     2 r-----   1306.0
TestGuest                           1       63     1 -b----      4.5
"""
LONG_GUEST = """\
(domain
    (domid 1)
    (name TestGuest)
    (uuid cc0029f5-10a1-e6d0-3c92-19b0ea021f21)
    (memory 63)
    (vcpus 1)
    (cpu_weight 256)
    (on_poweroff destroy)
    (on_reboot restart)
    (on_crash restart)
    (image
        (linux
            (kernel /boot/vmlinuz)
            (root '/dev/xvda ro')
        )
    )
    (device (vif (mac 00:16:3e:55:9d:b0) (bridge xenbr0)))
    (device (vbd (uname phy:/dev/vg/guest) (dev xvda:disk) (mode w)))
    (state -b----)
    (cpu_time 4.500)
    (start_time 1200000000)
)
"""


def wait_until(condition, timeout=120):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


# list, domid, domname, rename

def test_list_prints_the_books_columns(xend):
    assert xend.xm("list") == (0, LIST, "")
    assert xend.xm("ls", "TestGuest") == (0, "".join(LIST.splitlines(True)[::2]), "")
    assert xend.xm("list", "--state=running") == (0, "".join(LIST.splitlines(True)[:2]), "")


def test_list_long_prints_expressions(xend):
    assert xend.xm("list", "-l", "1") == (0, LONG_GUEST, "")
    code, out, err = xend.xm("list", "--long")
    assert (code, err) == (0, "")
    assert out == "(domain\n    (domid 0)\n    (name Domain-0)\n    (memory 511)\n    (vcpus 2)\n    (state r-----)\n" \
                  "    (cpu_time 1306.000)\n)\n" + LONG_GUEST


def test_a_domain_that_does_not_exist(xend):
    for words in (["list", "x"], ["domid", "x"], ["destroy", "x"], ["console", "x"], ["save", "x", "f"],
                  ["migrate", "x", "10.0.0.2"], ["shutdown", "x"], ["pause", "x"], ["rename", "x", "y"]):
        assert xend.xm(*words) == (1, "", "Error: Domain 'x' does not exist.\n"), words
    for name in ("a b", "../info", "a/b", "a?b", "", "99999999999999999999"):
        assert xend.xm("domid", name) == (1, "", f"Error: Domain '{name}' does not exist.\n")
    assert all(path.count("/") <= 3 for _, path, _ in xend.asked)


def test_ids_and_names(xend):
    assert xend.xm("domid", "TestGuest") == (0, "1\n", "")
    assert xend.xm("domname", "1") == (0, "TestGuest\n", "")
    assert xend.xm("domname", "0") == (0, "Domain-0\n", "")
    xend.routes["POST", "/domains/1/rename"] = (200, {})
    assert xend.xm("rename", "1", "Other") == (0, "", "")
    assert xend.asked[-1] == ("POST", "/domains/1/rename", {"name": "Other"})


# create

CONFIG = "kernel = '/boot/vmlinuz'\nmemory = 64\nname = 'TestGuest'\n"


def test_create_starts_a_domain(xend):
    (xend.directory / "TestGuest").write_text(CONFIG)
    xend.routes["POST", "/domains"] = (201, GUEST)
    assert xend.xm("create", "TestGuest", "memory=128", "vcpus=2") == \
        (0, 'Using config file "./TestGuest".\nStarted domain TestGuest\n', "")
    method, path, body = xend.asked[-1]
    assert body["paused"] is False and body["dryrun"] is False
    assert body["config"]["memory"] == 128 and body["config"]["vcpus"] == 2
    assert body["config"]["kernel"] == "/boot/vmlinuz"
    xend.routes["POST", "/domains"] = (201, {**GUEST, "warnings": ["10.0.0.9 could not be asked."]})
    assert xend.xm("create", "TestGuest") == \
        (0, 'Using config file "./TestGuest".\nStarted domain TestGuest\n', "Warning: 10.0.0.9 could not be asked.\n")


def test_create_finds_files_and_names(xend):
    (xend.directory / "etc").mkdir()
    file = xend.directory / "etc" / "web.cfg"
    file.write_text("kernel = '/k'\n")
    xend.routes["POST", "/domains"] = (201, GUEST)
    assert xend.xm("create", "-q", "-p", f"--path=/nowhere:{file.parent}", "web.cfg") == (0, "", "")
    assert xend.asked[-1][2]["config"]["name"] == "web" and xend.asked[-1][2]["paused"] is True
    assert xend.xm("create", "-qf", str(file), "name=b") == (0, "", "")
    assert xend.asked[-1][2]["config"]["name"] == "b"
    assert xend.xm("create", "absent") == \
        (1, "", "Error: Unable to read file absent: it is in none of the directories .:/etc/xen.\n")


def test_create_dry_run_starts_nothing(xend):
    (xend.directory / "g").write_text(CONFIG)
    xend.routes["POST", "/domains"] = (200, {"name": "TestGuest", "config": {}})
    code, out, err = xend.xm("create", "-n", "g")
    assert (code, err) == (0, "")
    assert out.startswith('Using config file "./g".\n(domain\n    (name TestGuest)\n    (memory 64)\n')
    assert xend.asked[-1][2]["dryrun"] is True


def test_create_shows_mistakes_and_what_has_no_effect(xend):
    (xend.directory / "bad").write_text("name = 'a'\ndisk = [ ]]\n")
    assert xend.xm("create", "bad") == (1, 'Using config file "./bad".\n',
                                        "Error: ./bad, line 2, column 11: expected the end of the line, found ']'.\n")
    assert xend.asked == []
    (xend.directory / "odd").write_text(CONFIG + "pci = ['0000:00:1d.0']\n")
    xend.routes["POST", "/domains"] = (201, GUEST)
    code, out, err = xend.xm("create", "odd")
    assert (code, err) == (0, "Warning: ./odd: The option 'pci' has no effect: Ferry does not hand out the host's PCI "
                              "devices.\n")
    xend.routes["POST", "/domains"] = (400, {"error": "Kernel /boot/vmlinuz: no such file."})
    assert xend.xm("create", "odd", "-q") == (1, "", "Error: Kernel /boot/vmlinuz: no such file.\n")
    code, out, err = xend.xm("create")
    assert code == 1 and err.startswith("Error: xm create: expected <ConfigFile>, found nothing.\nUsage: xm create")


def test_create_help_config_lists_options(xend):
    code, out, err = xend.xm("create", "--help_config")
    assert code == 0 and "memory         memory in MiB (16 to 16777216, default 128)\n" in out
    assert max(map(len, out.splitlines())) < 80 and "9223372036854775807" not in out
    assert "preserve, rename-restart" in " ".join(out.split()) and "(hold|error)" in out


# pause, unpause, destroy, shutdown, reboot

@pytest.mark.parametrize("verb", ["pause", "unpause", "destroy", "shutdown", "reboot"])
def test_verbs_without_output(xend, verb):
    xend.routes["POST", f"/domains/1/{verb}"] = (200, {})
    assert xend.xm(verb, "1") == (0, "", "")
    assert xend.asked[-1] == ("POST", f"/domains/1/{verb}", b"")


@pytest.mark.parametrize("words,done", [
    (["destroy", "0"], "destroyed"), (["pause", "Domain-0"], "paused"), (["shutdown", "0"], "shut down"),
    (["reboot", "Domain-0"], "rebooted"), (["save", "Domain-0", "f"], "saved"), (["save", "0", "f"], "saved"),
    (["migrate", "0", "h"], "migrated"), (["rename", "Domain-0", "x"], "renamed")])
def test_the_host_is_left_alone(xend, words, done):
    assert xend.xm(*words) == (1, "", f"Error: Domain-0 is the host itself: it cannot be {done}.\n")
    assert xend.asked == []


def test_shutdown_waits(xend):
    xend.routes["POST", "/domains/1/shutdown"] = (200, {})
    gone = threading.Event()

    def route(handler):
        gone.wait(120)
        handler.json(200, {})
    xend.routes["GET", "/domains/1/gone"] = route
    process = xend.spawn("shutdown", "-w", "TestGuest", stdout=subprocess.PIPE)
    wait_until(lambda: ("GET", "/domains/1/gone", b"") in xend.asked)
    assert process.poll() is None
    gone.set()
    assert process.communicate(timeout=120)[0] == b"Domain TestGuest terminated\nAll domains terminated\n"
    assert process.returncode == 0


def test_shutdown_all_and_wrong_arguments(xend):
    xend.routes["POST", "/domains/1/shutdown"] = (200, {})
    assert xend.xm("shutdown", "-a") == (0, "", "")
    assert [path for method, path, _ in xend.asked if method == "POST"] == ["/domains/1/shutdown"]
    code, out, err = xend.xm("shutdown")
    assert code == 1 and err.startswith("Error: xm shutdown: expected <Domain> or -a, found nothing.\nUsage: xm shutdown")
    code, out, err = xend.xm("shutdown", "-a", "1")
    assert code == 1 and err.startswith("Error: xm shutdown: expected <Domain> or -a, found both.\n")


def test_one_that_cannot_be_shut_down_keeps_no_other_from_it(xend):
    others = [dict(GUEST, id=2, name="Paused"), GUEST, dict(GUEST, id=3, name="Ended")]
    xend.routes["GET", "/domains"] = (200, {"domains": [HOST, *others]})
    xend.routes["POST", "/domains/2/shutdown"] = (409, {"error": "Domain 'Paused' is paused."})
    xend.routes["POST", "/domains/1/shutdown"] = (200, {})
    xend.routes["POST", "/domains/3/shutdown"] = (409, {"error": "Domain 'Ended' has ended."})
    xend.routes["GET", "/domains/1/gone"] = (200, {})
    assert xend.xm("shutdown", "-a", "-w") == \
        (1, "Domain TestGuest terminated\n", "Error: Domain 'Paused' is paused.\nError: Domain 'Ended' has ended.\n")


def test_reboot_waits_for_the_new_id(xend):
    xend.routes["POST", "/domains/1/reboot"] = (200, {})

    def gone(handler):
        xend.routes["GET", "/domains/TestGuest"] = (200, dict(GUEST, id=2))
        handler.json(200, {})
    xend.routes["GET", "/domains/1/gone"] = gone
    assert xend.xm("reboot", "-w", "TestGuest") == \
        (0, "Domain TestGuest rebooted\nAll domains rebooted\n", "")


def test_reboot_waits_until_the_new_one_is_started(xend):
    xend.routes["POST", "/domains/1/reboot"] = (200, {})
    looked = []

    def starting(handler):
        looked.append(1)
        busy = {"busy": "being started again", "trouble": "No memory."} if len(looked) < 4 else {}
        handler.json(200, dict(GUEST, id=2, **busy))

    def gone(handler):
        xend.routes["GET", "/domains/TestGuest"] = starting
        handler.json(200, {})
    xend.routes["GET", "/domains/1/gone"] = gone
    assert xend.xm("reboot", "-w", "TestGuest") == \
        (0, "Domain TestGuest rebooted\nAll domains rebooted\n", "Warning: No memory.\n")
    assert len(looked) == 4


def test_reboot_does_not_wait_for_one_that_comes_no_more(xend):
    config = dict(GUEST["config"], on_reboot="destroy")
    xend.routes["GET", "/domains/TestGuest"] = (200, dict(GUEST, config=config))
    xend.routes["POST", "/domains/1/reboot"] = (200, {})

    def gone(handler):
        xend.routes["GET", "/domains/TestGuest"] = (404, {"error": "Domain 'TestGuest' does not exist. It powered off."})
        handler.json(200, {})
    xend.routes["GET", "/domains/1/gone"] = gone
    assert xend.xm("reboot", "-w", "TestGuest") == \
        (1, "", "Error: Domain 'TestGuest' did not come back (its on_reboot is 'destroy'). Domain 'TestGuest' does not exist. "
                "It powered off.\n")

    def kept(handler):
        xend.routes["GET", "/domains/TestGuest"] = (200, GUEST)
        handler.json(200, {})
    xend.routes["GET", "/domains/TestGuest"] = (200, GUEST)
    xend.routes["GET", "/domains/1/gone"] = kept
    code, out, err = xend.xm("reboot", "-w", "TestGuest")
    assert (code, out) == (1, "") and "Domain 'TestGuest' has ended and is kept" in err


@pytest.mark.parametrize("words", [("shutdown", "-w", "TestGuest"), ("reboot", "-w", "TestGuest"), ("shutdown", "-w", "-a")])
@pytest.mark.parametrize("said,why", [
    ([{"event": "failed", "error": "xend is being stopped."}], "xend is being stopped."),
    ([], "xend has ended its answer without saying it; see xm list."),
])
def test_a_xend_that_stops_says_nothing_of_an_end(xend, words, said, why):
    def gone(handler):
        handler.begin("application/json")
        for line in said:
            handler.chunk(line)
        handler.end()
    for verb in ("shutdown", "reboot"):
        xend.routes["POST", f"/domains/1/{verb}"] = (200, {})
    xend.routes["GET", "/domains/1/gone"] = gone
    assert xend.xm(*words) == (1, "", f"Error: Whether domain 'TestGuest' has ended is not known: {why}\n")


def test_a_xend_that_fails_says_nothing_of_coming_back(xend):
    def gone(handler):
        xend.routes["GET", "/domains/TestGuest"] = (500, {"error": "Out of memory."})
        handler.json(200, {})
    xend.routes["POST", "/domains/1/reboot"] = (200, {})
    xend.routes["GET", "/domains/1/gone"] = gone
    assert xend.xm("reboot", "-w", "TestGuest") == \
        (1, "", "Error: Domain 'TestGuest' has ended, and whether it came back is not known: Out of memory.\n")


def test_a_lost_press_of_the_button_is_made_again(xend):
    pressed, gone = [], threading.Event()

    def press(handler):
        pressed.append(1)
        if len(pressed) == 2:
            gone.set()
        handler.json(200, {})

    def wait(handler):
        gone.wait(120)
        handler.json(200, {})
    xend.routes["POST", "/domains/1/shutdown"] = press
    xend.routes["GET", "/domains/1/gone"] = wait
    assert xend.xm("shutdown", "-w", "TestGuest") == (0, "Domain TestGuest terminated\nAll domains terminated\n", "")
    assert len(pressed) == 2


def test_how_a_domain_ended(xend):
    xend.routes["GET", "/domains/TestGuest/ending"] = (200, {
        "name": "TestGuest", "id": 3, "ended_at": 0, "state": "----c-", "reason": "crash", "exit": "", "detail": "Panic.",
        "then": "destroy", "file": "", "console": "one\ntwo"})
    code, out, err = xend.xm("log", "TestGuest")
    assert (code, err) == (0, "")
    assert re.sub("ended   : .*", "ended   : then", out) == \
        "domain  : TestGuest (ID 3)\nended   : then\nstate   : ----c-\nreason  : crash\ndetail  : Panic.\n" \
        "then    : destroy\nThe last of its console:\none\ntwo\n"


def test_those_that_are_there_are_listed_beside_those_that_are_not(xend):
    code, out, err = xend.xm("list", "TestGuest", "x", "0", "y")
    assert (code, [line.split()[0] for line in out.splitlines()]) == (1, ["Name", "TestGuest", "Domain-0"])
    assert err == "Error: Domain 'x' does not exist.\nError: Domain 'y' does not exist.\n"


def test_cancel_returns_when_the_domain_is_free(xend):
    looked = []

    def show(handler):
        looked.append(1)
        handler.json(200, dict(GUEST, **({"busy": "being migrated"} if len(looked) < 3 else {})))
    xend.routes["POST", "/domains/TestGuest/cancel"] = (200, {})
    xend.routes["GET", "/domains/TestGuest"] = show
    assert xend.xm("migrate", "--cancel", "TestGuest") == (0, "", "")
    assert len(looked) == 3
    del xend.routes["GET", "/domains/TestGuest"]
    assert xend.xm("migrate", "--cancel", "TestGuest") == \
        (1, "", "Error: It was too late to cancel that. Domain 'TestGuest' does not exist.\n")


# save, restore, migrate

PROGRESS = {"event": "progress", "phase": "memory", "round": 1, "sent_bytes": 32000000, "total_bytes": 64000000,
            "remaining_pages": 7813, "bytes_per_second": 120000000}


def test_save_prints_nothing(xend):
    xend.job("/domains/1/save", PROGRESS, {"event": "done", "bytes": 1})
    assert xend.xm("save", "1", "TestGuest.checkpt") == (0, "", "")
    assert xend.asked[-1] == ("POST", "/domains/1/save", {"file": str(xend.directory / "TestGuest.checkpt"), "keep": False,
                                                          "live": False, "force": False, "compress": False})
    assert xend.xm("save", "-c", "--live", "--force", "-z", "1", "/srv/x") == (0, "", "")
    assert xend.asked[-1][2] == {"file": "/srv/x", "keep": True, "live": True, "force": True,
                                  "compress": True}


def test_restore_prints_nothing(xend):
    xend.job("/restore", {"event": "done", "domain": GUEST})
    assert xend.xm("restore", "-p", "a/b.checkpt") == (0, "", "")
    assert xend.asked[-1][2] == {"file": str(xend.directory / "a/b.checkpt"), "paused": True, "eager": False}
    assert xend.xm("restore", "--eager", "/srv/x") == (0, "", "")
    assert xend.asked[-1][2] == {"file": "/srv/x", "paused": False, "eager": True}
    assert xend.xm("restore", "--accept=kernel", "/srv/x") == (0, "", "")
    assert xend.asked[-1][2] == {"file": "/srv/x", "paused": False, "eager": False, "accept": ["kernel"]}


def test_restore_of_a_clone(xend):
    xend.job("/restore", {"event": "done", "domain": GUEST})
    assert xend.xm("restore", "--name", "Two", "/srv/x") == (0, "", "")
    assert xend.asked[-1][2] == {"file": "/srv/x", "paused": False, "eager": False, "name": "Two"}
    assert xend.xm("restore", "--name=Two", "/srv/x", "disk=['file:/srv/b,xvda,w']", "vif=['bridge=br1']") == (0, "", "")
    assert xend.asked[-1][2] == {"file": "/srv/x", "paused": False, "eager": False, "name": "Two",
                                 "disk": ["file:/srv/b,xvda,w"], "vif": ["bridge=br1"]}
    asked = len(xend.asked)
    assert "disk=[…] or vif=[…] after the file, found memory=4" in xend.xm("restore", "-n", "Two", "/srv/x", "memory=4")[2]
    assert "'disk=[]' behind the file is for clones, which --name=NEW makes" in xend.xm("restore", "/srv/x", "disk=[]")[2]
    assert "command line" in xend.xm("restore", "-n", "Two", "/srv/x", "disk=[7]")[2]
    assert len(xend.asked) == asked


def test_migrate_prints_one_line(xend):
    xend.job("/domains/1/migrate", PROGRESS, {"event": "done", "milliseconds": 3100, "rounds": 4, "bytes": 71300000,
                                              "downtime_ms": 38})
    assert xend.xm("migrate", "--live", "-r", "100", "-p", "8003", "1", "10.0.0.2") == \
        (0, "Migrated 1 to 10.0.0.2 in 3.1 s: 4 rounds, 71.3 MB, downtime 38 ms.\n", "")
    assert xend.asked[-1][2] == {"host": "10.0.0.2", "port": 8003, "live": True, "rate_mbit": 100}
    assert xend.xm("migrate", "1", "10.0.0.2", "-l")[0] == 0
    assert xend.asked[-1][2] == {"host": "10.0.0.2", "live": True}
    assert xend.xm("migrate", "1", "10.0.0.2", "--max-downtime=300", "--timeout", "60", "--on-stall", "cancel",
                   "--compress", "no", "--accept=kernel,clock")[0] == 0
    assert xend.asked[-1][2] == {"host": "10.0.0.2", "live": False, "max_downtime_ms": 300, "timeout_s": 60,
                                 "on_stall": "cancel", "compress": "no", "accept": ["kernel", "clock"]}


def test_migrate_says_what_it_did_to_the_domain(xend):
    xend.job("/domains/1/migrate", {"event": "done", "milliseconds": 3100, "rounds": 4, "bytes": 71300000,
                                    "downtime_ms": 38, "slowed_percent": 75, "memory_bytes": 142600000})
    assert xend.xm("migrate", "--live", "1", "10.0.0.2") == \
        (0, "Migrated 1 to 10.0.0.2 in 3.1 s: 4 rounds, 71.3 MB, downtime 38 ms, "
         "compressed from 142.6 MB, slowed by up to 75 %.\n", "")


def test_migrate_detached(xend):
    xend.job("/domains/1/migrate", PROGRESS, cut=True)
    assert xend.xm("migrate", "--live", "--detach", "1", "h") == \
        (0, "Migrating 1 to h goes on by itself: xm migrate --status 1 tells how far it is.\n", "")
    assert xend.asked[-1][2] == {"host": "h", "live": True, "detach": True}
    xend.job("/domains/1/migrate", {"event": "failed", "error": "h refuses the guest."})
    assert xend.xm("migrate", "--detach", "1", "h") == (1, "", "Error: h refuses the guest.\n")


def test_migrate_prints_lines_where_there_is_no_terminal(xend):
    more = {"dirty_pages": 812, "expected_left_ms": 61500, "expected_downtime_ms": 44, "slowed_percent": 50}
    xend.job("/domains/1/migrate", PROGRESS, dict(PROGRESS, round=2, remaining_pages=12, **more),
             dict(PROGRESS, round=2, remaining_pages=2), {"event": "done"})
    assert xend.xm("migrate", "1", "h") == (
        0, "Migrated 1 to h.\n", "Migrating 1 to h: round 2, 32 MB sent, 12 pages left, 120 MB/s, 812 dirty, 1:01 left, "
        "44 ms downtime, slowed 50 %\n")


def test_migrate_status_and_cancel(xend):
    move = {"name": "TestGuest", "id": 1, "host": "h", "began_at": 1200000000, "ended_at": 0, "detached": True,
            "progress": None, "result": None, "error": None}
    xend.routes["GET", "/migrations"] = (200, {"migrations": [
        dict(move, id=7, name="Other", state="done", ended_at=1200000009, result={"milliseconds": 3100, "downtime_ms": 38}),
        dict(move, state="failed", error="The line broke.\n  - And so on.", ended_at=1200000009),
        dict(move, state="running", progress=dict(PROGRESS, round=2, remaining_pages=12)),
        dict(move, state="running")]})
    code, out, err = xend.xm("migrate", "--status", "TestGuest")
    assert (code, err) == (0, "")
    lines = [line.split(None, 5) for line in out.splitlines()]
    assert lines[0] == ["Begun", "Name", "ID", "To", "State"]
    day, clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(move["began_at"])).split()
    start = [day, clock, "TestGuest", "1", "h"]
    assert lines[1:] == [start + ["failed: The line broke. - And so on."],
                         start + ["under way: round 2, 32 MB sent, 12 pages left, 120 MB/s"], start + ["begun"]]
    assert xend.xm("migrate", "--status")[1].splitlines()[1].endswith("done in 3.1 s, downtime 38 ms")
    assert xend.xm("migrate", "--status", "7")[1].count("\n") == 2
    assert xend.xm("migrate", "--status", "x") == \
        (1, "", "Error: Domain 'x' is not among those whose migrations from here are remembered, the latest 64.\n")
    xend.routes["POST", "/domains/1/cancel"] = (200, {})
    assert xend.xm("migrate", "--cancel", "1") == (0, "", "")
    assert xend.xm("migrate")[0] == 1


def test_migrate_over_a_line_that_broke_at_the_end(xend):
    xend.job("/domains/1/migrate", {"event": "progress", "phase": "uncertain", "error": "The line broke; asking."},
             {"event": "done"})
    assert xend.xm("migrate", "1", "h") == (0, "Migrated 1 to h.\n", "Warning: The line broke; asking.\n")


def test_migrate_dryrun(xend):
    done = {"event": "done", "memory_bytes": 71300000, "written_pages_per_second": 1234, "bytes_per_second": 450000000,
            "milliseconds": 310, "downtime_ms": 12, "rounds": 3, "slowed": 0, "fits": True}
    xend.job("/domains/1/migrate", done)
    assert xend.xm("migrate", "-n", "--live", "1", "h") == (
        0, "h would take 1: about 0.3 s in 3 rounds, downtime about 12 ms.\n"
           "It uses 71.3 MB of its memory, writes to 5.1 MB of it a second, and the line carries 450 MB/s.\n", "")
    assert xend.asked[-1][2]["dryrun"] is True
    xend.job("/domains/1/migrate", dict(done, slowed=60, fits=False))
    code, out, _ = xend.xm("migrate", "--dryrun", "--live", "1", "h")
    assert code == 0 and "slowed by 60 %" in out and "--max-downtime" in out


def test_a_hand_over_in_doubt(xend):
    doubtful = dict(GUEST, state="--p---", doubt="Domain 'TestGuest' stands still.")
    xend.routes["GET", "/domains"] = 200, {"domains": [HOST, doubtful]}
    code, out, err = xend.xm("list")
    assert (code, len(out.splitlines()), err) == (0, 3, "Warning: Domain 'TestGuest' stands still.\n")
    xend.routes["GET", "/domains/TestGuest/handover"] = 200, {"explanation": ["Here: this.", "There: that."]}
    assert xend.xm("migrate", "--resolve", "TestGuest") == (0, "Here: this.\nThere: that.\n", "")
    xend.routes["POST", "/domains/TestGuest/handover"] = 200, {}
    for how in ("keep", "forget"):
        assert xend.xm("migrate", "--resolve", "--" + how, "TestGuest") == (0, "", "")
        assert xend.asked[-1][2] == {"settle": how}
    for words in (["--resolve", "--keep", "--forget", "x"], ["--resolve", "x", "h"], ["--keep", "x"]):
        code, out, err = xend.xm("migrate", *words)
        assert (code, out) == (1, "") and err.startswith("Error: xm migrate --resolve takes a <Domain>, and --keep")
    assert xend.xm("migrate", "x")[2].startswith("Error: xm migrate: expected <Domain> <Host>, found 1 word.\nUsage:")


@pytest.mark.parametrize("words,path", [(["save", "1", "f"], "/domains/1/save"), (["restore", "f"], "/restore"),
                                        (["migrate", "1", "h"], "/domains/1/migrate")])
def test_jobs_that_fail(xend, words, path):
    xend.job(path, PROGRESS, {"event": "failed", "error": "No space is left on /srv.", "errno": 28})
    assert xend.xm(*words) == (1, "", "Error: No space is left on /srv.\n")
    xend.routes["POST", path] = (409, {"error": "Domain 'TestGuest' is being saved already."})
    assert xend.xm(*words) == (1, "", "Error: Domain 'TestGuest' is being saved already.\n")
    unknown = "Error: xend ended the connection without saying how the job went: see xm list and " \
              "/var/log/xen/xend.log.\n"
    xend.job(path, PROGRESS)
    assert xend.xm(*words) == (1, "", unknown)
    xend.job(path, PROGRESS, cut=True)
    assert xend.xm(*words) == (1, "", unknown)
    for garbage in (b"garbage\n", b"[]\n", b'{"event": 7}\n'):
        xend.job(path, garbage)
        assert xend.xm(*words) == (1, "", "Error: xend's answer is not understood: do xm and xend fit together?\n")
    xend.job(path, b"x" * 700000, b"x" * 700000)
    assert xend.xm(*words) == (1, "", "Error: xend's answer is not understood: a line of it never ends.\n")


@pytest.mark.parametrize("words,path,sentence", [
    (["save", "1", "f"], "/domains/1/save",
     "Interrupted: the save is cancelled and 1 runs on, unless it had just been completed (xm list shows)."),
    (["migrate", "1", "h"], "/domains/1/migrate",
     "Interrupted: the migration is cancelled and 1 runs on here, unless it had just been completed (xm list shows).")])
def test_interrupt_closes_the_stream(xend, words, path, sentence):
    started = threading.Event()

    def route(handler):
        handler.begin()
        started.set()
        while True:  # ends with the error that the client's leaving gives
            handler.chunk(PROGRESS)
            time.sleep(0.02)
    xend.routes["POST", path] = route
    process = xend.spawn(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert started.wait(120)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err.decode()) == (1, b"", f"Error: {sentence}\n")
    assert xend.client_left.wait(120)


@pytest.mark.parametrize("words,path,sentence", [
    (["save", "1", "f"], "/domains/1/save", "Interrupted: the save is cancelled and 1 is as before."),
    (["migrate", "1", "h"], "/domains/1/migrate", "Interrupted: the migration is cancelled and 1 stays here.")])
@pytest.mark.parametrize("in_time", [True, False])
def test_interrupt_waits_for_the_end_of_the_job(xend, words, path, sentence, in_time):
    started, cancelled, may_end = threading.Event(), threading.Event(), threading.Event()

    def route(handler):
        handler.begin()
        handler.chunk(PROGRESS)
        started.set()
        assert may_end.wait(120)
        handler.chunk({"event": "failed", "error": "Cancelled."} if in_time else {"event": "done"})
        handler.end()

    def cancel(handler):
        cancelled.set()
        handler.json(200, {})
    xend.routes["POST", path] = route
    xend.routes["POST", "/domains/1/cancel"] = cancel
    process = xend.spawn(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert started.wait(120)
    process.send_signal(signal.SIGINT)
    assert cancelled.wait(120)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    may_end.set()
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err.decode()) == ((1, f"Error: {sentence}\n") if in_time else (0, ""))


def test_progress_is_for_terminals(xend):
    xend.job("/domains/1/save", PROGRESS, dict(PROGRESS, round=2, remaining_pages=12), {"event": "done"})
    master, slave = pty.openpty()
    process = xend.spawn("save", "1", "f", stderr=slave, stdin=slave, stdout=slave)
    os.close(slave)
    shown = read_all(master)
    assert process.wait(120) == 0
    assert "Saving 1 [##########          ]  50%  32 of 64 MB  120 MB/s  0:00 left" in shown
    assert "Saving 1: round 2, 32 MB sent, 12 pages left, 120 MB/s" in shown
    assert shown.endswith("\r\x1b[K")


@pytest.mark.parametrize("columns", [120, 80, 60, 40, 20, 2])
def test_progress_fits_the_terminal(xend, columns):
    live = dict(PROGRESS, round=3, remaining_pages=1234, dirty_pages=4321, expected_left_ms=31000, expected_downtime_ms=45,
                slowed_percent=30)
    xend.job("/domains/TestGuest/migrate", dict(PROGRESS, sent_bytes=0, bytes_per_second=0), PROGRESS, live,
             {"event": "done", "milliseconds": 3100, "rounds": 4, "bytes": 71300000, "downtime_ms": 38})
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = xend.spawn("migrate", "TestGuest", "10.0.0.1", stderr=slave, stdin=slave)
    os.close(slave)
    shown = [line for line in read_all(master).replace("\x1b[K", "").split("\r") if line]
    assert process.wait(120) == 0
    assert len(shown) == 3 and all(len(line) < columns for line in shown)
    first, half, rounds = shown
    if columns >= 60:
        assert "  0%  0 of" in first and "left" not in first  # nobody knows yet
        assert half.endswith("  0:00 left") and rounds.endswith((" left", " ms downtime", "slowed 30 %"))
    if columns >= 80:
        assert "MB/s" in half and "45 ms downtime" in rounds


def read_all(fd):
    """What comes from a terminal until its last user closes it."""
    data = b""
    while True:
        try:
            part = os.read(fd, 65536)
        except OSError:
            break
        if not part:
            break
        data += part
    os.close(fd)
    return data.decode()


# console

def console_route(xend, typed_enough, farewell=b"bye\r\n"):
    """A console that greets, takes input until typed_enough says so, and ends."""
    typed = bytearray()
    ended = threading.Event()

    def output(handler):
        handler.begin("application/octet-stream")
        handler.chunk(b"login: ")
        if typed_enough is not None:
            ended.wait(120)
            handler.chunk(farewell)
            handler.end()
        else:
            while True:
                handler.chunk(b".")
                time.sleep(0.02)

    def typing(handler):
        typed.extend(handler.body)
        handler.json(200, {})
        if typed_enough and typed_enough(typed):
            ended.set()
    xend.routes["GET", "/domains/1/console?history=1"] = output
    xend.routes["GET", "/domains/1/console"] = output
    xend.routes["POST", "/domains/1/console"] = typing
    return typed, ended


def test_console_shows_and_types(xend):
    typed, _ = console_route(xend, lambda typed: b"\n" in typed)
    assert xend.xm("console", "TestGuest", stdin=b"root\n") == (0, "login: bye\r\n", "")
    assert typed == b"root\n"


def test_console_is_left_after_everything_typed_was_sent(xend):
    typed, _ = console_route(xend, None)
    process = xend.spawn("console", "1", "--new", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.read(7) == b"login: "
    out, err = process.communicate(b"halt\n\x1dnot this", timeout=120)
    assert (process.returncode, err) == (0, b"") and not out.strip(b".")
    assert typed == b"halt\n"
    assert xend.client_left.wait(120)


def test_console_makes_the_terminal_raw_and_restores_it(xend):
    typed, ended = console_route(xend, lambda typed: b"\x03" in typed)
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    process = xend.spawn("console", "1", stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
    assert os.read(master, 100) == b"login: "
    wait_until(lambda: not termios.tcgetattr(slave)[3] & termios.ICANON)
    os.write(master, b"\x03")
    assert process.wait(120) == 0
    assert termios.tcgetattr(slave) == before
    assert typed == b"\x03"
    os.close(slave)
    assert read_all(master) == "bye\r\n\r\n"


def test_console_of_a_guest_that_does_not_listen(xend):
    console_route(xend, None)
    sentence = "The guest does not read its console."
    xend.routes["POST", "/domains/1/console"] = (500, {"error": sentence})
    assert xend.xm("console", "1", stdin=b"keys")[::2] == (1, f"Error: {sentence}\n")
    master, slave = pty.openpty()
    process = xend.spawn("console", "1", stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
    wait_until(lambda: not termios.tcgetattr(slave)[3] & termios.ICANON)
    os.write(master, b"keys")
    shown = b""
    while b"\a" not in shown:
        shown += os.read(master, 1000)
    assert process.poll() is None
    os.write(master, b"\x1d")
    os.close(slave)
    read_all(master)
    assert process.wait(120) == 0


def test_console_restores_the_terminal_when_killed(xend):
    console_route(xend, None)
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    process = xend.spawn("console", "1", stdin=slave, stdout=slave, stderr=slave)
    wait_until(lambda: not termios.tcgetattr(slave)[3] & termios.ICANON)
    process.terminate()
    threading.Thread(target=read_all, args=(master,), daemon=True).start()
    assert process.wait(120) == 0
    assert termios.tcgetattr(slave) == before
    os.close(slave)


def test_console_restores_the_terminal_when_its_reader_leaves(xend):
    """xm console TestGuest | head"""
    console_route(xend, None)
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    reader, writer = os.pipe()
    os.close(reader)
    process = xend.spawn("console", "1", stdin=slave, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    threading.Thread(target=read_all, args=(master,), daemon=True).start()
    assert (process.stderr.read(), process.wait(120)) == (b"Error: Unable to write the console's output: Broken pipe.\n", 1)
    assert termios.tcgetattr(slave) == before
    os.close(slave)


def test_create_with_console_loses_no_byte(xend):
    (xend.directory / "g").write_text(CONFIG)
    xend.routes["POST", "/domains"] = (201, dict(GUEST, state="--p---"))
    unpaused = threading.Event()

    def output(handler):
        handler.begin("application/octet-stream")
        handler.wfile.flush()
        assert unpaused.wait(120)
        handler.chunk(b"first byte\r\n")
        handler.end()

    def unpause(handler):
        unpaused.set()
        handler.json(200, {})
    xend.routes["GET", "/domains/1/console?history=1"] = output
    xend.routes["POST", "/domains/1/unpause"] = unpause
    assert xend.xm("create", "-c", "g") == \
        (0, 'Using config file "./g".\nStarted domain TestGuest\nfirst byte\r\n', "")
    assert [path for _, path, _ in xend.asked][:3] == ["/domains", "/domains/1/console?history=1", "/domains/1/unpause"]
    assert xend.asked[0][2]["paused"] is True


def test_console_of_a_guest_that_goes_to_another_host(xend):
    xend.routes["GET", "/domains/1/console?history=1"] = lambda handler: (handler.begin("application/octet-stream"),
                                                                          handler.end())
    xend.routes["GET", "/migrations"] = (200, {"migrations": [{"name": "TestGuest", "id": 1, "host": "10.0.0.2",
                                                               "state": "done"}]})
    assert xend.xm("console", "1", stdin=subprocess.DEVNULL) == \
        (0, "", "TestGuest was migrated to 10.0.0.2; there, xm console TestGuest goes on.\n")


def test_console_of_a_guest_that_is_gone(xend):
    xend.routes["GET", "/domains/1/console?history=1"] = (409, {"error": "The guest has closed its console."})
    assert xend.xm("console", "1") == (1, "", "Error: The guest has closed its console.\n")


# info, log

def test_info(xend):
    xend.routes["GET", "/info"] = (200, {"host": "host1", "nr_cpus": 2, "xend_config_format": 4})
    assert xend.xm("info") == (0, "host                   : host1\nnr_cpus                : 2\n"
                                  "xend_config_format     : 4\n", "")
    assert xend.xm("info", "-c") == (0, "xend_config_format     : 4\n", "")


def test_log(xend):
    def route(handler):
        handler.begin("text/plain")
        handler.chunk(b"one\n")
        handler.chunk(b"two\n")
        handler.end()
    xend.routes["GET", "/log"] = route
    assert xend.xm("log") == (0, "one\ntwo\n", "")


def test_what_others_wrote_is_not_obeyed(xend):
    """A process that a guest has taken over may write to the log, and peers say what they like."""
    def route(handler):
        handler.begin("text/plain")
        handler.chunk("a line \u00e9 \x1b[2J\nand caf\u00e9"[:-1].encode() + b"\xc3")
        handler.chunk(b"\xa9 without end \xff")
        handler.end()
    xend.routes["GET", "/log"] = route
    assert xend.xm("log") == (0, "a line \u00e9 \\x1b[2J\nand caf\u00e9 without end \\xff", "")
    xend.job("/domains/1/migrate", {"event": "progress", "error": "It said \x1b[31m."},
             {"event": "failed", "error": "h refuses the guest, for 2 reasons:\n  - \u202eone\n  - two\x07"})
    assert xend.xm("migrate", "1", "h") == \
        (1, "", "Warning: It said \\x1b[31m.\nError: h refuses the guest, for 2 reasons:\n  - \\u{202e}one\n  - two\\x07\n")
    xend.routes["GET", "/domains"] = (500, {"error": "No \x9b0m."})
    assert xend.xm("list") == (1, "", "Error: No \\u{9b}0m.\n")
    xend.routes["GET", "/migrations"] = (200, {"migrations": [
        {"name": "T\x1b", "id": 1, "host": "h\n", "state": "failed", "error": "Why\x1b?", "began_at": 1, "ended_at": 2}]})
    assert "\x1b" not in xend.xm("migrate", "--status")[1] and xend.xm("migrate", "--status")[1].count("\n") == 2


# help and wrong arguments

def test_help(xend):
    code, out, err = xend.xm("help")
    assert (code, err) == (0, "") and out.startswith("Usage: xm <subcommand> [args]\n")
    for command in ("create", "list", "console", "destroy", "shutdown", "reboot", "pause", "unpause", "save", "restore",
                    "migrate", "info", "log", "domid", "domname", "rename"):
        assert f"\n {command} " in out
        for words in (["help", command], [command, "--help"], [command, "-h"]):
            code, usage, err = xend.xm(*words)
            assert (code, err) == (0, "") and usage.startswith(f"Usage: xm {command}")
            assert max(map(len, usage.splitlines())) < 80
    assert max(map(len, out.splitlines())) < 80
    code, out, err = xend.xm()
    assert (code, out) == (1, "") and err.startswith("Error: xm needs a subcommand.\nUsage: xm <subcommand>")
    assert xend.xm("miggrate") == (
        1, "", "Error: Subcommand 'miggrate' not found! Did you mean 'migrate'? xm help lists them all.\n")


@pytest.mark.parametrize("command,instead", [
    ("top", "xm list shows"), ("uptime", "xm list --long"), ("mem-set", "memory= in its configuration"), ("dmesg", "xm log"),
    ("vcpu-list", "taskset"), ("version", "xm --version"), ("start", "xm create"), ("network-attach", "vif="), ("vnet-list", "")])
def test_what_xens_xm_had_and_this_one_does_not(xend, command, instead):
    for words in ([command], [command, "TestGuest"], ["help", command]):
        code, out, err = xend.xm(*words)
        assert (code, out) == (1, "") and err.count("\n") == 1
        assert err.startswith(f"Error: Ferry has no '{command}' yet.") and instead in err
    # Part of a name is none.
    assert "not found!" in xend.xm("network")[2] and "not found!" in xend.xm("")[2]


@pytest.mark.parametrize("words,sentence", [
    (["save", "1"], "xm save: expected <Domain> <File>, found only '1'."),
    (["save", "1", "f", "g"], "xm save: expected <Domain> <File>, found 'g' behind it."),
    (["info", "x"], "xm info: expected no argument, found 'x' behind it."),
    (["list", "--lnog"], "xm list: unknown option '--lnog'."),
    (["list", "-x"], "xm list: unknown option '-x'."),
    (["list", "--long=1"], "xm list: --long takes no value, found '1'."),
    (["migrate", "1", "h", "-r"], "xm migrate: --resource needs a value: MBIT."),
    (["migrate", "1", "h", "--port"], "xm migrate: --port needs a value: PORT.")])
def test_wrong_arguments_are_named(xend, words, sentence):
    code, out, err = xend.xm(*words)
    assert (code, out) == (1, "")
    assert err.startswith(f"Error: {sentence}\nUsage: xm {words[0]} ") or \
        err.startswith(f"Error: {sentence}\nUsage: xm {words[0]}\n")
    assert xend.asked == []


def test_wrong_values_are_named(xend):
    assert xend.xm("migrate", "1", "h", "--compress", "maybe") == \
        (1, "", "Error: xm migrate: --compress takes yes, no or auto, found 'maybe'.\n")
    assert xend.xm("migrate", "1", "h", "--on-stall", "wait") == \
        (1, "", "Error: xm migrate: --on-stall takes stop or cancel, found 'wait'.\n")
    assert xend.xm("migrate", "1", "h", "-p", "http") == \
        (1, "", "Error: xm migrate: --port takes a whole number from 1 to 65535, found 'http'.\n")
    assert xend.xm("list", "--state=tired") == \
        (1, "", "Error: --state takes all, running, blocked, paused, shutdown, crashed or dying, found 'tired'.\n")


# completion

@pytest.mark.parametrize("line,words", [
    ("xm mig", ["migrate"]), ("xm help mig", ["migrate"]), ("xm migrate T", ["TestGuest"]), ("xm migrate TestGuest ", ["10.0.0.2", "host3"]),
    ("xm migrate --live TestGuest h", ["host3"]), ("xm migrate --on-stall = ", ["stop", "cancel"]), ("xm migrate --compress = y", ["yes"]),
    ("xm list --state = r", ["running"]), ("xm restore --accept = d", ["disks"]), ("xm migrate --accept = ", ["kernel", "clock"]), ("xm migrate --ca", ["--cancel"]), ("xm trust h", ["host3"]), ("xm rename T", ["TestGuest"]),
    ("xm rename TestGuest ", []), ("xend st", ["start", "stop", "status"])])
def test_completion(xend, tmp_path, line, words):
    (tmp_path / "xm").write_text(f"""#!/bin/sh
case $1 in
list) printf 'Name ID\\nDomain-0 0\\nTestGuest 1\\n' ;;
trust) printf 'This host: SHA256:x\\n10.0.0.2 SHA256:y\\nhost3 SHA256:z\\n' ;;
*) exec {XM} "$@" ;;
esac
""")
    (tmp_path / "xm").chmod(0o755)
    source = pathlib.Path(__file__).parents[2] / "src/xm/xm.bash-completion"
    typed = line.split(" ")
    function = f"_{typed[0]}"
    done = subprocess.run(["bash", "-c", f'. {source}; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); {function}; printf "%s\\n" "${{COMPREPLY[@]}}"',
                           "bash", *typed], text=True, capture_output=True, timeout=120, check=True,
                          env=dict(os.environ, PATH=f"{tmp_path}:{os.environ['PATH']}"))
    assert done.stdout.split() == words and done.stderr == ""


# xend away, or not itself

def test_xend_is_not_there(xend, tmp_path):
    xend.socket = str(tmp_path / "absent")
    assert xend.xm("list") == (1, "", "Error: Unable to connect to xend: No such file or directory. Is xend running?\n")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    xend.socket = str(tmp_path / "dead")
    assert xend.xm("list") == (1, "", "Error: Unable to connect to xend: Connection refused. Is xend running?\n")


def test_xend_is_not_for_everybody(xend):
    os.chmod(xend.socket, 0)
    words = [XM, "list"]
    if os.geteuid() == 0:  # as anybody: root without what makes root of it
        words = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *words]
    done = subprocess.run(words, env=xend.environment(), capture_output=True, text=True, timeout=10)
    assert (done.returncode, done.stderr) == (1, "Error: Unable to connect to xend: Permission denied. Most commands "
                                                 "need root access: please try again as root.\n")


def test_xend_has_no_room_for_a_connection_yet(xend, tmp_path):
    xend.socket = str(tmp_path / "busy")
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as first:
        server.bind(xend.socket)
        server.listen(0)
        first.connect(xend.socket)  # the queue is full
        with socket.socket(socket.AF_UNIX) as second, pytest.raises(BlockingIOError):
            second.setblocking(False)
            second.connect(xend.socket)
        process = xend.spawn("domid", "TestGuest", stdout=subprocess.PIPE)
        time.sleep(0.1)
        assert process.poll() is None
        server.accept()[0].close()
        connection, _ = server.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + json.dumps(GUEST).encode())
        assert process.communicate(timeout=10)[0] == b"1\n"


@pytest.mark.parametrize("answer", [
    b"", b"HT", b"HTTP/1.1 200 OK\r\nContent-Le", b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{}",
    b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"])
def test_xend_dies_while_it_answers(xend, tmp_path, answer):
    xend.socket = str(tmp_path / "dying")
    server = raw_server(xend.socket, answer)
    for words in (["list"], ["log"], ["console", "1"]):
        code, _, err = xend.xm(*words)
        assert (code, err) == (1, "Error: xend closed the connection before its answer was complete: see "
                                  "/var/log/xen/xend.log.\n")
    server.close()


def test_something_else_listens_where_xend_should(xend, tmp_path):
    xend.socket = str(tmp_path / "odd")
    server = raw_server(xend.socket, b"220 mail.example.org ESMTP\r\n")
    assert xend.xm("list") == (1, "", f"Error: The answer on {xend.socket} is not xend's (no HTTP).\n")
    server.close()


def test_the_socket_is_the_configurations(xend, tmp_path):
    config = tmp_path / "xend-config.sxp"
    config.write_text(f"(xend-unix-path '{xend.socket}')\n")
    environment = {**xend.environment(), "XEND_CONFIG": str(config)}
    del environment["XEND_SOCKET"]
    done = subprocess.run([XM, "list"], env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, LIST)
    config.write_text("(xend-unix-path xend.socket)\n")
    done = subprocess.run([XM, "list"], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stderr.startswith(f"Warning: {config}, line 1, column 17: xend-unix-path: expected a path that begins with '/', "
                                  "found 'xend.socket'. xend is looked for at /var/lib/xend/xend-socket; ")
    assert done.returncode == 1 and "\nError: Unable to connect to xend: " in done.stderr


def raw_server(path, answer):
    """Takes connections and answers each with these bytes, whatever is asked."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen()

    def serve():
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            try:
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)
            except OSError:  # xm has left
                pass
    threading.Thread(target=serve, daemon=True).start()
    return server


@pytest.mark.parametrize("answer", [
    b"", b"220 mail.example.org ESMTP\r\n", b"\x00\xff\x00\xff" * 100, b"HTTP/1.1 200 OK\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: http://example.org/\r\nContent-Length: 0\r\n\r\n",
    b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{"domains": 17}',
    b'HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n{"domains": [17]}',
    b'HTTP/1.1 500 Oops\r\nContent-Length: 12\r\n\r\n{"error": 1}'])
def test_answers_that_are_not_xends(xend, tmp_path, answer):
    xend.socket = str(tmp_path / "odd")
    server = raw_server(xend.socket, answer)
    for words in (["list"], ["domid", "1"], ["pause", "1"], ["save", "1", "f"], ["log"], ["info"], ["console", "1"]):
        code, out, err = xend.xm(*words)
        assert err.count("\n") <= 1 and "Assertion" not in err, (words, err)
        if code:
            assert err.startswith("Error: ") and err.endswith(".\n") or err.endswith("?\n"), (words, err)
        else:  # a body of any kind is good enough for these
            assert words[0] in ("log", "info", "pause"), (words, out)
    server.close()


def test_standard_output_that_is_full(xend):
    with open("/dev/full", "wb") as full:
        done = subprocess.run([XM, "list"], env=xend.environment(), stdout=full, stderr=subprocess.PIPE, timeout=120)
    assert done.returncode == 1
    assert done.stderr.decode() == "Error: Unable to write to standard output: No space left on device.\n"
