"""The bench guest's heartbeat: bytes with the time at which they were read.

A byte is 0x80 | whole << 6 | beat & 0x3f (bench/guest/guest.c). Gaps between bytes, also from one process to the
next, are what the guest's users see as downtime.

A process of its own reads them (this file, run as a program), so that nothing else that Python does at the time delays it, and
writes them to memory that both have: an entry for each, after the count of all of them.
"""

import mmap
import os
import select
import socket
import struct
import subprocess
import sys
import time
from typing import NamedTuple

COUNT = struct.Struct("q")
ENTRY = struct.Struct("qii")  # nanoseconds on CLOCK_MONOTONIC, source, byte
FIRST = ENTRY.size
LOG_SIZE = FIRST + (4 << 20) * ENTRY.size  # an hour; of memory it takes what is written
DONE, FORGET = b"d", b"f"


class Beat(NamedTuple):
    time: float  # seconds on CLOCK_MONOTONIC
    byte: int
    source: int  # which of the descriptors it came from: 0 for the first that was added


class Heartbeat:
    """Has descriptors read; add() one for each process that the guest lives in."""

    def __init__(self):
        log = os.memfd_create("heartbeat")
        os.ftruncate(log, LOG_SIZE)
        self._log = mmap.mmap(log, LOG_SIZE)
        self._control, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._reader = subprocess.Popen(
            [sys.executable, "-IS", os.path.abspath(__file__), str(control.fileno()), str(log)], pass_fds=[control.fileno(), log]
        )
        control.close()
        os.close(log)
        self._taken = self._sources = 0
        self._beats = []
        self._await()

    def _await(self):
        if self._control.recv(1) != DONE:
            raise RuntimeError("the heartbeat's reader has ended")

    def add(self, file):
        socket.send_fds(self._control, [struct.pack("i", self._sources)], [file.fileno()])
        self._await()
        file.close()
        self._sources += 1

    def forget(self):
        """Everybody so far, and what they said: of one that has ended, beats may still be on their way here."""
        self._control.send(FORGET)
        self._await()
        self.beats.clear()

    @property
    def beats(self):
        """All that have come, in their order."""
        count = COUNT.unpack_from(self._log)[0]
        new = self._log[FIRST + self._taken * ENTRY.size : FIRST + count * ENTRY.size]
        self._taken = count
        self._beats += [Beat(ns / 1e9, byte, source) for ns, source, byte in ENTRY.iter_unpack(new)]
        return self._beats

    def close(self):
        self._control.close()
        self._reader.wait()
        self._log.close()

    def wait_ready(self, timeout=120):
        """Until the guest has touched its memory and beats steadily."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if any(beat.byte == ord("R") for beat in self.beats[:4096]) and len(self.beats) > 200:
                return
            time.sleep(0.02)
        raise TimeoutError(f"the guest did not come up: {len(self.beats)} beats")

    def wait_after(self, when, count=50, timeout=120):
        """Until `count` beats came after `when`."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if sum(1 for beat in self.beats[-count:] if beat.time > when) >= count:
                return
            time.sleep(0.01)
        raise TimeoutError("the guest does not beat any more")

    def gap(self, start, end):
        """The longest time without a beat between two times: its start and its end."""
        times = [beat.time for beat in self.beats if start - 0.05 <= beat.time <= end + 0.05]
        return max(zip(times, times[1:]), key=lambda pair: pair[1] - pair[0])

    def handed_over(self):
        """The last beat of the process that the guest lived in before, and the first of the one in which it lives now."""
        now = self.beats[-1].source
        first = next(beat.time for beat in self.beats if beat.source == now)
        return max(beat.time for beat in self.beats if beat.source < now and beat.time <= first), first

    def first_after(self, when):
        return next((beat.time for beat in self.beats if beat.time > when), None)

    def rate(self, start, end):
        """Beats a second: how much of its time the guest got."""
        return sum(1 for beat in self.beats if start <= beat.time <= end) / max(end - start, 1e-9)

    def whole(self):
        """Whether every page that the guest ever read back was right."""
        return all(beat.byte & 0x40 for beat in self.beats if beat.byte & 0x80)


class Reader:
    def __init__(self, control, log):
        self.control, self.log = control, log
        self.count = 0
        self.sources = {}
        self.poll = select.epoll()
        self.poll.register(control.fileno(), select.EPOLLIN)

    def run(self):
        self.control.send(DONE)
        while True:
            for fd, _ in self.poll.poll():
                if fd == self.control.fileno():
                    if not self.obey():
                        return
                elif fd in self.sources:
                    self.read(fd)

    def obey(self):
        words, fds, _, _ = socket.recv_fds(self.control, ENTRY.size, 1)
        if not words:
            return False
        if words == FORGET:
            for fd in self.sources:
                os.close(fd)
            self.sources.clear()
        else:
            os.set_blocking(fds[0], False)
            self.sources[fds[0]] = struct.unpack("i", words)[0]
            self.poll.register(fds[0], select.EPOLLIN)
        self.control.send(DONE)
        return True

    def read(self, fd):
        try:
            data = os.read(fd, 65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        now = time.monotonic_ns()
        if not data:
            self.poll.unregister(fd)
        for byte in data:
            ENTRY.pack_into(self.log, FIRST + self.count * ENTRY.size, now, self.sources[fd], byte)
            self.count += 1
        COUNT.pack_into(self.log, 0, self.count)


def main(control, log):
    # A beat counts when it is there: who reads it takes turns with nobody.
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except PermissionError:
        pass
    Reader(socket.socket(fileno=control), mmap.mmap(log, LOG_SIZE)).run()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
