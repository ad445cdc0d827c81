#!/usr/bin/python3
"""Nothing that comes from outside stops management: strangers at the relocation port, floods of any kind."""
import json
import os
import pathlib
import select
import signal
import socket
import stat
import subprocess
import sys
import time
import unittest

import rig
from rig import Refused, Xend, wait_until

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


def processor_s(xend):
    fields = pathlib.Path(f"/proc/{xend.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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

    # ---- the API's socket ----

    def connect(self, xend, request=b""):
        client = socket.socket(socket.AF_UNIX)
        self.addCleanup(client.close)  # before its xend's end
        client.settimeout(120)
        client.connect(str(xend.root / "socket"))
        try:
            client.sendall(request)
        except BrokenPipeError:  # it has answered already
            pass
        return client

    def answer(self, client):
        """The status and the sentence."""
        data = b""
        while piece := client.recv(65536):
            data += piece
        head, _, body = data.partition(b"\r\n\r\n")
        return int(head.split()[1]), json.loads(body)["error"]

    def test_watchers_take_no_place_from_others_and_no_end_is_lost(self):
        xend = self.xend()
        watched = xend.create("Watched", on_poweroff="restart")
        other = xend.create("Other", disk=[], on_crash="restart")
        gone = [xend.send("GET", "/domains/Watched/gone") for _ in range(300)]
        consoles = [xend.open("GET", "/domains/Watched/console?history=1") for _ in range(300)]
        for connection, response in consoles:
            self.assertEqual(response.readline(), b"console history\n")
        self.answers(xend, 0.5)
        self.assertLess(len(os.listdir(f"/proc/{xend.pid}/task")), 50)
        rig.kill(xend.guest_pid(other))  # it has run for some seconds and is started again at once
        wait_until(lambda: [d["id"] for d in xend.domains()[1:]] == [1, 3] or "is not started again" in xend.log.read_text(),
                   "what follows its end")
        xend.post("/domains/Watched/shutdown")
        for connection in gone:
            self.assertEqual(connection.getresponse().read(), b"{}\n")
            connection.close()
        for connection, response in consoles:
            self.assertEqual(response.read(), b"")
            connection.close()
        self.assertTrue(rig.dead(xend.guest_pid(watched)) if watched["uuid"] in xend.guests() else True)

    def test_commands_that_wait_keep_no_others_waiting(self):
        xend = self.xend()
        stopped = xend.create("Stopped")
        xend.create("Other", disk=[])
        os.kill(xend.guest_pid(stopped), signal.SIGSTOP)
        pauses = [xend.send("POST", "/domains/Stopped/pause") for _ in range(2)]  # it does not answer for some seconds
        refused = select.select([pause.sock for pause in pauses], [], [], 60)[0]
        first, second = sorted(pauses, key=lambda pause: pause.sock in refused)  # whichever xend took first
        self.assertIn(b"being paused", second.getresponse().read())
        waiting = [xend.send("POST", "/domains/Stopped/destroy") for _ in range(300)]
        full = [connection.getresponse() for connection in waiting[256:]]
        for response in full:
            self.assertEqual((response.status, b"try again in a moment" in response.read()), (503, True))
        self.answers(xend, 1)
        xend.post("/domains/Other/pause")
        os.kill(xend.guest_pid(stopped), signal.SIGCONT)
        for connection in (first, *waiting):
            connection.hear()
        wait_until(lambda: xend.names() == ["Other"], "its end")

    def test_networks_are_told_apart_before_a_process_is_made(self):
        xend = self.xend(8002, "(xend-relocation-hosts-allow '127.0.1.0/24 ::1')")
        for address in ("127.0.0.1", "127.0.1.1"):
            stranger = socket.create_connection(("127.0.0.1", 8002), source_address=(address, 0))
            with stranger:
                stranger.settimeout(60)
                try:
                    stranger.sendall(b"GET / HTTP/1.0\r\n\r\n" * 10)
                    while stranger.recv(100):
                        pass
                except ConnectionError:
                    pass
        wait_until(lambda: "Relocation from 127.0.1.1: 127.0.1.1 does not speak TLS" in xend.log.read_text(), "its being heard")
        self.assertIn("Relocation from 127.0.0.1: it may not relocate guests to this host", xend.log.read_text())

    def test_clients_that_say_nothing_or_half_a_request(self):
        xend = self.xend(within=["prlimit", "--nofile=1024:1024"])
        half = [self.connect(xend, b"GET /domains HT"[:number % 16]) for number in range(400)]
        self.answers(xend, 0.5)
        self.assertEqual(half[0].recv(1), b"")  # who has waited longest made room
        self.assertLess(len(os.listdir(f"/proc/{xend.pid}/fd")), 300)
        if os.environ.get("FERRY_EXHAUSTIVE") == "1":
            self.assertEqual(self.answer(half[-1]), (408, "The request has not arrived within 20 s."))

    def test_what_is_no_request_gets_a_sentence(self):
        xend = self.xend()
        for request, status, sentence in (
                (b"GET\r\n\r\n", 400, "no request of HTTP/1.1"),
                (b"\0\xff" * 10 + b"\r\n\r\n", 400, "no request of HTTP/1.1"),
                (b"POST /domains HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n" + b"x" * 300000, 413, "at most 1048576 bytes"),
                (b"POST /domains HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 501, "in pieces"),
                (b"GET /domains HTTP/1.1\r\nX: " + b"y" * 100000, 431, "at most 16384 bytes"),
                (b"DELETE /domains HTTP/1.1\n\n", 404, "does not understand that method for '/domains'")):
            got, words = self.answer(self.connect(xend, request))
            self.assertEqual((got, sentence in words), (status, True), words)
        self.assertEqual(len(xend.domains()), 1)

    def test_without_descriptors_xend_answers_and_recovers(self):
        xend = self.xend(within=["prlimit", "--nofile=80:80"])
        used = len(os.listdir(f"/proc/{xend.pid}/fd"))
        xend.create()
        self.assertLess(used, 40)
        subprocess.run(["prlimit", f"--pid={xend.pid}", f"--nofile={used + 12}:80"], check=True)
        before, size = processor_s(xend), xend.log.stat().st_size
        idle = [self.connect(xend) for _ in range(200)]
        self.answers(xend, 1)  # who has said nothing makes room
        watching = [self.connect(xend, b"GET /domains/TestGuest/gone HTTP/1.1\r\n\r\n") for _ in range(30)]
        end, heard = time.monotonic() + 2, 0
        while time.monotonic() < end:
            with self.connect(xend, b"GET /domains HTTP/1.1\r\n\r\n") as client:
                try:
                    answer = client.makefile("rb").read()
                except ConnectionResetError:  # it made room before its request was there
                    continue
            self.assertTrue(b'{"domains":' in answer or b'{"error":"xend has no' in answer, answer)
            heard += 1
            time.sleep(0.02)
        self.assertGreater(heard, 10)
        self.assertLess(processor_s(xend) - before, 1.5)
        self.assertLess(xend.log.stat().st_size - size, 5000)
        for client in idle + watching:
            client.close()
        wait_until(lambda: self.answered(xend), "its answering again")
        subprocess.run(["prlimit", f"--pid={xend.pid}", "--nofile=80:80"], check=True)

    def answered(self, xend):
        try:
            return xend.names() == ["TestGuest"]
        except (Refused, OSError):
            return False


class Sayings(unittest.TestCase):
    """What a guest's process says, also one that has been taken over: it does not have the log, and waits for nobody."""

    def setUp(self):
        self.xend = Xend()
        self.addCleanup(self.xend.close)
        self.domain = self.xend.create()
        self.pid = self.xend.guest_pid(self.domain)

    def ask(self, request):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control:
            control.settimeout(60)
            control.connect(str(self.xend.root / "run/guests" / self.domain["uuid"] / "control"))
            control.send(json.dumps(request).encode())
            return json.loads(control.recv(65536))

    def say(self, text, times=1):
        return self.ask({"do": "say", "text": text, "times": times})["lost"]

    def lines(self, word):
        return [line for line in self.xend.log.read_text().splitlines() if word in line]

    def hears(self, word, count=1):
        wait_until(lambda: len(self.lines(word)) >= count, f"{word} in the log")
        return self.lines(word)

    def test_no_process_has_the_log(self):
        with open(self.xend.log, encoding="utf-8") as log:
            here = os.fstat(log.fileno())
        hold = self.xend.root / "libexec/hold"
        hold.write_text("save-state")
        saving = self.xend.send("POST", "/domains/TestGuest/save", {"file": str(self.xend.root / "c")})
        carriers = lambda: [int(path.read_text().split()[0]) for path in (self.xend.root / "run/carriers").iterdir() if path.read_text()]
        wait_until(lambda: [pid for pid in carriers() if "ferry-carrier" in os.readlink(f"/proc/{pid}/exe")], "the carrier")
        for pid in (self.pid, *carriers()):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                there = os.stat(f"/proc/{pid}/fd/{fd}")
                self.assertNotEqual((there.st_dev, there.st_ino), (here.st_dev, here.st_ino), (pid, fd))
            self.assertTrue(stat.S_ISFIFO(os.stat(f"/proc/{pid}/fd/2").st_mode))
        hold.unlink()
        saving.hear()

    def test_its_lines_are_its_own(self):
        head = "[2026-01-31 12:00:00.123 +0100"
        self.say(f"{head} TestGuest {self.pid}] WARNING: one \x1b[31m\n")
        self.assertEqual(self.hears("one"), [f"{head} TestGuest {self.pid}] WARNING: one \\x1b[31m"])
        for number, forged in enumerate((f"{head} xend {self.xend.pid}] ERROR: ", f"{head} xend {self.xend.pid}] {self.pid}] ", "ERROR: ",
                                         f"[2026-01-31 12:00 TestGuest {self.pid}] ", f"{head}]", "[", f"{head} x {self.pid}]")):
            self.say(f"{forged}forged{number}\n")
            line, = self.hears(f"forged{number}")
            self.assertRegex(line, rf"^\[[^]]* xend {self.xend.pid}\] WARNING: TestGuest \(process {self.pid}\): ")
        self.say(f"{head} xend {self.pid}] ERROR: borrowed\n")
        self.assertEqual(self.hears("borrowed"), [f"{head} TestGuest {self.pid}] ERROR: borrowed"])
        self.say("long" * 250, times=10)
        self.say("\nnext\n")
        self.assertLess(len(self.hears("longlong")[0]), 3000)

    def test_one_that_does_not_stop_talking(self):
        self.assertEqual(self.say("said\n"), 0)
        self.hears("said")
        self.assertGreater(self.say("nonsense NUMBER " + "x" * 80 + "\n", times=20000), 10000)
        self.hears("says more than is written of it")
        self.assertLess(len(self.lines("nonsense")), 500)
        began = time.monotonic()
        self.xend.create("Other", disk=[])
        self.assertLess(time.monotonic() - began, 30)
        self.assertLess(self.xend.log.stat().st_size, 300000)

    def test_one_that_has_always_something_to_tell(self):
        before = processor_s(self.xend)
        self.ask({"do": "shout"})
        end = time.monotonic() + 2
        while time.monotonic() < end:
            self.assertEqual(self.xend.names(), ["TestGuest"])
            time.sleep(0.1)
        self.assertLess(processor_s(self.xend) - before, 0.8)  # and not nearly all of it
        self.ask({"do": "end", "reason": "poweroff"})
        wait_until(lambda: not self.xend.guests(), "its end to be heard")

    def test_what_is_said_while_xend_is_away(self):
        self.xend.kill()
        self.say("meanwhile\n")
        self.xend.start()
        self.hears("meanwhile")
        self.xend.kill()
        self.assertGreater(self.say("x" * 1000 + "\n", times=1000), 900)  # it is neither ended nor waits
        self.assertFalse(rig.dead(self.pid))
        self.xend.start()
        self.hears("xxxxx")
        self.say("last words\n")
        self.xend.post("/domains/TestGuest/destroy")
        self.assertEqual(len(self.lines("last words")), 1)
        self.assertEqual(self.xend.guests(), [])


if __name__ == "__main__":
    rig.own_network()
    unittest.main()
