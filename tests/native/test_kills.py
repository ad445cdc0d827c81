"""kill -9 of Ferry's processes at every system call of a save and of a restore.

strace first writes down which calls there are, then kills: the thread that first enters the N-th call of some name takes its
process with it. Afterwards the guest runs on, or the checkpoint is whole and restores; there is never a part of a file under
the target's name, and nothing is left behind. FERRY_EXHAUSTIVE=1 takes every call, otherwise some.
"""

import collections
import os
import re
import shutil
import signal
import subprocess
import time

import pytest
from conftest import BUILD, TOP

EXHAUSTIVE = os.environ.get("FERRY_EXHAUSTIVE") == "1"
POINTS = 25  # otherwise, of each test
LINE = "tsc_khz=2000000 touch=8 dirty=2 rate=20000"
# What a thread does while nothing changes for anybody else; how often it comes differs from run to run.
WAITING = "futex,epoll_wait,epoll_ctl,poll,clock_nanosleep,madvise,munmap,mprotect,brk,rt_sigprocmask,rt_sigaction"

pytestmark = pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")


class Rig:
    """One host, one guest, one file."""

    def __init__(self, host, heartbeat, kernel, directory):
        self.host, self.heartbeat, self.directory = host, heartbeat, directory
        self.file = f"{directory}/c"
        for name, place in (("ferry-carrier", "carry"), ("ferry-guest", "vmm")):
            self.wrap(name, f"{BUILD}/src/{place}/{name}")
        host.xm("create", "-q", host.write_config("Native", kernel, 64, 1, LINE))
        self.listen()
        heartbeat.wait_ready()

    def wrap(self, name, program):
        """Where there is an order for it, the next process of this program is killed."""
        link = f"{self.host.root}/libexec/{name}"
        os.unlink(link)
        with open(link, "w", encoding="ascii") as script:
            script.write(f'#!/bin/sh\nif mv {link}.order {link}.given 2>/dev/null; then\n'
                         f'  read -r how <{link}.given\n'
                         f'  exec strace -D -f -q -o {link}.trace $how {program} "$@"\nfi\nexec {program} "$@"\n')
        os.chmod(link, 0o755)

    def order(self, name, calls, point):
        with open(f"{self.host.root}/libexec/{name}.order", "w", encoding="ascii") as order:
            order.write(" ".join(orders(calls, point)) + "\n")

    def withdraw(self, name):
        """Whether the kill that was ordered came to pass."""
        link = f"{self.host.root}/libexec/{name}"
        if os.path.exists(f"{link}.order"):
            os.unlink(f"{link}.order")
            return False
        self.wait(lambda: "+++" in read(f"{link}.trace"), "the traced process's end", 2, quiet=True)
        return "killed by SIGKILL" in read(f"{link}.trace")

    def trace_of(self, name):
        return f"{self.host.root}/libexec/{name}.trace"

    def attach(self, pid, calls, point):
        """The same for a process that runs already, from now on."""
        trace = subprocess.Popen(
            ["strace", "-f", "-b", "execve", "-p", str(pid), "-o", f"{self.directory}.trace", *orders(calls, point)],
            stderr=subprocess.PIPE, text=True)
        assert "attached" in trace.stderr.readline()
        return trace

    def detach(self, trace, process_ended):
        killed = process_ended()
        if trace.poll() is None:
            trace.send_signal(signal.SIGINT)
        try:
            trace.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            trace.kill()
            trace.communicate()
            raise
        return killed

    def xm(self, *words):
        """Exit status, and what was said."""
        done = subprocess.run([f"{BUILD}/src/xm/xm", *words], env=self.host.environment, capture_output=True, text=True,
                              timeout=60, check=False)
        assert done.returncode in (0, 1), done
        return done.returncode, done.stderr

    def save(self):
        return self.xm("save", "Native", self.file)

    def restore(self):
        return self.xm("restore", self.file)

    def restart_xend(self):
        self.host.process.wait(10)
        self.host.start()

    def listen(self):
        self.heartbeat.beats.clear()
        self.heartbeat.add(self.host.wait_guest(10).console())

    def names(self):
        return [line.split()[0] for line in self.host.xm("list").splitlines()[2:]]

    def wait(self, condition, what, timeout=15, quiet=False):
        end = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > end:
                if quiet:
                    return
                raise AssertionError(f"{what} is still awaited; {read(self.host.root + '/xend.log')[-3000:]}")
            time.sleep(0.01)

    def beats(self):
        """The guest runs, and every page of it is right."""
        self.heartbeat.wait_after(time.monotonic(), count=20, timeout=10)
        assert self.heartbeat.whole()

    def nothing_left(self, guests):
        root = self.host.root
        self.wait(lambda: not os.listdir(f"{root}/run/carriers") and self.processes("ferry-carrier") == [], "the carriers' end")
        self.wait(lambda: len(self.host.guests()) == guests, f"{guests} guests' run directories")
        assert len(self.processes("ferry-guest")) == guests

    def processes(self, name):
        """Those of this host: their standard error goes where its xend's goes."""
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                said_to = os.readlink(f"/proc/{pid}/fd/2")
                if os.path.basename(os.readlink(f"/proc/{pid}/exe")) == name and said_to.startswith(f"{self.host.root}/"):
                    found.append(int(pid))
            except OSError:
                continue
        return found

    def file_is_whole(self):
        subprocess.run([f"{TOP}/tools/ferry-checkpoint.py", "verify", self.file], check=True, stdout=subprocess.DEVNULL)

    def back_again(self):
        """Whatever happened to a save: the guest runs afterwards, and there is no file."""
        self.wait(lambda: self.names() in ([], ["Native"]), "a list of domains")
        found = os.listdir(self.directory)
        assert found in ([], ["c"]), found
        if found:
            self.file_is_whole()
        if self.names():
            self.nothing_left(1)
            self.beats()
        else:
            assert found, "neither guest nor checkpoint is left"
            self.nothing_left(0)
            assert self.restore() == (0, "")
            self.listen()
            self.beats()
        if found:
            os.unlink(self.file)

    def gone_again(self):
        """Whatever happened to a restore: the checkpoint is whole, and what runs is right; then it does not run."""
        assert os.listdir(self.directory) == ["c"]
        if self.names():
            self.listen()
            self.beats()
            self.nothing_left(1)
            self.host.xm("destroy", "Native")
        self.nothing_left(0)


def read(path):
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def orders(calls, point):
    """strace's: look at these calls, and kill at a point (name, number) unless it is None."""
    return ["-e", f"trace={calls}", *(["-e", f"inject={point[0]}:signal=KILL:when={point[1]}"] if point else [])]


def points_in(trace):
    """Each (name, number) in the order in which they came: strace counts each name for each thread."""
    seen, points = collections.Counter(), {}
    for thread, name in re.findall(r"^(\d+) +(\w+)\(", read(trace), re.M):
        seen[thread, name] += 1
        points[name, seen[thread, name]] = True
    return list(points)


def enumerate_kills(attempt, trace):
    """attempt(point) kills there and says whether it came to that; attempt(None) leaves `trace` with all the points."""
    attempt(None)
    points = points_in(trace)
    chosen = points if EXHAUSTIVE else points[::max(1, len(points) // POINTS)]
    killed = 0
    for point in chosen:
        try:
            killed += bool(attempt(point))
        except Exception as failure:
            raise AssertionError(f"killed at call {point}: {failure!r}") from failure
    print(f"{killed} kills at {len(chosen)} of {len(points)} calls")
    assert killed > len(chosen) // 2 and len(points) > 10


@pytest.fixture
def rig(hosts, heartbeat, kernel, tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    return Rig(hosts[0], heartbeat, kernel, str(place))


def test_the_carrier_of_a_save(rig):
    def attempt(point):
        rig.order("ferry-carrier", "all", point)
        status, said = rig.save()
        killed = rig.withdraw("ferry-carrier")
        assert status == 0 or said.startswith("Error: ") and rig.names() == ["Native"] and not os.path.exists(rig.file)
        rig.back_again()
        return killed

    enumerate_kills(attempt, rig.trace_of("ferry-carrier"))


def test_the_carrier_of_a_restore(rig):
    assert rig.save() == (0, "")

    def attempt(point):
        rig.order("ferry-carrier", "all", point)
        status, said = rig.restore()
        assert status == 0 or said.startswith("Error: ")
        assert rig.names() == (["Native"] if status == 0 else [])
        if status == 0:  # before the carrier of this restore can have come to its end
            rig.listen()
            rig.beats()
        killed = rig.withdraw("ferry-carrier")
        rig.gone_again()
        return killed

    enumerate_kills(attempt, rig.trace_of("ferry-carrier"))


def xend_dies(rig, command, afterwards):
    def attempt(point):
        trace = rig.attach(rig.host.process.pid, f"!{WAITING}", point)
        command()
        killed = rig.detach(trace, lambda: point and ended_soon(rig.host.process))
        if killed:
            rig.restart_xend()
        afterwards()
        return killed

    return attempt


def ended_soon(process):
    try:
        process.wait(0.1)
        return True
    except subprocess.TimeoutExpired:
        return False


def test_xend_in_a_save(rig):
    enumerate_kills(xend_dies(rig, rig.save, rig.back_again), f"{rig.directory}.trace")


def test_xend_in_a_restore(rig):
    assert rig.save() == (0, "")
    enumerate_kills(xend_dies(rig, rig.restore, rig.gone_again), f"{rig.directory}.trace")


def test_the_guest_in_a_restore(rig):
    assert rig.save() == (0, "")

    def attempt(point):
        rig.order("ferry-guest", "!ioctl,write,futex,epoll_wait", point)
        status, said = rig.restore()
        assert status == 0 or said.startswith("Error: ") and rig.names() == []
        killed = status != 0 and rig.withdraw("ferry-guest")
        # A restored one may die at any time from now on, as any guest may; on_crash then starts it anew.
        rig.wait(lambda: rig.names() == [] or rig.xm("destroy", "Native") is None, "the guest's end")
        rig.gone_again()
        return killed

    enumerate_kills(attempt, rig.trace_of("ferry-guest"))
