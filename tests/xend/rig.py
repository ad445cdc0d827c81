"""A xend in a private root, with a fake ferry-guest and the real ferry-carrier, for tests/xend."""
import http.client
import json
import os
import pathlib
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
BUILD = pathlib.Path(os.environ.get("FERRY_BUILD", HERE.parent.parent / "build"))
SKIPPED = 77  # meson's exit status for a test that cannot run here


def own_network():
    """Starts this program again in a network namespace of its own, with a bridge; needs root and KVM."""
    if os.geteuid() != 0 or not os.path.exists("/dev/kvm") or not os.path.exists("/dev/net/tun"):
        print("skipped: needs root, /dev/kvm and /dev/net/tun")
        sys.exit(SKIPPED)
    if os.environ.get("OWN_NETWORK") != "yes":
        os.environ["OWN_NETWORK"] = "yes"
        os.execvp("unshare", ["unshare", "-n", "-m", sys.executable, *sys.argv])
    run("mount -t sysfs sysfs /sys")  # as this network namespace sees it
    run("ip link set lo up")
    run("ip link add xenbr0 type bridge && ip link set xenbr0 up && ip addr add 10.0.0.1/24 dev xenbr0")


def run(command):
    return subprocess.run(command, shell=True, check=True, capture_output=True, text=True).stdout


def wait_until(condition, what, timeout=60):
    """Far longer than anything takes: a machine that stands still for seconds is no failure."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() >= end:
            raise AssertionError(f"not within {timeout} s: {what}")
        time.sleep(0.02)


def dead(pid):
    """With all of its threads: what it held is free."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([process], [], [], 0)[0])
    finally:
        os.close(process)


def kill(pid):
    """Of a process that may end by itself just now."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


class Refused(Exception):
    def __init__(self, status, sentence):
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence


class Connection(http.client.HTTPConnection):
    def __init__(self, path, timeout=120):
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)
        self.socket = self.sock  # which http.client forgets when an answer is the last

    def hear(self):
        """All of the answer to what was asked, unless xend dies before."""
        try:
            self.getresponse().read()
        except (OSError, http.client.HTTPException):
            pass
        self.close()


class Stream:
    """A job stream as it arrives."""

    def __init__(self, connection, response):
        self.connection, self.response, self.lines = connection, response, []

    def next(self):
        line = self.response.readline()
        if not line:
            return None
        self.lines.append(json.loads(line))
        return self.lines[-1]

    def end(self):
        while self.next():
            pass
        self.connection.close()
        last = self.lines[-1] if self.lines else {"event": "none"}
        if last["event"] != "done":
            raise Refused(200, last.get("error", "The stream ended before the job did."))
        return last

    def leave(self):
        self.connection.socket.shutdown(socket.SHUT_RDWR)
        self.connection.close()


def acquaint(one, two):
    """Lets two xends trust each other."""
    one.trust(two)
    two.trust(one)


class Relay:
    """Passes connections on from a port of this host's to another, and keeps all that passed."""

    def __init__(self, port, to):
        self.to, self.seen = to, bytearray()
        self.listener = socket.create_server(("10.0.0.1", port))
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        try:
            while True:
                here, _ = self.listener.accept()
                there = socket.create_connection(self.to)
                for ends in ((here, there), (there, here)):
                    threading.Thread(target=self.pass_on, args=ends, daemon=True).start()
        except OSError:
            pass

    def pass_on(self, source, target):
        try:
            while data := source.recv(65536):
                self.seen += data
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.listener.close()


class Xend:
    def __init__(self, port=0, settings="", within=()):
        self.within = list(within)  # a command that starts xend in some other surroundings
        self.root = pathlib.Path(tempfile.mkdtemp(prefix="xend-", dir="/tmp"))
        for name in ("run", "state", "libexec", "files"):
            (self.root / name).mkdir()
        self.files = self.root / "files"
        self.log = self.root / "xend.log"
        self.port = port
        shutil.copy(HERE / "fake_guest.py", self.root / "libexec" / "ferry-guest")
        carrier = BUILD / "src/carry/ferry-carrier"
        if carrier.exists():
            (self.root / "libexec" / "ferry-carrier").symlink_to(carrier)
        relocation = f"(xend-relocation-server yes)\n(xend-relocation-port {port})\n" if port else ""
        (self.root / "config").write_text(
            f"(logfile {self.log})\n(xend-unix-path {self.root}/socket)\n(vif-script vif-bridge)\n{relocation}{settings}\n")
        (self.files / "kernel").write_bytes(b"KERNEL" + bytes(1000))
        (self.files / "not-a-kernel").write_bytes(b"#!/bin/sh\n")
        (self.files / "disk").write_bytes(bytes(1 << 20))
        (self.files / "other-disk").write_bytes(bytes(1 << 20))
        self.environment = dict(
            os.environ, XEND_CONFIG=str(self.root / "config"), FERRY_RUNDIR=str(self.root / "run"),
            FERRY_STATEDIR=str(self.root / "state"), FERRY_LIBEXECDIR=str(self.root / "libexec"),
            FERRY_SCRIPTDIR=str(HERE.parent.parent / "scripts"))
        self.start()

    def command(self, word):
        return subprocess.run([*self.within, BUILD / "src/xend/xend", word], env=self.environment, capture_output=True, text=True,
                              timeout=240)

    def start(self):
        done = self.command("start")
        assert done.returncode == 0, done.stderr
        self.pid = int((self.root / "run/xend.pid").read_text())

    def kill(self):
        kill(self.pid)
        wait_until(lambda: dead(self.pid), "xend's death")

    def guests(self):
        return [name for name in os.listdir(self.root / "run/guests")]

    def guest_pid(self, domain):
        return int((self.root / "run/guests" / domain["uuid"] / "process").read_text().split()[0])

    def guest_ram(self, domain):
        """A path of its memory."""
        for fd in pathlib.Path(f"/proc/{self.guest_pid(domain)}/fd").iterdir():
            try:
                if "guest-ram" in os.readlink(fd):
                    return fd
            except FileNotFoundError:  # a connection that it has just closed
                pass
        raise AssertionError(f"{domain['name']} has no memory")

    def destroy_all(self):
        for domain in self.domains()[1:]:
            try:
                self.post(f"/domains/{domain['id']}/destroy")
            except Refused as refused:
                if refused.status != 404:  # else it has ended by itself
                    raise

    def close(self):
        try:
            self.destroy_all()
        except (OSError, Refused):
            print(self.log.read_text(errors="replace")[-3000:])
            raise
        finally:
            stopped = self.command("stop")
            for record in self.root.glob("run/guests/*/process"):  # of a test that failed
                kill(int(record.read_text().split()[0]))
            text = self.log.read_text(errors="replace")
            shutil.rmtree(self.root)
            assert stopped.returncode == 0, stopped.stderr
            # Of xend and its processes, and of a fake guest that died of a mistake of its own.
            assert "Sanitizer" not in text and "Traceback" not in text, text[-20000:]

    def send(self, method, path, body=None):
        """Asks xend, and leaves the answer to be heard."""
        connection = Connection(str(self.root / "socket"))
        connection.request(method, path, body if isinstance(body, (bytes, type(None))) else json.dumps(body))
        return connection

    def open(self, method, path, body=None):
        connection = self.send(method, path, body)
        return connection, connection.getresponse()

    def ask(self, method, path, body=None):
        connection, response = self.open(method, path, body)
        answer = json.loads(response.read() or b"null")
        connection.close()
        if response.status >= 400:
            raise Refused(response.status, answer["error"])
        return answer

    def get(self, path):
        return self.ask("GET", path)

    def post(self, path, body=None):
        return self.ask("POST", path, body or {})

    def stream(self, path, body):
        connection, response = self.open("POST", path, body)
        if response.status >= 400:
            sentence = json.loads(response.read())["error"]
            connection.close()
            raise Refused(response.status, sentence)
        return Stream(connection, response)

    def job(self, path, body):
        return self.stream(path, body).end()

    def trust(self, other, host="10.0.0.1", **more):
        self.post("/trust", {"host": host, "fingerprint": other.get("/trust")["fingerprint"], **more})

    def domains(self):
        return self.get("/domains")["domains"]

    def names(self):
        return [domain["name"] for domain in self.domains()[1:]]

    def config(self, name="TestGuest", **more):
        config = {"name": name, "memory": 32, "kernel": str(self.files / "kernel"), "extra": "console=hvc0",
                  "disk": [f"file:{self.files}/disk,xvda,w"], "root": "/dev/xvda1 ro", "on_poweroff": "destroy",
                  "on_reboot": "restart", "on_crash": "restart"}
        config.update(more)
        return {key: value for key, value in config.items() if value is not None}

    def create(self, name="TestGuest", paused=False, **more):
        return self.post("/domains", {"config": self.config(name, **more), "paused": paused})
