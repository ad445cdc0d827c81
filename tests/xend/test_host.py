#!/usr/bin/python3
"""The host is stopped and started: xendomains shuts guests down or saves them, and brings them back. The guests are fake, all else is real."""
import json
import os
import subprocess
import unittest

import rig
from rig import BUILD, Xend, wait_until


class Host(unittest.TestCase):
    def setUp(self):
        self.xend = Xend()
        self.addCleanup(self.xend.close)
        self.automatic, self.saves = self.xend.root / "auto", self.xend.root / "save"
        self.automatic.mkdir()
        self.record = self.xend.root / "state/xendomains"

    def xendomains(self, word, status=0, **settings):
        environment = dict(self.xend.environment, XEND_SOCKET=str(self.xend.root / "socket"), XENDOMAINS_AUTO=str(self.automatic),
                           XENDOMAINS_SAVE=str(self.saves), **settings)
        done = subprocess.run([BUILD / "src/xm/xendomains", word], env=environment, capture_output=True, text=True, timeout=240)
        self.assertEqual(done.returncode, status, done.stdout + done.stderr)
        return done.stdout + done.stderr

    def create(self, name, **more):
        return self.xend.create(name, disk=[], **more)

    def shown(self):
        return [(domain["name"], domain["state"]) for domain in self.xend.domains()[1:]]

    def test_guests_are_gone_at_the_stop_and_back_at_the_start(self):
        self.create("Down", vif=["mac=00:16:3e:00:00:01"])
        saved = self.create("Saved", on_xend_stop="suspend")
        self.create("Paused")
        self.xend.post("/domains/Paused/pause")
        self.create("Deaf", extra="deaf")
        self.create("Again", on_poweroff="restart")
        self.create("Left", on_xend_start="ignore")
        said = self.xendomains("stop", XENDOMAINS_STOP_MAXWAIT="3")
        for words in ("6 guests are to be shut down or saved", "Down: is shutting down.", "Down: is down after", "Saved: is saved to",
                      "Deaf: it has not shut down within 3 s"):
            self.assertIn(words, said)
        self.assertEqual(self.xend.names(), [])
        wait_until(lambda: not self.xend.guests(), "the end of those that are saved")
        self.assertEqual(len(os.listdir(self.saves)), 4)
        said = self.xendomains("status")
        self.assertIn("Saved: is to be restored", said)
        self.assertNotIn("Left", said)
        # The host's next boot: another one, as the database has it.
        self.xend.kill()
        self.xend.start()
        said = self.xendomains("start")
        for words in ("Down: is started.", "Saved: is restored.", "Deaf: is restored."):
            self.assertIn(words, said)
        wait_until(lambda: self.shown() == [("Down", "-b----"), ("Saved", "-b----"), ("Paused", "--p---"), ("Deaf", "-b----"), ("Again", "-b----")],
                   f"their states, not {self.shown()}")
        self.assertEqual(self.xend.get("/domains/Saved")["uuid"], saved["uuid"])
        self.assertEqual(self.xend.get("/domains/Down")["config"]["vif"], ["mac=00:16:3e:00:00:01"])
        self.assertEqual((os.listdir(self.saves), json.loads(self.record.read_text())), ([], []))
        # Nothing comes twice.
        self.xend.post("/domains/Deaf/destroy")
        self.xendomains("start")
        self.assertNotIn("Deaf", self.xend.names())

    def test_what_cannot_come_back_is_told_and_the_others_come(self):
        kernel = self.xend.files / "kernel2"
        kernel.write_bytes((self.xend.files / "kernel").read_bytes())
        self.create("First", kernel=str(kernel))
        self.create("Second", on_xend_stop="suspend")
        self.create("Third")
        self.xendomains("stop")
        kernel.unlink()
        file = self.saves / os.listdir(self.saves)[0]
        whole = file.read_bytes()
        file.write_bytes(whole[:100])
        said = self.xendomains("start", 1)
        self.assertIn(f"First: Unable to read the kernel {kernel}", said)
        self.assertIn(f"Second: It is in {file}, and can be restored with xm restore: ", said)
        self.assertEqual(self.xend.names(), ["Third"])
        # The next stop does not forget what has a file, and the next start tries it again.
        file.write_bytes(whole)
        self.xendomains("stop")
        self.xendomains("start")
        self.assertEqual(self.xend.names(), ["Second", "Third"])

    def test_a_guest_that_runs_already(self):
        self.create("TestGuest")
        record = [dict(self.xend.domains()[1], checkpoint="/nowhere")]
        self.record.write_text(json.dumps(record))
        self.xendomains("start")
        self.assertEqual(self.xend.names(), ["TestGuest"])
        self.assertEqual(json.loads(self.record.read_text()), [])

    def test_the_directory_auto(self):
        for name, more in (("One", ""), ("Two", "memory = 'much'"), ("Three.cfg", "")):
            (self.automatic / name).write_text(f"kernel = '{self.xend.files}/kernel'\nmemory = 32\n{more}\n")
        (self.automatic / "One~").write_text("an editor's")
        said = self.xendomains("start", 1)
        self.assertIn(f"{self.automatic}/Two, line 3", said)
        self.assertEqual(self.xend.names(), ["One", "Three"])
        self.xendomains("start", 1)
        self.assertEqual(self.xend.names(), ["One", "Three"])
        # In the record and in the directory: it comes once.
        self.xendomains("stop")
        self.xendomains("start", 1)
        self.assertEqual(self.xend.names(), ["One", "Three"])

    def test_xend_is_away(self):
        self.create("TestGuest")
        self.xend.kill()
        stop = subprocess.Popen([BUILD / "src/xm/xendomains", "stop"], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                env=dict(self.xend.environment, XEND_SOCKET=str(self.xend.root / "socket"), XENDOMAINS_SAVE=str(self.saves)))
        self.xend.start()
        self.assertIn("is down", stop.communicate(timeout=120)[0])
        self.assertEqual(self.xend.names(), [])


if __name__ == "__main__":
    rig.own_network()
    unittest.main()
