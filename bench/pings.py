#!/usr/bin/python3
"""What a guest's clients notice of its live migration: a ping every 10 ms, from a third host.

    bench/pings.py [--build DIR] [--moves N] [--memory MIB] [--touched MIB]

Three network namespaces are the hosts, joined by bridges as chapter 13's are; the guest (bench/guest/answer.c) drives a
virtio network card natively, so that this works where KVM runs no Linux.
"""

import argparse
import ipaddress
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from ferry import Host
from link import Link, ip

INTERVAL_S = 0.01
GUEST, CLIENT = "10.77.0.9", "10.77.0.1"
BRIDGE = "xenbr0"


class Network(Link):
    """The line for migrations, and a network of clients that both hosts' bridges are part of."""

    def __enter__(self):
        super().__enter__()
        self.clients = f"ferry-bench-c-{os.getpid()}"
        self.client = ["ip", "netns", "exec", self.clients]
        ip("netns", "add", self.clients)
        ip("-n", self.clients, "link", "add", BRIDGE, "type", "bridge")
        for name in self.names:
            end = f"to-{name[-1 - len(str(os.getpid())) - 1]}"
            ip("-n", name, "link", "add", BRIDGE, "type", "bridge")
            ip("link", "add", "net", "netns", name, "type", "veth", "peer", "name", end, "netns", self.clients)
            ip("-n", name, "link", "set", "net", "master", BRIDGE, "up")
            ip("-n", name, "link", "set", BRIDGE, "up")
            ip("-n", self.clients, "link", "set", end, "master", BRIDGE, "up")
        ip("-n", self.clients, "address", "add", f"{CLIENT}/24", "dev", BRIDGE)
        ip("-n", self.clients, "link", "set", BRIDGE, "up")
        ip("-n", self.clients, "link", "set", "lo", "up")
        return self

    def __exit__(self, *error):
        ip("netns", "delete", self.clients)
        super().__exit__(*error)


class Pinged:
    """Two hosts and a guest that answers. `here` has it."""

    def __init__(self, build, network, root, memory=512, touched=64, clear_text=False):
        self.network = network
        self.here = Host(f"{root}/a", build, 18004, network.source, network.source_address, clear_text)
        self.there = Host(f"{root}/b", build, 18005, network.dest, network.dest_address, clear_text)
        for host, other in ((self.here, self.there), (self.there, self.here)):
            host.trust(other)
            os.symlink(os.path.join(os.path.dirname(os.path.abspath(__file__)), "../scripts"), f"{host.root}/scripts")
        config = self.here.write_config("Answers", os.path.abspath(f"{build}/bench/guest/answering-guest"), memory, 1,
                                        f"touch={touched} ip={int(ipaddress.ip_address(GUEST))}")
        with open(config, "a", encoding="utf-8") as file:
            file.write(f"vif = ['bridge={BRIDGE}, mac=00:16:3e:00:00:09']\n")
        self.here.xm("create", "-q", config)
        self.ping(10, 0.1)  # its address is learnt

    def ping(self, count, interval=INTERVAL_S, meanwhile=None):
        """The replies' (number, latency in ms), while `meanwhile` runs."""
        pings = subprocess.Popen([*self.network.client, "ping", "-n", "-i", str(interval), "-c", str(count), GUEST],
                                 stdout=subprocess.PIPE, text=True, env={**os.environ, "LC_ALL": "C"})
        try:
            if meanwhile:
                time.sleep(count * interval / 3)
                meanwhile()
            said = pings.communicate(timeout=count * interval + 60)[0]
        finally:
            pings.kill()
            pings.wait()
        return [(int(number), float(latency)) for number, latency in re.findall(r"icmp_seq=(\d+) ttl=\d+ time=([\d.]+) ms", said)]

    def move(self, count=150, interval=INTERVAL_S):
        """A migration under pings: (how many got no reply, the longest time without one in ms, what xm said)."""
        said = []
        replies = self.ping(count, interval, lambda: said.append(self._migrate()))
        self.here, self.there = self.there, self.here
        times = sorted(number * interval * 1000 + latency for number, latency in replies)
        return count - len(replies), max(b - a for a, b in zip(times, times[1:])), said[0]

    def _migrate(self):
        return self.here.xm("migrate", "--live", "-p", str(self.there.port), "Answers", self.there.address).strip()

    def close(self):
        self.here.close()
        self.there.close()


def main():
    parser = argparse.ArgumentParser(prog="bench/pings.py")
    parser.add_argument("--build", default="build")
    parser.add_argument("--moves", type=int, default=20)
    parser.add_argument("--memory", type=int, default=512)
    parser.add_argument("--touched", type=int, default=64)
    options = parser.parse_args()
    lost, longest = [], []
    with tempfile.TemporaryDirectory(prefix="f", dir="/tmp") as root, Network() as network:
        pinged = Pinged(options.build, network, root, options.memory, options.touched)
        try:
            for _ in range(options.moves):
                missing, gap, said = pinged.move()
                lost.append(missing)
                longest.append(gap)
                print(f"{missing:3} of 150 pings got no reply, {gap:5.1f} ms without one at most   {said}", flush=True)
        finally:
            pinged.close()
    print(f"{options.moves} migrations: {statistics.median(lost):.0f} replies lost (at most {max(lost)}), "
          f"{statistics.median(longest):.1f} ms without a reply (at most {max(longest):.1f}); a ping every {1000 * INTERVAL_S:.0f} ms")


if __name__ == "__main__":
    main()
