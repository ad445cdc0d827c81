#!/usr/bin/python3
"""Warm migrations over one connection and over several, with TLS and in clear text, in turns: what each moves in a second.

    bench/connections.py [--build DIRECTORY] [--touched MIB] [--runs N] [--mbit N]

Both hosts are this machine, joined by a veth pair, so that they share its processors: with few of those several connections gain
nothing, since whatever one thread leaves is the other side's. Needs root and a working /dev/kvm.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from ferry import Host
from heartbeat import Heartbeat
from link import Link

COUNTS = (1, 2, 4)
PORT = 8002


def pair(root, build, link, connections, clear_text):
    made = [Host(f"{root}/{side}", build, PORT, prefix, address, clear_text=clear_text, connections=connections)
            for side, prefix, address in (("s", link.source, link.source_address), ("d", link.dest, link.dest_address))]
    if not clear_text:
        made[0].trust(made[1])
        made[1].trust(made[0])
    return made


def measure(hosts, kernel, touched):
    """GB/s of one warm migration, from command to prompt."""
    here, there = hosts
    beats = Heartbeat()
    here.xm("create", "-q", here.write_config("Native", kernel, touched + 100, 1, f"tsc_khz=2000000 touch={touched} dirty=2 rate=100"))
    beats.add(here.wait_guest().console())
    beats.wait_ready()
    begin = time.monotonic()
    here.xm("migrate", "--compress", "no", "Native", there.address)
    seconds = time.monotonic() - begin
    beats.add(there.wait_guest().console())
    beats.wait_after(time.monotonic(), count=20)
    right = beats.whole()
    beats.close()
    there.xm("destroy", "Native")
    if not right:
        raise ValueError("a page was wrong")
    return (touched << 20) / seconds / 1e9


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", default="build")
    parser.add_argument("--touched", type=int, default=1024)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--mbit", type=int, default=0, help="what the line carries; 0: whatever it can")
    options = parser.parse_args()
    kernel = os.path.abspath(f"{options.build}/bench/guest/bench-guest")
    root = tempfile.mkdtemp(prefix="ferry-", dir="/tmp")
    found = {}
    try:
        with Link(options.mbit) as link:
            for run in range(options.runs):
                for clear_text in (False, True):
                    for count in COUNTS:
                        place = f"{root}/{run}{clear_text:d}{count}"
                        hosts = pair(place, options.build, link, count, clear_text)
                        try:
                            found.setdefault((clear_text, count), []).append(measure(hosts, kernel, options.touched))
                        finally:
                            for host in hosts:
                                host.close()
    finally:
        shutil.rmtree(root)
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}, {options.touched} MiB, medians of {options.runs}")
    for (clear_text, count), speeds in found.items():
        print(f"{'clear text' if clear_text else 'TLS':10} {count} connection{'s' if count > 1 else ' '} {statistics.median(speeds):6.2f} GB/s "
              f"({min(speeds):.2f} to {max(speeds):.2f})")


if __name__ == "__main__":
    main()
