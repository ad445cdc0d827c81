#!/usr/bin/python3
"""Ferry beside QEMU: the same work on the same machine in the same run, turn by turn.

    ./dev bench [--clear-text] [--runs N] [--rows REGEX] [--json FILE] [--plots DIRECTORY]

Each row is one piece of work on the bench guest (bench/guest), which beats every millisecond; downtime is the largest
gap between two beats, whoever runs the guest at the time. Medians of N runs, with the spread (largest minus smallest, relative to the median).
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from ferry import Host
from heartbeat import Heartbeat
from link import Link
from plot import chart
from qemu import Qemu

GIB = 1 << 30

# name, memory MiB, what the guest does, way, link in Mbit/s (0: unlimited)
ROWS = [
    ("idle guest of 256 MiB", 256, "touch=16", "live", 0),
    ("idle guest of 1 GiB", 1024, "touch=16", "live", 0),
    ("idle guest of 4 GiB", 4096, "touch=16", "live", 0),
    ("warm, 64 MiB touched", 512, "touch=64", "warm", 0),
    ("warm, 512 MiB touched", 1024, "touch=512", "warm", 0),
    ("warm, 1.5 GiB touched", 2048, "touch=1536", "warm", 0),
    ("live, 64 MiB dirtied in a loop", 512, "touch=64 dirty=64 rate=0", "live", 0),
    ("live, 512 MiB touched, 20000 pages/s", 1024, "touch=512 dirty=512 rate=20000", "live", 0),
    ("live, 1.5 GiB, 10000 pages/s, 10 Gbit/s", 2048, "touch=1536 dirty=1536 rate=10000", "live", 10000),
    ("live, 1.5 GiB dirtied in a loop, 10 Gbit/s", 2048, "touch=1536 dirty=1536 rate=0", "live", 10000),
    ("live, 256 MiB, 5000 pages/s, 1 Gbit/s", 512, "touch=256 dirty=64 rate=5000", "live", 1000),
    ("live, 1.5 GiB dirtied in a loop, 1 Gbit/s", 2048, "touch=1536 dirty=1536 rate=0", "live", 1000),
    ("save, 64 MiB touched", 512, "touch=64", "save", 0),
    ("save, 1.5 GiB touched", 2048, "touch=1536", "save", 0),
    ("restore, 64 MiB touched", 512, "touch=64", "restore", 0),
    ("restore, 1.5 GiB touched", 2048, "touch=1536", "restore", 0),
]
SWEEP_RATES = [0, 2000, 5000, 10000, 20000, 40000, 80000]  # pages a second over 128 MiB
SWEEP_TOUCHED = [64, 256, 512, 1024, 1536]  # MiB


def tsc_khz():
    """The TSC's frequency, measured against the clock (the guest has no other clock)."""
    source = (
        "#include <stdio.h>\n#include <time.h>\n#include <x86intrin.h>\n"
        "static long long ns(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1000000000LL + t.tv_nsec; }\n"
        "int main(void) { long long a = ns(); unsigned long long s = __rdtsc(); while (ns() - a < 200000000) ; "
        'printf("%llu", (__rdtsc() - s) / 200); }\n'
    )
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run(["gcc", "-O1", "-x", "c", "-", "-o", f"{directory}/tsc"], input=source, text=True, check=True)
        return int(subprocess.run([f"{directory}/tsc"], capture_output=True, text=True, check=True).stdout)


class FerrySide:
    name = "Ferry"

    def __init__(self, options, root, link):
        self.options = options
        self.source = Host(f"{root}/a", options.build, 18004, link.source, link.source_address, options.clear_text)
        self.dest = Host(f"{root}/b", options.build, 18005, link.dest, link.dest_address, options.clear_text)
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
        beats.add(self.dest.wait_guest().console())
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


class QemuSide:
    name = "QEMU"

    def __init__(self, options, root, link):
        self.options, self.root, self.link = options, root, link
        self.source = self.dest = None

    def start(self, memory, line, beats):
        self.memory, self.line = memory, line
        self.source = Qemu(f"{self.root}/a", self.options.kernel, memory, 1, line, prefix=self.link.source)
        beats.add(self.source.console)

    def move(self, live, beats):
        self.dest = Qemu(f"{self.root}/b", self.options.kernel, self.memory, 1, self.line, incoming="defer", prefix=self.link.dest)
        beats.add(self.dest.console)
        uri = f"tcp:{self.link.dest_address}:18006"
        self.dest.command("migrate-incoming", uri=uri)
        start = time.monotonic()
        _, status = self.source.migrate(uri, live)
        if not live:
            self.dest.resume()
        end = time.monotonic()
        return start, end, status["ram"]["transferred"]

    def save(self, path):
        self.source.migrate(f"exec:cat > {path} && sync {path}", live=False)
        self.source.close()
        self.source = None

    def restore(self, path, beats):
        self.dest = Qemu(f"{self.root}/b", self.options.kernel, self.memory, 1, self.line, incoming=f"exec:cat {path}")
        beats.add(self.dest.console)
        self.dest.resume()

    def cpu_seconds(self):
        return sum(side.cpu_seconds() for side in (self.source, self.dest) if side)

    def close(self):
        for side in (self.source, self.dest):
            if side:
                side.close()


class GuestTime(threading.Thread):
    """How much processor time the source's guest itself has used, looked at until its process is gone."""

    def __init__(self, host):
        super().__init__(daemon=True)
        self.host, self.ended = host, threading.Event()
        self.first = self.last = host.vcpu_seconds()
        self.start()

    def run(self):
        while not self.ended.wait(0.005):
            self.last = max(self.last, self.host.vcpu_seconds())

    def stop(self):
        self.ended.set()
        self.join()
        return self.last - self.first


def move(side, way, beats):
    """A migration's figures."""
    resident = side.source.resident_mib()
    quiet = time.monotonic() - 0.3
    before = beats.rate(quiet, time.monotonic())
    cpu, guest = side.cpu_seconds(), GuestTime(side.source)
    start, end, sent = side.move(way == "live", beats)
    guest_seconds = guest.stop() + side.dest.vcpu_seconds()
    cpu = side.cpu_seconds() - cpu - guest_seconds
    beats.wait_after(end)
    gap_start, gap_end = beats.gap(start, end + 0.2)
    figures = {
        "total s": end - start,
        "downtime ms": 1000 * (gap_end - gap_start),
        "GB/s": sent / (end - start) / 1e9,
        "MiB sent": sent / (1 << 20),
        "CPU s/GiB": max(cpu, 0) * GIB / sent,
        "resident MiB": resident,
    }
    if way == "live" and gap_start - start > 0.1:
        figures["guest's pace %"] = 100 * beats.rate(start, gap_start) / before
    return figures


def measure(side, memory, line, way, directory):
    """One piece of work: its figures by name."""
    beats = Heartbeat()
    path = f"{directory}/{side.name}.checkpoint"
    try:
        side.start(memory, line, beats)
        beats.wait_ready()
        time.sleep(0.5)
        if way in ("warm", "live"):
            figures = move(side, way, beats)
        else:
            start = time.monotonic()
            side.save(path)
            seconds = time.monotonic() - start
            size = os.stat(path).st_blocks * 512
            figures = {"total s": seconds, "GB/s": size / seconds / 1e9, "file MiB": size / (1 << 20)}
            if way == "restore":
                start = time.monotonic()
                side.restore(path, beats)
                beats.wait_after(start)
                figures = {"first beat ms": 1000 * (beats.first_after(start) - start)}
        if not beats.whole():
            raise RuntimeError(f"{side.name}: a page of the guest's memory is wrong")
        return figures
    finally:
        beats.close()
        if os.path.exists(path):
            os.unlink(path)


def run_row(options, row, directory):
    name, memory, line, way, mbit = row
    line = f"tsc_khz={options.tsc_khz} {line}"
    results = {"Ferry": [], "QEMU": []}
    with Link(mbit) as link:
        for run in range(options.runs):
            for kind in (FerrySide, QemuSide) if run % 2 == 0 else (QemuSide, FerrySide):
                root = tempfile.mkdtemp(prefix="b", dir=directory)
                side = kind(options, root, link)
                try:
                    results[side.name].append(measure(side, memory, line, way, options.files))
                finally:
                    side.close()
                    shutil.rmtree(root)
    return name, results


def summary(values):
    middle = statistics.median(values)
    return middle, (max(values) - min(values)) / middle if middle else 0.0


def show(name, results):
    print(f"\n{name}")
    for figure in results["Ferry"][0]:
        if not all(figure in result for runs in results.values() for result in runs):
            continue
        ferry, ferry_spread = summary([r[figure] for r in results["Ferry"]])
        qemu, qemu_spread = summary([r[figure] for r in results["QEMU"]])
        ratio = f"{ferry / qemu:7.2f}" if qemu else "      -"
        print(f"  {figure:14} Ferry {ferry:10.3f} ±{50 * ferry_spread:3.0f} %   QEMU {qemu:10.3f} ±{50 * qemu_spread:3.0f} %   Ferry/QEMU {ratio}", flush=True)


def references(options):
    """What this machine reaches without anybody's help: one TCP stream over the line, and the disk."""
    figures = {}
    with Link() as link:
        server = subprocess.Popen([*link.dest, "iperf3", "-s", "-1"], stdout=subprocess.DEVNULL)
        time.sleep(0.5)
        done = subprocess.run(
            [*link.source, "iperf3", "-c", link.dest_address, "-t", "2", "-J"], capture_output=True, text=True, check=True
        )
        server.wait()
        figures["one iperf3 stream, GB/s"] = json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"] / 8e9
    path = f"{options.files}/ferry-bench.dd"
    start = time.monotonic()
    subprocess.run(
        ["dd", "if=/dev/zero", f"of={path}", "bs=4M", "count=384", "oflag=direct", "conv=fsync"], check=True, capture_output=True
    )
    figures["dd oflag=direct, GB/s"] = 384 * (4 << 20) / (time.monotonic() - start) / 1e9
    os.unlink(path)
    print("\nthis machine")
    for name, value in figures.items():
        print(f"  {name:24} {value:6.2f}")
    return figures


def sweep(options, directory):
    """The plots: how figures grow with the dirty rate, and with the memory that is touched."""

    def medians(row, figure):
        _, results = run_row(options, row, directory)
        return {side: statistics.median(r[figure] for r in runs) for side, runs in results.items()}, results

    lines = {"downtime ms": {}, "total s": {}, "save s": {}, "restore ms": {}}
    for rate in SWEEP_RATES:
        _, results = medians(("", 512, f"touch=128 dirty=128 rate={rate}" if rate else "touch=128", "live", 0), "total s")
        for figure in ("downtime ms", "total s"):
            for side, runs in results.items():
                lines[figure].setdefault(side, []).append((rate, statistics.median(r[figure] for r in runs)))
    for touched in SWEEP_TOUCHED:
        for way, figure, name in (("save", "total s", "save s"), ("restore", "first beat ms", "restore ms")):
            values, _ = medians(("", touched + 256, f"touch={touched}", way, 0), figure)
            for side, value in values.items():
                lines[name].setdefault(side, []).append((touched, value))
    for name, title, x_label in (
        ("downtime ms", "Downtime of a live migration", "pages dirtied a second (128 MiB)"),
        ("total s", "Duration of a live migration", "pages dirtied a second (128 MiB)"),
        ("save s", "Time to save", "memory touched, MiB"),
        ("restore ms", "From restore to the guest's first beat", "memory touched, MiB"),
    ):
        path = os.path.join(options.plots, name.replace(" ", "-") + ".svg")
        chart(path, title, x_label, name, lines[name])
        print(f"wrote {path}")


def main():
    parser = argparse.ArgumentParser(prog="./dev bench")
    parser.add_argument("--build", default="build")
    parser.add_argument("--clear-text", action="store_true", help="migrate in clear text, as QEMU does (default: TLS)")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--rows", default="", help="only the rows that this regular expression finds")
    parser.add_argument("--json", help="write every single figure there")
    parser.add_argument("--plots", help="sweep dirty rates and memory sizes and write SVG plots to this directory")
    parser.add_argument("--files", default="/var/tmp", help="directory for checkpoints")
    options = parser.parse_args()
    options.kernel = os.path.abspath(f"{options.build}/bench/guest/bench-guest")
    if os.geteuid() != 0:
        sys.exit("bench: needs root, for network namespaces and /dev/kvm")
    if not os.path.exists("/dev/kvm"):
        sys.exit("bench: this machine has no /dev/kvm; in an emulated host the figures would mean nothing")
    options.tsc_khz = tsc_khz()
    options.line = "in clear text" if options.clear_text else "with TLS"
    print(f"Ferry migrates {options.line}, QEMU in clear text.")
    everything = {"line": options.line, "this machine": references(options)}
    with tempfile.TemporaryDirectory(prefix="f", dir="/tmp") as directory:
        for row in ROWS:
            if re.search(options.rows, row[0]):
                name, results = run_row(options, row, directory)
                everything[name] = results
                show(name, results)
        if options.plots:
            os.makedirs(options.plots, exist_ok=True)
            sweep(options, directory)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(everything, file, indent=1)


if __name__ == "__main__":
    main()
