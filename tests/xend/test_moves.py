#!/usr/bin/python3
"""Save, restore and migration between xends on loopback: fake guests, the real ferry-carrier."""
import fcntl
import json
import os
import pathlib
import socket
import sqlite3
import struct
import time
import unittest

import rig
from rig import Refused, Xend, wait_until


class Moves(unittest.TestCase):
    def setUp(self):
        self.one, self.two = Xend(port=18002), Xend(port=18003)
        self.addCleanup(self.two.close)
        self.addCleanup(self.one.close)
        rig.acquaint(self.one, self.two)
        self.checkpoint = str(self.one.files / "TestGuest.checkpt")

    def carriers(self):
        """Of these two xends, by pid."""
        programs = [f"{xend.root}/libexec/ferry-carrier".encode() for xend in (self.one, self.two)]
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                if pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0] in programs:
                    found.append(int(pid))
            except (FileNotFoundError, ProcessLookupError):
                pass
        return sorted(found)

    def tearDown(self):
        wait_until(lambda: not self.carriers(), "the carriers' ends")

    def migrate(self, source=None, name="TestGuest", port=18003, **more):
        return (source or self.one).job(f"/domains/{name}/migrate", {"host": "10.0.0.1", "port": port, **more})

    def refused(self, sentence, call, *arguments, **more):
        with self.assertRaises(Refused) as refused:
            call(*arguments, **more)
        self.assertIn(sentence, refused.exception.sentence)

    def save(self, **more):
        return self.one.job("/domains/TestGuest/save", {"file": self.checkpoint, **more})

    def files(self):
        return sorted(os.listdir(self.one.files))

    def test_save_and_restore(self):
        domain = self.one.create()
        saved = self.save()
        self.assertGreater(saved["bytes"], 8192)
        self.assertEqual(self.one.names(), [])
        wait_until(lambda: not self.one.guests(), "its end")
        restored = self.one.job("/restore", {"file": self.checkpoint})["domain"]
        self.assertEqual((restored["id"], restored["uuid"]), (2, domain["uuid"]))
        self.assertEqual(self.one.get("/domains/2")["state"], "-b----")
        self.refused("exists already with ID 2", self.one.job, "/restore", {"file": self.checkpoint})
        self.one.post("/domains/2/destroy")
        self.one.job("/restore", {"file": self.checkpoint, "paused": True})
        self.assertEqual(self.one.get("/domains/3")["state"], "--p---")

    def test_clones(self):
        domain = self.one.create(disk=[f"file:{self.one.files}/disk,xvda,w"])
        self.save(keep=True)
        self.refused("give the clone copies of the disks".capitalize(), self.one.job, "/restore",
                     {"file": self.checkpoint, "name": "Two"})
        ours = [f"file:{self.one.files}/other-disk,xvda,w"]
        for given, sentence in (([], "the checkpoint's guest has 1, and 0 are given"), (ours * 2, "and 2 are given"),
                                ([ours[0][:-1] + "r"], "was writable (w) in the checkpoint"),
                                ([f"file:{self.one.files}/disk,xvda,w"], "is in use by domain 'TestGuest'")):
            self.refused(sentence, self.one.job, "/restore", {"file": self.checkpoint, "name": "Two", "disk": given})
        self.refused("exists already", self.one.job, "/restore",
                     {"file": self.checkpoint, "name": "TestGuest", "disk": ours})
        # The fake guest cannot wait for memory.
        two = self.one.job("/restore", {"file": self.checkpoint, "name": "Two", "disk": ours, "eager": True})["domain"]
        self.assertEqual((two["name"], two["config"]["disk"]), ("Two", ours))
        self.assertNotEqual(two["uuid"], domain["uuid"])
        self.assertEqual(self.one.names(), ["TestGuest", "Two"])

    def test_save_keeps_the_guest_when_asked(self):
        self.one.create()
        self.save(keep=True)
        self.assertEqual(self.one.get("/domains/1")["state"], "-b----")
        self.refused("exists already", self.save, keep=True)
        self.save(keep=True, force=True, live=True)
        self.assertEqual(self.one.get("/domains/1")["state"], "-b----")
        self.assertEqual(self.files(), ["TestGuest.checkpt", "disk", "kernel", "not-a-kernel", "other-disk"])

    def test_a_paused_guest_stays_paused(self):
        self.one.create(paused=True)
        self.save()
        self.one.job("/restore", {"file": self.checkpoint})
        self.assertEqual(self.one.get("/domains/2")["state"], "--p---")
        self.one.post("/domains/2/unpause")

    def test_what_cannot_be_saved_or_restored(self):
        self.one.create()
        self.refused("Unable to write file /nowhere/x", self.one.job, "/domains/1/save", {"file": "/nowhere/x"})
        self.refused("Is a directory", self.one.job, "/domains/1/save", {"file": "/tmp"})
        self.refused("Unable to read file /nowhere", self.one.job, "/restore", {"file": "/nowhere"})
        self.refused("Unable to restore", self.one.job, "/restore", {"file": str(self.one.files / "kernel")})
        self.assertEqual(self.one.get("/domains/1")["state"], "-b----")
        self.save()
        os.unlink(self.one.files / "disk")
        self.refused("Unable to open disk", self.one.job, "/restore", {"file": self.checkpoint})
        self.assertEqual((self.one.names(), self.one.guests()), ([], []))

    def test_a_guest_that_dies_while_it_is_made(self):
        self.one.create()
        self.save()
        for verb in ("create", "memory", "load-state"):
            (self.one.root / "libexec/dies").write_text(verb)
            self.refused("The process of domain 'TestGuest' was killed by signal 9 (Killed); what it said of that is in",
                         self.one.job, "/restore", {"file": self.checkpoint})
            self.assertEqual((self.one.names(), self.one.guests()), ([], []))
        (self.one.root / "libexec/dies").write_text("create")
        self.refused("was killed by signal 9", self.one.create)

    def test_a_full_file_system(self):
        mounted = self.one.root / "small"
        mounted.mkdir()
        rig.run(f"mount -t tmpfs -o size=8k tmpfs {mounted}")
        self.addCleanup(rig.run, f"umount -l {mounted}")
        self.one.create()
        self.refused("not enough space", self.one.job, "/domains/1/save", {"file": f"{mounted}/x"})
        self.assertEqual(os.listdir(mounted), [])
        self.assertEqual(self.one.get("/domains/1")["state"], "-b----")

    def test_migrate_there_and_back(self):
        for live in (False, True):
            domain = self.one.create()
            done = self.migrate(live=live)
            self.assertEqual(self.one.names(), [])
            arrived = self.two.get("/domains/TestGuest")
            self.assertEqual((arrived["uuid"], arrived["state"]), (domain["uuid"], "-b----"))
            self.assertEqual(done["remote_id"], arrived["id"])
            self.migrate(self.two, port=18002, live=live)
            self.assertEqual((self.one.names(), self.two.names()), (["TestGuest"], []))
            self.refused("does not exist. It was migrated to 10.0.0.1 at ", self.two.get, "/domains/TestGuest")
            self.one.post("/domains/TestGuest/destroy")
            self.refused("does not exist. It was destroyed at ", self.one.get, "/domains/TestGuest")
        wait_until(lambda: not self.one.guests() and not self.two.guests(), "their end")

    def test_what_cannot_be_migrated(self):
        self.one.create()
        self.refused("", self.migrate, port=18002)  # to itself
        self.refused("", self.migrate, port=1)      # nobody listens
        self.two.create(disk=[])
        self.refused("exists already", self.migrate)
        self.assertEqual(self.one.get("/domains/1")["state"], "-b----")
        self.assertEqual(self.two.names(), ["TestGuest"])

    def test_a_guest_that_dies_while_it_is_received(self):
        self.one.create()
        for verb, words in (("create", "was killed by signal 9"), ("memory", "The guest's process has ended"),
                            ("load-state", "The guest's process has ended")):
            (self.two.root / "libexec/dies").write_text(verb)
            self.refused(words, self.migrate)
            wait_until(lambda: (self.two.names(), self.two.guests()) == ([], []), "its end at the destination")
            wait_until(lambda: self.one.get("/domains/TestGuest")["state"] == "-b----", "the guest to run on")
        (self.two.root / "libexec/dies").unlink()
        self.migrate()
        self.assertEqual(self.two.names(), ["TestGuest"])

    def test_disks_move_their_locks(self):
        self.one.create()
        self.migrate()
        wait_until(lambda: self.locked(self.one.files / "disk"), "the destination's lock")
        self.refused("is in use", self.one.create, "Other")
        self.two.post("/domains/TestGuest/destroy")
        self.one.create("Other")

    @staticmethod
    def locked(path):
        """Whether somebody else has a lock on the file."""
        with open(path, "rb") as file:
            lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)  # struct flock (fcntl(2))
            return struct.unpack_from("h", fcntl.fcntl(file, fcntl.F_OFD_GETLK, lock))[0] != fcntl.F_UNLCK

    def test_garbage_on_the_relocation_port(self):
        for bytes_ in (b"GET / HTTP/1.0\r\n\r\n", b"\0" * 64, os.urandom(10000)):
            with socket.create_connection(("10.0.0.1", 18003)) as garbage:
                garbage.settimeout(120)
                try:
                    garbage.sendall(bytes_)
                    while garbage.recv(4096):
                        pass
                except ConnectionError:
                    pass
        self.assertEqual(self.two.names(), [])

    def slow(self):
        """A live migration that takes its time."""
        stream = self.one.stream("/domains/TestGuest/migrate",
                                 {"host": "10.0.0.1", "port": 18003, "live": True, "rate_mbit": 1})
        wait_until(lambda: self.carriers() and self.two.names(), "the copying")
        return stream

    def bulky(self):
        """A guest with memory that is not zero, so that copying it takes long."""
        domain = self.one.create()
        with open(self.one.guest_ram(domain), "r+b") as ram:
            ram.seek(2 << 20)
            ram.write(os.urandom(8 << 20))
        return domain

    def one_owner(self, on_one):
        wait_until(lambda: (self.one.names(), self.two.names()) ==
                   ((["TestGuest"], []) if on_one else ([], ["TestGuest"])), "one owner")
        owner = self.one if on_one else self.two
        wait_until(lambda: owner.get("/domains/TestGuest")["state"] == "-b----", "its running")

    def test_the_client_leaves(self):
        self.bulky()
        self.slow().leave()
        self.one_owner(on_one=True)

    def test_a_migration_goes_on_without_its_client(self):
        self.bulky()
        stream = self.one.stream("/domains/TestGuest/migrate", {"host": "10.0.0.1", "port": 18003, "live": True,
                                                                "rate_mbit": 20, "detach": True})
        wait_until(lambda: self.move()["progress"], "the copying")
        stream.leave()
        wait_until(lambda: self.move()["detached"], "the client's leaving")
        self.one_owner(on_one=False)
        wait_until(lambda: self.move()["state"] == "done", "the end")
        self.assertGreater(self.move()["result"]["rounds"], 0)
        for name in ("TestGuest", "1"):
            self.refused("does not exist. It was migrated to 10.0.0.1 at ", self.one.get, f"/domains/{name}")
        self.one.kill()
        self.one.start()
        self.refused("It was migrated to 10.0.0.1 at ", self.one.get, "/domains/TestGuest/console")

    def move(self):
        return (self.one.get("/migrations")["migrations"] or [{"progress": None}])[-1]

    def test_a_migration_is_cancelled_by_somebody_else(self):
        self.bulky()
        self.refused("nothing that could be cancelled", self.one.post, "/domains/1/cancel")
        stream = self.slow()
        self.assertEqual(self.move()["state"], "running")
        self.one.post("/domains/1/cancel")
        with self.assertRaises(Refused):
            stream.end()
        self.one_owner(on_one=True)
        self.assertEqual((self.move()["state"], self.move()["error"]), ("failed", "Cancelled."))

    def test_destroy_cancels(self):
        self.bulky()
        stream = self.slow()
        self.refused("is being migrated", self.one.job, "/domains/1/save", {"file": self.checkpoint})
        self.one.post("/domains/1/destroy")
        self.refused("Cancelled", stream.end)
        wait_until(lambda: (self.one.names(), self.two.names()) == ([], []), "its end")

    def test_the_source_xend_dies(self):
        self.bulky()
        self.slow()
        self.one.kill()
        self.one.start()
        self.one_owner(on_one=True)

    def test_the_destination_xend_dies(self):
        self.bulky()
        stream = self.slow()
        self.two.kill()
        with self.assertRaises(Refused):
            stream.end()
        self.two.start()
        self.one_owner(on_one=True)

    def test_the_carriers_die(self):
        self.bulky()
        for which in (0, 1):
            stream = self.slow()
            rig.kill(self.carriers()[which])
            with self.assertRaises(Refused):
                stream.end()
            self.one_owner(on_one=True)
            wait_until(lambda: not self.carriers(), "the carriers' ends")

    def destroyed(self, xend=None):
        try:
            (xend or self.one).post("/domains/TestGuest/destroy")
            return True
        except Refused as refused:
            self.assertIn("has been handed over", refused.sentence)
            return False

    def tickets(self, xend, rows):
        with sqlite3.connect(xend.root / "state/xend.db") as store:
            store.executemany("REPLACE INTO tickets(ticket, uuid, state, host, port, changed_at) VALUES (?, ?, ?, ?, ?, ?)", rows)

    def test_where_a_guest_went_is_told_while_it_is_away(self):
        away = "It was migrated to 10.0.0.1 at "
        self.one.create()
        self.migrate()
        for name in ("TestGuest", "1"):
            self.refused(away, self.one.get, f"/domains/{name}")
        self.migrate(self.two, port=18002)
        self.one.post("/domains/TestGuest/destroy")
        for _ in range(2):
            for name in ("TestGuest", "1"):
                with self.assertRaises(Refused) as refused:
                    self.one.get(f"/domains/{name}")
                self.assertTrue(refused.exception.sentence.startswith(f"Domain '{name}' does not exist."))
                self.assertNotIn("migrated", refused.exception.sentence)
            self.one.kill()
            self.one.start()
        # The same where it is made anew here, or another is given its name.
        for begin in (lambda: self.one.create(), lambda: (self.one.create("Other"), self.one.post("/domains/Other/rename", {"name": "TestGuest"}))):
            self.one.create()
            self.migrate()
            self.two.post("/domains/TestGuest/destroy")
            self.refused(away, self.one.get, "/domains/TestGuest")
            begin()
            self.one.post("/domains/TestGuest/destroy")
            with self.assertRaises(Refused) as refused:
                self.one.get("/domains/TestGuest")
            self.assertTrue(refused.exception.sentence.startswith("Domain 'TestGuest' does not exist."))
            self.assertNotIn("migrated", refused.exception.sentence)

    def test_what_became_of_migrations_survives_xend(self):
        def told():
            return [(move["name"], move["id"], move["host"], move["state"]) for move in self.one.get("/migrations")["migrations"]]

        self.one.create()
        self.refused("Unable to connect", self.migrate, port=1)
        self.migrate()
        self.one.create("Second", disk=[])
        (self.one.root / "libexec/lingers").write_text("save-state")
        under_way = self.one.send("POST", "/domains/Second/migrate", {"host": "10.0.0.1", "port": 18003})
        wait_until(lambda: len(told()) == 3, "the third")
        before = self.one.get("/migrations")["migrations"]
        self.one.kill()
        under_way.hear()
        self.one.start()
        after = self.one.get("/migrations")["migrations"]
        self.assertEqual([dict(move, progress=None) for move in after[:2]], [dict(move, progress=None) for move in before[:2]])
        self.assertEqual(told(), [("TestGuest", 1, "10.0.0.1", "failed"), ("TestGuest", 1, "10.0.0.1", "done"),
                                  ("Second", 2, "10.0.0.1", "failed")])
        self.assertIn("the domain runs on here", after[2]["error"])
        # No more of them than a person reads.
        self.one.kill()
        with sqlite3.connect(self.one.root / "state/xend.db") as store:
            store.executemany("INSERT INTO moves VALUES (?, 'Old', 1, 'h', 2, 1, 2, 0, '', '')", [(number,) for number in range(10, 110)])
        self.one.start()
        self.refused("Unable to connect", self.migrate, name="Second", port=1)
        self.refused("Unable to connect", self.migrate, name="Second", port=1)
        self.assertLessEqual(len(told()), 66)
        with sqlite3.connect(self.one.root / "state/xend.db") as store:
            self.assertLessEqual(store.execute("SELECT count(*) FROM moves").fetchone()[0], 66)
        self.assertEqual(told()[-1], ("Second", 2, "10.0.0.1", "failed"))

    def test_an_open_hand_over_is_settled_after_a_restart(self):
        """The source died after COMMIT. What the destination says decides."""
        committed, owned, refused = 1, 5, 6
        for state, on_one in ((refused, True), (owned, False)):
            domain = self.one.create()
            self.one.kill()
            ticket = f"00000000-0000-4000-8000-00000000000{state}"
            self.tickets(self.one, [(ticket, domain["uuid"], committed, "10.0.0.1", 18003, int(time.time()))])
            self.tickets(self.two, [(ticket, domain["uuid"], state, "", 0, int(time.time()))])
            self.one.start()
            if on_one:
                wait_until(self.destroyed, "the answer")
            wait_until(lambda: self.one.names() == [], "the answer")

    def test_an_open_hand_over_waits_for_its_answer(self):
        domain = self.one.create()
        self.one.kill()
        self.two.kill()
        ticket = "00000000-0000-4000-8000-000000000009"
        self.tickets(self.one, [(ticket, domain["uuid"], 1, "10.0.0.1", 18003, int(time.time()))])
        self.one.start()
        self.refused("has been handed over", self.one.post, "/domains/1/destroy")
        self.refused("is being handed over", self.one.post, "/domains/1/pause")
        self.tickets(self.two, [(ticket, domain["uuid"], 6, "", 0, int(time.time()))])
        self.two.start()
        wait_until(lambda: "goes on here" in self.one.log.read_text(), "the answer")
        self.one.post("/domains/1/destroy")

    def test_save_is_cut_off(self):
        """xend dies somewhere in a save: the guest runs on, or the checkpoint restores."""
        for delay in (0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12):
            self.bulky()
            save = self.one.send("POST", "/domains/TestGuest/save", {"file": self.checkpoint, "force": True})
            time.sleep(delay)
            self.one.kill()
            save.close()
            self.one.start()
            if self.one.names():
                wait_until(lambda: self.one.get("/domains/TestGuest")["state"] == "-b----", "its going on")
            else:
                self.one.job("/restore", {"file": self.checkpoint})
            self.assertEqual([name for name in self.files() if "partial" in name], [])
            self.one.post("/domains/TestGuest/destroy")

    def test_restore_is_cut_off(self):
        """xend dies somewhere in a restore: the guest runs, or nothing is left and the checkpoint restores."""
        self.one.create()
        self.save()
        options = {"file": self.checkpoint}
        for delay in (0, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15):
            with self.subTest(delay=delay):
                restore = self.one.send("POST", "/restore", options)
                time.sleep(delay)
                self.one.kill()
                restore.close()
                self.one.start()
                wait_until(lambda: not self.carriers(), "the carrier's end")
                wait_until(lambda: self.running() or not self.one.names(), "its running, or its end")
                if not self.one.names():
                    wait_until(lambda: not self.one.guests(), "its end")
                    self.one.job("/restore", options)
                self.assertEqual(len(self.running()), 1)
                self.one.post("/domains/TestGuest/destroy")

    def running(self):
        """Processes of guests that run now, whichever xend they belong to."""
        found = []
        for xend in (self.one, self.two):
            for uuid in xend.guests():
                with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control:
                    control.settimeout(60)
                    try:
                        control.connect(str(xend.root / "run/guests" / uuid / "control"))
                        control.send(b'{"do": "status"}')
                        if json.loads(control.recv(65536))["state"] == "running":
                            found.append(xend)
                    except (OSError, ValueError):
                        pass
        return found

    def migrate_and_kill(self, find, delay):
        """Which of the two has the guest when all is settled; there is none left afterwards."""
        self.one.create()
        migration = self.one.send("POST", "/domains/TestGuest/migrate", {"host": "10.0.0.1", "port": 18003, "live": True})
        time.sleep(delay)
        killed = find()
        for pid in killed:
            rig.kill(pid)
        self.assertLess(len(self.running()), 2)
        wait_until(lambda: all(map(rig.dead, killed)), "the deaths")
        self.one.start()
        self.two.start()
        migration.hear()
        wait_until(lambda: len(self.running()) == 1 and not self.carriers(), "one guest")
        owner = self.running()[0]
        # The other side may still have to ask.
        wait_until(lambda: (self.one.names(), self.two.names()) ==
                   ((["TestGuest"], []) if owner is self.one else ([], ["TestGuest"])), "one owner")
        wait_until(lambda: self.destroyed(owner), "its end")
        wait_until(lambda: not self.one.guests() and not self.two.guests(), "their end")
        return owner

    def test_killed_anywhere(self):
        """Each process of a migration dies at each moment: one guest runs, once, on one of the two."""
        steps = int(os.environ.get("STEPS", "6"))
        victims = {
            "the source": lambda: [self.one.pid],
            "the destination": lambda: [self.two.pid],
            "both": lambda: [self.one.pid, self.two.pid],
            "a carrier": lambda: self.carriers()[:1],
            "the other carrier": lambda: self.carriers()[-1:],
        }
        ended = {"there": 0, "here": 0}
        for name, find in victims.items():
            for step in range(steps):
                try:
                    owner = self.migrate_and_kill(find, step * 0.25 / steps)
                except (AssertionError, OSError, Refused):
                    print(f"killed {name} at step {step}", self.one.log.read_text()[-3000:],
                          self.two.log.read_text()[-3000:], sep="\n")
                    raise
                ended["here" if owner is self.one else "there"] += 1
        print(ended)


if __name__ == "__main__":
    rig.own_network()
    unittest.main()
