"""kill -9 of Ferry's processes at every system call of a save and of a restore.

strace first writes down which calls there are, then kills: the thread that first enters the N-th call of some name takes its
process with it. Afterwards the guest runs on, or the checkpoint is whole and restores; there is never a part of a file under
the target's name, and nothing is left behind. FERRY_EXHAUSTIVE=1 takes every call, otherwise some.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time

import pytest
from conftest import BUILD, TOP, free_port
from kills import NEW_GUEST_CALLS, XEND_CALLS, Attached, Wrapped, ended_soon, enumerate_kills, lives, processes, read, wait_for

POINTS = 25  # of each test, unless all are taken
LINE = "tsc_khz=2000000 touch=8 dirty=2 rate=20000"

pytestmark = pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")


class Rig:
    """One host, one guest, one file."""

    def __init__(self, host, heartbeat, kernel, directory):
        self.host, self.heartbeat, self.directory = host, heartbeat, directory
        self.file = f"{directory}/c"
        self.carrier, self.guest = Wrapped(host, "ferry-carrier"), Wrapped(host, "ferry-guest")
        host.xm("create", "-q", self.write_config(kernel))
        self.listen(history=True)
        heartbeat.wait_ready()

    def write_config(self, kernel, *more):
        """Of a guest with a disk and a network device, so that there is something that may be left behind."""
        path = self.host.write_config("Native", kernel, 64, 1, LINE)
        with open(f"{self.host.root}/disk", "ab") as disk:
            disk.truncate(1 << 20)
        with open(path, "a", encoding="ascii") as config:
            config.write(f"disk = ['file:{self.host.root}/disk,xvda,w']\nvif = ['bridge=xenbr0']\n" + "".join(f"{line}\n" for line in more))
        return path

    def xm(self, *words):
        """Exit status, and what was said."""
        done = subprocess.run([f"{BUILD}/src/xm/xm", *words], env=self.host.environment, capture_output=True, text=True,
                              timeout=300, check=False)
        assert done.returncode in (0, 1), done
        return done.returncode, done.stderr

    def save(self):
        return self.xm("save", "Native", self.file)

    def restore(self):
        return self.xm("restore", self.file)

    def clone(self):
        return self.xm("restore", "--name", "Clone", self.file, f"disk=['file:{self.host.root}/disk,xvda,w']")

    def listen(self, history=False):
        self.heartbeat.forget()
        self.heartbeat.add(self.host.wait_guest().console(history))

    def names(self):
        return self.host.names()

    def wait(self, condition, what):
        wait_for(condition, what, log=f"{self.host.root}/xend.log")

    def beats(self):
        """The guest runs, and every page of it is right."""
        self.heartbeat.wait_after(time.monotonic(), count=20)
        assert self.heartbeat.whole()

    def nothing_left(self, guests):
        root = self.host.root
        self.wait(lambda: not os.listdir(f"{root}/run/carriers") and processes(self.host, "ferry-carrier") == [], "the carriers' end")
        self.wait(lambda: len(self.host.guests()) == guests, f"{guests} guests' run directories")
        self.wait(lambda: len(processes(self.host, "ferry-guest")) == guests, f"{guests} guests' processes")
        self.wait(lambda: len(self.host.interfaces()) == guests, f"{guests} network devices")
        self.wait(lambda: len(memory_files(self.host)) <= guests, f"no more than {guests} guests' memory")

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
        self.wait(self.has_its_memory, "a guest's memory, or its end")
        if self.names():
            self.listen()
            self.beats()
            self.nothing_left(1)
            self.host.xm("destroy", self.names()[0])
        self.nothing_left(0)

    def has_its_memory(self):
        """The guest, if there is one: whose memory comes no more, is ended, but maybe not yet."""
        if not self.names():
            return True
        try:
            control = self.host.wait_guest(1)
            try:
                return not control.call({"do": "status"})["filling"]
            finally:
                control.close()
        except OSError:  # it is ending
            return False


def memory_files(host):
    """Guest memory that xend holds."""
    held, found = f"/proc/{host.process.pid}/fd", set()
    for fd in os.listdir(held):
        try:
            if os.readlink(f"{held}/{fd}").startswith("/memfd:guest-ram"):
                found.add(os.stat(f"{held}/{fd}").st_ino)
        except FileNotFoundError:
            continue  # closed meanwhile
    return found


@pytest.fixture
def bridged_host(native_kvm):
    """A host with a network of its own, in which there is a bridge for guests."""
    from ferry import Host

    name, root, host = f"ferry-kills-{os.getpid()}", tempfile.mkdtemp(prefix="ferry-", dir="/tmp"), None

    def links(*words):
        return subprocess.run(["ip", "-n", name, "-br", "link", *words], check=True, capture_output=True, text=True).stdout.splitlines()

    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        links("set", "lo", "up")
        links("add", "xenbr0", "type", "bridge")
        links("set", "xenbr0", "up")
        host = Host(root, BUILD, free_port(), prefix=["ip", "netns", "exec", name])
        os.symlink(f"{TOP}/scripts", f"{root}/scripts")
        host.interfaces = lambda: [line for line in links() if line.split()[0] not in ("lo", "xenbr0")]
        yield host
    finally:
        if host:
            host.close()
        subprocess.run(["ip", "netns", "delete", name], check=True)
        shutil.rmtree(root)


@pytest.fixture
def rig(bridged_host, heartbeat, kernel, tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    return Rig(bridged_host, heartbeat, kernel, str(place))


def test_the_carrier_of_a_save(rig):
    def attempt(point):
        rig.carrier.order("all", point)
        status, said = rig.save()
        killed = rig.carrier.withdraw()
        assert status == 0 or said.startswith("Error: ") and rig.names() == ["Native"] and not os.path.exists(rig.file)
        rig.back_again()
        return killed

    enumerate_kills(attempt, rig.carrier.trace, POINTS)


@pytest.mark.parametrize("what", ["restore", "clone"])
def test_the_carrier_of_a(rig, what):
    assert rig.save() == (0, "")
    name = {"restore": "Native", "clone": "Clone"}[what]

    def attempt(point):
        rig.carrier.order("all", point)
        status, said = getattr(rig, what)()
        assert status == 0 or said.startswith("Error: ")
        assert rig.names() == ([name] if status == 0 else [])
        if status == 0:  # before the carrier of this restore can have come to its end
            rig.listen()
            rig.beats()
        killed = rig.carrier.withdraw()
        rig.gone_again()
        return killed

    enumerate_kills(attempt, rig.carrier.trace, POINTS)


def xend_dies(rig, command, afterwards):
    def attempt(point):
        trace = Attached(rig.host.process.pid, f"{rig.directory}.trace", XEND_CALLS, point)
        command()
        if point:
            ended_soon(rig.host.process)  # also at what it does after its answer
        trace.detach()
        killed = not lives(rig.host, rig.host.process)
        if killed:
            rig.host.start()
        afterwards()
        return killed

    return attempt


def test_xend_in_a_save(rig):
    enumerate_kills(xend_dies(rig, rig.save, rig.back_again), f"{rig.directory}.trace", POINTS)


@pytest.mark.parametrize("what", ["restore", "clone"])
def test_xend_in_a(rig, what):
    assert rig.save() == (0, "")
    enumerate_kills(xend_dies(rig, getattr(rig, what), rig.gone_again), f"{rig.directory}.trace", POINTS)


@pytest.mark.parametrize("what", ["restore", "clone"])
def test_the_guest_in_a(rig, what):
    assert rig.save() == (0, "")

    def attempt(point):
        rig.guest.order(NEW_GUEST_CALLS, point)
        status, said = getattr(rig, what)()
        assert status == 0 or said.startswith("Error: ") and rig.names() == []
        killed = status != 0 and rig.guest.withdraw()
        # A restored one may die at any time from now on, as any guest may; on_crash then starts it anew.
        rig.wait(lambda: not [rig.xm("destroy", guest) for guest in rig.names()], "the guest's end")
        rig.gone_again()
        return killed

    enumerate_kills(attempt, rig.guest.trace, POINTS)


def test_the_guest_in_a_save(rig, kernel):
    """Its steps in a save are those that its carrier asks for: it dies before each call of the carrier's."""
    rig.host.xm("destroy", "Native")
    config = rig.write_config(kernel, "on_crash = 'destroy'")

    def attempt(point):
        rig.host.xm("create", "-q", config)
        rig.listen(history=True)
        rig.heartbeat.wait_ready()
        (guest,) = processes(rig.host, "ferry-guest")
        if os.path.exists(rig.carrier.trace):
            os.unlink(rig.carrier.trace)
        rig.carrier.order("all", point, "STOP")
        saving = rig.host.start_xm("save", "Native", rig.file).process
        wait_for(lambda: saving.poll() is not None or "stopped by SIGSTOP" in read(rig.carrier.trace), "the save's next step")
        stopped = saving.poll() is None
        if stopped:
            os.kill(guest, signal.SIGKILL)
            for carrier in processes(rig.host, "ferry-carrier"):
                os.kill(carrier, signal.SIGCONT)
        said = saving.communicate(timeout=300)[1]
        rig.wait(lambda: rig.names() == [], "the guest's end")
        rig.nothing_left(0)
        if saving.returncode == 0:
            assert os.listdir(rig.directory) == ["c"]
            rig.file_is_whole()
            assert rig.restore() == (0, "")
            rig.listen()
            rig.beats()
            rig.host.xm("destroy", "Native")
            os.unlink(rig.file)
        else:
            assert stopped and said.startswith("Error: ") and os.listdir(rig.directory) == []
        return stopped

    enumerate_kills(attempt, rig.carrier.trace, POINTS)
