"""The bench guest's heartbeat: bytes with the time at which they were read.

A byte is 0x80 | whole << 6 | beat & 0x3f (bench/guest/guest.c). Gaps between bytes, also from one process to the
next, are what the guest's users see as downtime.
"""

import contextlib
import os
import select
import socket
import threading
import time


class Heartbeat:
    """Reads descriptors in a thread; add() one for each process that the guest lives in."""

    def __init__(self):
        self._poll = select.epoll()
        self._files = {}
        self.beats = []  # (seconds on CLOCK_MONOTONIC, byte)
        self._wake, waker = socket.socketpair()
        self._poll.register(waker.fileno(), select.EPOLLIN)
        self._waker = waker
        self._reading = threading.Lock()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def add(self, file):
        file.setblocking(False)
        with self._reading:
            self._files[file.fileno()] = file
            self._poll.register(file.fileno(), select.EPOLLIN)

    def forget(self):
        """Everybody so far, and what they said: of one that has ended, beats may still be on their way here."""
        with self._reading:
            for file in self._files.values():
                file.close()
            self._files.clear()
            self.beats.clear()

    def _run(self):
        # A beat counts when it is there: who reads it takes turns with nobody.
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        while True:
            for fd, _ in self._poll.poll():
                if fd == self._waker.fileno():
                    return
                with self._reading:
                    if fd in self._files:
                        self._read(fd)

    def _read(self, fd):
        try:
            data = os.read(fd, 65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        now = time.monotonic()
        if data:
            self.beats.extend((now, byte) for byte in data)
        else:
            self._poll.unregister(fd)

    def close(self):
        self._wake.close()
        self._thread.join()
        self._waker.close()
        self._poll.close()
        for file in self._files.values():
            file.close()

    def wait_ready(self, timeout=120):
        """Until the guest has touched its memory and beats steadily."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if any(byte == ord("R") for _, byte in self.beats[:4096]) and len(self.beats) > 200:
                return
            time.sleep(0.02)
        raise TimeoutError(f"the guest did not come up: {len(self.beats)} beats")

    def wait_after(self, when, count=50, timeout=120):
        """Until `count` beats came after `when`."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if sum(1 for t, _ in self.beats[-count:] if t > when) >= count:
                return
            time.sleep(0.01)
        raise TimeoutError("the guest does not beat any more")

    def gap(self, start, end):
        """The longest time without a beat between two times: its start and its end."""
        times = [t for t, _ in self.beats if start - 0.05 <= t <= end + 0.05]
        return max(zip(times, times[1:]), key=lambda pair: pair[1] - pair[0])

    def first_after(self, when):
        return next((t for t, _ in self.beats if t > when), None)

    def rate(self, start, end):
        """Beats a second: how much of its time the guest got."""
        return sum(1 for t, _ in self.beats if start <= t <= end) / max(end - start, 1e-9)

    def whole(self):
        """Whether every page that the guest ever read back was right."""
        return all(byte & 0x40 for _, byte in self.beats if byte & 0x80)
