#!/usr/bin/python3
"""A guest's disks and its checkpoint: a disk that was written since is told before the guest can do it harm."""
import os
import random
import shutil
import subprocess
import time
import unittest

import rig
from rig import Refused, Xend

MIB = 1 << 20


class Disks(unittest.TestCase):
    def setUp(self):
        self.xend = Xend()
        self.addCleanup(self.xend.close)
        self.file = str(self.xend.files / "checkpoint")
        self.disk = self.xend.files / "disk"
        with open(self.disk, "wb") as disk:
            disk.truncate(64 * MIB)
            disk.seek(7 * MIB)
            disk.write(random.randbytes(3 * MIB))

    def save(self, **more):
        self.xend.create(**more)
        self.xend.job("/domains/TestGuest/save", {"file": self.file})

    def restore(self, **more):
        self.xend.job("/restore", {"file": self.file, **more})
        names = self.xend.names()
        self.xend.destroy_all()
        rig.wait_until(lambda: self.xend.names() == [], "its end")
        return names

    def refused(self, *parts, **more):
        with self.assertRaises(Refused) as refused:
            self.xend.job("/restore", {"file": self.file, **more})
        for part in parts:
            self.assertIn(part, refused.exception.sentence)
        self.assertEqual((self.xend.names(), self.xend.guests()), ([], []))

    def scribble(self, path, at, size):
        with open(path, "r+b") as disk:
            disk.seek(at)
            disk.write(random.randbytes(size))

    def test_a_disk_that_nobody_wrote(self):
        self.save()
        self.assertEqual(self.restore(), ["TestGuest"])
        os.utime(self.disk)
        self.assertEqual(self.restore(eager=True), ["TestGuest"])
        # It was moved to another file, and has other times.
        shutil.copy(self.disk, self.xend.files / "copy")
        os.rename(self.xend.files / "copy", self.disk)
        self.assertEqual(self.restore(), ["TestGuest"])

    def test_a_disk_that_was_written(self):
        self.save()
        for at in (0, 40 * MIB):
            self.scribble(self.disk, at, 12 * MIB)
            for options in ({}, {"eager": True}, {"paused": True}):
                self.refused(f"Disk {self.disk} (xvda) was written after the checkpoint was taken",
                             "start the guest anew with xm create", "--accept=disks", **options)
        self.refused("was written after", accept=["kernel"])
        self.assertEqual(self.restore(accept=["disks"]), ["TestGuest"])
        self.assertIn("is restored all the same", self.xend.log.read_text())

    def test_a_guest_that_ran_on(self):
        self.xend.create()
        self.xend.job("/domains/TestGuest/save", {"file": self.file, "keep": True, "live": True})
        self.scribble(self.disk, 30 * MIB, 4096)
        self.xend.destroy_all()
        rig.wait_until(lambda: self.xend.names() == [], "its end")
        self.refused("was written after")

    def test_a_disk_of_another_size(self):
        self.save()
        os.truncate(self.disk, 65 * MIB)
        self.refused(f"Disk {self.disk} (xvda) has {65 * MIB} bytes, and had {64 * MIB}")

    def test_several_disks_that_are_told_together(self):
        more = {"disk": [f"file:{self.disk},xvda,w", f"file:{self.xend.files}/other-disk,xvdb,r",
                         f"file:{self.xend.files}/shared,xvdc,w!"]}
        (self.xend.files / "shared").write_bytes(bytes(MIB))
        self.save(**more)
        self.scribble(self.xend.files / "shared", 0, MIB)
        self.assertEqual(self.restore(), ["TestGuest"])
        self.scribble(self.xend.files / "other-disk", 0, 512)
        self.assertEqual(self.restore(), ["TestGuest"])
        self.assertIn("(xvdb), which the guest only reads, was written", self.xend.log.read_text())
        self.scribble(self.disk, 0, 512)
        os.truncate(self.xend.files / "shared", 2 * MIB)
        self.refused("for 2 reasons", "(xvda) was written", "(xvdc) has")

    def test_clones(self):
        self.save()
        copy = self.xend.files / "copy"
        shutil.copy(self.disk, copy)
        clone = {"name": "Two", "eager": True, "disk": [f"file:{copy},xvda,w"]}
        self.assertEqual(self.restore(**clone), ["Two"])
        self.scribble(copy, 63 * MIB, 1)
        self.refused(f"Disk {copy} (xvda) was written", **clone)

    def test_a_disk_that_another_guest_has(self):
        """Is in use: that it was written is not what counts."""
        self.save()
        self.xend.create("Other")
        self.scribble(self.disk, 0, 512)
        with self.assertRaises(Refused) as refused:
            self.xend.job("/restore", {"file": self.file})
        self.assertIn("is in use by domain 'Other'", refused.exception.sentence)

    def block_device(self):
        done = subprocess.run(["losetup", "--find", "--show", self.disk], capture_output=True, text=True, check=False)
        if done.returncode:
            self.skipTest("no loop device here: block devices were not tried")
        device = done.stdout.strip()
        self.addCleanup(subprocess.run, ["losetup", "-d", device])
        return device

    def test_a_guest_that_is_started_again_on_its_block_device(self):
        """Which it has, as nobody else may."""
        disk = [f"phy:{self.block_device()},xvda,w"]
        self.xend.create(disk=disk, on_reboot="restart")
        self.xend.post("/domains/TestGuest/reboot")
        rig.wait_until(lambda: [domain["id"] for domain in self.xend.domains()[1:]] == [2], "its coming back")
        with self.assertRaises(Refused) as refused:
            self.xend.create("Other", disk=disk)
        self.assertIn("is in use", refused.exception.sentence)

    def test_a_block_device(self):
        device = self.block_device()
        self.save(disk=[f"phy:{device},xvda,w"])
        self.assertEqual(self.restore(), ["TestGuest"])
        self.scribble(device, 20 * MIB, 12 * MIB)
        self.refused(f"Disk {device} (xvda) was written after the checkpoint was taken")

    def test_storage_that_cannot_be_read_is_told_in_the_log_and_saves_all_the_same(self):
        self.xend.create()
        os.rename(self.disk, self.xend.files / "elsewhere")
        self.xend.job("/domains/TestGuest/save", {"file": self.file})
        self.assertIn(f"Unable to open disk {self.disk} (xvda)", self.xend.log.read_text())
        os.rename(self.xend.files / "elsewhere", self.disk)
        self.scribble(self.disk, 0, 512)
        self.assertEqual(self.restore(), ["TestGuest"])


class Entries(unittest.TestCase):
    """What disk=[…] may say."""

    def setUp(self):
        self.one = Xend(port=18002)
        self.addCleanup(self.one.close)
        self.two = Xend(port=18003)
        self.addCleanup(self.two.close)
        rig.acquaint(self.one, self.two)

    def migrate(self, **more):
        self.one.job("/domains/TestGuest/migrate", {"host": "10.0.0.1", "port": 18003, **more})
        self.assertEqual((self.one.names(), self.two.names()), ([], ["TestGuest"]))

    def test_a_drive_that_is_empty_moves_and_comes_out_of_a_file(self):
        disks = [f"file:{self.one.files}/disk,xvda,w", ",xvdb:cdrom,r", ",hdc:cdrom,r"]
        self.one.create(disk=disks)
        self.one.create("Other", disk=[",xvdb:cdrom,r"])
        file = str(self.one.files / "checkpoint")
        self.one.job("/domains/TestGuest/save", {"file": file})
        self.one.job("/restore", {"file": file})
        self.one.post("/domains/Other/destroy")
        self.migrate(live=True)
        self.assertEqual(self.two.get("/domains/TestGuest")["config"]["disk"], disks)

    def test_a_path_with_commas_quotes_and_blanks_moves(self):
        odd = self.one.files / "a, \"b\" 'c'\\d, w"
        shutil.copy(self.one.files / "disk", odd)
        plain = self.one.files / "x,y z"
        shutil.copy(self.one.files / "disk", plain)
        quoted = str(odd).replace("\\", "\\\\").replace('"', '\\"')
        self.one.create(disk=[f'file:"{quoted}",xvda,w', f"file:{plain},xvdb,w"])
        self.migrate()
        self.assertEqual(self.two.get("/domains/TestGuest")["config"]["disk"],
                         [f'file:"{quoted}",xvda,w', f'file:"{plain}",xvdb,w'])

    def test_a_path_in_latin_1_moves_and_comes_out_of_a_file(self):
        os.rename(self.one.files / "disk", os.fsencode(self.one.files) + b"/b\xe4r")
        disk = [f"file:{self.one.files}/b\uefe4r,xvda,w"]
        self.one.create(disk=disk)
        file = str(self.one.files / "checkpoint")
        self.one.job("/domains/TestGuest/save", {"file": file})
        self.assertNotIn("cannot", self.one.log.read_text())
        self.one.job("/restore", {"file": file})
        self.migrate()
        self.assertEqual(self.two.get("/domains/TestGuest")["config"]["disk"], disk)

    def test_one_disk_twice_is_the_guest_s_own_mistake(self):
        disk, link = self.one.files / "disk", self.one.files / "link"
        link.symlink_to(disk)
        for first, second in ((f"file:{disk},xvda,w", f"file:{disk},xvdb,w"), (f"file:{disk},xvda,r", f"file:{link},xvdb,w")):
            with self.assertRaises(Refused) as refused:
                self.one.create(disk=[first, second])
            self.assertIn("(xvdb) of domain 'TestGuest' is its disk xvda as well", refused.exception.sentence)
        self.one.create(disk=[f"file:{disk},xvda,r", f"file:{disk},xvdb,r"])


class Waiting(unittest.TestCase):
    def test_a_guest_that_waits_for_its_host_is_shown(self):
        xend = Xend()
        self.addCleanup(xend.close)
        domain = xend.create()["id"]
        self.assertNotIn("waits", xend.get(f"/domains/{domain}"))
        (xend.root / "libexec/waits").write_text("the storage of its disk xvda is full (No space left on device)")
        shown = xend.get(f"/domains/{domain}")
        self.assertEqual(shown["waits"], "Domain 'TestGuest' waits: the storage of its disk xvda is full (No space left on device). "
                                         "It goes on by itself when that is over.")
        (xend.root / "libexec/waits").write_text("")
        self.assertNotIn("waits", xend.get(f"/domains/{domain}"))
        self.assertIn("Domain 'TestGuest' goes on.", xend.log.read_text())


if __name__ == "__main__":
    random.seed(time.time())
    rig.own_network()
    unittest.main()
