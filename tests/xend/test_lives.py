#!/usr/bin/python3
"""What is said to have happened to a guest has happened: saved, destroyed, restarted. Fake guests, all else real."""
import os
import shutil
import signal
import subprocess
import unittest

import rig
from rig import Refused, Xend, wait_until


class Failing:
    """System calls of a process on some paths fail while this lasts (strace's inject)."""

    def __init__(self, pid, paths, *injections):
        orders = [word for call, how in injections for word in ("-e", f"inject={call}:{how}")]
        calls = ",".join(call for call, _ in injections)
        self.strace = subprocess.Popen(["strace", "-f", "-p", str(pid), *[word for path in paths for word in ("-P", path)], "-e", f"trace={calls}",
                                        *orders, "-o", "/dev/null"], stderr=subprocess.PIPE, text=True)
        assert "attached" in self.strace.stderr.readline()

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
        return self.xend.get("/domains/TestGuest")["state"] == "-b----"

    def full_store(self):
        """xend's database is on a file system that is full, from now on."""
        state = self.xend.root / "state"
        self.xend.kill()
        kept = self.xend.root / "kept"
        shutil.copytree(state, kept)
        rig.run(f"mount -t tmpfs -o size=1m tmpfs {state} && cp -a {kept}/. {state}/")
        self.addCleanup(rig.run, f"umount -l {state}")
        self.xend.start()
        filler = state / "filler"
        with open(filler, "wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                pass
        return filler


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


if __name__ == "__main__":
    rig.own_network()
    unittest.main()
