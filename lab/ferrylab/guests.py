"""Guests for tests: their disks on `storage`, their configuration on the hosts, and a way into them."""

import concurrent.futures
import re
import shlex
import time
from pathlib import Path

from .agent import PATIENCE, LabError, Line, TimedOut

AGENT_PORT = 7
FIRST_NBD_PORT = 10810
KNOWN_COMPLAINTS = Path(__file__).resolve().parents[2] / "tests/system/data/kernel-complaints.txt"


# The next such copy is made in advance, while the last one's guest boots.
SPARE = "/var/disks/spare.img"
MAKE_SPARE = f"flock {SPARE}.lock sh -c 'cp --sparse=always /var/disks/base.img {SPARE}.part && mv {SPARE}.part {SPARE}'"


def fresh_image(file, hostname, address):
    """The command that makes a sparse copy of the guests' disk on `storage`. With an address, the guest takes that."""
    script = f"{{ flock {SPARE}.lock mv {SPARE} {file} 2>/dev/null || cp --sparse=always /var/disks/base.img {file}; }}"
    if address:
        settings = f"address={address}\nhostname={hostname}\n"
        script += (f" && mkdir -p /mnt/guest && mount -o loop {file} /mnt/guest && printf %s"
                   f" {shlex.quote(settings)} > /mnt/guest/etc/network.conf && umount /mnt/guest")
    return script


class Disk:
    """A fresh copy of the guests' disk on `storage`, reachable as the same block device on both hosts."""

    def __init__(self, lab, name, number, address=None):
        hostname = name
        name = f"{name}-{number}"
        self.lab, self.name, self.number = lab, name, number
        self.device = f"/dev/nbd{number}"
        self.entry = f"phy:{self.device}"  # as disk= has it
        self.port = FIRST_NBD_PORT + number
        self.file = f"/var/disks/{name}.img"
        # --fork returns when the server listens. All clients are at the same file; one whose host lost its power counts for ever.
        lab.storage.run(fresh_image(self.file, hostname, address) +
                        " && qemu-nbd --fork --persistent --shared=1000 --format=raw --cache=writeback --discard=unmap"
                        f" --port={self.port} --export-name={name} --pid-file=/run/nbd-{name}.pid {self.file}")
        lab.on_hosts(self.connect)

    def connect(self, host):
        """Makes the disk a block device of a host (again, after the host's power was cut)."""
        deadline = time.monotonic() + PATIENCE
        while True:
            done = host.run(f"nbd-client -N {self.name} storage {self.port} {self.device}", check=False)
            if done.status == 0:
                return
            if time.monotonic() > deadline:
                raise LabError(f"{host.name} cannot reach the disk {self.name}: {done.stdout}{done.stderr}")
            time.sleep(0.2)

    def check(self):
        """Checks the guest's file system on storage; no guest may be running on it. Returns e2fsck's words."""
        # The journal is replayed first, as mounting would do; after that nothing may be wrong.
        self.lab.storage.run(f"e2fsck -p -E journal_only {self.file}", check=False)
        return self.lab.storage.run(f"e2fsck -fn {self.file}").stdout

    def remove(self):
        self.lab.on_hosts(lambda host: host.run(f"nbd-client -d {self.device}", check=False))
        # The next disk may get this one's port: it has to be free.
        self.lab.storage.run(f"pid=$(cat /run/nbd-{self.name}.pid); kill $pid; while kill -0 $pid; do sleep 0.05; done; "
                             f"rm -f {self.file} /run/nbd-{self.name}.*", check=False)
        self.lab.disks.remove(self)


class Guest:
    """A guest's configuration, and the way to the agent inside it once it runs."""

    def __init__(self, lab, name, address, disk):
        self.lab, self.name, self.address, self.disk = lab, name, address, disk
        self.mac = "00:16:3e:55:9d:%02x" % (0xB0 + disk.number)
        self._line = None

    def line(self, timeout=PATIENCE):
        """The agent's line, through a connection from the workstation. Made anew when it has broken."""
        deadline = time.monotonic() + timeout
        # A fresh connection reaches a guest that comes up sooner than one that is being tried again; yet on a busy
        # machine an answer may take long.
        patience = 1
        while self._line is None or self._line.lost:
            connection = self.lab.workstation.spawn(["nc", self.address, str(AGENT_PORT)])
            line = Line.of_process(self.name, connection)
            try:
                line.wait_ready(min(patience, timeout))
                self._line = line
            except LabError:
                line.close()
                patience = min(patience * 1.25, 30)
                if time.monotonic() > deadline:
                    raise TimedOut(f"{self.name}: no agent at {self.address} within {timeout} s") from None
                time.sleep(0.1)
        return self._line

    def disconnect(self):
        if self._line:
            self._line.close()
            self._line = None

    def run(self, command, check=True, timeout=PATIENCE, stdin=None):
        """Runs a command in the guest; see agent.Line.run."""
        return self.line(timeout).run(command, check, timeout, stdin)

    def spawn(self, command, **options):
        return self.line().spawn(command, **options)

    def wait_up(self, timeout=PATIENCE):
        """Waits until the guest's services answer."""
        self.line(timeout)
        return self

    def pulse(self, mode, *arguments):
        """Starts `pulse MODE` (lab/guest/pulse.c) in the guest, detached from any connection."""
        text = " ".join(str(a) for a in arguments)
        self.run(f"rm -f /run/pulse/{mode}; setsid pulse {mode} /run/pulse/{mode} {text} </dev/null "
                 f">/run/pulse/{mode}.log 2>&1 & echo $! > /run/pulse/{mode}.pid; "
                 f"while [ ! -s /run/pulse/{mode} ]; do usleep 20000; done")

    def pulse_stop(self, mode):
        self.run(f"kill $(cat /run/pulse/{mode}.pid)")

    def pulse_status(self, mode):
        """What `pulse MODE` has seen so far: name → number."""
        text = self.run(f"cat /run/pulse/{mode}; cat /run/pulse/{mode}.log >&2")
        if text.stderr.strip():
            raise LabError(f"{self.name}: pulse {mode}: {text.stderr}")
        return {k: int(v) for k, v in re.findall(r"^(\w+) (-?\d+)$", text.stdout, re.M)}

    def kernel_complaints(self):
        """Lines of the kernel's log, warning or worse, that QEMU's own machines would not give."""
        known = [re.compile(line) for line in KNOWN_COMPLAINTS.read_text().splitlines()
                 if line and not line.startswith("#")]
        complaints = []
        for line in self.run("dmesg -r").stdout.splitlines():
            text = re.sub(r"^<[0-4]>\[ *[\d.]+\] ?", "", line)
            if text != line and not any(pattern.fullmatch(text) for pattern in known):
                complaints.append(line)
        return complaints


class Guests:
    """Mixed into Lab: makes disks and guests."""

    def __init__(self):
        super().__init__()
        self.disks = []
        self.keys = {}  # of the hosts that trust each other
        self.secured = True  # guests move through TLS

    def ferry_hosts(self):
        return [h for n, h in self.hosts.items() if n in ("host1", "host2") and h.line]

    def on_hosts(self, function):
        """Calls function(host) for each host of guests, all at the same time; the first exception, if any, is raised."""
        hosts = self.ferry_hosts()
        with concurrent.futures.ThreadPoolExecutor(len(hosts) or 1) as pool:
            return list(pool.map(function, hosts))

    def new_disk(self, name, address=None, kind=Disk, **more):
        """A fresh disk, the same `device` on both hosts. With an address, the guest takes that. `kind`: Disk, or one of
        network_storage.py."""
        used = {d.number for d in self.disks}
        number = next(n for n in range(16) if n not in used)
        disk = kind(self, name, number, address, **more)
        self.disks.append(disk)
        self.storage.spawn(MAKE_SPARE)
        return disk

    def new_guest(self, name="TestGuest", memory=128, vcpus=1, address="10.0.0.5", disk=None, **more):
        """A fresh disk and a configuration /etc/xen/NAME on both hosts, in the book's style."""
        disk = disk or self.new_disk(name, address)
        guest = Guest(self, name, address, disk)
        guest.config = self.guest_config(guest, memory, vcpus, **more)
        self.on_hosts(lambda host: host.put(guest.config, f"/etc/xen/{name}"))
        return guest

    @staticmethod
    def guest_config(guest, memory, vcpus, kernel="/boot/vmlinux", ramdisk="/boot/ramdisk",
                     extra="console=ttyS0 quiet", root="/dev/xvda ro", **more):
        lines = [
            f'name = "{guest.name}"',
            f'kernel = "{kernel}"',
            f'ramdisk = "{ramdisk}"',
            f'memory = "{memory}"',
            f"vcpus = {vcpus}",
            f"disk = [ '{guest.disk.entry},xvda,w' ]" if guest.disk.entry else "disk = [ ]",
            f"vif = [ 'mac={guest.mac}, bridge=xenbr0' ]",
            f'root = "{root}"',
            f'extra = "{extra}"',
            "on_reboot = 'restart'",
            "on_crash = 'destroy'",
        ]
        return "\n".join(lines + [f"{key} = {value!r}" for key, value in more.items()]) + "\n"

    def start_xend(self, host, acquaint=True):
        """Starts xend on a host, its words in /var/log/xen/xend.out, waits until it answers, and lets the hosts trust each other."""
        line = "(xend-relocation-clear-text yes)"
        host.run(f"sed -i '/{line}/d' /etc/xen/xend-config.sxp")
        if not self.secured:
            host.run(f"echo '{line}' >> /etc/xen/xend-config.sxp")
        for _ in range(3):
            host.run("setsid xend </dev/null >>/var/log/xen/xend.out 2>&1 &")
            self.wait_for_xend(host)
            if host.run("test -e /sys/class/net/xenbr0", check=False).status == 0:
                break
            host.run("xend stop")  # a busy machine's emulated host needed longer for its network than xend gives the script
        if acquaint and host.name not in self.keys:
            self.acquaint(host)

    def wait_for_xend(self, host):
        deadline = time.monotonic() + PATIENCE
        while host.run("xm list", check=False).status != 0:
            if time.monotonic() > deadline:
                words = host.run("tail -n 20 /var/log/xen/xend.out /var/log/xen/xend.log; xm list", check=False)
                raise LabError(f"{host.name}: xend does not answer:\n{words.stdout}{words.stderr}")
            time.sleep(0.1)

    def secure(self, secured):
        """Whether guests move through TLS from now on, or in clear text, which takes emulated processors much less time."""
        if secured == self.secured:
            return
        self.secured = secured
        for host in self.ferry_hosts():
            host.run("xend stop")
            self.start_xend(host)

    def acquaint(self, host):
        """Once for each host: what it trusts, and its key, are on its disk."""
        key = re.search(r"key: (\S+)", host.run("xm trust").stdout).group(1)
        for other, others_key in self.keys.items():
            other = self.hosts[other]
            host.run(["xm", "trust", "--fingerprint", others_key, other.address])
            other.run(["xm", "trust", "--fingerprint", key, host.address])
        self.keys[host.name] = key

    def repair(self):
        """Brings back what a test took away: power, cables, disks' connections, the NFS server, xend."""
        self.nfs_up()
        for host in self.hosts.values():
            if host.line is None or host.line.lost:
                host.power_off()
                host.start()
                if host in self.ferry_hosts():
                    for disk in self.disks:
                        disk.connect(host)
            else:
                host.link_up()
        for host in self.on_hosts(lambda host: None if host.run("timeout 60 xm list", check=False).status == 0 else host):
            if host:
                self.start_xend(host)

    def remove_guests(self):
        """Destroys every guest on every host, and all their storage."""
        self.on_hosts(lambda host: host.run(
            "xm list | tail -n +3 | while read -r name rest; do xm destroy $name; done; rm -f /root/*", check=False))
        for storage in self.disks + self.shares:
            storage.remove()
