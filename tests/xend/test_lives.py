#!/usr/bin/python3
"""What is said to have happened to a guest has happened: saved, destroyed, restarted. Fake guests, all else real."""
import http.client
import json
import os
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


class Failing:
    """System calls of a process on some paths fail while this lasts (strace's inject)."""

    def __init__(self, pid, paths, *injections):
        orders = [word for call, how in injections for word in ("-e", f"inject={call}:{how}")]
        calls = ",".join(call for call, _ in injections)
        self.strace = subprocess.Popen(["strace", "-f", "-p", str(pid), *[word for path in paths for word in ("-P", path)], "-e", f"trace={calls}",
                                        *orders, "-o", "/dev/null"], stderr=subprocess.PIPE, text=True)
        while "attached" not in (line := self.strace.stderr.readline()):
            assert line.startswith("strace: Requested path"), line

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.strace.send_signal(signal.SIGINT)
        self.strace.communicate(timeout=60)


class Lives(unittest.TestCase):
    def setUp(self):
        self.xend = Xend()
        self.addCleanup(self.xend.close)
        self.place = self.xend.root / "place"
        self.place.mkdir()
        self.checkpoint = self.place / "c"
        self.paths = [str(self.place), str(self.checkpoint)]

    def refused(self, sentence, call, *arguments, **more):
        with self.assertRaises(Refused) as refused:
            call(*arguments, **more)
        self.assertIn(sentence, refused.exception.sentence)
        return refused.exception.sentence

    def save(self, **more):
        return self.xend.job("/domains/TestGuest/save", {"file": str(self.checkpoint), **more})

    def restore(self):
        return self.xend.job("/restore", {"file": str(self.checkpoint)})

    def runs(self):
        try:
            return self.xend.get("/domains/TestGuest")["state"] == "-b----"
        except Refused:  # it has just ended
            return False

    def ids(self):
        return {domain["name"]: domain["id"] for domain in self.xend.domains()[1:]}

    def ends(self, uuid, reason, **more):
        """The guest does it by itself."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control:
            control.connect(str(self.xend.root / "run/guests" / uuid / "control"))
            control.send(json.dumps({"do": "end", "reason": reason, **more}).encode())
            control.recv(65536)

    def full_store(self):
        """xend's database is on a file system that is full, from now on."""
        state = self.xend.root / "state"
        self.xend.kill()
        kept = self.xend.root / "kept"
        shutil.copytree(state, kept)
        rig.run(f"mount -t tmpfs -o size=1m tmpfs {state} && cp -a {kept}/. {state}/")
        self.addCleanup(rig.run, f"umount -l {state}")
        self.xend.start()
        self.fill(state / "filler")
        return state / "filler"

    @staticmethod
    def fill(path):
        with open(path, "ab", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                pass


@unittest.skipUnless(shutil.which("strace"), "strace is not installed")
class Saves(Lives):
    def test_a_directory_that_cannot_be_synced(self):
        """Some file systems sync no directories: that is no failure."""
        self.xend.create()
        with Failing(self.xend.pid, self.paths, ("fsync", "error=EINVAL")):
            self.save()
        self.assertEqual(self.xend.names(), [])
        self.restore()

    def test_a_save_that_failed_leaves_no_file(self):
        self.xend.create()
        for also in ([], [("renameat2", "error=EINVAL")]):
            for force in (False, True):
                with Failing(self.xend.pid, self.paths, ("fsync", "error=EIO"), *also):
                    self.refused("Input/output error", self.save, force=force)
                self.assertEqual(os.listdir(self.place), [])
                self.assertTrue(self.runs())

    def test_a_save_that_failed_leaves_the_old_file(self):
        """Also where files cannot be exchanged, or linked."""
        self.xend.create()
        self.save(keep=True)
        before = self.checkpoint.read_bytes()
        for also in ([], [("renameat2", "error=EINVAL")],
                     [("renameat2", "error=EINVAL"), ("link", "error=EPERM")]):
            with Failing(self.xend.pid, self.paths, ("fsync", "error=EIO"), *also):
                self.refused("Input/output error", self.save, force=True)
            self.assertEqual(os.listdir(self.place), ["c"])
            self.assertEqual(self.checkpoint.read_bytes(), before)
            self.assertTrue(self.runs())
            with Failing(self.xend.pid, self.paths, *(also or [("fsync", "error=EINVAL")])):
                self.save(force=True, keep=True)
            self.assertEqual(os.listdir(self.place), ["c"])
            self.assertNotEqual(self.checkpoint.read_bytes(), before)
            before = self.checkpoint.read_bytes()
        self.save(force=True)
        self.restore()

    def test_xend_is_killed_as_the_file_gets_its_name(self):
        """Killed at the sync of the directory: by then the file is there, and the guest runs on."""
        self.xend.create()
        self.save(keep=True)
        before = self.checkpoint.read_bytes()
        for force in (True, False):
            with Failing(self.xend.pid, self.paths, ("fsync", "signal=KILL")):
                connection = self.xend.send("POST", "/domains/TestGuest/save", {"file": str(self.checkpoint), "force": force})
                wait_until(lambda: rig.dead(self.xend.pid), "xend's death")
                connection.close()
            self.assertNotEqual(self.checkpoint.read_bytes(), before)
            self.xend.start()
            wait_until(self.runs, "its going on")
            if force:
                self.assertEqual((os.listdir(self.place), self.checkpoint.read_bytes()), (["c"], before))
                self.checkpoint.unlink()
            else:
                self.assertEqual(os.listdir(self.place), [])

    def test_xend_is_killed_after_a_save_was_given_up(self):
        """Its storage answered too late, and goes on with what was asked of it."""
        with open(self.xend.root / "config", "a", encoding="utf-8") as config:
            config.write("(storage-timeout 1)\n")
        self.xend.kill()
        self.xend.start()
        self.xend.create()
        self.save(keep=True)
        before = self.checkpoint.read_bytes()
        nameless = [f"/proc/self/fd/{number}" for number in range(3, 200)]  # what gets a name
        with Failing(self.xend.pid, nameless + self.paths, ("linkat", "delay_enter=2000000"), ("fsync", "signal=KILL")):
            self.refused("its storage has not answered for 1 s", self.save, force=True, keep=True)
            self.assertTrue(self.runs())
            time.sleep(2)  # until the name is made
            wait_until(lambda: rig.dead(self.xend.pid) or len(os.listdir(self.place)) == 1, "xend's death, or an end")
        self.xend.kill()
        self.xend.start()
        self.assertEqual((os.listdir(self.place), self.checkpoint.read_bytes() == before), (["c"], True))

    def test_xend_and_the_guest_are_killed_as_the_file_gets_its_name(self):
        """Then the guest is in the file."""
        domain = self.xend.create()
        with Failing(self.xend.pid, self.paths, ("fsync", "signal=KILL")):
            connection = self.xend.send("POST", "/domains/TestGuest/save", {"file": str(self.checkpoint)})
            wait_until(lambda: rig.dead(self.xend.pid), "xend's death")
            connection.close()
        rig.kill(self.xend.guest_pid(domain))
        self.xend.start()
        self.assertEqual((self.xend.names(), os.listdir(self.place)), ([], ["c"]))
        self.refused(f"It was saved to {self.checkpoint} at", self.xend.get, "/domains/TestGuest")
        self.restore()


class Records(Lives):
    """What cannot be recorded does not happen."""

    def test_destroy_and_save_without_room_for_their_record(self):
        self.xend.create()
        filler = self.full_store()
        self.refused("is not destroyed: Unable to write xend's database", self.xend.post, "/domains/TestGuest/destroy")
        self.assertTrue(self.runs())
        for keep in (False, True):
            self.refused("Unable to write xend's database", self.save, keep=keep)
            self.assertTrue(self.runs())
            self.assertEqual(os.listdir(self.place), [])
        self.refused("Unable to write xend's database", self.xend.post, "/domains/TestGuest/reboot")
        self.refused("Unable to write xend's database", self.xend.post, "/domains/TestGuest/pause")
        self.assertTrue(self.runs())
        filler.unlink()
        self.xend.post("/domains/TestGuest/pause")
        self.xend.post("/domains/TestGuest/unpause")
        self.save()
        self.restore()
        self.xend.post("/domains/TestGuest/destroy")
        self.xend.kill()
        self.xend.start()
        self.assertEqual(self.xend.names(), [])


    def test_the_name_of_a_guest_whose_row_could_not_be_dropped_is_free(self):
        domain = self.xend.create()
        filler = self.full_store()
        self.ends(domain["uuid"], "poweroff")
        wait_until(lambda: self.ids() == {}, "its end")
        filler.unlink()
        self.xend.create("Other")
        self.xend.post("/domains/Other/rename", {"name": "TestGuest"})
        self.xend.kill()
        self.xend.start()
        self.assertEqual(list(self.ids()), ["TestGuest"])

    def test_a_reboot_without_room_for_its_record(self):
        """Until it is recorded the next xend finds what is left of the guest."""
        for how in ("killed", "stopped", "here"):
            domain = self.xend.create()
            filler = self.full_store() if how == "killed" else filler
            self.fill(filler)
            self.ends(domain["uuid"], "reboot")
            wait_until(lambda: "Unable to write xend's database" in self.xend.get("/domains/TestGuest").get("trouble", ""), "a start that fails")
            if how == "killed":
                self.xend.kill()
            elif how == "stopped":
                self.assertEqual(self.xend.command("stop").returncode, 0)
            filler.unlink()
            if how != "here":
                self.xend.start()
            wait_until(lambda: self.ids().get("TestGuest", 0) > domain["id"] and self.runs(), f"the new guest ({how})")
            self.assertEqual(len(self.xend.guests()), 1)
            self.xend.post("/domains/TestGuest/destroy")


class Endings(Lives):
    """How a guest ended can be asked for afterwards."""

    def ending(self):
        wait_until(lambda: self.xend.names() == [], "its end")
        return self.xend.get("/domains/TestGuest/ending")

    def test_a_crash_right_after_the_start(self):
        sentence = self.refused("Domain 'TestGuest' has started, and crashed at once: It panicked.", self.xend.create,
                                extra="crash busy")
        self.assertIn("xm log TestGuest shows the last of its console", sentence)
        ending = self.ending()
        self.assertEqual({key: ending[key] for key in ("name", "id", "state", "reason", "detail", "then", "console")},
                         {"name": "TestGuest", "id": 1, "state": "----c-", "reason": "crash", "detail": "It panicked.",
                          "then": "destroy", "console": "console history\n"})
        self.xend.kill()
        self.xend.start()
        self.assertEqual(self.ending(), ending)
        for name in ("TestGuest", "1"):
            self.refused(f"Domain '{name}' does not exist. It crashed at ", self.xend.get, f"/domains/{name}")
        self.refused("nothing is known", self.xend.get, "/domains/Nobody/ending")
        self.refused("has started, and crashed at once", self.xend.create, "Kept", extra="crash busy", on_crash="preserve")
        self.assertEqual(self.xend.get("/domains/Kept")["state"], "----c-")

    def test_other_ends(self):
        domain = self.xend.create()
        self.ends(domain["uuid"], "poweroff")
        self.assertEqual((self.ending()["reason"], self.ending()["state"]), ("poweroff", "---s--"))
        self.refused("It powered off at ", self.xend.get, "/domains/TestGuest")
        domain = self.xend.create(on_crash="destroy")
        os.kill(self.xend.guest_pid(domain), signal.SIGKILL)
        self.assertEqual((self.ending()["reason"], self.ending()["exit"]), ("process", "was killed by signal 9 (Killed)"))
        self.refused("Its process ended unexpectedly at ", self.xend.get, "/domains/TestGuest")
        self.xend.create()
        self.xend.post("/domains/TestGuest/destroy")
        self.refused("It was destroyed at ", self.xend.get, "/domains/TestGuest")
        self.xend.create()
        self.save()
        self.refused(f"It was saved to {self.checkpoint} at ", self.xend.get, "/domains/TestGuest")
        self.assertEqual(self.ending()["file"], str(self.checkpoint))

    def test_the_clock_is_set_back(self):
        """What ended last is known, whatever the clock had said before."""
        self.xend.kill()
        with sqlite3.connect(self.xend.root / "state/xend.db") as store:
            store.executemany("INSERT INTO endings VALUES (?, 'u', 1, 4000000000, 'crash', '', '', '', '', '', ?)",
                              [(f"Old{number}", number) for number in range(1, 201)])
        self.xend.start()
        for name in ("First", "Second"):
            self.xend.create(name)
            self.xend.post(f"/domains/{name}/destroy")
        self.assertEqual([self.xend.get(f"/domains/{name}/ending")["reason"] for name in ("First", "Second", "Old200")], ["destroyed", "destroyed", "crash"])
        self.refused("nothing is known", self.xend.get, "/domains/Old2/ending")
        self.assertEqual(self.xend.get("/domains/1/ending")["name"], "First")

    def test_a_guest_ends_while_it_is_saved(self):
        self.xend.create(on_crash="destroy")
        (self.xend.root / "libexec/dies").write_text("pause")
        self.refused("was not saved: it has ended by itself meanwhile", self.save)
        self.assertEqual(os.listdir(self.place), [])

    def test_one_address_of_a_network_is_one_guests(self):
        vif = ["mac=00:16:3e:00:00:01, bridge=xenbr0"]
        self.xend.create(vif=vif)
        self.refused("Domain 'TestGuest' has the MAC address 00:16:3e:00:00:01 on the same bridge", self.xend.create,
                     "Other", disk=[], vif=vif)


class Restarts(Lives):
    def record(self, domain):
        return json.loads((self.xend.root / "run/guests" / domain["uuid"] / "domain").read_text())

    def again(self, sentence="the new guest"):
        wait_until(lambda: self.ids().get("TestGuest", 0) > 1 and self.runs(), sentence)

    def gate(self):
        """The script that takes a guest's network device away waits while this file is there."""
        gate, script = self.xend.root / "gate", self.xend.root / "script"
        bridge = self.xend.environment["FERRY_SCRIPTDIR"] + "/vif-bridge"
        script.write_text(f'#!/bin/sh\nwhile [ "$1" = offline ] && [ -e {gate} ]; do touch {gate}.reached; sleep 0.02; done\n'
                          f'exec {bridge} "$@"\n')
        script.chmod(0o755)
        config = self.xend.root / "config"
        config.write_text(config.read_text().replace("(vif-script vif-bridge)", f"(vif-script {script})"))
        self.xend.kill()
        self.xend.start()
        gate.write_text("")
        self.addCleanup(gate.unlink, missing_ok=True)
        return gate

    def stands_at(self, gate):
        reached = gate.with_name("gate.reached")
        wait_until(reached.exists, "the guest's end")
        reached.unlink()

    def test_a_guest_that_is_kept_multiplies_not(self):
        self.xend.create(disk=[], on_reboot="rename-restart")
        self.xend.post("/domains/TestGuest/reboot")
        self.again()
        for _ in range(3):
            self.assertEqual(self.ids(), {"TestGuest-1": 1, "TestGuest": 2})
            self.assertEqual(self.xend.get("/domains/TestGuest-1")["state"], "---s--")
            self.assertEqual(len(self.xend.guests()), 2)
            self.xend.kill()
            self.xend.start()
        self.refused("exists already", self.xend.post, "/domains/1/rename", {"name": "TestGuest"})
        self.xend.post("/domains/1/rename", {"name": "Kept"})
        self.xend.kill()
        self.xend.start()
        self.assertEqual(self.ids(), {"Kept": 1, "TestGuest": 2})
        self.xend.post("/domains/Kept/destroy")
        self.assertEqual(self.ids(), {"TestGuest": 2})

    def test_a_kept_guest_is_not_started_when_its_process_dies(self):
        """Neither while xend is here nor before the next one comes."""
        for away in (False, True):
            domain = self.xend.create(on_poweroff="preserve")
            self.ends(domain["uuid"], "poweroff")
            wait_until(lambda: self.record(domain)["phase"] == "preserved", "its end")
            self.xend.kill()
            with sqlite3.connect(self.xend.root / "state/xend.db") as store:  # long ago: not right after its start
                store.execute("UPDATE domains SET booted_ns = booted_ns - 100000000000")
            if not away:
                self.xend.start()
                self.assertEqual(self.xend.get("/domains/TestGuest")["state"], "---s--")
            rig.kill(self.xend.guest_pid(domain))
            if away:
                self.xend.start()
            wait_until(lambda: (self.ids(), self.xend.guests()) == ({}, []), "its being taken away")
        self.assertEqual(self.xend.create()["id"], 3)

    def test_a_guest_is_kept_only_where_that_can_be_recorded(self):
        """Until then it is called as it was, and there is one of it."""
        domain = self.xend.create(disk=[], on_reboot="rename-restart")
        filler = self.full_store()
        self.ends(domain["uuid"], "reboot")
        wait_until(lambda: "Unable to write xend's database" in self.xend.get("/domains/TestGuest").get("trouble", ""), "a start that fails")
        self.assertEqual(self.ids(), {"TestGuest": 1})
        self.assertEqual(self.xend.get("/domains/TestGuest")["uuid"], domain["uuid"])
        filler.unlink()
        self.again()
        self.assertEqual(set(self.ids()), {"TestGuest-1", "TestGuest"})
        self.assertEqual(self.xend.get("/domains/TestGuest")["uuid"], domain["uuid"])
        self.assertEqual((self.xend.get("/domains/TestGuest-1")["state"], len(self.xend.guests())), ("---s--", 2))

    def test_destroy_during_a_reboot_destroys(self):
        for when in ("ending", "waiting"):
            gate = self.gate() if when == "ending" else None
            self.xend.create(vif=["bridge=xenbr0"])
            kernel = self.xend.files / "kernel"
            self.xend.post("/domains/TestGuest/reboot")
            if gate:
                self.stands_at(gate)
            else:
                kernel.rename(self.xend.files / "away")
                wait_until(lambda: self.xend.get("/domains/TestGuest").get("trouble"), "a start that fails")
            destroying = self.xend.send("POST", "/domains/TestGuest/destroy", {})
            time.sleep(0.2)
            if gate:
                gate.unlink()
            self.assertEqual(destroying.getresponse().status, 200)
            destroying.close()
            self.assertEqual((self.xend.names(), self.xend.guests()), ([], []))
            self.xend.kill()
            self.xend.start()
            self.assertEqual((self.xend.names(), self.xend.guests()), ([], []))

    def test_a_script_that_hangs_is_not_taken_for_storage(self):
        config = self.xend.root / "config"
        config.write_text(config.read_text() + "(storage-timeout 1)\n")
        gate = self.gate()
        self.xend.create(vif=["bridge=xenbr0"])
        self.refused("its vif-script has not ended", self.xend.post, "/domains/TestGuest/destroy")
        gate.unlink()
        wait_until(lambda: self.xend.names() == [], "its end")

    def test_xend_is_killed_while_a_guest_reboots(self):
        gate = self.gate()
        self.xend.create(vif=["bridge=xenbr0"])
        self.xend.post("/domains/TestGuest/reboot")
        self.stands_at(gate)
        self.xend.kill()
        gate.unlink()
        self.xend.start()
        self.again()
        self.assertEqual(len(self.xend.guests()), 1)

    def test_xend_is_stopped_while_a_guest_reboots(self):
        self.xend.create()
        kernel = self.xend.files / "kernel"
        self.xend.post("/domains/TestGuest/reboot")
        kernel.rename(self.xend.files / "away")
        wait_until(lambda: self.xend.get("/domains/TestGuest").get("trouble"), "a start that fails")
        self.assertEqual(self.xend.command("stop").returncode, 0)
        (self.xend.files / "away").rename(kernel)
        self.xend.start()
        self.again()

    def test_xend_is_killed_anywhere_in_a_reboot(self):
        self.xend.create(vif=["bridge=xenbr0"], on_crash="destroy")
        for step in range(10):
            before = self.ids()["TestGuest"]
            self.xend.post("/domains/TestGuest/reboot")
            time.sleep(0.1 + step * 0.015)
            self.xend.kill()
            self.xend.start()
            wait_until(lambda: self.ids().get("TestGuest", 0) > before and self.runs(), f"the new guest, step {step}")
            self.assertEqual(len(self.xend.guests()), 1)

    def test_a_start_that_fails_is_tried_again(self):
        self.xend.create()
        kernel = self.xend.files / "kernel"
        self.xend.post("/domains/TestGuest/reboot")
        kernel.rename(self.xend.files / "away")
        wait_until(lambda: "Unable to" in self.xend.get("/domains/TestGuest").get("trouble", ""), "a start that fails")
        self.refused("is being started; wait until", self.xend.post, "/domains/TestGuest/shutdown")
        self.xend.kill()
        self.xend.start()
        wait_until(lambda: "Unable to" in self.xend.get("/domains/TestGuest").get("trouble", ""), "a start that fails")
        (self.xend.files / "away").rename(kernel)
        self.again()
        self.assertNotIn("trouble", self.xend.get("/domains/TestGuest"))

    def test_a_reboot_that_is_overtaken_by_a_save(self):
        domain = self.xend.create(extra="deaf")
        self.xend.post("/domains/TestGuest/reboot")
        self.save()
        self.restore()
        self.ends(domain["uuid"], "poweroff")
        wait_until(lambda: self.ids().get("TestGuest") == 3, "the new guest")

    def test_a_reboot_in_the_middle_of_a_save(self):
        """The description of the guest is in the file already."""
        domain = self.xend.create()
        with open(self.xend.guest_ram(domain), "r+b") as ram:
            ram.seek(2 << 20)
            ram.write(os.urandom(16 << 20))
        fifo = self.xend.root / "libexec/hold"
        fifo.write_text("save-state")
        saving = self.xend.stream("/domains/TestGuest/save", {"file": str(self.checkpoint)})
        wait_until(lambda: self.xend.get("/domains/TestGuest").get("busy") == "being saved", "the save")
        self.refused("is being saved; wait until that is done, or end it", self.xend.post, "/domains/TestGuest/reboot")
        fifo.unlink()
        saving.end()

    def test_early_reboots_are_counted_by_the_next_xend_as_well(self):
        self.xend.create(extra="reboot")
        for _ in range(12):
            wait_until(lambda: not self.ids() or self.runs(), "the new guest, or its end")
            self.xend.kill()
            self.xend.start()
            time.sleep(0.5)
        self.assertEqual(self.ids(), {})
        self.assertIn("is not started again", self.xend.log.read_text())

    def test_what_was_ended_without_a_record_is_not_started_again(self):
        """The disk was full as the guest powered off: its row says that it lives."""
        domain = self.xend.create()
        filler = self.full_store()
        self.ends(domain["uuid"], "poweroff")
        wait_until(lambda: self.ids() == {}, "its end")
        self.refused("Unable to write xend's database", self.xend.create)
        filler.unlink()
        self.xend.create()  # of that name there is a row, which could not be dropped
        domain = self.xend.get("/domains/TestGuest")
        self.fill(filler)
        self.ends(domain["uuid"], "poweroff")
        wait_until(lambda: self.ids() == {}, "its end")
        self.xend.kill()
        filler.unlink()
        self.xend.start()
        wait_until(lambda: self.ids() == {}, "its end")
        time.sleep(0.5)
        self.assertEqual((self.ids(), self.xend.guests()), ({}, []))

    def test_a_guest_ends_while_xend_has_no_worker_for_it(self):
        domain = self.xend.create(on_crash="restart", extra="deaf")
        self.xend.create("Other", disk=[])
        watchers = []
        for _ in range(300):
            try:
                watchers.append(self.xend.send("GET", "/domains/Other/gone"))
            except OSError:
                break
        self.ends(domain["uuid"], "reboot")
        time.sleep(1)
        for watcher in watchers:
            watcher.close()
        wait_until(lambda: self.ids().get("TestGuest", 0) > 2, "the new guest")


class Waiting(Lives):
    def test_a_xend_that_stops_says_of_no_guest_that_it_ended(self):
        self.xend.create()
        connection, response = self.xend.open("GET", "/domains/TestGuest/gone")
        console, output = self.xend.open("GET", "/domains/TestGuest/console")
        self.xend.command("stop")
        self.assertEqual(json.loads(response.read())["error"], "xend is being stopped, and domain 'TestGuest' has not ended yet.")
        connection.close()
        with self.assertRaises(http.client.IncompleteRead):  # the end of the answer is that of the guest
            output.read()
        console.close()
        self.xend.start()
        connection, response = self.xend.open("GET", "/domains/TestGuest/gone")
        self.xend.post("/domains/TestGuest/destroy")
        self.assertEqual(json.loads(response.read()), {})
        connection.close()


class Held(Lives):
    """The kernel does not let go of a guest's process: its storage does not answer."""

    def setUp(self):
        dead_storage.set_up(self, settings="(storage-timeout 1)")

    def test_destroy_says_so_and_the_others_go_on(self):
        pid = self.xend.guest_pid(self.xend.create("Far", disk=self.disk))
        self.storage.answers.clear()
        sentence = self.refused(f"Domain 'Far' is ended, but its process {pid} has yet to end", self.xend.post, "/domains/Far/destroy")
        self.assertIn("storage that does not answer", sentence)
        self.assertFalse(rig.dead(pid))
        self.assertEqual(self.xend.get("/domains/Far")["state"][5], "d")
        self.refused("has yet to end", self.xend.post, "/domains/Far/destroy")  # once more
        self.xend.create("Near")
        self.xend.post("/domains/Near/pause")
        self.refused("Domain 'Far' exists already", self.xend.create, "Far", disk=[])
        self.storage.answers.set()
        wait_until(lambda: self.xend.names() == ["Near"], "its end")
        self.assertTrue(rig.dead(pid))
        self.assertEqual(len(self.xend.guests()), 1)
        self.assertRegex(self.xend.log.read_text(), r"Domain 'Far' \(ID 1\): its process has ended after \d+ s")


if __name__ == "__main__":
    rig.own_network()
    unittest.main()
