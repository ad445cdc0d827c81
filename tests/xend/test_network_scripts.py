#!/usr/bin/python3
"""network-bridge and vif-bridge on hosts as they are: each keeps its addresses and routes, or is refused before anything was
changed; what fails in the middle is put back."""
import os
import re
import subprocess
import sys
import time
import unittest

from hosts import Host, is_kernels

SKIPPED = 77  # meson's exit status for a test that cannot run here
EXHAUSTIVE = os.environ.get("FERRY_EXHAUSTIVE") == "1"

UP = "link set eth0 up\n"
STATIC = "addr add 10.0.0.5/24 brd + dev eth0\n" + UP + "route add default via 10.0.0.254 dev eth0\n"

# A host with something of everything.
RICH = """link set eth0 mtu 1400
addr add 10.0.0.5/24 brd + dev eth0
addr add 10.0.0.6/24 dev eth0 label eth0:1
addr add 192.0.2.7/32 dev eth0
addr add 2001:db8::5/64 dev eth0
addr add 2001:db8::6/128 preferred_lft 0 dev eth0
link set eth0 up
link add other type veth peer name elsewhere
link set other up
route add 192.168.9.0/24 dev other src 10.0.0.5
route add 172.31.1.1 dev eth0 scope link
route add default via 172.31.1.1 dev eth0 src 192.0.2.7 metric 100 proto static
route add default via 10.0.0.254 dev eth0 metric 200 mtu 1300
route add 10.9.0.0/16 via 10.0.0.253 dev eth0 table 77
route add 203.0.113.0/24 via 203.0.113.9 dev eth0 onlink
-6 route add default via fe80::1 dev eth0 metric 512
-6 route add 2001:db8:9::/48 via 2001:db8::1 dev eth0 src 2001:db8::5
neigh add 10.0.0.254 lladdr 02:00:00:00:00:01 dev eth0 nud permanent
neigh add 2001:db8::1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent
neigh add proxy 10.0.0.77 dev eth0
rule add from 10.0.0.6 table 77
"""

KEPT = {
    "no default route": "addr add 10.0.0.1/24 dev eth0\n" + UP,
    "a static address": STATIC,
    "two addresses in one subnet": "addr add 10.0.0.6/24 dev eth0\n" + STATIC + "addr add 10.0.0.7/24 dev eth0\n",
    "a gateway on the link": "addr add 192.0.2.7/32 dev eth0\n" + UP + "route add 172.31.1.1 dev eth0\n"
                             "route add default via 172.31.1.1 dev eth0\n",
    "a gateway that is said to be on the link": "addr add 192.0.2.7/32 dev eth0\n" + UP +
                                                "route add default via 172.31.1.1 dev eth0 onlink\n",
    "a gateway of the other protocol": "addr add 192.0.2.7/32 dev eth0\n" + UP + "route add default via inet6 fe80::1 dev eth0\n",
    "an address with a peer": "addr add 192.0.2.7 peer 192.0.2.8/32 dev eth0\n" + UP + "route add default via 192.0.2.8 dev eth0\n",
    "IPv6 besides": STATIC + "addr add 2001:db8::5/64 dev eth0\naddr add 2001:db8::6/64 dev eth0\n"
                    "-6 route add default via fe80::1 dev eth0\n",
    "IPv6 only": "addr add 2001:db8::5/64 dev eth0\naddr add fe80::5/64 dev eth0\n" + UP +
                 "-6 route add default via 2001:db8::1 dev eth0\n",
    "IPv6 from a router": STATIC + "addr add 2001:db8::5/64 mngtmpaddr dev eth0 valid_lft 3600 preferred_lft 1800\n"
                          "-6 route add default via fe80::1 dev eth0 proto ra metric 1024 expires 1800\n",
    "large frames": "link set wire mtu 9000\nlink set eth0 mtu 9000\n" + STATIC,
    "small frames": "link set eth0 mtu 1280\n" + STATIC,
    "no route of its own": "addr add 10.0.0.5/24 noprefixroute metric 50 dev eth0\n" + UP + "route add 10.0.0.0/25 dev eth0\n",
    "its own route away": STATIC + "route del 10.0.0.0/24 dev eth0\nroute add 10.0.0.0/24 dev eth0 metric 7\n",
    "two ways": STATIC + "route append 10.7.0.0/16 via 10.0.0.2 dev eth0\nroute append 10.7.0.0/16 via 10.0.0.3 dev eth0\n"
                "route add 10.8.0.0/16 nexthop via 10.0.0.2 dev eth0 weight 2 nexthop via 10.0.0.3 dev eth0\n"
                "-6 route add 2001:db8:9::/48 nexthop via fe80::2 dev eth0 nexthop via fe80::3 dev eth0\n",
    "with something of everything": RICH,
}

# What is told of these, and what is there besides ip's doing.
REFUSED = {
    "a lease": ("by DHCP", "addr add 10.0.0.5/24 valid_lft 3600 preferred_lft 3600 dev eth0\n" + UP +
                "route add default via 10.0.0.254 dev eth0\n", ""),
    "a lease of IPv6": ("by DHCP", STATIC + "addr add 2001:db8::5/128 valid_lft 3600 preferred_lft 3600 dev eth0\n", ""),
    "a leased route": ("routes by DHCP", "addr add 10.0.0.5/24 dev eth0\n" + UP + "route add default via 10.0.0.254 dev eth0 proto dhcp\n", ""),
    "NetworkManager": ("NetworkManager", STATIC, "mkdir -p /run/NetworkManager/devices; "
                       "printf '[device]\\nmanaged=true\\n' >/run/NetworkManager/devices/$(cat /sys/class/net/eth0/ifindex)"),
    "systemd-networkd": ("systemd-networkd", STATIC, "mkdir -p /run/systemd/netif/links; "
                         "printf 'ADMIN_STATE=configured\\n' >/run/systemd/netif/links/$(cat /sys/class/net/eth0/ifindex)"),
    "ifupdown with DHCP": ("/etc/network/interfaces", "addr add 10.0.0.5/24 dev eth0\n" + UP,
                           "mkdir -p /run/etc/interfaces.d; mkdir -p /etc/network; mount --bind /run/etc /etc/network; "
                           "printf 'auto eth0\\niface eth0 inet dhcp\\n' >/run/etc/interfaces.d/eth0"),
    "no address yet": ("no default route yet", UP, ""),
    "no device": ("no default route yet", "link set eth0 name lan0\n", ""),
    "a default route over a bridge": ("guests can join it (bridge=br0)", "link add name br0 type bridge\naddr add 10.0.0.5/24 dev br0\n"
                                      "link set br0 up\nroute add default via 10.0.0.254 dev br0\n", ""),
    "another's": ("belongs to br0", "link add name br0 type bridge\naddr add 10.0.0.5/24 dev eth0\nlink set eth0 master br0 up\n", ""),
    "a rule that names it": ("routing rule", STATIC + "rule add iif eth0 table 77\n", ""),
    "next hops": ("ip nexthop", STATIC + "nexthop add id 5 via 10.0.0.2 dev eth0\nroute add 10.7.0.0/16 nhid 5\n", ""),
    "no Ethernet": ("no Ethernet", "tuntap add tun0 mode tun\naddr add 10.0.0.5/24 dev tun0\nlink set tun0 up\n"
                    "route add default dev tun0\n", ""),
    "the name taken": ("no bridge", STATIC + "link add xenbr0 type veth peer name elsewhere\n", ""),
    "a bridge for the host's own": ("netdev=none", STATIC + "link add name xenbr0 type bridge\naddr add 192.168.1.1/24 dev xenbr0\n"
                                    "link set xenbr0 up\n", ""),
}


class NetworkBridge(unittest.TestCase):
    def host(self, *arguments, **more):
        host = Host(*arguments, **more)
        self.addCleanup(host.close)
        return host

    def started(self, host, *words, **more):
        status, said = host.script("start", *words, **more)
        self.assertEqual(status, 0, said)
        return said

    def moved(self, host, before, after, device="eth0", bridge="xenbr0"):
        """Whatever the device had, the bridge has."""
        def of(state, name):
            entry = next(entry for entry in state["addresses"] if entry["ifname"] == name)
            return [address for address in entry["addr_info"] if not is_kernels(address)], entry

        def renamed(thing):
            return re.sub(rf"\b{device}\b", bridge, str(thing))

        old, device_before = of(before, device)
        new, bridge_after = of(after, bridge)
        self.assertEqual(renamed(old), str(new))
        self.assertEqual(device_before["mtu"], bridge_after["mtu"])
        self.assertEqual(device_before["address"], bridge_after["address"])
        self.assertEqual(of(after, device)[0], [])
        for part in ("routes", "routes6", "neighbours", "proxies"):
            self.assertEqual(sorted(renamed(line) for line in before[part] if not line.startswith("fe80::/64 ")),
                             sorted(line for line in after[part] if not line.startswith("fe80::/64 ")))
        self.assertEqual(before["rules"], after["rules"])
        # Alternatives for one destination stay in their order.
        alternatives = [[line for line in state["routes"] if line.startswith("10.7.")] for state in (before, after)]
        self.assertEqual([renamed(line) for line in alternatives[0]], alternatives[1])

    def test_a_host_keeps_its_addresses_and_routes(self):
        for name, setup in KEPT.items():
            with self.subTest(name):
                host = self.host(setup)
                before = host.state()
                self.started(host)
                after = host.state()
                self.moved(host, before, after)
                host.sh("test -e /sys/class/net/eth0/brport")
                # Again, it changes nothing.
                self.started(host)
                self.assertEqual(host.state(), after)
                status, said = host.script("stop")
                self.assertEqual(status, 0, said)
                self.assertEqual(host.state(), before)

    def test_a_host_that_would_lose_something_is_refused(self):
        for name, (sentence, setup, more) in REFUSED.items():
            with self.subTest(name):
                host = self.host(setup)
                host.sh(more or "true")
                before = host.state()
                status, said = host.script("start")
                self.assertEqual(status, 1)
                self.assertIn(sentence, said)
                self.assertEqual(said.count("\n"), 1, said)
                self.assertEqual(host.state(), before)

    def test_a_dhcp_client_that_has_no_lease_yet(self):
        host = self.host(UP + "link add eth1 type veth peer name wire1\n")
        before = host.state()
        for name, words, refused in (("dhclient", ["-v", "eth0"], True), ("dhcpcd", ["-q", "-w"], True), ("udhcpc", ["-i", "eth1"], False)):
            client = subprocess.Popen(host.inside("python3", "-c", CLIENT, *words, name), stdout=subprocess.PIPE)
            client.stdout.readline()
            status, said = host.script("start", "netdev=eth0")
            client.kill()
            client.wait()
            client.stdout.close()
            self.assertEqual(status, int(refused), said)
            if refused:
                self.assertIn(f"The DHCP client {name} looks after eth0", said)
                self.assertEqual(host.state(), before)

    def test_one_is_at_work_at_a_time(self):
        """One of a xend that was killed may still be."""
        host = self.host(STATIC)
        before = host.state()
        host.sh("(exec 9</proc/self/ns/net; flock 9; touch /run/held; sleep 1.5; [ -e /sys/class/net/xenbr0 ] || touch /run/waited) >/dev/null 2>&1 & "
                "while [ ! -e /run/held ]; do sleep 0.05; done")
        self.started(host)
        host.sh("ls /run/waited")
        self.moved(host, before, host.state())

    def test_a_bridge_without_a_device_gets_it(self):
        host = self.host(STATIC + "link add name xenbr0 type bridge\n")
        before = host.state()
        self.started(host)
        self.moved(host, before, host.state())

    def test_what_was_left_in_the_middle_is_finished(self):
        host = self.host(STATIC)
        before = host.state()
        host.sh("ip link add name xenbr0 type bridge; ip link set xenbr0 address $(cat /sys/class/net/eth0/address) up; "
                "ip link set eth0 master xenbr0")
        self.started(host)
        self.moved(host, before, host.state())

    def test_a_device_without_addresses_joins_a_bridge_that_has_some(self):
        host = self.host("link add name xenbr0 type bridge\naddr add 192.168.1.1/24 dev xenbr0\nlink set xenbr0 up\n")
        self.started(host, "netdev=eth0")
        self.assertIn("192.168.1.1/24", host.sh("ip addr show dev xenbr0"))
        self.assertIn("master xenbr0", host.sh("ip link show dev eth0"))
        self.assertIn("UP", host.sh("ip link show dev eth0"))

    def test_what_is_said_of_wrong_words(self):
        host = self.host(STATIC + "link add name xenbr0 type bridge\nlink add eth1 type veth peer name wire1\nlink set eth1 master xenbr0\n")
        before = host.state()
        for words, sentence in ((["start", "netdev=eth0"], "has eth1 in it already"), (["start", "bridge=a/b"], "no name"),
                                (["start", "bridge=br1", "netdev=eth7"], "does not exist"), (["start", "brigde=x"], "does not know"),
                                (["go"], "Usage: "), (["status", "bridge=br1"], "There is no bridge br1")):
            status, said = host.script(*words)
            self.assertEqual(status, 1, words)
            self.assertIn(sentence, said)
        self.assertEqual(host.state(), before)
        self.started(host, "bridge=br1", "netdev=none")
        self.assertIn("UP", host.sh("ip link show dev br1"))

    def test_whatever_fails_everything_is_put_back(self):
        host = self.host(RICH)
        before = host.state()
        host.at(0)
        self.started(host)
        calls = host.calls()
        after = host.state()
        self.assertEqual(host.script("stop")[0], 0)
        self.assertEqual(host.state(), before)
        changes = [number for number, call in enumerate(calls, 1) if " show" not in call]
        rounds = [(number, how) for number in range(1, len(calls) + 1) for how in ("before", "after", "killed")]
        if not EXHAUSTIVE:
            rounds = [(number, ("before", "after", "killed")[i % 3]) for i, number in enumerate(changes[::2])]
        for number, how in rounds:
            with self.subTest(call=calls[number - 1], how=how):
                host.at(number, how)
                status, said = host.script("start")
                host.at(0)
                if status == 0:  # it was no matter
                    self.assertEqual(host.state(), after)
                    self.assertEqual(host.script("stop")[0], 0)
                else:
                    self.assertNotIn("Not everything could be put back", said)
                self.assertEqual(host.state(), before)

    def test_stopping_that_fails_is_put_back(self):
        host = self.host(RICH)
        self.started(host)
        before = host.state()
        host.at(0)
        self.assertEqual(host.script("stop")[0], 0)
        calls = host.calls()
        self.started(host)
        changes = [number for number, call in enumerate(calls, 1) if " show" not in call]
        for i, number in enumerate(changes[::1 if EXHAUSTIVE else 5]):
            how = ("before", "after", "killed")[i % 3]
            with self.subTest(call=calls[number - 1], how=how):
                host.at(number, how)
                status, said = host.script("stop")
                host.at(0)
                if status == 0:
                    self.started(host)
                else:
                    self.assertNotIn("Not everything could be put back", said)
                self.assertEqual(host.state(), before)

    def test_a_device_that_cannot_join(self):
        host = self.host("addr add 10.0.0.5/24 dev eth0\n" + UP + "link add link eth0 name above type macvlan\nlink set above up\n")
        before = host.state()
        status, said = host.script("start")
        self.assertEqual(status, 1)
        self.assertIn("eth0 cannot join the bridge xenbr0. Everything is as it was.", said)
        self.assertEqual(host.state(), before)

    def test_docker_lets_the_bridge_through(self):
        for rules, chain in ((["-P FORWARD DROP", "-N DOCKER-USER", "-A FORWARD -j DOCKER-USER"], "DOCKER-USER"),
                             (["-P FORWARD DROP", "-A FORWARD -o docker0 -j DOCKER"], "FORWARD")):
            host = self.host(STATIC)
            path = host.packet_filter(rules)
            for _ in range(2):
                self.assertEqual(self.started(host, path=path), "")
                self.assertEqual((host.directory / "rules").read_text().splitlines(),
                                 [*rules, f"-A {chain} -i xenbr0 -o xenbr0 -j ACCEPT"])

    def test_a_packet_filter_of_ones_own_is_left_alone_and_told_of(self):
        for rules, sentence in ((["-P FORWARD DROP"], "iptables -I FORWARD -i xenbr0 -o xenbr0 -j ACCEPT"),
                                (["-P FORWARD ACCEPT", "-N DOCKER-USER"], "")):
            host = self.host(STATIC)
            said = self.started(host, path=host.packet_filter(rules))
            self.assertIn(sentence, said)
            self.assertEqual(bool(said), bool(sentence))
            self.assertEqual((host.directory / "rules").read_text().splitlines(), rules)


# A process that has the name of the last word, and does nothing.
CLIENT = "import sys, time; open('/proc/self/comm', 'w').write(sys.argv[-1]); print(flush=True); time.sleep(600)"


class VifBridge(unittest.TestCase):
    def test_a_guest_of_a_bridge_with_large_frames_leaves_them_large(self):
        host = Host("link set wire mtu 9000\nlink set eth0 mtu 9000\n" + STATIC + "tuntap add vif1.0 mode tap\n")
        self.addCleanup(host.close)
        self.assertEqual(host.script("start")[0], 0)
        before = host.state()
        vif = {"vif": "vif1.0", "bridge": "xenbr0", "domain": "TestGuest", "name": "vif-bridge"}
        status, said = host.script("online", **vif)
        self.assertEqual(status, 0, said)
        device = next(entry for entry in host.state()["addresses"] if entry["ifname"] == "vif1.0")
        self.assertEqual((device["mtu"], device["master"], device["address"]), (9000, "xenbr0", "fe:ff:ff:ff:ff:ff"))
        self.assertEqual(device["addr_info"], [])
        self.assertIn("mtu 9000", host.sh("ip link show dev xenbr0"))
        status, said = host.script("stop")
        self.assertIn("Guests still use the bridge xenbr0 (vif1.0)", said)
        self.assertEqual(host.script("offline", **vif)[0], 0)
        host.sh("ip link del vif1.0")
        self.assertEqual(host.script("offline", **vif)[0], 0)
        before["addresses"] = [entry for entry in before["addresses"] if entry["ifname"] != "vif1.0"]
        self.assertEqual(host.state(), before)

    def test_docker_that_came_later_lets_a_guest_through(self):
        host = Host(STATIC + "tuntap add vif1.0 mode tap\n")
        self.addCleanup(host.close)
        self.assertEqual(host.script("start")[0], 0)
        path = host.packet_filter(["-P FORWARD DROP", "-N DOCKER-USER"])
        status, said = host.script("online", path=path, vif="vif1.0", bridge="xenbr0", name="vif-bridge")
        self.assertEqual((status, said), (0, ""))
        self.assertIn("-A DOCKER-USER -i xenbr0 -o xenbr0 -j ACCEPT\n", (host.directory / "rules").read_text())


class FromARouter(unittest.TestCase):
    def test_the_bridge_hears_the_router_as_the_device_did(self):
        host = Host(UP)
        self.addCleanup(host.close)
        router = subprocess.Popen(host.inside(sys.executable, "-c", ROUTER, "wire"))
        self.addCleanup(router.wait)
        self.addCleanup(router.kill)

        def announced(device):
            for _ in range(400):
                if "dynamic" in host.sh(f"ip -6 addr show dev {device} scope global") and host.sh(
                        f"ip -6 route show default dev {device} proto ra metric 1024"):
                    return True
                time.sleep(0.1)
            return False

        self.assertTrue(announced("eth0"))
        status, said = host.script("start")
        self.assertEqual(status, 0, said)
        # At once with what was known, then by the router's own word.
        self.assertIn("proto ra", host.sh("ip -6 route show default dev xenbr0"))
        self.assertIn("dynamic", host.sh("ip -6 addr show dev xenbr0 scope global"))
        self.assertTrue(announced("xenbr0"))
        self.assertEqual(host.sh("ip -6 addr show dev eth0"), "")


# Announces 2001:db8:5::/64 and itself five times a second (RFC 4861, 4.2 and 4.6.2).
ROUTER = """
import socket, struct, sys, time
line = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
line.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
index = socket.if_nametoindex(sys.argv[1])
prefix = struct.pack("!BBBBIII16s", 3, 4, 64, 0xc0, 7200, 3600, 0, socket.inet_pton(socket.AF_INET6, "2001:db8:5::"))
while True:
    try:
        line.sendto(struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0) + prefix, ("ff02::1", 0, 0, index))
    except OSError:
        pass
    time.sleep(0.2)
"""


if __name__ == "__main__":
    if os.geteuid() != 0 or subprocess.run(["unshare", "-n", "-m", "true"], check=False).returncode != 0:
        print("skipped: needs root and network namespaces")
        sys.exit(SKIPPED)
    unittest.main(verbosity=2)
