#!/usr/bin/python3
"""Ferry beside QEMU: the same work on the same machine in the same run, turn by turn.

    ./dev bench [--runs N] [--rows REGEX] [--json FILE] [--plots DIRECTORY] [--emulated]

Each row (bench/work.py) is one piece of work on the bench guest (bench/guest), which beats every millisecond; downtime is the time
between its last beat in the old process and its first in the new one, and the longest gap is that between any two beats, whoever runs
the guest at the time. Medians of N runs, with half the spread (largest minus
smallest, relative to the median). Ferry and QEMU migrate in clear text, so that both do the same; what TLS, Ferry's default,
makes of it stands beside it. Of QEMU's settings the better for it is quoted in each row. Where KVM does not work, both run in an
emulated host (bench/emulated.py).
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
from heartbeat import Heartbeat
from link import Link
from memory import have_at_hand, kept
from plot import chart
from qemu import BEATS_ENOUGH, GaveUp, beats_here
from sides import FerrySide, QemuSide, sides_for
from work import DD, IPERF, ROWS, SWEEP_PATIENCE_S, SWEEP_RATES, SWEEP_TOUCHED, Row

GIB = 1 << 30
HERE, EMULATED = "this machine", "an emulated host"
SPARE_MIB = 512  # beside the guest's memory


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


class GuestTime(threading.Thread):
    """How much processor time the source's guest itself has used, looked at until its process is gone."""

    def __init__(self, host):
        super().__init__(daemon=True)
        self.host, self.ended = host, threading.Event()
        self.first = self.last = host.vcpu_seconds()
        self.start()

    def run(self):
        while not self.ended.wait(0.02):
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
    last, first = beats.handed_over()
    gap_start, gap_end = beats.gap(start, end + 0.2)
    figures = {
        "total s": end - start,
        "downtime ms": 1000 * (first - last),
        "longest gap ms": 1000 * (gap_end - gap_start),
        "GB/s": sent / (end - start) / 1e9,
        "MiB sent": sent / (1 << 20),
        "CPU s/GiB": max(cpu, 0) * GIB / sent,
        "resident MiB": resident,
    }
    if way == "live" and last - start > 0.03:
        figures["guest's pace %"] = 100 * beats.rate(start, last) / before
    return figures


def fetch_memory(side, memory):
    """Not in an emulated host: it would take most of the run, and a page that is not there costs little beside the emulation."""
    if not side.options.emulated_khz:
        have_at_hand(memory + SPARE_MIB)


def measure(side, memory, line, way, directory):
    """One piece of work: its figures by name."""
    beats = Heartbeat()
    path = f"{directory}/{side.name}.checkpoint"
    try:
        side.start(memory, line, beats)
        beats.wait_ready()
        time.sleep(0.5)
        fetch_memory(side, memory)
        if way in ("warm", "live"):
            figures = move(side, way, beats)
        else:
            start = time.monotonic()
            side.save(path)
            seconds = time.monotonic() - start
            size = os.stat(path).st_blocks * 512
            figures = {"total s": seconds, "GB/s": size / seconds / 1e9, "file MiB": size / (1 << 20)}
            if way == "restore":
                fetch_memory(side, memory)
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


def run_row(options, row, directory, kinds=None):
    """Every single figure, by the name of the side. A side that gave up has its words for it instead."""
    kinds = kinds or sides_for(row)
    line = f"tsc_khz={options.tsc_khz} {row.guest}"
    results = {kind.name: [] for kind in kinds}
    options.before_row()
    with Link(row.mbit) as link:
        for run in range(min(options.runs, row.runs)):
            for place in range(len(kinds)):
                kind = kinds[(run + place) % len(kinds)]
                root = tempfile.mkdtemp(prefix="b", dir=directory)
                side = kind(options, root, link)
                try:
                    results[kind.name].append(measure(side, row.memory, line, row.way, options.files))
                except GaveUp as words:
                    results[kind.name].append(str(words))
                finally:
                    side.close()
                    shutil.rmtree(root)
    return results


def summary(runs, figure):
    """Median and half the spread, relative to it; None where a run has no such figure."""
    if not all(isinstance(run, dict) and figure in run for run in runs):
        return None
    values = [run[figure] for run in runs]
    middle = statistics.median(values)
    return middle, (max(values) - min(values)) / middle / 2 if middle else 0.0


def best_of_qemu(row, results):
    """The setting that is best for QEMU in what its row is about."""
    figure = "downtime ms" if row.way == "live" else "total s" if row.way != "restore" else "first beat ms"
    sides = {name: summary(runs, figure) for name, runs in results.items() if name.startswith("QEMU")}
    arrived = [name for name in sides if sides[name]]
    return min(arrived, key=lambda name: sides[name][0]) if arrived else next(iter(sides))


def show(row, results, place):
    qemu = best_of_qemu(row, results)
    others = [name for name in results if name.startswith("Ferry ")]
    where = "" if place == HERE else f", in {place}"
    print(f"\n{row.name}{where}" + ("" if qemu == "QEMU" else f"   ({qemu})"))
    for run in results[qemu]:
        if isinstance(run, str):
            print(f"  {qemu}: {run}")
    for figure in results["Ferry"][0]:
        columns = []
        for name in ("Ferry", *others, qemu):
            found = summary(results[name], figure)
            columns.append(f"{name.split(',')[0]} {found[0]:9.3f} ±{100 * found[1]:3.0f} %" if found else f"{name.split(',')[0]} {'-':>9}       ")
        ferry, other = summary(results["Ferry"], figure), summary(results[qemu], figure)
        ratio = f"{ferry[0] / other[0]:7.2f}" if ferry and other and other[0] else "      -"
        print(f"  {figure:14} {'   '.join(columns)}   Ferry/QEMU {ratio}", flush=True)


def judge(row, results, machine):
    """What the row was to reach, and whether it did: (words, how it was, met)."""
    qemu = best_of_qemu(row, results)
    for alternatives in row.goals:
        found = []
        for goal in alternatives:
            ferry = summary(results["Ferry"], goal.figure)
            other = summary(results[qemu], goal.figure)
            measure = machine.get(goal.of) if goal.of != "QEMU" else other[0] if other else None
            measure = 1 if goal.of == "1" else measure
            if ferry is None:
                continue
            if measure is None:
                found.append((f"{ferry[0]:.3g}, QEMU has none", goal.of == "QEMU"))
            else:
                beside = "" if goal.of == "1" else f" ({ferry[0] / measure:.2f} × {goal.of})" if measure else ""
                found.append((f"{ferry[0]:.3g}{beside}", goal.met(ferry[0], measure)))
        if found:
            words = " or ".join(goal.words() for goal in alternatives)
            yield words, "; ".join(words for words, _ in found), any(met for _, met in found)


def references(options, place):
    """What this machine reaches without anybody's help: one TCP stream over the line, and the disk."""
    figures = {}
    with Link() as link:
        server = subprocess.Popen([*link.dest, "iperf3", "-s", "-1"], stdout=subprocess.DEVNULL)
        time.sleep(0.5)
        done = subprocess.run(
            [*link.source, "iperf3", "-c", link.dest_address, "-t", "2", "-J"], capture_output=True, text=True, check=True
        )
        server.wait()
        figures[IPERF] = json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"] / 8e9
    path = f"{options.files}/ferry-bench.dd"
    start = time.monotonic()
    subprocess.run(
        ["dd", "if=/dev/zero", f"of={path}", "bs=4M", "count=384", "oflag=direct", "conv=fsync"], check=True, capture_output=True
    )
    figures[DD] = 384 * (4 << 20) / (time.monotonic() - start) / 1e9
    os.unlink(path)
    print(f"\n{place}")
    for name, value in figures.items():
        print(f"  {name:24} {value:6.2f}")
    return figures


def sweep(options, directory):
    """The plots: how figures grow with the dirty rate, and with the memory that is touched. Where a side does not arrive, its
    line ends: it would not at a higher rate either."""
    lines = {"downtime ms": {}, "total s": {}, "save s": {}, "restore ms": {}}
    gave_up = set()
    options.patience = SWEEP_PATIENCE_S

    def add(row, x, names):
        kinds = [kind for kind in (FerrySide, QemuSide) if (kind.name, row.way) not in gave_up]
        for side, runs in run_row(options, row, directory, kinds).items() if kinds else ():
            words = next((run for run in runs if isinstance(run, str)), None)
            if words:
                gave_up.add((side, row.way))
            print(f"  {row.way}, {x}: {side} {words or 'done'}", flush=True)
            for figure, name in names.items():
                found = summary(runs, figure)
                if found:
                    lines[name].setdefault(side, []).append((x, found[0]))

    def draw(title, x_label, *names):
        """As soon as its lines are complete: who ends the rest has what there is."""
        for name in names:
            path = os.path.join(options.plots, name.replace(" ", "-") + ".svg")
            chart(path, title[name], x_label, name, lines[name])
            print(f"wrote {path}", flush=True)

    for rate in SWEEP_RATES:
        guest = f"touch=128 dirty=128 rate={rate}" if rate else "touch=128"
        add(Row("", 512, guest, "live"), rate, {"downtime ms": "downtime ms", "total s": "total s"})
    titles = {"downtime ms": "Downtime of a live migration", "total s": "Duration of a live migration",
              "save s": "Time to save", "restore ms": "From restore to the guest's first beat"}
    draw(titles, "pages dirtied a second (128 MiB)", "downtime ms", "total s")
    for touched in SWEEP_TOUCHED:
        add(Row("", touched + 256, f"touch={touched}", "save"), touched, {"total s": "save s"})
        add(Row("", touched + 256, f"touch={touched}", "restore"), touched, {"first beat ms": "restore ms"})
    draw(titles, "memory touched, MiB", "save s", "restore ms")


def main():
    parser = argparse.ArgumentParser(prog="./dev bench")
    parser.add_argument("--build", default="build")
    parser.add_argument("--runs", type=int, help="default: 3; in an emulated host 1")
    parser.add_argument("--rows", help="only the rows that this regular expression finds; default: all; in an emulated host few")
    parser.add_argument("--json", help="write every single figure there")
    parser.add_argument("--plots", help="sweep dirty rates and memory sizes and write SVG plots to this directory; the rows are "
                        "measured besides with --rows only")
    parser.add_argument("--files", default="/var/tmp", help="directory for checkpoints")
    parser.add_argument("--emulated", action="store_true", help="in an emulated host, as where this machine's KVM does not work")
    parser.add_argument("--emulated-khz", type=int, help=argparse.SUPPRESS)  # this is an emulated host, with such a TSC
    options = parser.parse_args()
    options.kernel = os.path.abspath(f"{options.build}/bench/guest/bench-guest")
    if os.geteuid() != 0 and not options.emulated:
        sys.exit("bench: needs root, for network namespaces and /dev/kvm (not with --emulated)")
    if options.emulated or beats_here(options.kernel) < BEATS_ENOUGH:
        if options.emulated_khz:
            sys.exit("bench: the emulated host's KVM does not run the bench guest with QEMU either")
        if options.plots:
            sys.exit("bench: --plots needs a KVM that works; in an emulated host it would take days")
        import emulated  # here only: an emulated host has no lab

        sys.exit(emulated.run(options))
    place = EMULATED if options.emulated_khz else HERE
    options.runs = options.runs or (1 if options.plots and not options.rows else 3)
    options.patience = None
    options.tsc_khz = options.emulated_khz or tsc_khz()
    machine = references(options, place)
    everything, reached = {place: machine}, []
    with kept() as options.before_row, tempfile.TemporaryDirectory(prefix="f", dir="/tmp") as directory:
        # The plots alone take minutes, the rows an hour.
        for row in ROWS if options.rows or not options.plots else ():
            if re.search(options.rows or "", row.name):
                results = everything[row.name] = run_row(options, row, directory)
                show(row, results, place)
                reached += [(row.name, *goal) for goal in judge(row, results, machine)]
        if reached:
            print("\nwhat was to be reached" + ("" if place == HERE else f", by a machine and not by {place}"))
        for name, words, found, met in reached:
            print(f"  {'met   ' if met else 'MISSED'} {name}: {words}: {found}")
        if options.plots:
            os.makedirs(options.plots, exist_ok=True)
            sweep(options, directory)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(everything, file, indent=1)


if __name__ == "__main__":
    main()
