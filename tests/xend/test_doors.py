#!/usr/bin/python3
"""Nothing that comes from outside stops management: strangers at the relocation port, floods of any kind."""
import os
import socket
import subprocess
import sys
import time
import unittest

import rig
from rig import Xend, wait_until

# How long `xm list` may take on a machine that tests run on side by side; alone it is some milliseconds.
PATIENCE = 1.0

FLOOD = """
import os, socket, sys
kind, address, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
held = []
while True:
    one = socket.socket()
    one.settimeout(1)
    try:
        one.bind((address, 0))
        one.connect(("127.0.0.1", port))
        if kind == "half":
            one.send(bytes.fromhex("16030102000100" + "01fc"))
        if kind == "garbage":
            one.send(os.urandom(200))
        if kind == "join":
            one.send(b"FERRYREL" + os.urandom(56))
    except OSError:
        pass
    if kind == "close":
        one.close()
        continue
    held.append(one)
    if len(held) > 200:
        held.pop(0).close()
"""


class Flood:
    """Connections in a loop from several addresses at once, a process for each kind."""

    def __init__(self, port, kinds):
        self.processes = [subprocess.Popen([sys.executable, "-c", FLOOD, kind, f"127.0.1.{number + 1}", str(port)])
                          for number, kind in enumerate(kinds)]

    def __enter__(self):
        time.sleep(1)  # it is in full flow
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.wait()


class Doors(unittest.TestCase):
    def xend(self, *arguments, **more):
        xend = Xend(*arguments, **more)
        self.addCleanup(xend.close)
        return xend

    def answers(self, xend, seconds=1.5):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            began = time.monotonic()
            xend.domains()
            self.assertLess(time.monotonic() - began, PATIENCE)
            time.sleep(0.01)

    def carriers(self, xend):
        return len(os.listdir(xend.root / "run/carriers"))

    def flooded(self, kinds, settings=""):
        here, there = self.xend(8002), self.xend(8003, settings)
        here.trust(there, port=8003)
        there.trust(here, port=8002)
        here.create()
        with Flood(8003, kinds):
            self.answers(there)
            for source, target in ((here, there), (there, here), (here, there)):
                source.job("/domains/TestGuest/migrate", {"host": "10.0.0.1", "port": target.port, "live": True})
                self.assertEqual(target.names(), ["TestGuest"])
            self.answers(there)
            self.assertLess(self.carriers(there), 50)
            self.assertLess(len(os.listdir(f"/proc/{there.pid}/fd")), 400)
            self.assertLess(there.log.stat().st_size, 20000)
        wait_until(lambda: self.carriers(there) == 0, "the strangers' end")
        return there

    def test_who_connects_and_closes(self):
        there = self.flooded(["close"] * 2)
        self.assertNotIn("Relocation from 127", there.log.read_text())  # it costs no process

    def test_who_holds_connections_says_half_a_hello_or_garbage(self):
        self.flooded(["close", "hold", "half", "garbage", "join"])

    def test_who_may_not_come(self):
        self.flooded(["close", "hold", "garbage"], r"(xend-relocation-hosts-allow '^10\\.0\\.0\\.1$')")

    def test_who_says_nothing_is_let_go(self):
        xend = self.xend(8002)
        with socket.create_connection(("127.0.0.1", 8002)) as silent:
            silent.settimeout(60)
            self.assertEqual(silent.recv(1), b"")
        self.assertEqual(self.carriers(xend), 0)

    def test_every_address_is_of_both_families(self):
        xend = self.xend(8002)
        for address in ("127.0.0.1", "::1"):
            with socket.create_connection((address, 8002)) as stranger:
                stranger.sendall(b"GET / HTTP/1.0\r\n\r\n" * 10)
                stranger.settimeout(60)
                try:
                    self.assertEqual(stranger.recv(1), b"")
                except ConnectionResetError:
                    pass
            wait_until(lambda: f"Relocation from {address}: {address} does not speak TLS" in xend.log.read_text(),
                       "the stranger's being heard")

    def test_an_address_that_is_not_there_yet_is_waited_for(self):
        xend = self.xend(8002, "(xend-relocation-address '10.0.5.1')")
        self.assertIn("Unable to listen for relocations at 10.0.5.1, port 8002: Cannot assign requested address. No guest "
                      "can come that way yet; xend tries again every 5 s.", xend.log.read_text())
        xend.create()
        rig.run("ip addr add 10.0.5.1/24 dev xenbr0")
        wait_until(lambda: "Listening for relocations at 10.0.5.1, port 8002." in xend.log.read_text(), "its listening")
        socket.create_connection(("10.0.5.1", 8002)).close()
        self.assertEqual(xend.log.read_text().count("Unable to listen"), 1)

    def test_a_port_that_is_taken_stops_nobody(self):
        with socket.create_server(("127.0.0.1", 8002)):
            xend = self.xend(8002, "(xend-relocation-address '127.0.0.1')")
            self.assertIn("port 8002: Address already in use.", xend.log.read_text())
            xend.create()
        wait_until(lambda: "Listening for relocations at 127.0.0.1, port 8002." in xend.log.read_text(), "its listening")


if __name__ == "__main__":
    rig.own_network()
    unittest.main()
