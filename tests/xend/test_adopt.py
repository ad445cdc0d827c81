#!/usr/bin/python3
"""Whatever xend finds when it starts, no guest is ended for not being known or for being silent. The guests are fake, all else is real."""
import json
import os
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import time
import unittest

import dead_storage
import rig
from rig import Refused, Xend, wait_until

EXHAUSTIVE = os.environ.get("FERRY_EXHAUSTIVE") == "1"


class Adopting(unittest.TestCase):
    def setUp(self):
        self.xend = Xend()
        self.addCleanup(self.xend.close)
        self.database = self.xend.root / "state/xend.db"

    def refused(self, sentence, call, *arguments, **more):
        with self.assertRaises(Refused) as refused:
            call(*arguments, **more)
        self.assertIn(sentence, refused.exception.sentence)
        return refused.exception.sentence

    def restart(self, between=lambda: None):
        self.xend.kill()
        between()
        self.xend.start()

    def forget_everything(self):
        for name in os.listdir(self.database.parent):
            os.unlink(self.database.parent / name)

    def ask_database(self, sql, *values):
        with sqlite3.connect(self.database) as store:
            return store.execute(sql, values).fetchall()

    def record(self, domain):
        return self.xend.root / "run/guests" / domain["uuid"] / "domain"

    def change_record(self, domain, **changes):
        path = self.record(domain)
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    def guest_is(self, name, pid, **expected):
        found = self.xend.get(f"/domains/{name}")
        self.assertEqual(self.xend.guest_pid(found), pid)
        self.assertFalse(rig.dead(pid))
        self.assertEqual({key: found[key] for key in expected}, expected)
        return found

    def some_guests(self):
        """Of each kind: name, process, what is shown of it."""
        running = self.xend.create("Renamed", vif=["bridge=xenbr0"])
        self.xend.post("/domains/Renamed/rename", {"name": "Running"})
        gone = self.xend.create("Gone", disk=[])
        self.xend.post(f"/domains/{gone['id']}/destroy")
        paused = self.xend.create("Paused", disk=[])
        self.xend.post("/domains/Paused/pause")
        return [("Running", self.xend.guest_pid(running), {"id": 1, "uuid": running["uuid"], "state": "-b----"}),
                ("Paused", self.xend.guest_pid(paused), {"id": 3, "uuid": paused["uuid"], "state": "--p---"})]

    def all_are_there(self, guests):
        self.assertEqual(self.xend.names(), [name for name, _, _ in guests])
        for name, pid, shown in guests:
            self.guest_is(name, pid, **shown)
        # As good as before: none has its ID, they are started again as they were, and leave nothing.
        self.assertEqual(self.xend.create("Next", disk=[])["id"], 4)
        self.refused("in use by domain 'Running'", self.xend.create, "Other")
        self.xend.post("/domains/Running/reboot")
        wait_until(lambda: [(d["name"], d["state"]) for d in self.xend.domains()[3:]] == [("Running", "-b----")], "its start")
        self.assertTrue(os.path.exists(f"/sys/class/net/vif{self.xend.get('/domains/Running')['id']}.0/brport"))
        self.restart()
        self.assertEqual(self.xend.names(), ["Paused", "Next", "Running"])
        self.xend.destroy_all()
        self.assertEqual((self.xend.names(), self.xend.guests()), ([], []))
        self.assertEqual([name for name in os.listdir("/sys/class/net") if name.startswith("vif")], [])

    def test_the_database_is_gone(self):
        guests = self.some_guests()
        self.restart(self.forget_everything)
        self.assertIn("Domain 'Running' (ID 1) is not in xend's database, and is taken over", self.xend.log.read_text())
        self.all_are_there(guests)

    def test_the_database_is_empty(self):
        guests = self.some_guests()

        def empty():
            self.forget_everything()
            self.database.write_bytes(b"")

        self.restart(empty)
        self.all_are_there(guests)

    def test_the_database_is_of_an_earlier_boot(self):
        other = Xend()
        self.addCleanup(other.close)
        early = other.create("Running", disk=[])
        other.kill()
        with sqlite3.connect(other.root / "state/xend.db") as store:
            store.execute("UPDATE host SET value = 'another' WHERE key = 'boot'")
            # A guest that had left that day, and came back.
            store.execute("DELETE FROM tickets")
        guests = self.some_guests()

        def exchange():
            self.forget_everything()
            with sqlite3.connect(other.root / "state/xend.db") as store:
                store.execute("INSERT INTO tickets(ticket, uuid, state, host, port, changed_at) VALUES ('t-1', ?, 2, 'host', 1, strftime('%s'))", (guests[0][2]["uuid"],))
            shutil.copytree(other.root / "state", self.database.parent, dirs_exist_ok=True)

        self.restart(exchange)
        self.all_are_there(guests)
        other.start()
        self.assertEqual(other.guest_pid(early), other.guest_pid(other.get("/domains/Running")))

    def test_the_database_is_of_an_hour_ago(self):
        stay = self.xend.create("Stays", disk=[])
        gone = self.xend.create("Leaves", disk=[], on_crash="restart")
        self.xend.kill()
        shutil.copytree(self.database.parent, self.xend.root / "backup")
        self.xend.start()
        self.xend.post("/domains/Leaves/destroy")
        self.xend.post("/domains/Stays/rename", {"name": "Leaves"})
        self.xend.post("/domains/Leaves/pause")
        new = self.xend.create("Stays", disk=[])
        pids = [self.xend.guest_pid(stay), self.xend.guest_pid(new)]

        def exchange():
            self.forget_everything()
            shutil.copytree(self.xend.root / "backup", self.database.parent, dirs_exist_ok=True)

        self.restart(exchange)
        self.guest_is("Leaves", pids[0], id=1, uuid=stay["uuid"], state="--p---")
        self.guest_is("Stays", pids[1], id=3, uuid=new["uuid"], state="-b----")
        self.assertEqual(self.xend.names(), ["Leaves", "Stays"])
        self.assertIn(f"{gone['uuid']} is gone. It is not started again.", self.xend.log.read_text())
        self.assertEqual(self.xend.create("Next", disk=[])["id"], 4)

    def test_what_was_not_ours_yet_or_not_any_more_is_ended(self):
        pids = []
        for phase in ("starting", "ending"):
            domain = self.xend.create(phase, disk=[], paused=True)
            pids.append(self.xend.guest_pid(domain))
            self.change_record(domain, phase=phase)
        self.restart(self.forget_everything)
        wait_until(lambda: all(rig.dead(pid) for pid in pids) and self.xend.guests() == [], "their end")
        self.assertEqual(self.xend.names(), [])

    def test_who_runs_was_ours(self):
        domain = self.xend.create()
        self.change_record(domain, phase="starting")
        pid = self.xend.guest_pid(domain)
        self.restart(self.forget_everything)
        self.guest_is("TestGuest", pid, state="-b----")

    def test_a_hand_over_in_doubt_stays_in_doubt(self):
        domain = self.xend.create()
        pid = self.xend.guest_pid(domain)
        self.xend.post("/domains/TestGuest/pause")
        nobody = {"address": "", "fingerprint": "", "records": ""}
        ticket = {"ticket": "00000000-0000-4000-8000-000000000009", "state": "committed", "host": "127.0.0.1", "port": 9, **nobody}
        owned = {"ticket": "00000000-0000-4000-8000-000000000008", "state": "owned", "host": "", "port": 0, **nobody}
        self.change_record(domain, paused=False, tickets=[owned, ticket])
        self.restart(self.forget_everything)
        wait_until(lambda: "open whether it runs on 127.0.0.1" in self.xend.domains()[1].get("doubt", ""), "the doubt")
        self.guest_is("TestGuest", pid, state="--p---")
        # Once more, this time of the database, and of the record that it has written.
        self.restart(self.forget_everything)
        wait_until(lambda: "open whether it runs on 127.0.0.1" in self.xend.domains()[1].get("doubt", ""), "the doubt")
        self.assertEqual(self.ask_database("SELECT state FROM tickets ORDER BY ticket"), [(5,), (1,)])
        self.xend.post("/domains/TestGuest/handover", {"settle": "keep"})
        wait_until(lambda: self.xend.get("/domains/TestGuest")["state"] == "-b----", "its going on")
        self.restart(self.forget_everything)
        self.guest_is("TestGuest", pid, state="-b----")

    def leave_in_doubt(self, domain, *more):
        """What a xend that was killed leaves of a guest that another host has not answered for."""
        self.xend.kill()
        self.ask_database("UPDATE domains SET paused = 0")
        self.ask_database("INSERT INTO tickets(ticket, uuid, state, host, port, changed_at) VALUES ('00000000-0000-4000-8000-000000000009', ?, 1, '127.0.0.1', 9, "
                          "strftime('%s'))", domain["uuid"])
        for sql in more:
            self.ask_database(sql)

    def keep(self):
        self.xend.post("/domains/TestGuest/handover", {"settle": "keep"})
        wait_until(lambda: self.xend.get("/domains/TestGuest")["state"] == "-b----", "its going on")

    def test_who_is_in_doubt_is_known_without_the_history(self):
        """Of migrations, which cannot be read: that lets nobody run who may run elsewhere."""
        domain = self.xend.create()
        pid = self.xend.guest_pid(domain)
        self.xend.post("/domains/TestGuest/pause")
        self.leave_in_doubt(domain, "ALTER TABLE moves RENAME COLUMN host TO lost")
        self.xend.start()
        wait_until(lambda: "open whether it runs on 127.0.0.1" in self.xend.domains()[1].get("doubt", ""), "the doubt")
        self.assertTrue(self.xend.domains()[1]["away"])
        self.guest_is("TestGuest", pid, state="--p---")
        self.assertIn("lost", self.ask_database("SELECT sql FROM sqlite_master WHERE name = 'moves'")[0][0])
        self.keep()

    def test_tickets_that_cannot_be_read(self):
        """Then nobody is let run, and xend says why it does not start."""
        domain = self.xend.create()
        pid = self.xend.guest_pid(domain)
        self.xend.post("/domains/TestGuest/pause")
        self.leave_in_doubt(domain, "ALTER TABLE tickets RENAME COLUMN state TO lost")
        refused = self.xend.command("start")
        self.assertEqual(refused.returncode, 1)
        self.assertIn("no such column: state", refused.stderr)
        self.assertFalse(rig.dead(pid))
        self.ask_database("ALTER TABLE tickets RENAME COLUMN lost TO state")
        self.xend.start()
        wait_until(lambda: "doubt" in self.xend.domains()[1], "the doubt")
        self.guest_is("TestGuest", pid, state="--p---")
        self.keep()

    def test_the_end_of_a_guest_that_had_left_is_finished(self):
        """It was being ended: whose it is was known by then, and is not asked any more."""
        domain = self.xend.create()
        pid = self.xend.guest_pid(domain)
        self.leave_in_doubt(domain, "UPDATE domains SET phase = 2")
        self.xend.start()
        wait_until(lambda: rig.dead(pid) and self.xend.guests() == [], "its end")
        self.assertEqual(self.xend.names(), [])
        time.sleep(1)  # long enough to ask
        self.assertNotIn("is open until", self.xend.log.read_text())

    def test_nothing_is_recorded_of_a_guest(self):
        """An older xend has started it, or its record could not be written: what its process knows is enough."""
        known, silent = self.xend.create("Known"), self.xend.create("Silent", disk=[])
        pids = [self.xend.guest_pid(domain) for domain in (known, silent)]

        def forget():
            self.forget_everything()
            os.kill(pids[1], signal.SIGSTOP)
            self.record(known).unlink()
            self.record(silent).write_text("{")

        self.restart(forget)
        self.guest_is("Known", pids[0], uuid=known["uuid"], state="-b----")
        self.assertEqual(self.xend.names(), ["Known"])
        self.assertFalse(rig.dead(pids[1]))
        self.assertIn(f"The process {pids[1]} of a guest {silent['uuid']} is not known, and is left alone", self.xend.log.read_text())
        os.kill(pids[1], signal.SIGCONT)
        self.restart()
        self.guest_is("Silent", pids[1], uuid=silent["uuid"], state="-b----")

    def test_its_record_is_worth_less_than_the_database(self):
        domain = self.xend.create()
        self.change_record(domain, name="Wrong", phase="ending", recorded_ns=1)
        self.restart()
        self.assertEqual(self.xend.names(), ["TestGuest"])
        self.record(domain).unlink()
        self.restart()
        self.assertEqual(json.loads(self.record(domain).read_text())["name"], "TestGuest")

    def test_a_run_directory_of_another_boot(self):
        """Where it is on a disk: what is recorded there is of guests that ended with the host."""
        domain = self.xend.create()
        pid = self.xend.guest_pid(domain)

        def reboot():
            rig.kill(pid)
            wait_until(lambda: rig.dead(pid), "its end")
            self.change_record(domain, boot="another")
            self.forget_everything()

        self.restart(reboot)
        self.assertEqual((self.xend.names(), self.xend.guests()), ([], []))

    def test_a_database_that_cannot_be_written(self):
        domain = self.xend.create()
        pid = self.xend.guest_pid(domain)
        self.xend.kill()
        state = self.database.parent
        rig.run(f"mount --bind {state} {state} && mount -o remount,bind,ro {state}")
        refused = self.xend.command("start")
        rig.run(f"umount {state}")
        self.assertEqual(refused.returncode, 1)
        self.assertRegex(refused.stderr, f"Unable to write xend's database {self.database}: .*readonly.* Guests that run go on. Mend that and start xend again.")
        self.xend.start()
        self.guest_is("TestGuest", pid, uuid=domain["uuid"])

    def test_one_that_another_program_is_at(self):
        self.xend.create()
        store = sqlite3.connect(self.database, isolation_level=None)
        store.execute("BEGIN IMMEDIATE")
        self.refused("database is locked", self.xend.post, "/domains/TestGuest/pause")
        self.assertEqual(self.xend.get("/domains/TestGuest")["state"], "-b----")
        store.close()
        self.xend.post("/domains/TestGuest/pause")
        self.xend.post("/domains/TestGuest/unpause")

    def test_rows_that_are_damaged(self):
        """SQLite itself finds nothing wrong with them."""
        domain = self.xend.create()
        pid = self.xend.guest_pid(domain)
        for damage in ("UPDATE domains SET phase = 99", "UPDATE domains SET phase = -1", "UPDATE domains SET uuid = 'short'",
                       "UPDATE domains SET id = -5", "UPDATE domains SET config = '{'",
                       "UPDATE host SET value = 'x' WHERE key = 'next_id'", "DELETE FROM host WHERE key = 'next_id'"):
            self.restart(lambda: self.ask_database(damage))
            self.guest_is("TestGuest", pid, id=domain["id"], uuid=domain["uuid"])
        other = self.xend.create("Other", disk=[])
        self.assertGreater(other["id"], domain["id"])
        self.xend.post("/domains/Other/destroy")
        self.xend.kill()
        self.ask_database("INSERT INTO tickets(ticket, uuid, state, host, port, changed_at) VALUES ('t', 'u', 99, 'h', 1, 0)")
        refused = self.xend.command("start")
        self.assertEqual(refused.returncode, 1)
        self.assertIn("is damaged: the hand-over t has no state. Guests that run go on.", refused.stderr)
        self.ask_database("DELETE FROM tickets")
        self.xend.start()
        self.guest_is("TestGuest", pid)

    def test_too_few_descriptors(self):
        """What cannot be looked at is not taken for dead."""
        guests = {domain["name"]: self.xend.guest_pid(domain) for domain in [self.xend.create(f"G{i}", disk=[]) for i in range(8)]}
        self.xend.kill()
        for most in (22, 34):
            done = subprocess.run([rig.BUILD / "src/xend/xend", "start"], env=self.xend.environment, capture_output=True, text=True, timeout=60, check=False,
                                  preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (most, most)))
            if done.returncode == 0:  # and most guests could not be met
                time.sleep(1)
                self.xend.pid = int((self.xend.root / "run/xend.pid").read_text())
                self.xend.kill()
            else:
                self.assertIn("Too many open files", done.stderr)
        self.assertFalse(any(rig.dead(pid) for pid in guests.values()))
        self.xend.start()
        self.assertEqual({domain["name"]: self.xend.guest_pid(domain) for domain in self.xend.domains()[1:]}, guests)
        self.assertLess(self.xend.log.read_text().count("answers again"), 40)

    def test_a_database_that_cannot_be_used(self):
        domain = self.xend.create()
        pid = self.xend.guest_pid(domain)
        self.xend.kill()
        shutil.copytree(self.database.parent, self.xend.root / "backup")
        for spoil, sentence in ((lambda: self.ask_database("PRAGMA user_version = 1000"), "Install that xend again"),
                                (lambda: (self.forget_everything(), self.database.write_bytes(os.urandom(8192))), "file is not a database"),
                                (lambda: (self.forget_everything(), self.database.mkdir()), "unable to open database file")):
            self.forget_everything()
            shutil.copytree(self.xend.root / "backup", self.database.parent, dirs_exist_ok=True)
            spoil()
            refused = self.xend.command("start")
            self.assertEqual(refused.returncode, 1)
            self.assertIn(sentence, refused.stderr)
            self.assertIn("Guests that run go on", refused.stderr)
            self.assertFalse(rig.dead(pid))
        self.database.rmdir()
        shutil.copytree(self.xend.root / "backup", self.database.parent, dirs_exist_ok=True)
        self.xend.start()
        self.guest_is("TestGuest", pid, uuid=domain["uuid"])


class Silent(unittest.TestCase):
    def setUp(self):
        self.xend = Xend()
        self.addCleanup(self.xend.close)
        self.domains = [self.xend.create(name, disk=[], vif=["bridge=xenbr0"]) for name in ("One", "Two", "Three", "Four")]
        self.pids = [self.xend.guest_pid(domain) for domain in self.domains]
        self.addCleanup(self.signal_all, signal.SIGCONT)

    def signal_all(self, number):
        for pid in self.pids:
            if not rig.dead(pid):
                os.kill(pid, number)

    def refused(self, sentence, call, *arguments):
        with self.assertRaises(Refused) as refused:
            call(*arguments)
        self.assertIn(sentence, refused.exception.sentence)

    def silent(self, name):
        return "does not answer since" in {domain["name"]: domain for domain in self.xend.domains()}[name].get("doubt", "")

    def test_xend_is_restarted_while_guests_are_stopped(self):
        self.xend.kill()
        for pid in self.pids[:3]:
            os.kill(pid, signal.SIGSTOP)
        begin = time.monotonic()
        self.xend.start()
        self.assertLess(time.monotonic() - begin, 30)  # of three that say nothing, for ever
        self.assertEqual(self.xend.names(), ["One", "Two", "Three", "Four"])
        self.assertTrue(all(self.silent(name) for name in ("One", "Two", "Three")))
        self.assertFalse(self.silent("Four"))
        self.refused("is stopped (signal). It is left alone; it can be destroyed", self.xend.post, "/domains/One/pause")
        self.refused("does not answer since", self.xend.post, "/domains/One/shutdown")
        self.xend.post("/domains/Four/pause")
        self.xend.create("Five", disk=[])
        self.xend.post("/domains/Two/destroy")
        self.assertTrue(rig.dead(self.pids[1]))
        os.kill(self.pids[2], signal.SIGKILL)  # its end is seen all the same
        wait_until(lambda: "Three" not in self.xend.names(), "Three's end")
        self.signal_all(signal.SIGCONT)
        wait_until(lambda: not self.silent("One"), "One's answer")
        wait_until(lambda: self.xend.get("/domains/One")["state"] == "-b----", "One's state")
        self.assertEqual(self.xend.guest_pid(self.domains[0]), self.pids[0])
        self.xend.post("/domains/One/pause")
        self.assertEqual(self.xend.get("/domains/One")["state"], "--p---")
        self.xend.post("/domains/One/unpause")
        self.xend.post("/domains/One/shutdown")
        wait_until(lambda: "One" not in self.xend.names(), "One's end")

    def test_a_guest_is_stopped_while_xend_looks(self):
        os.kill(self.pids[0], signal.SIGSTOP)
        self.xend.domains()
        wait_until(lambda: self.silent("One"), "its being noticed")
        begin = time.monotonic()
        for _ in range(40):  # more than its socket takes
            self.xend.domains()
        self.assertLess(time.monotonic() - begin, 20)
        self.refused("is stopped (signal)", self.xend.post, "/domains/One/pause")
        os.kill(self.pids[0], signal.SIGCONT)
        wait_until(lambda: not self.silent("One"), "its answer")
        self.assertEqual(self.xend.get("/domains/One")["state"], "-b----")

    def test_a_pause_that_was_recorded_and_not_done(self):
        self.xend.kill()
        with sqlite3.connect(self.xend.root / "state/xend.db") as store:
            store.execute("UPDATE domains SET paused = 1, recorded_ns = recorded_ns + 1 WHERE name = 'One'")
        self.xend.start()
        wait_until(lambda: self.xend.get("/domains/One")["state"] == "--p---", "its standing still")
        self.xend.post("/domains/One/unpause")
        self.assertEqual(self.xend.get("/domains/One")["state"], "-b----")

    @unittest.skipUnless(EXHAUSTIVE, "takes as long as xend waits for an answer")
    def test_an_unpause_in_vain_is_undone(self):
        """Else a guest that runs would be one that is paused to whoever receives it."""
        self.xend.post("/domains/One/pause")
        hold = self.xend.root / "libexec/hold"
        hold.write_text("resume")
        try:
            self.refused("does not answer since", self.xend.post, "/domains/One/unpause")
        finally:
            hold.unlink()
        wait_until(lambda: not self.silent("One") and self.xend.get("/domains/One")["state"] == "--p---", "its standing still")
        self.xend.post("/domains/One/unpause")

    def test_what_was_asked_in_vain_is_undone(self):
        """Who had to hear that the guest was not paused finds it running, when it has answered."""
        os.kill(self.pids[0], signal.SIGSTOP)
        self.refused("does not answer since", self.xend.post, "/domains/One/pause")
        os.kill(self.pids[0], signal.SIGCONT)
        wait_until(lambda: not self.silent("One") and self.xend.get("/domains/One")["state"] == "-b----", "its going on")
        time.sleep(1)
        self.assertEqual(self.xend.get("/domains/One")["state"], "-b----")


    @unittest.skipUnless(EXHAUSTIVE, "takes as long as xend waits for an answer")
    def test_guests_that_are_slow_to_run(self):
        """They may have written to their disks by the time at which they answer: they are not ended for their silence."""
        checkpoint = str(self.xend.root / "c")
        self.xend.job("/domains/One/save", {"file": checkpoint})
        hold = self.xend.root / "libexec/hold"
        for begin in (lambda: self.xend.job("/restore", {"file": checkpoint}), lambda: self.xend.create("One", disk=[])):
            hold.write_text("resume")
            try:
                begin()
                self.assertTrue(self.silent("One"))
            finally:
                hold.unlink()
            wait_until(lambda: not self.silent("One") and self.xend.get("/domains/One")["state"] == "-b----", "its going on")
            self.xend.post("/domains/One/destroy")


class Storage(unittest.TestCase):
    """A guest's disk is on a server that is away."""

    def setUp(self):
        dead_storage.set_up(self)

    def test_xend_starts_and_manages_the_others(self):
        pids = [self.xend.guest_pid(self.xend.create(f"Far{i}", disk=[self.disk[0] + "!"])) for i in range(4)]
        self.xend.create("Near")
        self.xend.kill()
        self.storage.answers.clear()
        begin = time.monotonic()
        self.xend.start()
        self.assertLess(time.monotonic() - begin, 20)
        self.assertEqual([domain["state"] for domain in self.xend.domains()[1:]], ["-b----"] * 5)
        self.xend.post("/domains/Near/pause")
        self.xend.create("Other", disk=[])
        self.xend.post("/domains/Far0/pause")
        self.assertFalse(rig.dead(pids[0]))
        self.storage.answers.set()

    def test_killed_guests_that_cannot_end_hold_nobody_up(self):
        """Each was waited for half a minute, one after the other."""
        pids = [self.xend.guest_pid(self.xend.create(f"Far{i}", disk=[self.disk[0] + "!"], on_crash="destroy")) for i in range(2)]
        self.xend.create("Near")
        self.xend.kill()
        self.storage.answers.clear()
        for pid in pids:
            rig.kill(pid)
        begin = time.monotonic()
        self.xend.start()
        self.assertLess(time.monotonic() - begin, 30)
        self.xend.post("/domains/Near/pause")
        self.assertFalse(any(rig.dead(pid) for pid in pids))
        self.storage.answers.set()
        wait_until(lambda: self.xend.names() == ["Near"], "their ends")

    @unittest.skipUnless(os.environ.get("FERRY_EXHAUSTIVE"), "takes its time")
    def test_files_of_saves_that_cannot_be_removed_hold_nobody_up(self):
        self.xend.kill()
        with sqlite3.connect(self.xend.root / "state/xend.db") as store:
            for i in range(30):
                store.execute("INSERT INTO leftovers VALUES (?)", (f"{self.storage.place}/{i}.partial",))
        self.storage.answers.clear()
        begin = time.monotonic()
        self.xend.start()
        self.assertLess(time.monotonic() - begin, 60)
        self.xend.create("Near", disk=[])
        self.storage.answers.set()

    def test_what_an_authority_has_revoked_lies_there(self):
        config = self.xend.root / "config"
        config.write_text(config.read_text() + "(xend-relocation-server yes)\n(xend-relocation-port 18002)\n"
                          f"(xend-relocation-crl-file {self.storage.place}/disk)\n")
        self.xend.command("stop")
        self.xend.start()
        self.storage.answers.clear()
        with socket.create_connection(("10.0.0.1", 18002)) as visitor:
            visitor.send(b"hello, who is there?" * 10)
            time.sleep(1)
            self.assertEqual(self.xend.names(), [])
        self.storage.answers.set()

    def test_a_guest_is_to_be_ended_meanwhile(self):
        domain = self.xend.create("Far", disk=self.disk)
        pid = self.xend.guest_pid(domain)
        self.xend.kill()
        with sqlite3.connect(self.xend.root / "state/xend.db") as store:
            store.execute("UPDATE domains SET phase = 2")
        self.storage.answers.clear()
        self.xend.start()
        self.xend.create("Near")
        self.storage.answers.set()
        wait_until(lambda: rig.dead(pid) and self.xend.names() == ["Near"], "its end")


if __name__ == "__main__":
    rig.own_network()
    unittest.main()
