"""QEMU as the other side of every measurement, driven by QMP with the best settings found in Debian 12's."""

import json
import os
import re
import socket
import subprocess
import tempfile
import time

from processes import own_memory_mib, process_seconds, threads_seconds

UNLIMITED = 2**40  # bytes a second
DOWNTIME_MS = 50  # as Ferry's default


class GaveUp(Exception):
    """A migration did not end in the time that it had."""


class Qemu:
    name = "QEMU"

    def __init__(self, directory, kernel, memory_mib, vcpus, command_line, incoming=None, capabilities=(), prefix=()):
        self.directory = directory
        os.makedirs(directory, exist_ok=True)
        self._beat = socket.socket(socket.AF_UNIX)
        self._beat.bind(f"{directory}/beat")
        self._beat.listen(1)
        arguments = [
            *prefix, "qemu-system-x86_64", "-accel", "kvm", "-cpu", "host,-arch-capabilities", "-smp", str(vcpus),
            "-m", str(memory_mib), "-nodefaults", "-display", "none", "-no-user-config", "-name", "bench,debug-threads=on",
            "-kernel", kernel, "-append", command_line,
            "-chardev", f"socket,id=beat,path={directory}/beat", "-device", "isa-debugcon,iobase=0x3f8,chardev=beat",
            "-qmp", f"unix:{directory}/qmp,server=on,wait=off",
        ]
        if incoming:
            arguments += ["-incoming", incoming]
        self._touched_mib = int(re.search(r"touch=([0-9]+)", command_line).group(1))
        self.started = time.monotonic()
        self.process = subprocess.Popen(arguments)
        self.console = self._beat.accept()[0]
        self._qmp = socket.socket(socket.AF_UNIX)
        for _ in range(500):
            try:
                self._qmp.connect(f"{directory}/qmp")
                break
            except (FileNotFoundError, ConnectionRefusedError):
                time.sleep(0.01)
        self._lines = self._qmp.makefile("rw")
        self._read()
        self.command("qmp_capabilities")
        if capabilities:
            self.command("migrate-set-capabilities", capabilities=[{"capability": name, "state": True} for name in capabilities])
        if "multifd" in capabilities:
            self.command("migrate-set-parameters", **{"multifd-channels": capabilities["multifd"]})
        if not incoming:
            self.command("migrate-set-parameters", **{"max-bandwidth": UNLIMITED, "downtime-limit": DOWNTIME_MS})

    def _read(self):
        line = self._lines.readline()
        if not line:
            raise RuntimeError("QEMU ended")
        return json.loads(line)

    def command(self, name, **arguments):
        self._lines.write(json.dumps({"execute": name, "arguments": arguments}) + "\n")
        self._lines.flush()
        while True:
            answer = self._read()
            if "error" in answer:
                raise RuntimeError(f"{name}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    def migrate(self, uri, live=True, patience=600):
        """Seconds, and QEMU's own statistics."""
        start = time.monotonic()
        if not live:
            self.command("stop")
        self.command("migrate", uri=uri)
        while True:
            status = self.command("query-migrate")
            if status.get("status") == "completed":
                return time.monotonic() - start, status
            if status.get("status") in ("failed", "cancelled"):
                raise RuntimeError(f"migration {status}")
            if time.monotonic() > start + patience:
                raise GaveUp(f"not done after {patience} s")
            time.sleep(0.002)

    def resume(self):
        """`cont`, once the incoming migration is complete."""
        while self.command("query-status")["status"] == "inmigrate":
            time.sleep(0.001)
        self.command("cont")

    def cpu_seconds(self):
        return process_seconds(self.process.pid)

    def vcpu_seconds(self):
        return threads_seconds(self.process.pid, "CPU ")

    def resident_mib(self):
        """Without the guest's memory, which is the process's own with QEMU."""
        return own_memory_mib(self.process.pid) - self._touched_mib

    def close(self):
        self.process.kill()
        self.process.wait()
        self._qmp.close()
        self._beat.close()
        for name in ("beat", "qmp"):
            if os.path.exists(f"{self.directory}/{name}"):
                os.unlink(f"{self.directory}/{name}")


BEATS_ENOUGH = 100  # of the bench guest: KVM works


def beats_here(kernel, seconds=90):
    """Tries whether this machine's KVM works: how often the bench guest beats, run by QEMU for a moment."""
    with tempfile.TemporaryDirectory() as directory:
        beat = f"{directory}/beat"
        qemu = subprocess.Popen(
            ["qemu-system-x86_64", "-accel", "kvm", "-cpu", "host,-arch-capabilities", "-m", "64", "-nodefaults",
             "-display", "none", "-no-reboot", "-kernel", kernel, "-append", "touch=4 tsc_khz=1000000",
             "-chardev", f"file,id=c,path={beat}", "-device", "isa-debugcon,iobase=0x3f8,chardev=c"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        beats, end = 0, time.monotonic() + seconds
        while time.monotonic() < end and qemu.poll() is None and beats < BEATS_ENOUGH:
            time.sleep(0.05)
            beats = os.path.getsize(beat) if os.path.exists(beat) else 0
        qemu.kill()
        qemu.wait()
    return beats
