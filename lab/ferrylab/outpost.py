"""A place on the lab's Ethernet for threads of the program that runs the lab: what they listen on and connect to is there.

It is a network namespace that has nothing else, with a tap device at the lab's switch. Making it takes root.
"""

import ctypes
import os
import subprocess
import time

from .agent import PATIENCE, LabError

CLONE_NEWNET = 0x40000000  # Linux, include/uapi/linux/sched.h
DEVICE = "lab0"


class Outpost:
    """One address on the Ethernet of `lab`, and as long as that."""

    def __init__(self, lab, address):
        self.address = address
        command = ["unshare", "--net", "vde_plug2tap", "-s", str(lab.directory / "switch"), DEVICE]
        self.process = lab.spawn(command, "outpost.log")
        deadline = time.monotonic() + PATIENCE
        while self._ip("link", "set", DEVICE, "up").returncode != 0:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise LabError("no way onto the lab's Ethernet: " + (lab.directory / "outpost.log").read_text())
            time.sleep(0.02)
        self._ip("address", "add", f"{address}/24", "dev", DEVICE).check_returncode()

    def _ip(self, *words):
        return subprocess.run(["nsenter", "--net", "--target", str(self.process.pid), "ip", *words], capture_output=True, check=False)

    def enter(self):
        """Takes the calling thread there, for good."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open(f"/proc/{self.process.pid}/ns/net", "rb") as namespace:
            if libc.setns(namespace.fileno(), CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), f"{DEVICE}: {os.strerror(ctypes.get_errno())}")
