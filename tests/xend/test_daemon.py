#!/usr/bin/python3
"""xend as its clients see it: guests' lives, errors, restarts. The guests are fake, all else is real."""
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import unittest

import rig
from rig import Refused, Xend, wait_until


class Daemon(unittest.TestCase):
    def setUp(self):
        self.xend = Xend()
        self.addCleanup(self.xend.close)

    def refused(self, sentence, call, *arguments, **more):
        with self.assertRaises(Refused) as refused:
            call(*arguments, **more)
        self.assertIn(sentence, refused.exception.sentence)
        return refused.exception

    def nothing_left(self):
        self.assertEqual(self.xend.names(), [])
        self.assertEqual(self.xend.guests(), [])
        self.assertEqual([name for name in os.listdir("/sys/class/net") if name.startswith("vif")], [])

    def test_a_guest_lives_and_is_listed(self):
        domain = self.xend.create(vif=["bridge=xenbr0"])
        self.assertEqual((domain["id"], domain["name"]), (1, "TestGuest"))
        # Of a guest that is slow to answer, the list says what was known before.
        wait_until(lambda: self.xend.domains()[1]["state"] == "-b----", "its being idle")
        host, guest = self.xend.domains()
        self.assertEqual((host["name"], host["id"], host["state"]), ("Domain-0", 0, "r-----"))
        self.assertEqual((guest["memory_mib"], guest["state"], guest["cpu_time_s"]), (32, "-b----", 1.5))
        self.assertTrue(os.path.exists("/sys/class/net/vif1.0/brport"))
        self.assertEqual(self.xend.get("/domains/1")["uuid"], domain["uuid"])
        self.xend.post("/domains/TestGuest/destroy")
        self.nothing_left()
        self.assertEqual(self.xend.create()["id"], 2)

    def test_a_guest_that_names_no_bridge_joins_the_network_scripts(self):
        rig.run("ip link add name br-docker type bridge")  # before xenbr0 and guests0 in any order
        self.addCleanup(rig.run, "ip link del br-docker")
        self.xend.create(vif=[""])
        self.assertEqual(os.path.basename(os.readlink("/sys/class/net/vif1.0/master")), "xenbr0")
        self.xend.post("/domains/1/destroy")
        other = Xend(settings="(network-script 'network-bridge netdev=none bridge=guests0')")
        self.addCleanup(other.close)
        other.create(vif=[""])
        self.assertEqual(os.path.basename(os.readlink("/sys/class/net/vif1.0/master")), "guests0")
        other.post("/domains/1/destroy")
        rig.run("ip link del guests0")
        self.refused("guests0, does not exist: set network-script", other.create, vif=[""])

    def test_a_network_that_is_late_is_set_up_later(self):
        place = self.xend.files
        script, ready = place / "late", place / "ready"
        script.write_text(f'#!/bin/sh\n[ -e {ready} ] || {{ echo "The line is down."; exit 1; }}\nip link add name late0 type bridge\n')
        script.chmod(0o755)
        host = Xend(settings=f"(network-script '{script} bridge=late0')")
        self.addCleanup(host.close)
        trouble = f"The script {script} failed: The line is down."
        for vif in ("bridge=late0", ""):
            self.refused(f"The bridge late0, which network device 0 of domain 'TestGuest' is to join, is not set up yet; xend goes on trying to. {trouble}",
                         host.create, vif=[vif])
        self.assertEqual(host.get("/info")["network_trouble"], trouble)
        host.create("Other", vif=["bridge=xenbr0"])
        host.post("/domains/Other/destroy")
        ready.write_text("")
        rig.wait_until(lambda: "network_trouble" not in host.get("/info"), "the bridge")
        self.addCleanup(rig.run, "ip link del late0")
        host.create(vif=[""])
        host.post("/domains/TestGuest/destroy")
        self.assertEqual(host.log.read_text().count("The host's network is not set up for guests"), 1)
        self.assertIn("The host's network is set up for guests now.", host.log.read_text())

    def test_paused_from_the_start_and_later(self):
        self.xend.create(paused=True)
        self.assertEqual(self.xend.get("/domains/1")["state"], "--p---")
        self.xend.post("/domains/1/unpause")
        self.assertEqual(self.xend.get("/domains/1")["state"], "-b----")
        self.refused("is not paused", self.xend.post, "/domains/1/unpause")
        self.xend.post("/domains/1/pause")
        self.assertEqual(self.xend.get("/domains/1")["state"], "--p---")
        self.xend.kill()
        self.xend.start()
        self.assertEqual(self.xend.get("/domains/1")["state"], "--p---")

    def test_what_cannot_be_created(self):
        create = self.xend.create
        files = self.xend.files
        self.refused("The kernel is no kernel", create, kernel=str(files / "not-a-kernel"))
        self.refused("Unable to read the kernel /nowhere", create, kernel="/nowhere")
        self.refused("was an HVM guest of Xen", create, kernel="/usr/lib/xen/boot/hvmloader")
        twice = {"disk": [f"file:{files}/disk,xvda,w", f"file:{files}/disk,xvdb,w"]}
        sentence = self.refused("(xvdb)", create, **twice).sentence
        # A dry run says the same.
        self.assertEqual(self.refused("(xvdb)", self.xend.post, "/domains", {"config": self.xend.config(**twice), "dryrun": True}).sentence,
                         sentence)
        self.refused("Unable to read the ramdisk /nowhere", create, ramdisk="/nowhere")
        self.refused("is not a file", create, kernel="/tmp")
        self.refused("has no kernel to boot", create, kernel=None)
        self.refused("Unable to open disk /nowhere (xvda)", create, disk=["file:/nowhere,xvda,w"])
        self.refused("neither a block device nor a file", create, disk=["file:/tmp,xvda,w"])
        self.refused("Bridge nobridge", create, vif=["bridge=nobridge"])
        error = self.refused("needs 16777224 MiB", create, memory=16777216)
        self.assertRegex(error.sentence, r"this host has \d+ MiB left")
        self.refused("from 16 to", create, memory=8)
        self.refused("cannot emulate INT3", create, extra="error")
        self.refused("'colour'", create, colour="red")
        self.nothing_left()

    def test_a_host_without_kvm(self):
        few = tempfile.mkdtemp(prefix="few-", dir="/dev/shm")
        self.addCleanup(os.rmdir, few)
        xend = Xend(within=["unshare", "-m", "sh", "-c",
                            f"mount -t tmpfs none {few} && cp -a /dev/null /dev/random {few} && "
                            f'mount --move {few} /dev && exec "$0" "$@"'])
        self.addCleanup(xend.close)
        self.refused("Unable to open /dev/kvm: No such file or directory. Load the module", xend.create)
        self.assertEqual((xend.names(), xend.guests()), ([], []))

    def test_a_name_a_uuid_and_a_disk_are_taken_once(self):
        domain = self.xend.create()
        self.refused("exists already with ID 1", self.xend.create)
        self.refused("in use by domain 'TestGuest'", self.xend.create, "Other")
        self.refused("they are the same guest", self.xend.create, "Other", uuid=domain["uuid"], disk=[])
        self.refused("in use by domain 'TestGuest'", self.xend.create, "Other",
                     disk=[f"file:{self.xend.files}/disk,xvda,r"])
        self.xend.create("Other", disk=[f"file:{self.xend.files}/other-disk,xvda,r"])
        self.xend.create("Third", disk=[f"file:{self.xend.files}/other-disk,xvda,r"])
        self.assertEqual(self.xend.names(), ["TestGuest", "Other", "Third"])

    def test_another_name_of_a_disk_that_is_taken(self):
        self.xend.create()
        os.link(f"{self.xend.files}/disk", f"{self.xend.files}/same-disk")
        same = {"disk": [f"file:{self.xend.files}/same-disk,xvda,w"]}
        self.refused("in use by domain 'TestGuest'", self.xend.create, "Other", **same)
        self.xend.kill()
        self.xend.start()
        self.refused("in use by domain 'TestGuest'", self.xend.create, "Other", **same)

    def test_another_xend_cannot_have_the_disk(self):
        other = Xend()
        self.addCleanup(other.close)
        self.xend.create()
        with self.assertRaises(Refused) as refused:
            other.create(disk=[f"file:{self.xend.files}/disk,xvda,w"])
        self.assertIn("is in use", refused.exception.sentence)
        self.xend.kill()  # the lock is the guest's
        with self.assertRaises(Refused):
            other.create(disk=[f"file:{self.xend.files}/disk,xvda,w"])
        self.xend.start()
        self.xend.post("/domains/1/destroy")
        other.create(disk=[f"file:{self.xend.files}/disk,xvda,w"])

    def test_dryrun_makes_nothing(self):
        body = {"config": self.xend.config(vif=[""]), "dryrun": True}
        answer = self.xend.post("/domains", body)
        self.assertEqual(answer["name"], "TestGuest")
        body["config"]["kernel"] = "/nowhere"
        self.refused("Unable to read the kernel", self.xend.post, "/domains", body)
        body["config"]["kernel"] = str(self.xend.files / "not-a-kernel")
        self.refused(f"Domain 'TestGuest' with kernel {self.xend.files}/not-a-kernel: The kernel is no kernel", self.xend.post, "/domains", body)
        deadly = self.xend.files / "deadly"
        deadly.write_bytes(b"DEADLY")
        body["config"]["kernel"] = str(deadly)
        self.refused("The process that looks whether it boots has ended", self.xend.post, "/domains", body)
        self.nothing_left()

    def test_no_reboot_with_a_kernel_that_is_none(self):
        self.xend.create()
        (self.xend.files / "kernel").write_bytes(b"#!/bin/sh\n")
        self.refused("The kernel is no kernel", self.xend.post, "/domains/TestGuest/reboot")
        self.assertEqual(self.xend.get("/domains/TestGuest")["state"], "-b----")

    def test_shutdown_and_who_waits_for_it(self):
        self.xend.create()
        connection, response = self.xend.open("GET", "/domains/1/gone")
        self.xend.post("/domains/1/shutdown")
        self.assertEqual(response.read(), b"{}\n")
        connection.close()
        self.nothing_left()

    def test_reboot_starts_it_again_under_a_new_id(self):
        self.xend.create()
        self.xend.post("/domains/1/reboot")
        wait_until(lambda: [d["id"] for d in self.xend.domains()] == [0, 2], "the new guest")

    def test_a_guest_that_crashes_at_once_is_not_started_again(self):
        self.xend.create(extra="crash")
        wait_until(lambda: self.xend.names() == [], "its end")
        self.assertIn("is not started again", self.xend.log.read_text())
        self.nothing_left()

    def test_a_guest_that_reboots_early_is_started_again_but_not_for_ever(self):
        self.xend.create(extra="reboot")
        wait_until(lambda: self.xend.names() == [] and "is not started again" in self.xend.log.read_text(), "its end")
        self.assertGreaterEqual(len(re.findall("has started with ID", self.xend.log.read_text())), 4)
        self.nothing_left()

    def test_preserve(self):
        self.xend.create(extra="crash", on_crash="preserve")
        wait_until(lambda: self.xend.get("/domains/1")["state"] == "----c-", "its crash")
        self.refused("has ended", self.xend.post, "/domains/1/shutdown")
        self.xend.kill()
        self.xend.start()
        self.assertEqual(self.xend.get("/domains/1")["state"], "----c-")
        self.xend.post("/domains/1/destroy")
        self.nothing_left()

    def test_a_process_that_dies_is_a_crash(self):
        domain = self.xend.create(on_crash="destroy", vif=["bridge=xenbr0"])
        os.kill(self.xend.guest_pid(domain), signal.SIGKILL)
        wait_until(lambda: self.xend.names() == [], "its end")
        self.nothing_left()

    def test_guests_outlive_xend(self):
        domain = self.xend.create(vif=["bridge=xenbr0"])
        self.xend.kill()
        self.assertFalse(rig.dead(self.xend.guest_pid(domain)))
        self.xend.start()
        found = self.xend.get("/domains/TestGuest")
        self.assertEqual((found["id"], found["uuid"], found["state"]), (1, domain["uuid"], "-b----"))
        self.assertEqual(self.xend.create("Other", disk=[])["id"], 2)
        self.xend.post("/domains/1/destroy")
        self.assertEqual(self.xend.names(), ["Other"])

    def test_what_died_while_xend_was_away(self):
        domain = self.xend.create(on_crash="destroy")
        self.xend.kill()
        os.kill(self.xend.guest_pid(domain), signal.SIGKILL)
        self.xend.start()
        wait_until(lambda: self.xend.names() == [], "its end")
        self.nothing_left()

    def test_rename(self):
        self.xend.create()
        self.xend.create("Other", disk=[])
        self.refused("exists already", self.xend.post, "/domains/1/rename", {"name": "Other"})
        self.refused("", self.xend.post, "/domains/1/rename", {"name": "a/b"})
        self.xend.post("/domains/1/rename", {"name": "New"})
        self.xend.kill()
        self.xend.start()
        self.assertEqual(self.xend.names(), ["New", "Other"])

    def test_the_console(self):
        self.xend.create()
        connection, response = self.xend.open("GET", "/domains/1/console?history=1")
        self.assertEqual(response.readline(), b"console history\n")
        self.xend.ask("POST", "/domains/1/console", b"{ls\n")
        self.assertEqual(response.readline(), b"{ls\n")
        self.xend.post("/domains/1/destroy")
        self.assertEqual(response.read(), b"")
        connection.close()

    def test_domain_0_stays(self):
        for verb, word in (("destroy", "destroyed"), ("save", "saved"), ("migrate", "migrated"), ("pause", "paused")):
            body = {"file": "/tmp/x", "host": "h"}
            self.refused("Domain-0 is the host itself", self.xend.post, f"/domains/0/{verb}", body)
        self.assertEqual(self.xend.get("/domains/Domain-0")["id"], 0)

    def test_garbage_on_the_socket(self):
        for bytes_ in (b"\0" * 5000, b"GET\r\n\r\n", b"POST /domains HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n",
                       os.urandom(4096), b"DELETE /domains/1 HTTP/1.1\r\nHost: x\r\n\r\n",
                       b"HEAD /domains HTTP/1.1\r\n\r\n", b"CONNECT x:1 HTTP/1.1\r\n\r\n", b"OPTIONS * HTTP/1.1\r\n\r\n"):
            with socket.socket(socket.AF_UNIX) as garbage:
                garbage.settimeout(120)
                garbage.connect(str(self.xend.root / "socket"))
                try:
                    garbage.sendall(bytes_)
                    garbage.shutdown(socket.SHUT_WR)
                    while garbage.recv(65536):
                        pass
                except ConnectionError:  # it has not read all of it
                    pass
        self.refused("not a JSON object", self.xend.ask, "POST", "/domains", b"{]")
        self.refused("config", self.xend.post, "/domains", {"paused": True})
        self.refused("knows nothing at", self.xend.get, "/nowhere")
        for method in ("DELETE", "PUT", "PATCH", "OPTIONS"):
            self.refused("does not understand that method for '/domains'", self.xend.ask, method, "/domains")
        self.refused("Domain 'x' does not exist.", self.xend.get, "/domains/x")
        self.refused("Domain '77' does not exist.", self.xend.post, "/domains/77/destroy")
        self.assertEqual(len(self.xend.domains()), 1)

    def test_info_and_log(self):
        info = self.xend.get("/info")
        self.assertEqual(list(info)[:4], ["host", "release", "version", "machine"])
        self.assertGreater(info["total_memory"], info["free_memory"])
        connection, response = self.xend.open("GET", "/log")
        self.assertIn(b"is ready", response.read())
        connection.close()

    def test_the_log_is_kept_small_under_running_guests(self):
        xend = Xend(settings="(logfile-limit 1)")
        self.addCleanup(xend.close)
        xend.create()
        kept = [xend.root / f"xend.log.{number}" for number in range(1, 7)]
        for number in range(7):
            with open(xend.log, "ab") as log:
                log.write(b"%d\n" % number + b"." * (1 << 20) + b"\n")
            wait_until(lambda: xend.log.stat().st_size < 1 << 20, "its being begun anew")
        self.assertEqual([path.exists() for path in kept], [True] * 5 + [False])
        self.assertEqual([path.read_bytes().split(b"\n")[0] for path in kept[:5]], [b"6", b"5", b"4", b"3", b"2"])
        xend.post("/domains/1/destroy")  # what has the file open since before writes at the end of the new one
        self.assertNotIn(b"\0", xend.log.read_bytes())
        self.assertIn("is gone", xend.log.read_text())

    def test_the_daemon_itself(self):
        self.assertIn("is running", self.xend.command("status").stdout)
        self.assertEqual(self.xend.command("start").returncode, 0)
        self.assertIn("running already", self.xend.command("foreground").stderr)
        self.assertEqual(self.xend.command("stop").returncode, 0)
        self.assertIn("not running", self.xend.command("status").stderr)
        self.assertEqual(self.xend.command("status").returncode, 1)
        self.xend.start()
        for word, words in (("--version", "xend 0"), ("--help", "Usage: xend [start")):
            done = self.xend.command(word)
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            self.assertIn(words, done.stdout)
        self.assertEqual(self.xend.command("bogus").returncode, 2)

    def test_whoever_starts_it(self):
        """One that closes its files, and one that blocks signals."""
        for start in (f"import os; os.closerange(0, 3); os.execv('{rig.BUILD}/src/xend/xend', ['xend', 'start'])",
                      "import os, signal; signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32)); "
                      f"os.execv('{rig.BUILD}/src/xend/xend', ['xend', 'start'])"):
            self.assertEqual(self.xend.command("stop").returncode, 0)
            self.assertEqual(subprocess.run([sys.executable, "-c", start], env=self.xend.environment, timeout=60, check=False).returncode, 0)
            self.assertIn("is running", self.xend.command("status").stdout)
            self.assertIn("running already", self.xend.command("foreground").stderr)
            self.assertEqual(self.xend.names(), [])

    def test_a_file_in_the_place_of_the_socket_stays(self):
        config, file = self.xend.root / "config", self.xend.files / "precious"
        file.write_text("precious")
        before = config.read_text()
        config.write_text(before.replace(f"{self.xend.root}/socket", str(file)))
        self.assertIn(f"Unable to listen on {file}: there is something else of that name.", self.xend.command("restart").stderr)
        self.assertEqual(file.read_text(), "precious")
        config.write_text(before)
        self.xend.start()

    def settings(self, text):
        config = self.xend.root / "config"
        config.write_text(self.before + text)

    def test_a_start_tells_what_does_not_work(self):
        self.before = (self.xend.root / "config").read_text()
        self.settings("(xend-relocation-ca-file /nonexistent)\n(network-script nosuch)\n")
        done = self.xend.command("restart")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("Warning: No guest can move between this host and others: ", done.stderr)
        self.assertIn("/nonexistent", done.stderr)
        self.assertIn("Warning: The host's network is not set up for guests: ", done.stderr)
        self.assertIn("nosuch", done.stderr)
        self.settings("")
        (self.xend.root / "state/relocation.pem").unlink()  # a first start: a key is made
        done = self.xend.command("restart")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertIn("No guest can move", self.xend.log.read_text())
        self.assertEqual(self.xend.names(), [])

    def test_a_mistake_in_the_configuration_stops_nothing_that_runs(self):
        self.xend.create()
        self.before = (self.xend.root / "config").read_text()
        self.settings("(bogus yes)\n")
        self.assertIn("unknown option 'bogus'", self.xend.command("restart").stderr)
        self.assertIn("is running", self.xend.command("status").stdout)
        self.assertEqual(self.xend.names(), ["TestGuest"])
        asked = subprocess.run([rig.BUILD / "src/xm/xm", "list"], env=self.xend.environment, capture_output=True, text=True, timeout=60)
        self.assertIn("unknown option 'bogus'", asked.stderr)
        self.assertIn("xend is looked for at /var/lib/xend/xend-socket; XEND_SOCKET may name another place.", asked.stderr)
        socket_ = dict(self.xend.environment, XEND_SOCKET=str(self.xend.root / "socket"))
        asked = subprocess.run([rig.BUILD / "src/xm/xm", "list"], env=socket_, capture_output=True, text=True, timeout=60)
        self.assertEqual((asked.returncode, asked.stderr), (0, ""))
        self.assertIn("TestGuest", asked.stdout)
        self.assertEqual(self.xend.command("stop").returncode, 0)
        self.assertIn("unknown option 'bogus'", self.xend.command("start").stderr)
        self.settings("")
        self.xend.start()
        self.assertEqual(self.xend.names(), ["TestGuest"])

    def test_the_database_is_on_a_file_system_that_is_not_mounted(self):
        """As /etc/fstab says, here one of this test's own mount namespace."""
        domain = self.xend.create()
        self.xend.kill()
        table = self.xend.root / "fstab"
        table.write_text(f"# a table\n/dev/sda1 / ext4 defaults 0 1\n/dev/sda2 {self.xend.root}/state ext4 defaults 0 2\n")
        rig.run(f"touch /etc/fstab && mount --bind {table} /etc/fstab")
        try:
            done = self.xend.command("start")
        finally:
            rig.run("umount /etc/fstab")
        self.assertEqual(done.returncode, 1)
        self.assertIn(f"{self.xend.root}/state belongs to {self.xend.root}/state, which /etc/fstab has and which is not mounted", done.stderr)
        self.assertFalse(rig.dead(self.xend.guest_pid(domain)))
        self.xend.start()
        self.assertEqual(self.xend.names(), ["TestGuest"])


if __name__ == "__main__":
    rig.own_network()
    unittest.main()
