#!/usr/bin/python3
"""Whose word counts about a guest that was handed over: three hosts, and a name that leads to another of them than it did."""
import contextlib
import shutil
import sqlite3
import unittest

import rig
from rig import Xend, wait_until

OWNED = 5  # src/xend/store.h
NAME = "pair.test"
CLEAR = "(xend-relocation-clear-text yes)"


class Owner(unittest.TestCase):
    def hosts(self, settings=""):
        self.places = {"two": "10.0.0.2", "three": "10.0.0.3"}
        for address in self.places.values():
            rig.run(f"ip addr replace {address}/24 dev xenbr0")
        self.one = Xend(port=18002, settings=settings)
        self.addCleanup(self.one.close)
        for name, address in self.places.items():
            xend = Xend(port=18003, settings=f"(xend-relocation-address {address})\n{settings}")
            self.addCleanup(xend.close)
            setattr(self, name, xend)
            if not settings:
                self.one.trust(xend, NAME if name == "two" else address, address=address)
                xend.trust(self.one)
        self.names = self.one.root / "hosts"
        self.lead_to("two")
        rig.run(f"mount --bind {self.names} /etc/hosts")  # in this test's own mount namespace
        self.addCleanup(rig.run, "umount -l /etc/hosts")

    def lead_to(self, *hosts):
        self.names.write_text("".join(f"{self.places[host]} {NAME}\n" for host in hosts) + "127.0.0.1 localhost\n")

    def owned(self, xend):
        with contextlib.closing(sqlite3.connect(f"file:{xend.root}/state/xend.db?mode=ro", uri=True, timeout=60)) as store:
            return {ticket for ticket, in store.execute("SELECT ticket FROM tickets WHERE state = ?", (OWNED,))}

    def recorded(self, tickets):
        """Whether they are beside the guest as well."""
        return any(ticket in record.read_text() for record in (self.two.root / "run/guests").glob("*/domain") for ticket in tickets)

    def hand_over(self, before=lambda: None, beside=False):
        """The destination owns the guest, and dies before it says so; its guest runs on."""
        self.one.create(disk=[])
        (self.two.root / "libexec/lingers").write_text("resume")
        earlier = self.owned(self.two)
        migration = self.one.send("POST", "/domains/TestGuest/migrate", {"host": NAME, "port": 18003})
        wait_until(lambda: self.owned(self.two) - earlier, "the destination's record")
        if beside:
            wait_until(lambda: self.recorded(self.owned(self.two) - earlier), "the record beside the guest")
        self.two.kill()
        before()
        wait_until(lambda: "doubt" in self.one.domains()[1], "the doubt")
        return migration

    def explanation(self):
        return "\n".join(self.one.get("/domains/TestGuest/handover")["explanation"])

    def stands_still(self, *words):
        wait_until(lambda: all(word in self.explanation() for word in words), f"{words} in:\n{self.explanation()}")
        self.assertEqual(self.one.get("/domains/TestGuest")["state"], "--p---")
        self.assertNotIn("goes on here", self.one.log.read_text())

    def settled(self, migration):
        """The destination is there again, and says what it has."""
        self.two.start()
        migration.hear()
        wait_until(lambda: (self.one.names(), self.two.names()) == ([], ["TestGuest"]), "one owner")

    def test_another_host_answers_to_the_name(self):
        self.hosts()
        key, other = self.two.get("/trust")["fingerprint"], self.three.get("/trust")["fingerprint"]
        for hosts in (("three",), ("three", "two")):
            with self.subTest(hosts=hosts):
                migration = self.hand_over(lambda hosts=hosts: self.lead_to(*hosts))
                self.stands_still(f"Another host answers at 10.0.0.3: its key is {other}, and the one that is meant has {key}",
                                  f"was at 10.0.0.2, and has the key {key}")
                self.settled(migration)
                (self.two.root / "libexec/lingers").unlink()
                self.two.destroy_all()
                self.lead_to("two")

    def test_another_host_answers_to_the_name_in_clear_text(self):
        self.hosts(CLEAR)
        migration = self.hand_over(lambda: self.lead_to("three"))
        self.stands_still("What answers at 10.0.0.3 has other records than the host that the guest was handed over to")
        self.settled(migration)

    def test_the_source_starts_again_meanwhile(self):
        self.hosts()
        self.hand_over(lambda: self.lead_to("three")).close()
        self.one.create("Stays", disk=[])
        with self.assertRaises(rig.Refused):
            self.one.job("/domains/Stays/migrate", {"host": "10.0.0.3", "port": 1})
        self.one.kill()
        self.one.start()
        self.assertNotIn("older than what is recorded", self.one.log.read_text())
        self.one.post("/domains/Stays/destroy")
        self.stands_still("Another host answers at 10.0.0.3")
        state = lambda: [move["state"] for move in self.one.get("/migrations")["migrations"] if move["name"] == "TestGuest"]
        self.assertEqual(state(), ["uncertain"])
        self.two.start()
        wait_until(lambda: (self.one.names(), self.two.names()) == ([], ["TestGuest"]), "one owner")
        self.assertEqual(state(), ["done"])

    def test_the_host_has_another_address_now(self):
        self.hosts()
        migration = self.hand_over()
        self.places["two"] = "10.0.0.4"
        rig.run("ip addr replace 10.0.0.4/24 dev xenbr0")
        config = self.two.root / "config"
        config.write_text(config.read_text().replace("10.0.0.2", "10.0.0.4"))
        self.lead_to("three", "two")
        self.settled(migration)

    def forget(self, before):
        """The destination's database is what it was before it had this guest: `before`, or nothing."""
        for left in (self.two.root / "state").glob("xend.db*"):
            left.unlink()
        for record in self.two.root.glob("run/guests/*/domain"):  # else that would tell
            record.unlink()
        if before:
            shutil.copy(before, self.two.root / "state/xend.db")

    def test_a_destination_that_forgot(self):
        """An empty database, and an older one: neither is taken for a host that will never have the guest."""
        self.hosts()
        older = self.two.root / "older.db"
        with contextlib.closing(sqlite3.connect(self.two.root / "state/xend.db")) as store, \
                contextlib.closing(sqlite3.connect(older)) as copy:
            store.backup(copy)
        for before, words in ((older, "10.0.0.2 knows nothing of this hand-over"), (None, "What answers at 10.0.0.2 has other records")):
            with self.subTest(before=before):
                migration = self.hand_over()
                self.forget(before)
                self.two.start()
                if not before:  # whom it trusts is forgotten as well
                    self.two.trust(self.one)
                self.stands_still(words)
                self.stands_still(words)  # the second answer is the same
                self.one.post("/domains/TestGuest/handover", {"settle": "forget"})
                migration.hear()
                self.assertEqual(self.one.names(), [])
                (self.two.root / "libexec/lingers").unlink()
                self.two.destroy_all()

    def test_a_destination_whose_database_is_older_owns_what_it_has(self):
        """What is recorded beside the guest has the ticket by which it came."""
        self.hosts()
        older = self.two.root / "older.db"
        with contextlib.closing(sqlite3.connect(self.two.root / "state/xend.db")) as store, \
                contextlib.closing(sqlite3.connect(older)) as copy:
            store.backup(copy)
        migration = self.hand_over(beside=True)
        for left in (self.two.root / "state").glob("xend.db*"):
            left.unlink()
        shutil.copy(older, self.two.root / "state/xend.db")
        self.settled(migration)


if __name__ == "__main__":
    rig.own_network()
    unittest.main()
