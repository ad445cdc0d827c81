#!/usr/bin/python3
"""Clones of one checkpoint, all started at once: how soon each runs, and what they have together.

    bench/clones.py [--build DIRECTORY] [--clones N] [--touched MIB]

The guests spin, so that beyond a few they keep each other
from the processors. Needs root and a working /dev/kvm.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from ferry import Control, Host
from heartbeat import Heartbeat


def listen(host, beats):
    """To those that run and are not yet heard."""
    for uuid, path in host.guests().items():
        if uuid in beats:
            continue
        try:
            control = Control(path)
            if control.call({"do": "status"})["state"] == "running":
                beats[uuid] = Heartbeat()
                beats[uuid].add(control.console())
            control.close()
        except OSError:
            continue


def measure(host, kernel, count, touched):
    line = f"tsc_khz=2000000 touch={touched} dirty=2 rate=1000"
    host.xm("create", "-q", host.write_config("Native", kernel, touched + 100, 1, line))
    origin = Heartbeat()
    origin.add(host.wait_guest().console())
    origin.wait_ready()
    host.xm("save", "Native", f"{host.root}/c")
    beats, start = {}, time.monotonic()
    commands = [host.start_xm("restore", "--name", f"Clone{n}", f"{host.root}/c") for n in range(count)]
    while len(beats) < count and time.monotonic() < start + 60:
        listen(host, beats)
        time.sleep(0.005)
    for command in commands:
        command.finish()
    for beat in beats.values():
        beat.wait_after(start, count=1)
    first = sorted(beat.first_after(start) - start for beat in beats.values())
    print(f"{count} clones, {touched} MiB touched: the first runs after {first[0]:.2f} s, half of them after "
          f"{first[len(first) // 2]:.2f} s, all after {first[-1]:.2f} s")
    for seconds in (1, 5, 10):
        time.sleep(max(0.0, start + first[-1] + seconds - time.monotonic()))
        print(f"{seconds} s later they have {host.guest_memory_mib()} MiB together")
    print("every page was right" if all(beat.whole() for beat in beats.values()) else "A PAGE WAS WRONG")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", default="build")
    parser.add_argument("--clones", type=int, default=20)
    parser.add_argument("--touched", type=int, default=1536)
    options = parser.parse_args()
    build, root = os.path.abspath(options.build), tempfile.mkdtemp(prefix="ferry-", dir="/tmp")
    host = Host(root, build, 8002)
    try:
        measure(host, f"{build}/bench/guest/bench-guest", options.clones, options.touched)
    finally:
        host.close()
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
