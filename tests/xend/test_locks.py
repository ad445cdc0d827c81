#!/usr/bin/python3
"""One owner: what is found out before a guest moves, a guest wanted on two hosts, a hand-over in doubt."""
import json
import os
import pathlib
import socket
import sqlite3
import struct
import sys
import threading
import time
import unittest

import rig
from rig import Refused, Xend, wait_until

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tools"))
from checkpoint_file import digest  # noqa: E402

EXHAUSTIVE = os.environ.get("FERRY_EXHAUSTIVE") == "1"


class Objections(unittest.TestCase):
    """All that speaks against a guest's coming is said at once, before anything is copied."""

    def hosts(self, settings="", shell="", **more):
        self.one = Xend(port=18002)
        self.addCleanup(self.one.close)
        within = ["unshare", "-m", "sh", "-c", shell.format(files=self.one.files) + ' && exec "$0" "$@"'] if shell else ()
        self.two = Xend(port=18003, settings=settings, within=within)
        rig.acquaint(self.one, self.two)
        self.addCleanup(self.two.close)
        self.one.create(**more)

    def objections(self, name="TestGuest"):
        with self.assertRaises(Refused) as refused:
            self.one.job(f"/domains/{name}/migrate", {"host": "10.0.0.1", "port": 18003})
        self.assertEqual(self.one.get(f"/domains/{name}")["state"], "-b----")
        self.assertEqual(self.two.guests(), [])
        return refused.exception.sentence

    def test_all_of_them(self):
        rig.run("ip link add xenbr7 type bridge && ip link set xenbr7 up")
        self.hosts("(dom0-min-mem 100000000)", "mount --bind {files}/other-disk {files}/disk",
                   vif=["bridge=xenbr7"])
        rig.run("ip link del xenbr7")
        (self.two.root / "libexec/features").write_text("sse3 sse4a")
        (self.two.root / "libexec/ferry-guest").touch()  # it is another: what it told is asked again
        sentence = self.objections()
        self.assertIn("10.0.0.1 refuses the guest, for 4 reasons:\n  - ", sentence)
        for part in ("needs 40 MiB", "is another disk here", "Bridge xenbr7", "lacks features that the guest uses: avx2."):
            self.assertIn(part, sentence)

    def test_a_dry_run_says_the_same_and_moves_nothing(self):
        self.hosts()
        for live in (True, False):
            done = self.one.job("/domains/TestGuest/migrate",
                                {"host": "10.0.0.1", "port": 18003, "live": live, "dryrun": True})
            self.assertTrue(done["fits"])
            self.assertGreater(done["bytes_per_second"], 1000)
            self.assertEqual(done.get("written_pages_per_second", 0) > 0, live)  # not looked at where the guest would stand still
            self.assertLess(done["downtime_ms"], 60000)
            self.assertEqual(self.one.get("/domains/TestGuest")["state"], "-b----")
        self.assertEqual((self.two.names(), self.two.guests()), ([], []))
        self.two.create(disk=[])
        with self.assertRaises(Refused) as refused:
            self.one.job("/domains/TestGuest/migrate", {"host": "10.0.0.1", "port": 18003, "dryrun": True})
        self.assertIn("10.0.0.1 refuses the guest: Domain 'TestGuest' exists already", refused.exception.sentence)

    def test_a_disk_that_is_missing(self):
        self.hosts("", "mount -t tmpfs none {files}")
        self.assertIn("Unable to open disk", self.objections())

    def test_a_name_and_a_uuid_that_are_taken(self):
        self.hosts(uuid="cc0029f5-10a1-e6d0-3c92-19b0ea021f21", disk=[])
        self.two.create(disk=[], uuid="cc0029f5-10a1-e6d0-3c92-19b0ea021f21")
        with self.assertRaises(Refused) as refused:
            self.one.job("/domains/TestGuest/migrate", {"host": "10.0.0.1", "port": 18003})
        self.assertIn("for 2 reasons:", refused.exception.sentence)
        self.assertIn("exists already", refused.exception.sentence)
        self.assertIn("they are the same guest", refused.exception.sentence)

    def test_a_copy_of_a_disk_that_is_only_read_will_do(self):
        self.hosts("", "mount --bind {files}/other-disk {files}/disk")
        self.one.post("/domains/TestGuest/destroy")
        self.one.create(disk=[f"file:{self.one.files}/disk,xvda,r"])
        self.one.job("/domains/TestGuest/migrate", {"host": "10.0.0.1", "port": 18003})
        self.assertEqual((self.one.names(), self.two.names()), ([], ["TestGuest"]))


class Doubt(unittest.TestCase):
    """The source has recorded COMMIT, and the destination is not there to say whether it has the guest."""

    def setUp(self):
        self.one, self.two = Xend(port=18002), Xend(port=18003)
        self.addCleanup(self.one.close)
        rig.acquaint(self.one, self.two)
        self.domain = self.one.create()
        self.one.kill()
        self.two.kill()
        self.ticket = "00000000-0000-4000-8000-000000000009"
        self.record(self.one, 1, "10.0.0.1", 18003)
        self.one.start()

    def record(self, xend, state, host="", port=0):
        with sqlite3.connect(xend.root / "state/xend.db") as store:
            store.execute("REPLACE INTO tickets(ticket, uuid, state, host, port, changed_at) VALUES (?, ?, ?, ?, ?, ?)",
                          (self.ticket, self.domain["uuid"], state, host, port, int(time.time())))

    def close_two(self):
        self.two.start()
        self.two.close()

    def explanation(self):
        return "\n".join(self.one.get("/domains/TestGuest/handover")["explanation"])

    def settle(self, how):
        self.one.post("/domains/TestGuest/handover", {"settle": how})

    def refused(self, sentence, call, *arguments):
        with self.assertRaises(Refused) as refused:
            call(*arguments)
        self.assertIn(sentence, refused.exception.sentence)

    def test_it_is_shown_and_explained(self):
        self.addCleanup(self.close_two)
        wait_until(lambda: "doubt" in self.one.domains()[1], "the doubt")
        listed = self.one.domains()[1]
        self.assertIn("open whether it runs on 10.0.0.1", listed["doubt"])
        self.refused("--resolve TestGuest", self.one.post, "/domains/TestGuest/destroy")
        text = self.explanation()
        for part in ("The guest stands still.", "There: asked", "Unable to connect to 10.0.0.1 port 18003", "--keep"):
            self.assertIn(part, text)
        self.refused("keep or forget", self.settle, "both")
        self.settle("keep")

    def test_kept(self):
        self.addCleanup(self.close_two)
        self.settle("keep")
        wait_until(lambda: self.one.get("/domains/TestGuest")["state"] == "-b----", "its going on")
        self.assertNotIn("doubt", self.one.domains()[1])
        self.assertIn("no hand-over of it is open", self.explanation())
        self.refused("nothing to decide", self.settle, "keep")
        self.one.kill()
        self.one.start()
        self.assertEqual(self.one.get("/domains/TestGuest")["state"], "-b----")

    def test_forgotten(self):
        self.addCleanup(self.close_two)
        self.settle("forget")
        self.assertEqual(self.one.names(), [])
        wait_until(lambda: not self.one.guests(), "its end")

    def test_an_answer_counts_more(self):
        self.addCleanup(self.two.close)
        self.record(self.two, 6)  # refused
        answered = threading.Thread(target=self.two.start)
        answered.start()
        try:
            self.settle("forget")  # before the answer ...
        except Refused as late:  # ... or after it
            self.assertRegex(late.sentence, "has answered meanwhile|nothing to decide")
            wait_until(lambda: self.one.get("/domains/TestGuest")["state"] == "-b----", "its going on")
        answered.join()

    def test_the_answer_comes_while_one_looks(self):
        self.addCleanup(self.two.close)
        self.record(self.two, 6)  # refused
        self.two.start()
        wait_until(lambda: "goes on here" in self.explanation() or "no hand-over" in self.explanation(), "the answer")


class TwoHosts(unittest.TestCase):
    """A guest that one host has is not started on another that has relocated guests with it."""

    UUID = "cc0029f5-10a1-e6d0-3c92-19b0ea021f21"

    def setUp(self):
        self.one = Xend(port=18002)
        self.addCleanup(self.one.close)
        # Files of its own under the same names: what a lock in the kernel cannot see.
        self.two = Xend(port=18003, within=["unshare", "-m", "sh", "-c", f"mount -t tmpfs none {self.one.files} && "
                                            f"{{ printf KERNEL; head -c 1000 /dev/zero; }} >{self.one.files}/kernel && "
                                            f"truncate -s 1M {self.one.files}/disk && "
                                            'exec "$0" "$@"'])
        self.two.files = self.one.files
        self.addCleanup(self.two.close)
        rig.acquaint(self.one, self.two)
        self.acquaint()

    def acquaint(self):
        self.one.create("Scout", disk=[])
        self.one.job("/domains/Scout/migrate", {"host": "10.0.0.1", "port": 18003})
        self.two.post("/domains/Scout/destroy")

    def refused(self, sentence, call, *arguments, **more):
        with self.assertRaises(Refused) as refused:
            call(*arguments, **more)
        self.assertIn(sentence, refused.exception.sentence)

    def test_the_same_guest(self):
        for here, there in ((self.one, self.two), (self.two, self.one)):
            there.create(disk=[], uuid=self.UUID)
            self.refused("'TestGuest' runs on 10.0.0.1 already, as 'TestGuest' with ID", here.create, disk=[], uuid=self.UUID)
            self.assertEqual((here.names(), here.guests()), ([], []))
            there.post("/domains/TestGuest/destroy")
            here.create(disk=[], uuid=self.UUID)
            here.post("/domains/TestGuest/destroy")

    def test_a_guest_that_was_saved_and_is_restored_beside_itself(self):
        checkpoint = str(self.one.root / "TwoHosts.checkpt")  # both see it there
        self.one.create(disk=[])
        self.one.job("/domains/TestGuest/save", {"file": checkpoint, "keep": True})
        self.refused("runs on 10.0.0.1 already", self.two.job, "/restore", {"file": checkpoint})
        self.one.post("/domains/TestGuest/destroy")
        self.two.job("/restore", {"file": checkpoint})

    def test_a_host_that_is_only_trusted_is_asked_too(self):
        with sqlite3.connect(self.one.root / "state/xend.db") as store:
            store.execute("DELETE FROM peers")
        self.two.create(disk=[], uuid=self.UUID)
        self.one.create(disk=[], uuid=self.UUID)  # it knows of nobody
        self.one.post("/domains/TestGuest/destroy")
        self.one.trust(self.two, port=18003)
        self.refused("'TestGuest' runs on 10.0.0.1 already", self.one.create, disk=[], uuid=self.UUID)
        self.one.post("/trust/forget", {"host": "10.0.0.1"})
        self.one.create(disk=[], uuid=self.UUID)

    def test_other_guests_with_other_disks(self):
        self.one.create()
        self.two.create()  # its own file under the same name, as the two file systems say
        self.assertEqual((self.one.names(), self.two.names()), (["TestGuest"], ["TestGuest"]))

    def test_hosts_that_do_not_answer(self):
        """One is gone, one is deaf, one refuses: a create is held up for so long at most, and all are named in the log."""
        rig.run("ip route add 10.9.9.0/24 dev xenbr0 && ip neigh add 10.9.9.9 lladdr 02:00:00:00:00:09 dev xenbr0")
        self.addCleanup(rig.run, "ip route del 10.9.9.0/24 dev xenbr0")
        deaf = socket.create_server(("10.0.0.1", 18004), backlog=4)
        self.addCleanup(deaf.close)
        for host, port, least, most, words in (
                ("10.9.9.9", 18002, 1.5, 60, "10.9.9.9 could not be reached in time and asked whether it has domain 'TestGuest'"),
                ("10.0.0.1", 18004, 7.5, 60, "10.0.0.1 did not say in time whether it has domain 'TestGuest'"),
                ("10.0.0.1", 1, 0, 60, "10.0.0.1 was not heard about domain 'TestGuest'")):
            with sqlite3.connect(self.one.root / "state/xend.db") as store:
                store.execute("DELETE FROM peers")
                store.execute("INSERT INTO peers VALUES (?, ?, ?)", (host, port, int(time.time())))
            began = time.monotonic()
            self.assertIn(f"could not be asked of 1 of 1 hosts: {host}.", self.one.create(disk=[])["warnings"][0])
            self.assertTrue(least < time.monotonic() - began < most, time.monotonic() - began)
            self.assertIn(words, self.one.log.read_text())
            self.one.post("/domains/TestGuest/destroy")

    def test_a_xend_that_is_stopped_starts_none_without_the_answers(self):
        deaf = socket.create_server(("10.0.0.1", 18004), backlog=4)
        self.addCleanup(deaf.close)
        with sqlite3.connect(self.one.root / "state/xend.db") as store:
            store.execute("INSERT INTO peers VALUES ('10.0.0.1', 18004, ?)", (int(time.time()),))
        creating = self.one.send("POST", "/domains", {"config": self.one.config(disk=[]), "paused": False})
        asked, _ = deaf.accept()
        self.addCleanup(asked.close)
        self.assertEqual(self.one.command("stop").returncode, 0)
        self.assertEqual(json.loads(creating.getresponse().read())["error"], "xend is being stopped.")
        creating.close()
        self.one.start()
        self.assertEqual((self.one.names(), self.one.guests()), ([], []))

    def peers(self, xend):
        with sqlite3.connect(xend.root / "state/xend.db") as store:
            return sorted(store.execute("SELECT host, port FROM peers"))

    def test_all_hosts_are_asked_however_many(self):
        """The one that has the guest was seen before all the others, of which none answers."""
        self.assertEqual((self.peers(self.one), self.peers(self.two)), ([("10.0.0.1", 18003)], [("10.0.0.1", 18002)]))
        with sqlite3.connect(self.one.root / "state/xend.db") as store:
            store.execute("UPDATE peers SET seen_at = seen_at - 1000")
            store.executemany("INSERT INTO peers VALUES ('10.0.0.1', ?, ?)", [(port, int(time.time())) for port in range(100, 150)])
        self.two.create(disk=[], uuid=self.UUID)
        self.refused("'TestGuest' runs on 10.0.0.1 already", self.one.create, disk=[], uuid=self.UUID)
        self.two.post("/domains/TestGuest/destroy")
        warning, = self.one.create(disk=[], uuid=self.UUID)["warnings"]
        self.assertIn("Whether another host has domain 'TestGuest' or its disks could not be asked of 50 of 51 hosts: 10.0.0.1, ", warning)
        self.assertIn("and more. Two that write", warning)
        self.assertIn(warning, self.one.log.read_text())

    def test_a_host_is_known_once(self):
        """By its address, whatever names lead there."""
        hosts = self.one.root / "hosts"
        hosts.write_text("10.0.0.1 two.test\n")
        rig.run(f"mount --bind {hosts} /etc/hosts")  # in this test's own mount namespace
        self.addCleanup(rig.run, "umount -l /etc/hosts")
        self.one.trust(self.two, "two.test", port=18003)
        self.one.create(disk=[])
        self.one.job("/domains/TestGuest/migrate", {"host": "two.test", "port": 18003})
        self.assertEqual(self.peers(self.one), [("10.0.0.1", 18003)])

    def test_a_guest_is_started_again_without_asking(self):
        domain = self.one.create(disk=[])
        self.two.kill()
        self.one.post("/domains/TestGuest/reboot")
        wait_until(lambda: [one["id"] for one in self.one.domains()[1:]] not in ([], [domain["id"]]), "its second start")
        self.assertNotIn("was not heard about", self.one.log.read_text())
        self.two.start()

    def ends_while_xend_is_away(self, how):
        """The next xend on the first host is to start it again."""
        kernel = self.one.root / "kernel"
        kernel.write_bytes(b"KERNEL")
        domain = self.one.create(disk=[], uuid=self.UUID, kernel=str(kernel), extra="deaf")
        if how == "in the middle of a reboot":
            kernel.unlink()
            self.end("reboot")
            wait_until(lambda: self.one.get("/domains/TestGuest").get("trouble"), "a start that fails")
            kernel.write_bytes(b"KERNEL")
        self.one.kill()
        if how == "reboots":
            self.end("reboot")
        if how == "crashes":
            with sqlite3.connect(self.one.root / "state/xend.db") as store:
                store.execute("UPDATE domains SET booted_ns = booted_ns - 100000000000")
            rig.kill(self.one.guest_pid(domain))

    def end(self, reason, host=None):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control:
            control.connect(str((host or self.one).root / "run/guests" / self.UUID / "control"))
            control.send(json.dumps({"do": "end", "reason": reason}).encode())
            control.recv(65536)

    def test_the_next_xend_starts_none_again_that_another_host_has_by_now(self):
        for how in ("in the middle of a reboot", "reboots", "crashes"):
            with self.subTest(how):
                self.ends_while_xend_is_away(how)
                self.two.create(disk=[], uuid=self.UUID)  # the first host is not there to object
                self.one.start()
                wait_until(lambda: self.one.names() == [], "its being given up")
                self.assertIn("Domain 'TestGuest' is not started again: Domain 'TestGuest' runs on 10.0.0.1 already", self.one.log.read_text())
                self.assertIn("runs on 10.0.0.1 already", self.one.get("/domains/TestGuest/ending")["detail"])
                self.assertEqual((self.one.guests(), self.two.names()), ([], ["TestGuest"]))
                self.two.post("/domains/TestGuest/destroy")
                self.ends_while_xend_is_away(how)
                self.one.start()
                wait_until(lambda: [one["state"] for one in self.one.domains()[1:]] == ["-b----"], "its next start")
                self.one.post("/domains/TestGuest/destroy")

    def test_two_that_are_to_start_it_again_at_once(self):
        """Each was away while the other had the guest: one of them starts it, not both, and not none."""
        for _ in range(5 if EXHAUSTIVE else 1):
            self.ends_while_xend_is_away("reboots")
            self.two.create(disk=[], uuid=self.UUID, kernel=str(self.one.root / "kernel"), extra="deaf")
            self.two.kill()
            self.end("reboot", self.two)
            threads = [threading.Thread(target=host.start) for host in (self.one, self.two)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            wait_until(lambda: self.running() and len(self.one.names() + self.two.names()) == 1, "an end of it", 30)
            self.assertEqual(self.running(), ["-b----"])
            for host in (self.one, self.two):
                host.destroy_all()

    def running(self):
        return [one["state"] for host in (self.one, self.two) for one in host.domains()[1:] if "b" in one["state"]]


class Liars(unittest.TestCase):
    """A peer that speaks the protocol and says anything: nothing of it is believed that cannot be, or reaches a terminal."""

    def setUp(self):
        self.xend = Xend(port=18002, settings="(xend-relocation-clear-text yes)")
        self.addCleanup(self.xend.close)
        self.listener = socket.create_server(("10.0.0.1", 18005))
        self.addCleanup(self.listener.close)
        with sqlite3.connect(self.xend.root / "state/xend.db") as store:
            store.execute("INSERT INTO peers VALUES ('10.0.0.1', 18005, ?)", (int(time.time()),))

    @staticmethod
    def record(kind, argument, payload):
        head = struct.pack("<IIQQ", kind, 0, argument, len(payload))
        return head[:4] + struct.pack("<I", digest(head) & 0xffffffff) + head[8:] + payload

    def answer(self, text, kind=18):
        """Serves one question."""
        def serve():
            line, _ = self.listener.accept()
            with line:
                line.sendall(line.recv(64, socket.MSG_WAITALL))  # HELLO: version 1 as it came
                head = line.recv(24, socket.MSG_WAITALL)
                self.query = json.loads(line.recv(struct.unpack_from("<Q", head, 16)[0], socket.MSG_WAITALL))
                try:
                    line.sendall(self.record(kind, digest(text), text))
                    line.recv(1)
                except ConnectionError:  # it has heard enough
                    pass
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        return thread

    def guest(self, **more):
        return {"guests": [{"name": "Other", "uuid": "x", "id": 7, "how": "runs", "disk": None, **more}]}

    def test_what_is_believed(self):
        served = self.answer(json.dumps(self.guest()).encode())
        with self.assertRaises(Refused) as refused:
            self.xend.create()
        self.assertIn("Domain 'TestGuest' runs on 10.0.0.1 already, as 'Other' with ID 7 there", refused.exception.sentence)
        served.join(60)
        self.assertEqual(self.query["query"], "who-has")
        self.assertEqual([disk["mode"] for disk in self.query["disks"]], ["w"])

    def test_what_is_not(self):
        for said in (self.guest(name="\x1b[31mred"), self.guest(name=3), self.guest(name="a" * 500), self.guest(id=-1),
                     self.guest(id=1 << 40), self.guest(how="%n%s"), self.guest(disk="/not/asked/about"),
                     {"guests": 3}, {"guests": [[]]}, {"guests": []}, {}, []):
            served = self.answer(json.dumps(said).encode())
            self.xend.create()
            served.join(60)
            self.xend.post("/domains/TestGuest/destroy")

    def test_what_is_no_answer(self):
        for text, kind in ((b"[" * 50000, 18), (b"{", 18), (b"", 18), (b"{}", 4), (b"{}", 99), (b"x" * 60000, 18)):
            served = self.answer(text, kind)
            self.xend.create()
            served.join(60)
            self.xend.post("/domains/TestGuest/destroy")
        self.assertEqual(self.xend.log.read_text().count("10.0.0.1 was not heard about domain 'TestGuest'"), 6)


class Itself(unittest.TestCase):
    """A host that has its own address from when it was another's, and hears of the guest that it is starting."""

    def test_its_own_guest_is_no_news(self):
        xend = Xend(port=18002, settings="(xend-relocation-clear-text yes)")
        self.addCleanup(xend.close)
        with sqlite3.connect(xend.root / "state/xend.db") as store:
            store.execute("INSERT INTO peers VALUES ('10.0.0.1', 18002, ?)", (int(time.time()),))
        xend.create()
        self.assertNotIn("TestGuest', which starts without", xend.log.read_text())
        self.assertNotIn("was not heard about", xend.log.read_text())


class OneDisk(unittest.TestCase):
    """Both hosts see one disk."""

    def test_the_host_that_has_it_is_named(self):
        one, two = Xend(port=18002), Xend(port=18003)
        self.addCleanup(two.close)
        self.addCleanup(one.close)
        rig.acquaint(one, two)
        one.create()
        one.job("/domains/TestGuest/migrate", {"host": "10.0.0.1", "port": 18003})
        for name in ("TestGuest", "Other"):
            with self.assertRaises(Refused) as refused:
                one.create(name)
            self.assertIn("is in use by domain 'TestGuest' (ID 1 there), which runs on 10.0.0.1. Two that write",
                          refused.exception.sentence)
        with self.assertRaises(Refused) as refused:
            one.create("Reader", disk=[f"file:{one.files}/disk,xvda,r"])
        self.assertIn("is in use by domain 'TestGuest'", refused.exception.sentence)
        self.assertEqual(one.guests(), [])


if __name__ == "__main__":
    rig.own_network()
    unittest.main()
