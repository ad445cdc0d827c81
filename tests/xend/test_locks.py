#!/usr/bin/python3
"""One owner: what is found out before a guest moves, a guest wanted on two hosts, a hand-over in doubt."""
import unittest

import rig
from rig import Refused, Xend


class Objections(unittest.TestCase):
    """All that speaks against a guest's coming is said at once, before anything is copied."""

    def hosts(self, settings="", shell="", **more):
        self.one = Xend(port=18002)
        self.addCleanup(self.one.close)
        within = ["unshare", "-m", "sh", "-c", shell.format(files=self.one.files) + ' && exec "$0" "$@"'] if shell else ()
        self.two = Xend(port=18003, settings=settings, within=within)
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
        sentence = self.objections()
        self.assertIn("10.0.0.1 refuses the guest, for 3 reasons:\n  - ", sentence)
        for part in ("needs 40 MiB", "is another disk here", "Bridge xenbr7"):
            self.assertIn(part, sentence)

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


if __name__ == "__main__":
    rig.own_network()
    unittest.main()
