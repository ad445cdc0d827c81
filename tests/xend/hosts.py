"""Hosts of one network namespace each, for the network scripts: a `ip` that can be made to fail, and all that a host has to
compare."""
import json
import os
import pathlib
import re
import subprocess
import tempfile

SCRIPTS = pathlib.Path(__file__).resolve().parent.parent.parent / "scripts"

# Fails the call whose number stands in the file `at`, before or after it has done its work, or sends its caller SIGTERM then.
FAILING_IP = """#!/bin/sh
read -r count <{directory}/count
read -r at how <{directory}/at
count=$((count + 1))
echo $count >{directory}/count
echo "$*" >>{directory}/calls
[ $count = $at ] || exec {ip} "$@"
trap '' TERM
[ $how = before ] || {ip} "$@"
[ $how != killed ] || {{ kill -TERM 0; exit 0; }}
echo "no $*" >&2
exit 2
"""

# As much of iptables as network-bridge asks for; its rules are lines of a file.
IPTABLES = """#!/bin/sh
rules={directory}/rules
shift 2
verb=$1 chain=$2
shift 2
grep -q "^-[PN] $chain" $rules || exit 1
case $verb in
-S) grep "^-[PNA] $chain\\( \\|$\\)" $rules ;;
-C) grep -qxF -e "-A $chain $*" $rules ;;
-I) echo "-A $chain $*" >>$rules ;;
esac
"""

# Passing things: how long something is valid, when it was looked at, numbers that the kernel draws.
PASSING = ("ifindex", "link_index", "link_netnsid", "valid_life_time", "preferred_life_time", "expires", "tentative",
           "stats64", "cache", "temp_addr", "promiscuity", "allmulti", "gc_timer", "hello_timer", "tcn_timer",
           "topology_change_timer", "num_tx_queues", "num_rx_queues", "linkinfo", "bridge_id", "root_id")


def without_passing(thing):
    if isinstance(thing, dict):
        return {key: without_passing(value) for key, value in thing.items() if key not in PASSING}
    return [without_passing(part) for part in thing] if isinstance(thing, list) else thing


# Until no IPv6 address is tentative any more.
SETTLE = 'for _ in $(seq 200); do [ -z "$(ip -6 -o addr show tentative)" ] && break; sleep 0.05; done'

# All that a host has to compare, in parts.
LOOK = SETTLE + """
ip -d -j address show; echo ----
ip -4 -o route show table all; echo ----
ip -6 -o route show table all; echo ----
ip rule show; ip -6 rule show; echo ----
ip neigh show nud permanent; echo ----
ip neigh show proxy; echo ----
cd /proc/sys/net && grep -s . ipv4/conf/eth0/* ipv6/conf/eth0/* | grep -v stable_secret
true
"""


def is_kernels(address):
    """One that the kernel made of the MAC."""
    return address["scope"] == "link" and "ff:fe" in address["local"]


class Host:
    """A network and mount namespace, with eth0, whose cable ends at `wire`. `setup` are ip's arguments, a line each."""

    def __init__(self, setup="", dad=False):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="hosts-", dir="/tmp"))
        (self.directory / "ip").write_text(FAILING_IP.format(directory=self.directory, ip="/usr/sbin/ip"))
        (self.directory / "ip").chmod(0o755)
        self.keeper = subprocess.Popen(
            ["unshare", "-n", "-m", "sh", "-c", "mount -t sysfs sysfs /sys && mount -t tmpfs tmpfs /run && "
             "mkdir -p /run/network && echo ready && exec cat"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.keeper.stdout.readline() == "ready\n"
        self.at(0)
        lines = [line.strip() for line in setup.strip().splitlines()]
        self.sh(" && ".join([f"echo {int(dad)} >/proc/sys/net/ipv6/conf/default/accept_dad", "ip link set lo up",
                             "ip link add eth0 type veth peer name wire", "ip link set wire up",
                             *[f"{SETTLE if ' src 2001:' in line else 'true'} && ip {line}" for line in lines]]))

    def inside(self, *words):
        return ["nsenter", "-t", str(self.keeper.pid), "-n", "-m", *words]

    def sh(self, command, check=True):
        done = subprocess.run(self.inside("sh", "-c", command), text=True, capture_output=True, check=False, timeout=120)
        assert not check or done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def at(self, number, how="before"):
        (self.directory / "count").write_text("0\n")
        (self.directory / "at").write_text(f"{number} {how}\n")
        (self.directory / "calls").write_text("")

    def calls(self):
        return (self.directory / "calls").read_text().splitlines()

    def script(self, *words, path="", name="network-bridge", **environment):
        """Runs it as xend does; the status and what it said."""
        variables = {"PATH": f"{self.directory}:{path or '/usr/sbin'}:/usr/sbin:/usr/bin:/sbin:/bin", **environment}
        done = subprocess.run(self.inside("env", "-i", *[f"{key}={value}" for key, value in variables.items()],
                                          str(SCRIPTS / name), *words),
                              text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, timeout=120,
                              start_new_session=True)
        return done.returncode, done.stdout

    def packet_filter(self, rules):
        """Bridged frames pass a packet filter with these rules; returns the path of its iptables."""
        self.sh(f"cd {self.directory} && mkdir -p net/ipv4 net/ipv6 net/bridge tables && for d in ipv4 ipv6; do "
                "mount --bind /proc/sys/net/$d net/$d; done && echo 1 >net/bridge/bridge-nf-call-iptables && "
                "mount --rbind net /proc/sys/net")
        tables = self.directory / "tables"
        (self.directory / "rules").write_text("".join(f"{rule}\n" for rule in rules))
        (tables / "iptables").write_text(IPTABLES.format(directory=self.directory))
        (tables / "iptables").chmod(0o755)
        return str(tables)

    def state(self):
        """What there is, without what passes; a router's route with whatever metric."""
        parts = self.sh(LOOK).split("----\n")
        addresses = without_passing(json.loads(parts[0]))
        for entry in addresses:
            entry["addr_info"].sort(key=is_kernels)
        routes = [[self.route(line) for line in part.splitlines() if "proto kernel" not in line or "table local" not in line]
                  for part in parts[1:3]]
        return {"addresses": addresses, "routes": routes[0], "routes6": sorted(routes[1]), "rules": parts[3],
                "neighbours": sorted(parts[4].splitlines()), "proxies": sorted(parts[5].splitlines()), "settings": parts[6]}

    @staticmethod
    def route(line):
        line = re.sub(r" expires \d+sec| (linkdown|dead)\b", "", line).strip()
        return re.sub(r" metric \d+", "", line) if " proto ra" in line else line

    def close(self):
        self.keeper.stdin.close()
        self.keeper.wait(timeout=60)
        self.keeper.stdout.close()
        subprocess.run(["rm", "-rf", str(self.directory)], check=True)
