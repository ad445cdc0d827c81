"""The line between the two sides: two network namespaces joined by a veth pair, slowed down with tc if asked."""

import os
import subprocess


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True)


class Link:
    """source and dest are command prefixes that run a program on that side."""

    source_address, dest_address = "192.168.77.1", "192.168.77.2"

    def __init__(self, mbit=0):
        self.mbit = mbit
        self.names = [f"ferry-bench-{side}-{os.getpid()}" for side in ("a", "b")]
        self.source, self.dest = (["ip", "netns", "exec", name] for name in self.names)

    def __enter__(self):
        a, b = self.names
        ip("netns", "add", a)
        ip("netns", "add", b)
        ip("link", "add", "line", "netns", a, "type", "veth", "peer", "name", "line", "netns", b)
        for name, address in ((a, self.source_address), (b, self.dest_address)):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "line")
            ip("-n", name, "link", "set", "line", "up")
            ip("-n", name, "link", "set", "lo", "up")
            if self.mbit:
                subprocess.run(
                    ["tc", "-n", name, "qdisc", "add", "dev", "line", "root", "tbf", "rate", f"{self.mbit}mbit",
                     "burst", "2mb", "latency", "50ms"],
                    check=True,
                )
        return self

    def __exit__(self, *_):
        for name in self.names:
            ip("netns", "delete", name)
