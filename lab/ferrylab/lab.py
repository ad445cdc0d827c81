"""The lab itself: emulated hosts on one emulated Ethernet."""

import atexit
import concurrent.futures
import contextlib
import fcntl
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from . import guest_images, images
from .agent import PATIENCE, LabError, Line, Relay
from .guests import Guests
from .network_storage import NetworkStorage

ADDRESSES = {"host1": "10.0.0.1", "host2": "10.0.0.2", "storage": "10.0.0.40", "workstation": "10.0.0.100"}
MEMORY = {"host1": 2560, "host2": 2560, "storage": 512, "workstation": 512}
# One processor each: with more, QEMU 7.2's emulated SVM now and then writes the host's own state over that of a
# guest that runs on several (traced: the guest's next entry is at the host's return from VMRUN). Guests have as
# many as they like.
CPUS = {"host1": 1, "host2": 1, "storage": 1, "workstation": 1}
BOOT_TIMEOUT = 300


def labs_directory():
    """Where this user's labs are; short, since paths of sockets may have 107 characters."""
    path = Path(tempfile.gettempdir()) / f"ferry-lab-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    if path.stat().st_uid != os.getuid():
        raise LabError(f"{path} belongs to another user")
    return path


class Machine:
    """One emulated host as seen through its agent."""

    def __init__(self, name):
        self.name = name
        self.address = ADDRESSES[name]
        self.line = None

    def _line(self):
        if self.line is None:
            raise LabError(f"{self.name} is not running")
        return self.line

    def run(self, command, check=True, timeout=PATIENCE, stdin=None, env=None):
        """Runs a command (a text for the shell or a list) to its end; see agent.Line.run."""
        return self._line().run(command, check, timeout, stdin, env)

    def spawn(self, command, **options):
        """Starts a command in the background; see agent.Line.spawn."""
        return self._line().spawn(command, **options)

    def put(self, content, path, mode=0o644, timeout=PATIENCE):
        return self._line().put(content, path, mode, timeout)

    def get(self, path, timeout=PATIENCE):
        return self._line().get(path, timeout)


class Host(Machine):
    """An emulated host that this process runs."""

    def __init__(self, lab, name):
        super().__init__(name)
        self.lab = lab
        self.number = list(ADDRESSES).index(name) + 1
        self.qemu = None
        self.relay = None
        self.qmp = None
        self.qmp_lock = threading.Lock()
        self.console = lab.directory / f"{name}.console"

    def start(self, wait=True):
        """Powers the host on; its disk keeps what it had."""
        if self.qemu:
            raise LabError(f"{self.name} is already on")
        lab = self.lab
        data = lab.directory / f"{self.name}.img"
        if not data.exists():
            made = lab.guest_image / "storage.img" if self.name == "storage" else lab.image / "data.img"
            subprocess.run(["cp", "--sparse=always", str(made), str(data)], check=True, timeout=600)
        agent, far_agent = socket.socketpair()
        qmp, far_qmp = socket.socketpair()
        command = [
            "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-name", self.name,
            "-machine", "microvm,acpi=on,pcie=on,rtc=on,pit=on,pic=on,usb=off",
            # The firmware that QEMU takes for this by itself is SeaBIOS with some, whose ACPI tables are at the end of
            # memory: the ramdisk is laid over them.
            "-bios", "qboot.rom",
            # No XSAVE: the emulation lets guests write XCR0 behind the back of the host's KVM.
            "-accel", "tcg,thread=multi,tb-size=256", "-cpu", "max,-la57,-xsave,+svm,+npt",
            "-rtc", "base=utc,clock=host",
            "-smp", str(CPUS[self.name]), "-m", str(lab.memory.get(self.name, MEMORY[self.name])),
            "-kernel", str(lab.image / "vmlinux"), "-initrd", str(lab.directory / "initrd"),
            "-append", "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off rcupdate.rcu_expedited=1 "
            f"tsc=reliable clocksource=tsc tsc_early_khz={lab.counter_khz} lpj={lab.counter_khz * 4} "
            f"no_timer_check ferry_host={self.name} ferry_ip={self.address}",
            "-no-reboot", "-serial", f"file:{self.console}",
            "-device", "virtio-serial-pci,max_ports=2",
            "-chardev", f"socket,id=agent,fd={far_agent.fileno()}", "-device", "virtserialport,chardev=agent,nr=1",
            "-chardev", f"socket,id=qmp,fd={far_qmp.fileno()}", "-mon", "chardev=qmp,mode=control",
            "-netdev", f"vde,id=net0,sock={lab.directory / 'switch'}",
            "-device", f"virtio-net-pci,id=nic0,netdev=net0,romfile=,mac=52:54:00:00:00:{self.number:02x}",
            "-device", "virtio-rng-pci",
            "-drive", f"file={data},format=raw,if=virtio,cache=unsafe,discard=unmap",
        ]
        for disk in lab.extra_disks(self.name):
            command += ["-drive", f"file={disk},format=raw,if=virtio,readonly=on,cache=unsafe"]
        self.qemu = lab.spawn(command, f"{self.name}.qemu", [far_agent.fileno(), far_qmp.fileno()])
        far_agent.close()
        far_qmp.close()
        self.qmp = qmp.makefile("rwb")
        qmp.settimeout(PATIENCE)
        self.line = Line.of_socket(self.name, agent)
        if wait:
            self.wait_up()

    def wait_up(self):
        deadline = time.monotonic() + BOOT_TIMEOUT
        while not self.line.ready.wait(0.2):
            if self.qemu.poll() is not None or time.monotonic() > deadline:
                break
        try:
            self.line.wait_ready(0)
        except LabError as error:
            raise LabError(f"{self.name} did not come up: {error}\n{self.post_mortem()}") from None
        if self.relay is None:
            path = self.lab.directory / f"{self.name}.sock"
            path.unlink(missing_ok=True)
            self.relay = Relay(self.line, str(path))
        self.relay.line = self.line

    def post_mortem(self):
        """The end of what QEMU and the host's console said, and where its processors are: a host that hangs says no more."""
        texts = []
        if self.qemu and self.qemu.poll() is None:
            try:
                registers = self._monitor("human-monitor-command", **{"command-line": "info registers -a"})
                texts += [line for line in registers.splitlines() if re.match(r"CPU#|RIP=|RAX=|RSP|CS =|CR0=", line)]
            except (LabError, OSError) as error:
                texts.append(f"{self.name}: its QEMU does not answer either: {error}")
        for path in (self.lab.directory / f"{self.name}.qemu", self.console):
            if path.exists():
                texts.append(path.read_text(errors="replace")[-3000:])
        return "\n".join(texts)

    def power_off(self):
        """Cuts the power: nothing in the host gets a chance to tidy up. Its disk keeps what was written."""
        if self.qemu:
            self.qemu.kill()
            self.qemu.wait()
            self.qemu = None
            self.line.close()
            self.line = None

    def _monitor(self, execute, **arguments):
        def answer():
            while True:
                line = self.qmp.readline()
                if not line:
                    raise LabError(f"{self.name}: QEMU's monitor is gone")
                message = json.loads(line)
                if "return" in message:
                    return message["return"]
                if "error" in message:
                    raise LabError(f"{self.name}: {execute}: {message['error']['desc']}")

        def send(message):
            self.qmp.write(json.dumps(message).encode() + b"\n")
            self.qmp.flush()

        with self.qmp_lock:
            if not getattr(self.qemu, "monitor_ready", False):
                send({"execute": "qmp_capabilities"})
                answer()
                self.qemu.monitor_ready = True
            send({"execute": execute, "arguments": arguments})
            return answer()

    def link_down(self):
        """Pulls the host's network cable."""
        self._monitor("set_link", name="nic0", up=False)

    def link_up(self):
        self._monitor("set_link", name="nic0", up=True)

    def freeze(self):
        """Stops the host's processors, as if it hung; thaw() lets it go on."""
        self._monitor("stop")

    def thaw(self):
        self._monitor("cont")


class Lab(Guests, NetworkStorage):
    """Some of the hosts of ADDRESSES, joined by a switch. Use it with `with`, or close() it."""

    def __init__(self, hosts=tuple(ADDRESSES), directory=None, memory=None, start=True, extra=None):
        """`memory`: MiB by host, where not as usual. `extra`: a Tree with more files for all hosts."""
        super().__init__()
        self.names = [n for n in ADDRESSES if n in hosts]
        unknown = set(hosts) - set(ADDRESSES)
        if unknown:
            raise LabError(f"no such host: {', '.join(sorted(unknown))}; there are {', '.join(ADDRESSES)}")
        self.memory = memory or {}
        self.extra = extra
        self.children = []
        self.closed = False
        # Children die with the thread that started them, so one thread starts them all (see spawn).
        self.spawner = concurrent.futures.ThreadPoolExecutor(1, "spawner")
        with _one_at_a_time():
            _sweep()
            self.directory = Path(directory) if directory else Path(tempfile.mkdtemp(dir=labs_directory()))
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.lock = _lock(self.directory)
        if not self.lock:
            raise LabError(f"a lab already runs in {self.directory}")
        atexit.register(self.close)
        try:
            for old in self.directory.iterdir():
                if old.name != "lock":
                    shutil.rmtree(old) if old.is_dir() else old.unlink()
            self._prepare()
            if start:
                self.start()
        except BaseException:
            self.close()
            raise

    def _prepare(self):
        self.image = images.host_image()
        self.guest_image = guest_images.guest_image()
        self.guest_facts = json.loads((self.guest_image / "guest.json").read_text())
        archives = [images.ferry_archive(self.directory, self.image)]
        if self.extra:
            archives.append(images.extra_archive(self.directory, self.image, self.extra))
        with open(self.directory / "initrd", "wb") as out:
            for part in (self.image / "base.cpio", *archives):
                with open(part, "rb") as file:
                    shutil.copyfileobj(file, out, 1 << 20)
        for archive in archives:
            archive.unlink()
        # The emulated time stamp counter is this machine's. Hosts are told its pace: measuring it against
        # emulated timers goes wrong under load, and they would differ (KVM would see two kinds of host).
        pace = subprocess.run([str(images.built("ferry-lab-pulse")), "tsc"], text=True, capture_output=True, check=True)
        self.counter_khz = int(pace.stdout)
        self.hosts = {name: Host(self, name) for name in self.names}
        for name, host in self.hosts.items():
            setattr(self, name, host)
        # As real switches do, it believes at once that an address has moved; by itself it would take 3 s of silence,
        # and with 0 until the next second of the clock.
        rules = self.directory / "switch.rc"
        rules.write_text("hash/setminper -1\n")
        self.spawn(["vde_switch", "-s", str(self.directory / "switch"), "-m", "600", "-f", str(rules)], "switch.log")
        deadline = time.monotonic() + PATIENCE
        while not (self.directory / "switch" / "ctl").exists():
            if time.monotonic() > deadline:
                raise LabError("vde_switch did not start: " + (self.directory / "switch.log").read_text())
            time.sleep(0.01)

    def start(self):
        """Boots all hosts that are off."""
        off = [h for h in self.hosts.values() if not h.qemu]
        for host in off:
            host.start(wait=False)
        for host in off:
            host.wait_up()

    def spawn(self, command, log, pass_fds=()):
        """Starts a program that ends with this process at the latest; its output goes to the file `log`.

        Its standard input stays open: the switch takes the end of it as the end of its work.
        """
        def start():
            with open(self.directory / log, "ab") as out:
                return subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *command], stdin=subprocess.PIPE,
                                        stdout=out, stderr=out, pass_fds=list(pass_fds), start_new_session=True)

        child = self.spawner.submit(start).result(PATIENCE)
        self.children.append(child)
        return child

    def extra_disks(self, name):
        """Read-only disks of a host besides its own."""
        return [self.guest_image / "boot.img"] if name in ("host1", "host2") else []

    def close(self):
        """Ends the lab's processes and removes its directory."""
        if self.closed:
            return
        self.closed = True
        atexit.unregister(self.close)
        for child in self.children:
            if child.poll() is None:
                child.kill()
            child.wait()
        for host in getattr(self, "hosts", {}).values():
            if host.relay:
                host.relay.close()
            if host.line:
                host.line.close()
        self.spawner.shutdown()
        shutil.rmtree(self.directory, ignore_errors=True)
        if self.lock:
            os.close(self.lock)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def _lock(directory):
    """Takes a lab's directory for this process; the descriptor, or None when another has it."""
    fd = os.open(directory / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd


@contextlib.contextmanager
def _one_at_a_time():
    """No lab is swept away between making its directory and taking it."""
    with open(labs_directory() / "making", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sweep():
    """Removes what labs left that were killed. Their processes have died with them."""
    for directory in labs_directory().iterdir():
        if not (directory / "lock").exists():
            continue
        try:
            fd = _lock(directory)
        except FileNotFoundError:  # that lab has just ended
            continue
        if fd:
            shutil.rmtree(directory, ignore_errors=True)
            os.close(fd)


class Attached:
    """The hosts of a lab that another process runs."""

    def __init__(self, directory):
        self.directory = Path(directory)
        self.hosts = {}
        for path in sorted(self.directory.glob("*.sock")):
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.connect(str(path))
            except OSError:
                continue
            machine = Machine(path.stem)
            machine.line = Line.of_socket(path.stem, sock)
            machine.line.wait_ready(PATIENCE)
            self.hosts[path.stem] = machine
            setattr(self, path.stem, machine)
        if not self.hosts:
            raise LabError(f"no lab runs in {self.directory}")


def attach(directory):
    """The lab that runs in `directory`: its hosts can run commands, get and put files."""
    return Attached(directory)
