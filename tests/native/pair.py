"""Two hosts and a bench guest that goes from the one to the other: whether it is still the same one, right, and in one place."""

import fcntl
import os
import struct
import subprocess
import threading
import time

from conftest import BUILD
from heartbeat import Heartbeat
from kills import Wrapped, ended_soon, processes, read, wait_for
from processes import threads_seconds
from tickets import open_tickets

LINE = "tsc_khz=2000000 touch=8 dirty=1 rate=5000"
HISTORY = 1 << 18  # less than a guest keeps (console_limit)
SIDES = ("source", "destination")


class Watch(threading.Thread):
    """Whether two guests' processors ever worked at the same time."""

    PAUSE_S = 0.005
    ALLOWED = 3  # samples in a row: the one stops and the other begins within one
    ENDING_S = 0.02  # who is already stopped may still work so much, to take its machine down

    def __init__(self, hosts):
        super().__init__(daemon=True)
        self.hosts, self.together, self.over = hosts, 0, threading.Event()
        self.start()

    def worked(self, host):
        seconds = 0
        for control in host.guests().values():
            try:
                with open(os.path.join(os.path.dirname(control), "process"), encoding="ascii") as record:
                    seconds += threads_seconds(int(record.read().split()[0]), "vcpu")
            except (OSError, ValueError, IndexError):
                continue
        return seconds

    def run(self):
        first = before = [self.worked(host) for host in self.hosts]
        row = 0
        while not self.over.wait(self.PAUSE_S):
            now = [self.worked(host) for host in self.hosts]
            if all(b - a > 0.001 for a, b in zip(before, now)):
                row += 1
            else:
                row, first = 0, now
            if all(b - a > self.ENDING_S for a, b in zip(first, now)):
                self.together = max(self.together, row)
            before = now

    def end(self):
        self.over.set()
        self.join()
        assert self.together <= self.ALLOWED, f"two guests ran at the same time, for {self.together} samples"


class Pair:
    """Two hosts, one guest, which is `here` and goes to `there`."""

    def __init__(self, hosts, kernel, directory):
        self.hosts, self.here, self.there, self.kernel, self.directory = list(hosts), hosts[0], hosts[1], kernel, directory
        self.trace, self.disk = f"{directory}/trace", f"{directory}/disk"
        self.carriers, self.guests = {}, {}
        for host in hosts:
            self.wrap(host)
        with open(self.disk, "wb") as disk:
            disk.truncate(1 << 20)
        self.create()

    def create(self):
        config = self.here.write_config("Native", self.kernel, 64, 1, LINE)
        with open(config, "a", encoding="utf-8") as file:
            file.write(f"disk = ['file:{self.disk},xvda,w']\n")
        self.here.xm("create", "-q", config)
        self.history, self.booted = 0, True
        self.guest_is_right()

    def wrap(self, host):
        self.carriers[host] = Wrapped(host, "ferry-carrier", self.trace)
        self.guests[host] = Wrapped(host, "ferry-guest", self.trace)

    def add(self, host):
        self.hosts.append(host)

    def turn(self):
        self.here, self.there = self.there, self.here

    def logs(self):
        return "\n".join(f"--- {side}\n{tail(host)}" for side, host in zip(SIDES, (self.here, self.there)))

    def revive(self):
        for host in self.hosts:
            if host.process.poll() is not None:
                host.start()

    def start_xm(self, *words):
        return subprocess.Popen([f"{BUILD}/src/xm/xm", *words], env=self.here.environment, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True)

    def migrate(self, arm=None, live=True, port=None, meanwhile=None, patience=300, guests=1):
        """One migration; arm() gives what says afterwards whether it came to the kill; meanwhile(xm) runs beside it.
        Exit status, what was said, where the guest is, killed."""
        watch = Watch(self.hosts)
        killed = arm() if arm else None
        mover = self.start_xm("migrate", *(["--live"] if live else []), "-p", str(port or self.there.port), "Native", "127.0.0.1")
        end = time.monotonic() + patience
        if meanwhile:
            meanwhile(mover)
        while not ended_soon(mover, 0.02):
            self.revive()
            assert time.monotonic() < end, f"xm migrate does not end\n{self.logs()}"
        said = mover.communicate()[1]
        assert mover.returncode in (0, 1), (mover.returncode, said)
        killed = killed and killed()
        self.revive()
        where = self.settle(guests)
        watch.end()
        return mover.returncode, said, where, killed

    def settle(self, guests=1):
        """Until one host has the guest (or none) and nothing is in doubt: "source", "destination" or "nowhere"."""
        found = {}

        def settled():
            for host in self.hosts:
                found[host] = host.names()
            count = sum(map(len, found.values()))
            return count == guests and not any(self.remains(host, len(found[host])) for host in self.hosts)

        try:
            wait_for(settled, "a settled hand-over")
        except AssertionError as failure:
            remains = [f"{side}: {found[host]} {self.remains(host, len(found[host]))}" for side, host in
                       zip(SIDES, (self.here, self.there))]
            raise AssertionError(f"{failure} {remains}\n{self.logs()}") from failure
        return "source" if found[self.here] else "destination" if guests else "nowhere"

    def remains(self, host, guests):
        """What is on this host beside that many guests."""
        running = len(processes(host, "ferry-guest"))
        return [*open_tickets(f"{host.root}/state/xend.db"), *os.listdir(f"{host.root}/run/carriers"),
                *(f"carrier {pid}" for pid in processes(host, "ferry-carrier")),
                *([f"{running} processes"] if running != guests else []),
                *([f"{len(host.guests())} directories"] if len(host.guests()) != guests else [])]

    def guest_is_right(self, same=True):
        """It beats, every page is right, it is the one that there was, and nobody else could write to its disk."""
        control = self.here.wait_guest()
        past, now = Heartbeat(), Heartbeat()
        try:
            past.add(control.console())
            if self.history == 0 or not same:
                past.wait_ready()
            else:
                wait_for(lambda: len(past.beats) >= min(self.history, HISTORY), "the history, or it was booted anew")
            now.add(control.console(history=False))
            now.wait_after(0, count=20)
            assert past.whole() and now.whole(), "a page is wrong"
            self.history = len(past.beats)
        finally:
            past.close()
            now.close()
            control.close()
        assert wait_for(self.disk_is_locked, f"the lock of the disk\n{self.logs()}")

    def disk_is_locked(self):
        with open(self.disk, "rb+") as disk:
            lock = fcntl.fcntl(disk, 36, struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))  # F_OFD_GETLK, fcntl(2)
        return struct.unpack_from("h", lock)[0] != fcntl.F_UNLCK


def tail(host):
    return read(f"{host.root}/xend.log")[-2500:] + read(f"{host.root}/xend.stderr")[-2500:]
