"""The two that are compared, each able to do every piece of work: Ferry as its users have it, and QEMU with its best settings."""

import time

from ferry import Host
from qemu import Qemu

PATIENCE = 120  # seconds; a migration that takes longer is given up


class FerrySide:
    name = "Ferry"

    def __init__(self, options, root, link, clear_text=True):
        self.options = options
        self.source = Host(f"{root}/a", options.build, 18004, link.source, link.source_address, clear_text)
        self.dest = Host(f"{root}/b", options.build, 18005, link.dest, link.dest_address, clear_text)
        self.source.trust(self.dest)
        self.dest.trust(self.source)
        self.link = link

    def start(self, memory, line, beats):
        path = self.source.write_config("Bench", self.options.kernel, memory, 1, line)
        self.source.xm("create", "-q", path)
        control = self.source.wait_guest()
        beats.add(control.console())
        return control

    def move(self, live, beats):
        """Runs the migration; the beats of the new process are listened to from before it runs."""
        mover = self.source.start_xm(
            # The guests' memory is mostly one word over and over: compressed, it would tell nothing about others'.
            "migrate", *(["--live"] if live else []), "--compress", "no", "-p", str(self.dest.port), "Bench",
            self.link.dest_address
        )
        beats.add(self.dest.wait_guest().console(history=False))
        return mover.finish()

    def save(self, path):
        self.source.xm("save", "Bench", path)

    def restore(self, path, beats):
        restorer = self.source.start_xm("restore", path)
        beats.add(self.source.wait_guest().console())
        restorer.finish()

    def cpu_seconds(self):
        return self.source.cpu_seconds() + self.dest.cpu_seconds()

    def close(self):
        self.source.close()
        self.dest.close()


class FerryTlsSide(FerrySide):
    """As hosts do it by default."""

    name = "Ferry with TLS"

    def __init__(self, options, root, link):
        super().__init__(options, root, link, clear_text=False)


class QemuSide:
    name = "QEMU"
    capabilities = {}

    def __init__(self, options, root, link):
        self.options, self.root, self.link = options, root, link
        self.source = self.dest = None

    def make(self, place, prefix, incoming=None):
        return Qemu(f"{self.root}/{place}", self.options.kernel, self.memory, 1, self.line, incoming, self.capabilities, prefix)

    def start(self, memory, line, beats):
        self.memory, self.line = memory, line
        self.source = self.make("a", self.link.source)
        beats.add(self.source.console)

    def move(self, live, beats):
        self.dest = self.make("b", self.link.dest, incoming="defer")
        beats.add(self.dest.console)
        uri = f"tcp:{self.link.dest_address}:18006"
        self.dest.command("migrate-incoming", uri=uri)
        start = time.monotonic()
        _, status = self.source.migrate(uri, live, self.options.patience or PATIENCE)
        if not live:
            self.dest.resume()
        end = time.monotonic()
        return start, end, status["ram"]["transferred"]

    def save(self, path):
        self.source.migrate(f"exec:cat > {path} && sync {path}", live=False, patience=self.options.patience or PATIENCE)
        self.source.close()
        self.source = None

    def restore(self, path, beats):
        self.dest = self.make("b", self.link.dest, incoming=f"exec:cat {path}")
        beats.add(self.dest.console)
        self.dest.resume()

    def cpu_seconds(self):
        return sum(side.cpu_seconds() for side in (self.source, self.dest) if side)

    def close(self):
        for side in (self.source, self.dest):
            if side:
                side.close()


class QemuMultifdSide(QemuSide):
    name = "QEMU, multifd"
    capabilities = {"multifd": 2}


class QemuSlowingSide(QemuSide):
    """Which slows a guest that writes faster than the line carries; one that does not is moved as without."""

    name = "QEMU, auto-converge"
    capabilities = {"auto-converge": True}


def sides_for(row):
    if row.way in ("save", "restore"):
        return FerrySide, QemuSide
    if row.mbit:  # what limits is the line: neither encryption nor a second stream matters
        return FerrySide, QemuSlowingSide
    return FerrySide, QemuSide, FerryTlsSide, QemuMultifdSide
