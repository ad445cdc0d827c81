"""Ferry as its users have it: two xends side by side in private roots on this machine, driven by xm."""

import array
import json
import os
import re
import socket
import subprocess
import time

from processes import comm, own_memory_mib, process_seconds, threads_seconds


class Host:
    """One xend with everything it keeps below `root` (short: control sockets are below it)."""

    def __init__(self, root, build, port, prefix=(), address="127.0.0.1", clear_text=False, connections=0):
        self.root, self.build, self.port, self.address = root, os.path.abspath(build), port, address
        os.makedirs(f"{root}/libexec", exist_ok=True)
        for program, place in (("ferry-guest", "vmm"), ("ferry-carrier", "carry")):
            link = f"{root}/libexec/{program}"
            if not os.path.exists(link):
                os.symlink(f"{self.build}/src/{place}/{program}", link)
        with open(f"{root}/xend-config.sxp", "w", encoding="utf-8") as config:
            config.write(
                f"(logfile {root}/xend.log)\n(xend-unix-server yes)\n(xend-unix-path {root}/socket)\n"
                f"(xend-relocation-server yes)\n(xend-relocation-port {port})\n(xend-relocation-address {address})\n"
                f"(xend-relocation-hosts-allow '')\n(xend-relocation-clear-text {'yes' if clear_text else 'no'})\n(dom0-min-mem 0)\n"
                f"(xend-relocation-connections {connections})\n"
            )
        self.environment = dict(
            os.environ,
            XEND_CONFIG=f"{root}/xend-config.sxp",
            FERRY_RUNDIR=f"{root}/run",
            FERRY_STATEDIR=f"{root}/state",
            FERRY_LIBEXECDIR=f"{root}/libexec",
            FERRY_SCRIPTDIR=f"{root}/scripts",
        )
        self._log = open(f"{root}/xend.stderr", "wb")
        self._prefix = prefix
        self.start()

    def start(self):
        """Starts xend, also again after it was killed."""
        if os.path.exists(f"{self.root}/socket"):
            os.unlink(f"{self.root}/socket")
        self.process = subprocess.Popen(
            [*self._prefix, f"{self.build}/src/xend/xend", "foreground"], env=self.environment, stderr=self._log, stdout=self._log
        )
        end = time.monotonic() + 120
        while not self.listens():
            if self.process.poll() is not None or time.monotonic() > end:
                self.process.kill()
                self.process.wait()
                with open(f"{self.root}/xend.stderr", encoding="utf-8") as said:
                    raise TimeoutError(f"xend did not start: {said.read()}")
            time.sleep(0.02)

    def listens(self):
        """Whether xend takes connections, which is a moment after its socket has a name."""
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(f"{self.root}/socket")
            except OSError:
                return False
        return True

    def trust(self, other):
        """Trusts the other host's key, so that guests may move between them."""
        key = re.search(r"key: (\S+)", other.xm("trust")).group(1)
        self.xm("trust", "--fingerprint", key, other.address)

    def start_xm(self, *arguments):
        return Xm(self, arguments)

    def xm(self, *arguments):
        mover = Xm(self, arguments)
        mover.finish()
        return mover.output

    def write_config(self, name, kernel, memory_mib, vcpus, command_line):
        path = f"{self.root}/{name}"
        with open(path, "w", encoding="utf-8") as config:
            config.write(
                f"name = '{name}'\nmemory = {memory_mib}\nvcpus = {vcpus}\nkernel = '{kernel}'\nextra = '{command_line}'\n"
            )
        return path

    def guests(self):
        """Control sockets of the guests there are, by uuid."""
        try:
            return {uuid: f"{self.root}/run/guests/{uuid}/control" for uuid in os.listdir(f"{self.root}/run/guests")}
        except FileNotFoundError:
            return {}

    def wait_guest(self, timeout=120):
        """The control connection of the guest here, as soon as it has a machine."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            for path in self.guests().values():
                try:
                    control = Control(path)
                    if control.call({"do": "status"})["state"] != "empty":
                        return control
                    control.close()
                except OSError:  # it is just coming, or going
                    pass
            time.sleep(0.002)  # looking takes time from what is measured
        raise TimeoutError(f"no guest came up in {self.root}")

    def cpu_seconds(self):
        """Of xend, its guests and its carriers, those that have ended included."""
        return sum(process_seconds(pid, ended_children=True) for pid in self._family())

    def vcpu_seconds(self):
        """Of the guests' processors."""
        return sum(threads_seconds(pid, "vcpu") for pid in self._family())

    def resident_mib(self):
        """Of the guests' processes beside guest memory, which is shared."""
        return sum(
            own_memory_mib(pid) for pid in self._family()[1:] if comm(f"/proc/{pid}").startswith("ferry-guest")
        )

    def guest_memory_mib(self):
        """Of all guests together: the memory files that there are, each once, and what clones have beside them."""
        files, kib = {}, 0
        for fd in os.listdir(f"/proc/{self.process.pid}/fd"):
            path = f"/proc/{self.process.pid}/fd/{fd}"
            if os.path.lexists(path) and os.readlink(path).startswith("/memfd:guest-ram"):
                status = os.stat(path)
                files[status.st_ino] = status.st_blocks // 2
        for uuid in self.guests():
            with open(f"{self.root}/run/guests/{uuid}/process", encoding="ascii") as record:
                pid = int(record.read().split()[0])
            with open(f"/proc/{pid}/status", encoding="ascii") as status:
                kib += next(int(line.split()[1]) for line in status if line.startswith("RssAnon:"))
        return (kib + sum(files.values())) >> 10

    def _family(self):
        family = [self.process.pid]
        for pid in family:
            try:
                for task in os.listdir(f"/proc/{pid}/task"):
                    with open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as children:
                        family += [int(child) for child in children.read().split()]
            except OSError:
                continue
        return family

    def names(self):
        """Of the guests that there are."""
        return [line.split()[0] for line in self.xm("list").splitlines()[2:]]

    def close(self):
        """Ends everything, also where xend has died, or a guest ends by itself meanwhile."""
        if self.process.poll() is not None:
            self.start()
        for name in self.names():
            try:
                self.xm("destroy", name)
            except RuntimeError:
                if name in self.names():
                    raise
        self.process.terminate()
        self.process.wait()
        self._log.close()


class Control:
    """A guest's control socket (docs/internal/guest-control.md)."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(300)  # one that hangs is an error
        try:
            self.socket.connect(path)
        except OSError:
            self.socket.close()
            raise

    def call(self, request, descriptors=()):
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        self.socket.sendmsg([json.dumps(request).encode()], ancillary)
        said = self.socket.recv(65536)
        if not said:
            raise ConnectionResetError("the guest's process has ended")
        answer = json.loads(said)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def console(self, history=True):
        """A stream socket with the console's output, from its beginning or from now on."""
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.call({"do": "console", "stream": {"fd": 0}, "history": history}, [there.fileno()])
        there.close()
        return here

    def close(self):
        self.socket.close()


class Xm:
    """One xm command under way."""

    def __init__(self, host, arguments):
        self.arguments = arguments
        self.start = time.monotonic()
        self.process = subprocess.Popen(
            [f"{host.build}/src/xm/xm", *arguments], env=host.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def finish(self):
        """Start and end on CLOCK_MONOTONIC, and for a migration the bytes that it says it sent."""
        self.output, errors = self.process.communicate(timeout=600)
        end = time.monotonic()
        if self.process.returncode != 0:
            raise RuntimeError(f"xm {' '.join(self.arguments)}: {errors.strip()}")
        sent = re.search(r"([0-9.]+) MB", self.output)
        return self.start, end, float(sent.group(1)) * 1e6 if sent else 0
