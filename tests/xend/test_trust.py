#!/usr/bin/python3
"""Who may move guests to whom: keys, hosts-allow, authorities, and visitors that only take up places."""
import pathlib
import re
import socket
import ssl
import stat
import subprocess
import time
import unittest

import rig
from rig import Refused, Xend, wait_until

HERE = "10.0.0.1"


class Trust(unittest.TestCase):
    def xends(self, one="", two=""):
        self.one, self.two = Xend(port=18002, settings=one), Xend(port=18003, settings=two)
        self.addCleanup(self.two.close)
        self.addCleanup(self.one.close)

    def migrate(self):
        return self.one.job("/domains/TestGuest/migrate", {"host": HERE, "port": 18003})

    def refused(self, sentences, call, *arguments):
        with self.assertRaises(Refused) as refused:
            call(*arguments)
        for sentence in sentences:
            self.assertIn(sentence, refused.exception.sentence)

    def stays(self):
        self.assertEqual((self.one.get("/domains/TestGuest")["state"], self.two.names()), ("-b----", []))

    def logged(self, xend, *sentences):
        wait_until(lambda: all(sentence in xend.log.read_text() for sentence in sentences),
                   f"{sentences} in the log")

    def key(self, xend):
        return xend.get("/trust")["fingerprint"]

    def meet(self, xend, port):
        """What `xm trust HOST` does."""
        met = xend.post("/trust/identify", {"host": HERE, "port": port})
        xend.post("/trust", {"host": HERE, "fingerprint": met["fingerprint"], "address": met["address"]})
        return met

    def test_from_strangers_to_friends(self):
        self.xends()
        self.one.create()
        one, two = self.key(self.one), self.key(self.two)
        self.refused([f"{HERE} is not trusted by this host", two, f"Type on this host: xm trust {HERE}"], self.migrate)
        self.stays()
        self.assertEqual(self.meet(self.one, 18003), {"fingerprint": two, "address": HERE, "trusted": ""})
        self.refused([f"{HERE} does not trust this host. Type on {HERE}: xm trust {HERE}", one], self.migrate)
        self.logged(self.two, f"its key {one} is unknown here. Type on this host: xm trust {HERE}")
        self.stays()
        self.meet(self.two, 18002)
        self.migrate()
        self.assertEqual((self.one.names(), self.two.names()), ([], ["TestGuest"]))
        hosts = self.one.get("/trust")["hosts"]
        self.assertEqual([(host["host"], host["address"], host["fingerprint"]) for host in hosts], [(HERE, HERE, two)])
        self.assertLess(abs(hosts[0]["since"] - time.time()), 100)
        self.assertEqual(self.one.post("/trust/identify", {"host": HERE, "port": 18003})["trusted"], two)

    def test_what_is_forgotten_and_what_is_no_key(self):
        self.xends()
        rig.acquaint(self.one, self.two)
        self.one.create()
        self.one.post("/trust/forget", {"host": HERE})
        self.refused(["is not trusted by this host"], self.migrate)
        self.refused([f"{HERE} is not among the trusted hosts"], self.one.post, "/trust/forget", {"host": HERE})
        self.refused(["is no fingerprint"], self.one.post, "/trust", {"host": HERE, "fingerprint": "SHA256:short"})
        self.refused(["names no host"], self.one.post, "/trust", {"host": "", "fingerprint": self.key(self.two)})
        self.refused(["Unable to connect"], self.one.post, "/trust/identify", {"host": HERE, "port": 1})
        self.one.trust(self.two)
        self.two.post("/trust/forget", {"host": HERE})
        self.refused(["does not trust this host"], self.migrate)
        self.stays()

    def test_a_key_is_forgotten_under_all_its_names(self):
        self.xends()
        self.one.trust(self.two)
        key = self.key(self.one)
        for how, names in (("one.test", [HERE, "One", "one.test"]), (HERE, [HERE, "One", "one.test"]), ("10.0.0.9", ["One", "one.test"])):
            with self.subTest(how=how):
                for name in names:
                    self.two.trust(self.one, name, address="10.0.0.9" if name != HERE else HERE)
                self.two.post("/trust", {"host": "other.test", "fingerprint": self.key(self.two), "address": "10.0.0.8"})
                self.assertEqual(self.two.post("/trust/forget", {"host": how}), {"forgotten": sorted(names)})
                self.assertEqual([host["host"] for host in self.two.get("/trust")["hosts"]], ["other.test"])
        self.one.create()
        self.refused(["does not trust this host"], self.migrate)
        self.stays()
        # A host that has another key now has none under its other names that was its own before.
        for name in ("one.test", HERE):
            self.two.trust(self.one, name)
        self.two.post("/trust", {"host": "one.test", "fingerprint": self.key(self.two)})
        self.assertNotIn(key, [host["fingerprint"] for host in self.two.get("/trust")["hosts"]])

    def test_a_host_trusted_by_name_is_reached_by_address_too(self):
        self.xends()
        hosts = self.one.root / "hosts"
        hosts.write_text(f"127.0.0.1 localhost\n{HERE} two.test\n")
        rig.run(f"mount --bind {hosts} /etc/hosts")  # in this test's own mount namespace
        self.addCleanup(rig.run, "umount -l /etc/hosts")
        for xend, other in ((self.one, self.two), (self.two, self.one)):
            xend.trust(other, "two.test")
            self.assertEqual(xend.get("/trust")["hosts"][0]["address"], HERE)
        self.one.create()
        self.migrate()
        self.two.job("/domains/TestGuest/migrate", {"host": "two.test", "port": 18002})
        self.assertEqual(self.one.names(), ["TestGuest"])

    def test_the_key_is_the_hosts_own_and_stays(self):
        self.xends()
        rig.acquaint(self.one, self.two)
        path = self.two.root / "state/relocation.pem"
        self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600)
        key = self.key(self.two)
        self.assertNotEqual(key, self.key(self.one))
        self.two.kill()
        self.two.start()
        self.assertEqual(self.key(self.two), key)
        made = subprocess.run("openssl x509 -in %s -pubkey -noout | openssl pkey -pubin -outform der | "
                              "openssl dgst -sha256 -binary | base64" % path, shell=True, capture_output=True, text=True)
        self.assertEqual(f"SHA256:{made.stdout.strip().rstrip('=')}", key)

    def test_a_changed_key(self):
        self.xends()
        rig.acquaint(self.one, self.two)
        self.one.create()
        old = self.key(self.two)
        path = self.two.root / "state/relocation.pem"
        self.two.command("stop")
        path.unlink()
        self.two.start()
        self.refused([f"The key of {HERE} has changed", old, self.key(self.two),
                      f"type on this host: xm trust --forget {HERE} && xm trust {HERE}"], self.migrate)
        self.stays()
        # A key that cannot be read is not replaced: others trust it.
        self.two.command("stop")
        path.write_text("no key")
        self.two.start()
        self.refused(["cannot be used"], self.two.get, "/trust")
        self.refused([f"{HERE} closed the connection at once, and its log says why", "its own key or certificates not be usable"], self.migrate)
        self.logged(self.two, "cannot be used")
        self.assertEqual(path.read_text(), "no key")

    def test_the_destination_knows_another_key(self):
        self.xends()
        self.one.trust(self.two)
        self.two.trust(self.two)
        self.one.create()
        self.refused(["knows this host by another key", f"Type on {HERE}: xm trust --forget {HERE}"], self.migrate)
        self.logged(self.two, f"The key of {HERE} has changed")
        self.stays()

    def test_hosts_allow_comes_first(self):
        self.xends(two="(xend-relocation-hosts-allow '^10.0.0.7$')")
        rig.acquaint(self.one, self.two)
        self.one.create()
        self.refused(["closed the connection at once", "xend-relocation-hosts-allow"], self.migrate)
        self.logged(self.two, f"{HERE} may not relocate guests to this host")
        self.stays()

    def test_clear_text_only_where_both_say_so(self):
        self.xends(one="(xend-relocation-clear-text yes)")
        self.one.create()
        self.refused(["xend-relocation-clear-text"], self.migrate)
        self.refused(["in clear text"], self.one.post, "/trust/identify", {"host": HERE, "port": 18003})
        self.stays()
        self.two.command("stop")
        config = self.two.root / "config"
        config.write_text(config.read_text() + "(xend-relocation-clear-text yes)\n")
        self.two.start()
        self.migrate()
        self.assertEqual((self.one.names(), self.two.names()), ([], ["TestGuest"]))
        self.logged(self.two, "Guests move in clear text")

    def test_nothing_is_readable_on_the_line(self):
        """The guest's name and a page of its memory pass a relay that keeps everything."""
        self.xends()
        rig.acquaint(self.one, self.two)
        domain = self.one.create()
        secret = b"a password in the guest's memory"
        with open(self.one.guest_ram(domain), "r+b") as memory:
            memory.seek(3 << 20)
            memory.write(secret * 128)
        with rig.Relay(18009, (HERE, 18003)) as relay:
            self.one.job("/domains/TestGuest/migrate", {"host": HERE, "port": 18009, "live": True})
        self.assertEqual(self.two.names(), ["TestGuest"])
        seen = bytes(relay.seen)
        self.assertGreater(len(seen), 4096)
        for word in (secret, b"TestGuest", b"FERRYREL"):
            self.assertNotIn(word, seen)

    def test_an_authority(self):
        root = self.authority()
        self.xends(one=self.settings(root, "one"), two=self.settings(root, "two"))
        self.one.create()
        self.migrate()
        self.assertEqual((self.one.names(), self.two.names()), ([], ["TestGuest"]))
        self.assertFalse((self.one.root / "state/relocation.pem").exists())

    def test_a_certificate_counts_for_whose_it_is(self):
        """Any certificate of the authority's is none that moves guests here: it is for the peer's address, or a name of it."""
        root = self.authority(one="DNS:one.test", two=f"IP:{HERE}")
        names = root / "hosts"
        names.write_text("10.9.9.9 one.test\n")
        rig.run(f"mount --bind {names} /etc/hosts")  # in this test's own mount namespace
        self.addCleanup(rig.run, "umount -l /etc/hosts")
        self.xends(one=self.settings(root, "one"), two=self.settings(root, "two"))
        self.one.create()
        self.refused(['its certificate is for ["one.test"], and none of these names leads to that address'], self.migrate)
        self.stays()
        names.write_text(f"10.9.9.9 one.test\n{HERE} one.test\n")
        self.migrate()
        self.assertEqual((self.one.names(), self.two.names()), ([], ["TestGuest"]))

    def test_what_an_authority_has_revoked(self):
        root = self.authority()
        lists = f"(xend-relocation-crl-file {root}/crl.pem)"
        self.xends(one=self.settings(root, "one"), two=self.settings(root, "two") + lists)
        self.one.create()
        self.refused(["does not trust this host"], self.migrate)
        self.logged(self.two, f"Unable to read file {root}/crl.pem")
        revoke = f"cd {root} && openssl ca -config ca.cnf -keyfile ca.key -cert ca.pem "
        (root / "ca.cnf").write_text("[ca]\ndefault_ca = d\n[d]\ndatabase = index\ncrlnumber = number\ndefault_md = default\n"
                                     "default_crl_days = 2\n")
        (root / "index").touch()
        (root / "number").write_text("01\n")
        rig.run(f"{revoke} -gencrl -out crl.pem")
        self.migrate()
        self.two.job("/domains/TestGuest/migrate", {"host": HERE, "port": 18002})
        rig.run(f"{revoke} -revoke one.pem && {revoke} -gencrl -out crl.pem")
        self.refused(["does not trust this host"], self.migrate)
        self.logged(self.two, "certificate revoked")
        self.stays()
        self.two.trust(self.one)  # a key that a person has trusted counts all the same
        self.migrate()

    def test_a_dns_that_is_down_holds_up_nobody_who_is_listed_by_address(self):
        servers = pathlib.Path(rig.run("mktemp").strip())
        self.addCleanup(servers.unlink)
        servers.write_text("nameserver 10.9.9.9\noptions timeout:20 attempts:3\n")
        rig.run("ip route add 10.9.9.0/24 dev xenbr0 && ip neigh add 10.9.9.9 lladdr 02:00:00:00:00:09 dev xenbr0")
        self.addCleanup(rig.run, "ip route del 10.9.9.0/24 dev xenbr0")
        rig.run(f"mount --bind {servers} /etc/resolv.conf")
        self.addCleanup(rig.run, "umount -l /etc/resolv.conf")
        allow = "(xend-relocation-hosts-allow '^.*\\\\.test$ 10.0.0.0/24')"
        self.xends(one=allow, two=allow)
        rig.acquaint(self.one, self.two)
        self.one.create()
        self.migrate()
        self.two.post("/domains/TestGuest/destroy")
        self.one.create()  # asks the other host, which it knows by address

    @staticmethod
    def settings(root, name):
        return (f"(xend-relocation-ca-file {root}/ca.pem)\n(xend-relocation-server-ssl-cert-file {root}/{name}.pem)\n"
                f"(xend-relocation-server-ssl-key-file {root}/{name}.key)\n")

    def authority(self, one=f"IP:{HERE}", two=f"IP:{HERE}"):
        root = pathlib.Path(rig.run("mktemp -d /tmp/authority-XXXXXX").strip())
        self.addCleanup(rig.run, f"rm -r {root}")
        rig.run(f"cd {root} && openssl req -x509 -newkey ed25519 -nodes -keyout ca.key -out ca.pem -subj /CN=CA -days 2")
        for name, whose in (("one", one), ("two", two)):
            rig.run(f"cd {root} && openssl req -new -newkey ed25519 -nodes -keyout {name}.key -out {name}.csr -subj /CN={name} "
                    f"-addext subjectAltName={whose} && openssl x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key "
                    f"-CAcreateserial -days 2 -copy_extensions copy -out {name}.pem")
        return root

    def test_who_says_nothing_holds_up_nobody(self):
        self.xends()
        rig.acquaint(self.one, self.two)
        self.one.create()
        silent = [socket.create_connection((HERE, 18003)) for _ in range(40)]
        for number, one in enumerate(silent):
            try:
                one.send(b"\x16\x03\x01\x02\x00\x01"[:number % 7])
            except ConnectionError:
                pass
        began = time.monotonic()
        self.migrate()
        self.assertLess(time.monotonic() - began, 10)
        self.assertEqual((self.one.names(), self.two.names()), ([], ["TestGuest"]))
        self.logged(self.two, "connections to the relocation port were closed because they said nothing")
        for one in silent:  # in the end, all of them
            one.settimeout(120)
            try:
                while one.recv(100):
                    pass
            except ConnectionError:
                pass
            one.close()

    def test_older_protocols_and_no_certificate_get_nothing(self):
        self.xends()
        for version, sentence in ((ssl.TLSVersion.TLSv1_2, None), (ssl.TLSVersion.TLSv1_3, None)):
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.maximum_version = version
            with self.assertRaises((ssl.SSLError, ConnectionError)), socket.create_connection((HERE, 18003)) as plain:
                with context.wrap_socket(plain) as secured:  # TLS 1.3 without a certificate: refused after the fact
                    secured.send(b"FERRYREL" * 8)
                    while secured.recv(100):
                        pass
                    raise ConnectionError
        self.assertEqual(self.two.names(), [])
        self.assertFalse(re.search("Sanitizer|offer", self.two.log.read_text()))


if __name__ == "__main__":
    rig.own_network()
    unittest.main()
