#!/usr/bin/python3
"""Plays the book's chapter on the lab's hosts: create, save, restore, migrate, migrate --live.

Shows each command as a user types it and what it really printed. Exit status 1 when anything failed.
"""

import argparse
import os
import re
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from ferrylab import Lab, LabError  # noqa: E402
from ferrylab.observe import Download, Ping  # noqa: E402

HOST1, HOST2 = "10.0.0.1", "10.0.0.2"
MEMORIES = [96, 128, 256]
BOLD, DIM, PLAIN = ("\033[1m", "\033[2m", "\033[0m") if sys.stdout.isatty() else ("", "", "")


class Demo:
    def __init__(self, lab):
        self.lab = lab
        self.saves = []
        self.moves = []

    def title(self, text):
        print(f"\n{BOLD}== {text}{PLAIN}\n", flush=True)

    def note(self, text):
        print(f"{DIM}   {text}{PLAIN}", flush=True)

    def type(self, host, command, timeout=300):
        """Runs a command as a user would and shows it; raises when it fails. Returns its Result."""
        print(f"[root@{host.name} ~]# {command}", flush=True)
        result = host.run(command, timeout=timeout, check=False)
        sys.stdout.write(result.stdout + result.stderr)
        sys.stdout.flush()
        if result.status != 0:
            raise LabError(f"'{command}' failed on {host.name} with exit status {result.status}")
        return result

    def create(self):
        lab = self.lab
        self.title("A guest from a configuration file")
        self.guests = {m: lab.new_guest("TestGuest" if m == 128 else f"Guest{m}", memory=m,
                                        address=f"10.0.0.{5 + i}") for i, m in enumerate([128, 96, 256])}
        self.guest = self.guests[128]
        self.type(lab.host1, "cat /etc/xen/TestGuest")
        for memory in (128, 96, 256):
            self.type(lab.host1, f"xm create {self.guests[memory].name}")
        for guest in self.guests.values():
            guest.wait_up()
        self.type(lab.host1, "xm list")

    def console(self):
        self.title("Its console (^] leaves)")
        host = self.lab.host1
        print(f"[root@{host.name} ~]# xm console TestGuest", flush=True)
        console = host.spawn(["xm", "console", "-q", "TestGuest"], pty=True)
        console.write("\r")
        console.wait_output(re.compile(rb"TestGuest:~# "))
        start = len(console.stdout)
        console.write("uname -srvm; free -m | head -2\r")
        console.wait_output(re.compile(rb"Mem: +\d+.*\n.*TestGuest:~# "), start=start)
        shown = bytes(console.stdout[start:]).decode(errors="replace").replace("\r", "")
        print("TestGuest:~# " + shown + "^]", flush=True)
        console.write(b"\x1d")
        console.wait()

    def save_and_restore(self):
        self.title("Save and restore (table 13.1 of the book, with its columns)")
        host = self.lab.host1
        for memory in MEMORIES:
            guest = self.guests[memory]
            guest.pulse("memory", memory // 8, 200)
            boot = guest.run("cat /proc/sys/kernel/random/boot_id").stdout
            guest.disconnect()
            file = f"/root/{guest.name}.checkpt"
            save = self.type(host, f"xm save {guest.name} {file}")
            size = int(host.run(f"stat -c %b {file}").stdout) * 512
            self.type(host, f"ls -lsh {file}")
            if guest.name in host.run("xm list").stdout:
                raise LabError(f"{guest.name} is still listed after xm save")
            restore = self.type(host, f"xm restore {file}")
            guest.wait_up()
            if guest.run("cat /proc/sys/kernel/random/boot_id").stdout != boot:
                raise LabError(f"{guest.name} booted anew instead of going on")
            seen = guest.pulse_status("memory")
            if seen["wrong_pages"]:
                raise LabError(f"{guest.name} has {seen['wrong_pages']} wrong pages after xm restore")
            self.saves.append((memory, size, save.seconds, restore.seconds))
        self.type(host, "xm list")
        for memory in (96, 256):
            self.type(host, f"xm shutdown -w {self.guests[memory].name}")

    def move(self, kind, command, source, target, load):
        """Moves TestGuest, watched by ping and from inside; with `load`, while it is downloaded from."""
        lab, guest = self.lab, self.guest
        guest.pulse("clocks", 5000)
        download = Download(lab, guest.address).wait_flowing() if load else None
        ping = Ping(lab.workstation, guest.address).wait_reply()
        time.sleep(0.5)
        before = download.progress() if load else 0
        result = self.type(source, command)
        after = download.progress() if load else 0
        time.sleep(1.5)
        report = ping.stop()
        self.note(f"ping from the workstation every 10 ms: {report}")
        if load:
            count = download.stop()
            self.note(f"the download went on during the move ({(after - before) >> 20} MiB then); "
                      f"{count} download(s) of {lab.guest_facts['large_size'] >> 20} MiB, checksums right")
        clocks = guest.pulse_status("clocks")
        guest.pulse_stop("clocks")
        for name in ("monotonic_backwards", "boottime_backwards", "realtime_backwards"):
            if clocks[name]:
                raise LabError(f"{guest.name}: {name}: {clocks[name]} times")
        self.type(source, "xm list")
        self.type(target, "xm list")
        if guest.name in source.run("xm list").stdout or guest.name not in target.run("xm list").stdout:
            raise LabError(f"{guest.name} is not where it should be after {command}")
        self.moves.append((kind, result.seconds, report, clocks["largest_gap_us"] / 1000))

    def trust(self):
        self.title("Hosts get to know each other, as with ssh: whose key is whose, compared once")
        lab = self.lab
        for host, other, address in ((lab.host1, lab.host2, HOST2), (lab.host2, lab.host1, HOST1)):
            own = self.type(other, "xm trust").stdout.splitlines()[0].split()[-1]
            met = self.type(host, f"xm trust --accept {address}").stdout
            if own not in met:
                raise LabError(f"{host.name} met another key than {other.name} has")
        self.note("without --accept it asks; the next migration goes through TLS 1.3, each host proving its key")

    def warm(self):
        lab = self.lab
        self.title("Warm migration: ping before and after")
        self.type(lab.workstation, f"ping -c 3 -i 0.2 {self.guest.address}")
        self.move("warm", f"xm migrate TestGuest {HOST2}", lab.host1, lab.host2, load=False)
        self.type(lab.workstation, f"ping -c 3 -i 0.2 {self.guest.address}")

    def live(self):
        lab = self.lab
        self.title("Live migration, with a ping every 10 ms and a download running")
        lab.secure(False)
        self.note("in clear text (xend-relocation-clear-text): the emulated processors have enough to do")
        self.move("live", f"xm migrate --live TestGuest {HOST1}", lab.host2, lab.host1, load=True)
        complaints = self.guest.kernel_complaints()
        if complaints:
            raise LabError("the guest's kernel complained:\n" + "\n".join(complaints))
        self.note("the guest's kernel log is free of complaints that QEMU's machines would not give")
        self.type(lab.host1, "xm shutdown -w TestGuest")

    def tables(self):
        self.title("What it came to")
        print("Guest memory (MB)   File on disk (MB)   Time to save (s)   Time to restore (s)")
        for memory, size, save, restore in self.saves:
            print(f"{memory:<20}{size / 1e6:<20.1f}{save:<19.2f}{restore:.2f}")
        print("\nMigration   Time (s)   Pings lost   Longest without reply (ms)   Guest saw a gap of (ms)")
        for kind, seconds, report, gap in self.moves:
            print(f"{kind:<12}{seconds:<11.2f}{report.lost:<13}{report.longest_gap_ms:<29.0f}{gap:.0f}")
        print("\nThese hosts are emulated in software: sizes and behaviour carry over to real ones, times do not.")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", help="where Ferry is built (default: build)")
    options = parser.parse_args()
    if options.build:
        os.environ["FERRY_BUILD"] = os.path.abspath(options.build)
    started = time.monotonic()
    print("Starting host1, host2, storage and workstation ...", flush=True)
    try:
        with Lab() as lab:
            print(f"up after {time.monotonic() - started:.1f} s", flush=True)
            for host in lab.ferry_hosts():
                lab.start_xend(host, acquaint=False)
            demo = Demo(lab)
            for part in (demo.create, demo.console, demo.save_and_restore, demo.trust, demo.warm, demo.live, demo.tables):
                part()
    except LabError as error:
        sys.exit(f"\ndemo: {error}")
    print(f"\nAll of it worked, in {time.monotonic() - started:.0f} s.")


main()
