#!/usr/bin/python3
"""A ferry-guest for xend's tests: speaks docs/internal/guest-control.md, has RAM, runs nothing.

What it does is said by words in its kernel's command line: crash, reboot (a moment after it is
resumed), error (KVM cannot run it), busy (never idle), deaf (ignores the power button); and by files beside the program:
features, needs (words: what it sees of the processor), tsc_khz (the frequency of its counter, or the host's; and, for
the host, the word scaling), dies (a verb: it is killed when it is asked for that), lingers (a verb: that takes it
seconds), hold (a verb: it does not answer to that as long as the file is there).
"""
import array
import json
import mmap
import os
import selectors
import signal
import socket
import struct
import sys
import threading
import time


def words_beside(name, otherwise):
    path = os.path.join(os.path.dirname(sys.argv[0]), name)
    if not os.path.exists(path):
        return otherwise
    with open(path, encoding="ascii") as file:
        return file.read().split()


def features():
    return words_beside("features", ["sse3", "avx2"])


def processor(of_the_host=False):
    khz = words_beside("tsc_khz", ["2000000"])
    told = {"features": features(), "needs": words_beside("needs", ["vendor-Ferry"]), "tsc_khz": int(khz[0])}
    return {**told, "tsc_scaling": "scaling" in khz} if of_the_host else told


class Guest:
    def __init__(self, listener):
        self.selector = selectors.DefaultSelector()
        self.selector.register(listener, selectors.EVENT_READ, self.accept)
        self.listener = listener
        self.state, self.reason, self.detail = "empty", None, None
        self.machine, self.fds = None, []
        self.subscribers, self.streams = [], []
        self.console = b"console history\n"
        self.lock = threading.RLock()
        self.shouter, self.told = None, threading.Event()
        self.dirty_map = None

    def serve(self):
        while True:
            for key, _ in self.selector.select():
                with self.lock:
                    key.data(key.fileobj)

    def accept(self, listener):
        connection, _ = listener.accept()
        self.selector.register(connection, selectors.EVENT_READ, self.request)

    def drop(self, connection):
        self.selector.unregister(connection)
        if connection in self.subscribers:
            self.subscribers.remove(connection)
        connection.close()

    def request(self, connection):
        try:
            data, ancillary, _, _ = connection.recvmsg(65536, socket.CMSG_SPACE(64 * 4))
        except OSError:
            data, ancillary = b"", []
        fds = array.array("i")
        for _, _, payload in ancillary:
            fds.frombytes(payload[: len(payload) - len(payload) % 4])
        if not data:
            return self.drop(connection)
        message = json.loads(data)
        if message["do"] in words_beside("dies", []):
            os.kill(os.getpid(), signal.SIGKILL)
        if message["do"] in words_beside("lingers", []):
            time.sleep(3)
        while message["do"] in words_beside("hold", []):
            time.sleep(0.02)
        verb = "do_" + message["do"].replace("-", "_")
        try:
            reply, out = getattr(self, verb, self.do_nothing)(message, list(fds), connection)
            reply["ok"] = True
        except ValueError as problem:
            reply, out = {"error": str(problem), "errno": 22}, []
        try:
            socket.send_fds(connection, [json.dumps(reply).encode()], out)
        except OSError:  # who asked is gone
            pass
        for fd in out:
            if verb != "do_memory":
                os.close(fd)

    def change(self, state, reason=None, detail=None):
        self.state, self.reason, self.detail = state, reason, detail
        event = {"event": "state", "state": state}
        if reason:
            event["reason"] = reason
        if detail:
            event["detail"] = detail
        for subscriber in self.subscribers:
            try:
                subscriber.send(json.dumps(event).encode())
            except OSError:
                pass

    def words(self):
        boot = (self.machine or {}).get("boot")
        return boot["cmdline"].split() if boot else []

    def do_create(self, message, fds, _):
        machine = message["machine"]
        if not machine["incoming"]:
            kernel = fds[machine["boot"]["kernel"]["fd"]]
            if os.pread(kernel, 6, 0) != b"KERNEL":
                raise ValueError("The kernel is no kernel: it is neither a bzImage nor an ELF file; correct kernel=.")
        self.machine, self.fds = machine, fds
        self.ram_fd = fds[machine["ram"]["fd"]]
        self.ram = mmap.mmap(self.ram_fd, machine["memory_mib"] << 20)
        if not machine["incoming"]:
            self.ram[4096:8192] = os.urandom(4096)
            self.ram[1 << 20:(1 << 20) + 8] = b"\1\2\3\4\5\6\7\10"
        self.change("incoming" if machine["incoming"] else "paused")
        return {}, []

    def do_status(self, *_):
        return {"state": self.state, "reason": self.reason, "detail": self.detail, "cpu_time_ns": 1500000000,
                "vcpus": [{"id": 0, "cpu_time_ns": 1500000000, "halted": self.state == "running" and "busy" not in self.words()}],
                "machine": self.machine, "waits": " ".join(words_beside("waits", []))}, []

    def do_clock(self, *_):
        if self.state != "paused":
            raise ValueError("The guest runs.")
        return {}, []

    def do_resume(self, *_):
        if self.state not in ("paused", "running"):
            raise ValueError("The guest is not paused.")
        self.change("running")
        if "crash" in self.words():
            threading.Timer(0.5, self.later, ("shutdown", "crash", "It panicked.")).start()
        if "reboot" in self.words():
            threading.Timer(0.2, self.later, ("shutdown", "reboot")).start()
        if "error" in self.words():
            self.change("shutdown", "error", "KVM internal error: it cannot emulate INT3.")
        return {}, []

    def later(self, *state):
        with self.lock:
            self.change(*state)

    def do_pause(self, *_):
        if self.state == "shutdown":
            raise ValueError("The guest has ended.")
        self.change("paused")
        return {}, []

    def do_memory(self, *_):
        size = self.machine["memory_mib"] << 20
        return {"ram": {"fd": 0}, "size": size, "regions": [{"gpa": 0, "size": size, "offset": 0}]}, [self.ram_fd]

    def do_nothing(self, message, *_):
        raise ValueError(f"This guest cannot {message['do']}.")

    def do_throttle(self, *_):  # what it writes is little enough
        return {}, []

    def do_flush(self, *_):
        return {"done": True}, []

    def do_faults(self, *_):
        raise ValueError("This guest does not wait for memory.")

    def do_track(self, message, *_):
        if not message["on"]:
            return {}, []
        self.dirty_map = os.memfd_create("dirty")
        os.ftruncate(self.dirty_map, (self.machine["memory_mib"] << 8) // 8)
        return {"bitmap": {"fd": 0}}, [os.dup(self.dirty_map)]

    def do_dirty(self, *_):
        self.ram[0:8] = struct.pack("<Q", time.monotonic_ns())
        os.pwrite(self.dirty_map, b"\1", 0)
        return {"pages": 1}, []

    def do_save_state(self, *_):
        state = os.memfd_create("state")
        os.write(state, b"state")
        return {"state": {"fd": 0}, "size": 5}, [state]

    def do_load_state(self, message, fds, _):
        if self.ram[1 << 20:(1 << 20) + 8] != b"\1\2\3\4\5\6\7\10":
            raise ValueError("The memory is not what it was.")
        self.change("paused")
        return {}, []

    def do_console(self, message, fds, _):
        stream = socket.socket(fileno=fds[0])
        try:
            if message.get("history"):
                stream.send(self.console)
        except OSError:  # whoever wanted it has left; the selector says so again
            pass
        self.streams.append(stream)
        self.selector.register(stream, selectors.EVENT_READ, self.typed)
        return {}, []

    def typed(self, stream):
        try:
            data = stream.recv(4096)
        except OSError:  # left without reading all that was said
            data = b""
        if not data:
            self.selector.unregister(stream)
            self.streams.remove(stream)
            stream.close()
            return
        self.console += data
        for other in self.streams:
            try:
                other.send(data)
            except OSError:
                pass

    def do_features(self, *_):
        return processor(), []

    def do_power_button(self, *_):
        if "deaf" not in self.words():
            threading.Timer(0.1, self.later, ("shutdown", "poweroff")).start()
        return {}, []

    def do_end(self, message, *_):
        """For tests: it ends by itself, and says nothing behind that."""
        self.told.set()
        if self.shouter:
            self.shouter.join()
        self.change("shutdown", message["reason"], message.get("detail"))
        return {}, []

    def do_say(self, message, *_):
        """For tests: its process has been taken over, and writes to its standard error whatever it likes."""
        lost = 0
        for number in range(message.get("times", 1)):
            try:
                os.write(2, message["text"].replace("NUMBER", str(number)).encode())
            except BlockingIOError:
                lost += 1
        return {"lost": lost}, []

    def do_shout(self, message, *_):
        """For tests: its process has been taken over, and has always something to tell to those that subscribed."""
        events = [json.dumps({"event": "state", "state": state, "filler": [0] * 20000}).encode() for state in ("paused", "running")]

        def shout():
            while not self.told.is_set():
                for event in events:
                    for subscriber in self.subscribers:
                        subscriber.send(event)
        self.told.clear()
        self.shouter = threading.Thread(target=shout, daemon=True)
        self.shouter.start()
        return {}, []

    def do_subscribe(self, _, __, connection):
        connection.setblocking(True)  # what it tells waits for who does not listen, and is not lost
        self.subscribers.append(connection)
        return {}, []

    def do_quit(self, *_):
        os._exit(0)


if "--check" in sys.argv:
    with socket.socket(fileno=int(sys.argv[sys.argv.index("--check") + 1])) as asked:
        asked_of, given, _, _ = socket.recv_fds(asked, 65536, 8)
        began = json.loads(asked_of)["machine"]["boot"]
        if os.pread(given[began["kernel"]["fd"]], 6, 0) == b"DEADLY":
            os.abort()
        fits = os.pread(given[began["kernel"]["fd"]], 6, 0) == b"KERNEL"
        asked.send(json.dumps({"ok": True} if fits else {"error": "The kernel is no kernel.", "errno": 22}).encode())
    sys.exit(0)
if "--features" in sys.argv:
    json.dump(processor(of_the_host=True), sys.stdout)
    sys.exit(0)
Guest(socket.socket(fileno=int(sys.argv[sys.argv.index("--control") + 1]))).serve()
