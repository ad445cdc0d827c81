#!/usr/bin/python3
"""What a guest needs again later: kernel, ramdisk, bridge and script, where it goes and where it is."""
import os
import unittest

import rig
from rig import Refused, Xend


def overlay(one, *files):
    """A shell command that gives the second host other files in these places; None: something that is no file."""
    commands = ["true"]
    for name, content in files:
        path = one.files / name
        if content is None:
            commands.append(f"mount --bind /dev/null {path}")
        else:
            other = one.root / f"other-{name}"
            other.write_bytes(content)
            commands.append(f"mount --bind {other} {path}")
    return " && ".join(commands)


class Moving(unittest.TestCase):
    def hosts(self, *files):
        self.one = Xend(port=18002)
        self.addCleanup(self.one.close)
        (self.one.files / "ramdisk").write_bytes(b"RAMDISK" * 1000)
        shell = overlay(self.one, *files) + ' && exec "$0" "$@"'
        self.two = Xend(port=18003, within=["unshare", "-m", "sh", "-c", shell])
        self.addCleanup(self.two.close)
        rig.acquaint(self.one, self.two)
        self.one.create(ramdisk=f"{self.one.files}/ramdisk")

    def migrate(self, **more):
        return self.one.job("/domains/TestGuest/migrate", {"host": "10.0.0.1", "port": 18003, **more})

    def refused(self, **more):
        with self.assertRaises(Refused) as refused:
            self.migrate(**more)
        self.assertEqual((self.one.names(), self.two.names()), (["TestGuest"], []))
        return refused.exception.sentence

    def test_the_same_files(self):
        self.hosts()
        self.migrate(dryrun=True)
        self.migrate()
        self.assertEqual((self.one.names(), self.two.names()), ([], ["TestGuest"]))

    def test_another_frequency(self):
        self.hosts()
        (self.two.root / "libexec/tsc_khz").write_text("3000000")
        (self.two.root / "libexec/ferry-guest").touch()
        for options in ({"dryrun": True}, {}):
            self.assertIn("time-stamp counter runs at 2000.000 MHz, this host's at 3000.000 MHz", self.refused(**options))
        self.migrate(dryrun=True, accept=["clock"])
        self.migrate(accept=["clock"])
        self.assertEqual((self.one.names(), self.two.names()), ([], ["TestGuest"]))

    def test_another_kernel_and_no_ramdisk(self):
        self.hosts(("kernel", b"KERNEL" + bytes(999) + b"!"), ("ramdisk", None))
        for options in ({"dryrun": True}, {"live": True}, {}):
            sentence = self.refused(**options)
            self.assertIn("for 2 reasons", sentence)
            self.assertIn(f"kernel {self.one.files}/kernel is another file here than on the host that the guest comes from", sentence)
            self.assertIn(f"ramdisk {self.one.files}/ramdisk is not to be had here (it is not a file)", sentence)
            self.assertIn("--accept=kernel", sentence)
        for word in ("disk", "disks"):  # the latter is for restores
            with self.assertRaises(Refused) as refused:
                self.migrate(accept=[word])
            self.assertIn(f"no difference '{word}' to accept: expected kernel or clock.", refused.exception.sentence)
        self.migrate(dryrun=True, accept=["kernel"])
        self.migrate(accept=["kernel"])
        self.assertEqual((self.one.names(), self.two.names()), ([], ["TestGuest"]))


class Restoring(unittest.TestCase):
    def setUp(self):
        self.xend = Xend()
        self.addCleanup(self.xend.close)
        self.kernel = self.xend.files / "kernel"
        self.file = str(self.xend.files / "checkpoint")

    def save(self, **more):
        self.xend.create(**more)
        self.xend.job("/domains/TestGuest/save", {"file": self.file})

    def refused(self, part, **more):
        with self.assertRaises(Refused) as refused:
            self.xend.job("/restore", {"file": self.file, **more})
        self.assertIn(part, refused.exception.sentence)
        self.assertEqual((self.xend.names(), self.xend.guests()), ([], []))

    def test_a_kernel_that_is_another_or_gone(self):
        self.save()
        before = self.kernel.read_bytes()
        self.kernel.write_bytes(b"KERNEL" + bytes(2000))
        self.refused(f"kernel {self.kernel} is another file here than when the guest was saved")
        self.refused("another file here", name="Clone")
        self.kernel.unlink()
        self.refused(f"kernel {self.kernel} is not to be had here (No such file or directory)")
        self.kernel.write_bytes(before)
        self.xend.job("/restore", {"file": self.file})
        self.assertEqual(self.xend.names(), ["TestGuest"])

    def test_a_user_may_take_the_other_one(self):
        self.save()
        self.kernel.unlink()
        self.xend.job("/restore", {"file": self.file, "accept": ["kernel"]})
        self.assertEqual(self.xend.names(), ["TestGuest"])

    def test_a_processor_that_lacks_something(self):
        self.save()
        (self.xend.root / "libexec/features").write_text("sse3")
        (self.xend.root / "libexec/ferry-guest").touch()
        (self.xend.root / "libexec/needs").write_text("vendor-Other")
        self.refused("lacks features that the guest uses: avx2, vendor-Ferry.")

    def test_a_counter_that_would_run_at_another_frequency(self):
        self.save()
        for khz, refused in (("2000400", False), ("2000600", True), ("1999000 scaling", False)):
            (self.xend.root / "libexec/tsc_khz").write_text(khz)
            (self.xend.root / "libexec/ferry-guest").touch()
            if refused:
                self.refused("time-stamp counter runs at 2000.000 MHz, this host's at 2000.600 MHz")
                self.xend.job("/restore", {"file": self.file, "accept": ["clock"]})
            else:
                self.xend.job("/restore", {"file": self.file})
            self.xend.post("/domains/TestGuest/destroy")

    def test_a_bridge_that_is_gone(self):
        rig.run("ip link add xenbr8 type bridge && ip link set xenbr8 up")
        self.save(vif=["bridge=xenbr8"])
        rig.run("ip link del xenbr8")
        self.refused("Bridge xenbr8")


class Rebooting(unittest.TestCase):
    """A reboot that could not be followed by a start is refused while the guest runs."""

    def setUp(self):
        self.xend = Xend()
        self.addCleanup(self.xend.close)

    def refused(self, part):
        with self.assertRaises(Refused) as refused:
            self.xend.post("/domains/TestGuest/reboot")
        self.assertIn(part, refused.exception.sentence)
        domain = self.xend.get("/domains/TestGuest")
        self.assertEqual((domain["id"], domain["state"]), (1, "-b----"))

    def test_its_kernel_is_gone(self):
        self.xend.create()
        os.rename(self.xend.files / "kernel", self.xend.files / "elsewhere")
        self.refused(f"Unable to read the kernel {self.xend.files}/kernel of domain 'TestGuest': No such file")
        os.rename(self.xend.files / "elsewhere", self.xend.files / "kernel")
        self.xend.post("/domains/TestGuest/reboot")
        rig.wait_until(lambda: self.xend.names() == ["TestGuest"] and self.xend.get("/domains/TestGuest")["id"] == 2, "its reboot")

    def test_its_bridge_or_disk_is_gone(self):
        rig.run("ip link add xenbr9 type bridge && ip link set xenbr9 up")
        self.xend.create(vif=["bridge=xenbr9"])
        rig.run("ip link del xenbr9")
        self.refused("Bridge xenbr9")
        rig.run("ip link add xenbr9 type bridge && ip link set xenbr9 up")
        os.rename(self.xend.files / "disk", self.xend.files / "elsewhere")
        self.refused("Unable to open disk")
        rig.run("ip link del xenbr9")

    def test_one_that_is_not_to_start_again_needs_nothing(self):
        self.xend.create(on_reboot="destroy")
        os.unlink(self.xend.files / "kernel")
        self.xend.post("/domains/TestGuest/reboot")
        rig.wait_until(lambda: self.xend.names() == [], "its end")


if __name__ == "__main__":
    rig.own_network()
    unittest.main()
