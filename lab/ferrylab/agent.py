"""Commands inside an emulated machine: the outside of lab/agent/agent.c.

A Line speaks the agent's frames over a socket or over the pipes of another command; each command that runs
is a Process. A Relay serves one Line to several clients over a unix socket.
"""

import os
import queue
import shlex
import signal as signals
import socket
import struct
import threading
import time

HEADER = struct.Struct("<III")
SPAWN, STDIN, SIGNAL, WINDOW, CLOSE = range(1, 6)
HELLO, STDOUT, STDERR, EXIT, CONSUMED = range(16, 21)
PTY = 1
CHUNK = 32768
INPUT_IN_FLIGHT = 262144
# Seconds for what usually takes one or two: whoever waits so long on a machine that stalls waits for nothing.
PATIENCE = 300


class LabError(Exception):
    """Something about the lab itself went wrong."""


class TimedOut(LabError):
    """Something did not happen in time."""


class CommandFailed(LabError):
    """A command ended with a status that was not expected."""

    def __init__(self, where, command, result):
        super().__init__(f"{where}: {command}: exit status {result.status}\n{result.stdout}{result.stderr}")
        self.result = result


class Result:
    """What a finished command left: status (negative: killed by that signal), texts and duration."""

    def __init__(self, status, stdout, stderr, seconds):
        self.status = status
        self.stdout_bytes = stdout
        self.stderr_bytes = stderr
        self.stdout = stdout.decode(errors="replace")
        self.stderr = stderr.decode(errors="replace")
        self.seconds = seconds

    def __repr__(self):
        return f"Result(status={self.status}, stdout={self.stdout!r}, stderr={self.stderr!r})"


class Process:
    """A command that runs in a machine. Its output collects in `stdout` and `stderr` (bytes)."""

    def __init__(self, line, channel, command):
        self.line = line
        self.channel = channel
        self.command = command
        self.stdout = bytearray()
        self.stderr = bytearray()
        self.returncode = None
        self.changed = threading.Condition()
        self.unconsumed = 0
        self.lost = False
        self.started = time.monotonic()
        self.ended = None
        self.on_output = None

    def _take(self, kind, payload):
        with self.changed:
            if kind == STDOUT:
                self.stdout += payload
            elif kind == STDERR:
                self.stderr += payload
            elif kind == CONSUMED:
                self.unconsumed -= struct.unpack("<I", payload)[0]
            elif kind == EXIT:
                status = struct.unpack("<I", payload)[0]
                self.returncode = os.waitstatus_to_exitcode(status & 0xFFFF)
                self.ended = time.monotonic()
            self.changed.notify_all()
        if self.on_output and kind in (STDOUT, STDERR, EXIT):
            self.on_output(kind, payload)

    def _lose(self):
        with self.changed:
            self.lost = True
            self.changed.notify_all()

    def _until(self, condition, timeout, what):
        deadline = time.monotonic() + timeout
        with self.changed:
            while not condition():
                if self.lost:
                    raise LabError(f"{self.line.name} went away during: {self.command}")
                left = deadline - time.monotonic()
                if left <= 0:
                    tail = bytes(self.stdout[-2000:] + self.stderr[-2000:]).decode(errors="replace")
                    raise TimedOut(
                        f"{self.line.name}: {self.command}: {what} not within {timeout} s; output so far:\n{tail}"
                    )
                self.changed.wait(left)

    def poll(self):
        return self.returncode

    def wait(self, timeout=PATIENCE):
        """Waits for the end; returns a Result. Kills the command when it takes too long."""
        try:
            self._until(lambda: self.returncode is not None, timeout, "the end")
        except TimedOut:
            self.close()
            raise
        return Result(self.returncode, bytes(self.stdout), bytes(self.stderr), self.ended - self.started)

    def wait_output(self, pattern, timeout=PATIENCE, start=0):
        """Waits until the compiled bytes regex `pattern` matches standard output from `start`; the match."""
        found = []

        def condition():
            match = pattern.search(bytes(self.stdout), start)
            if match:
                found.append(match)
            return match or self.returncode is not None

        self._until(condition, timeout, f"output matching {pattern.pattern!r}")
        if not found:
            text = bytes(self.stdout + self.stderr).decode(errors="replace")
            raise LabError(f"{self.line.name}: {self.command} ended before {pattern.pattern!r} appeared:\n{text}")
        return found[0]

    def write(self, data, timeout=PATIENCE):
        if isinstance(data, str):
            data = data.encode()
        for at in range(0, len(data), CHUNK):
            piece = data[at : at + CHUNK]
            self._until(
                lambda: self.unconsumed < INPUT_IN_FLIGHT or self.returncode is not None, timeout, "its reading"
            )
            with self.changed:
                self.unconsumed += len(piece)
            self.line.send(self.channel, STDIN, piece)

    def close_stdin(self):
        self.line.send(self.channel, STDIN, b"")

    def kill(self, signal=signals.SIGKILL):
        """Sends a signal to the command and its children."""
        self.line.send(self.channel, SIGNAL, struct.pack("<I", signal))

    def resize(self, rows, columns):
        self.line.send(self.channel, WINDOW, struct.pack("<HH", rows, columns))

    def close(self):
        if self.returncode is None and not self.lost:
            self.line.send(self.channel, CLOSE, b"")


class Line:
    """The frames' way to one agent. `read(n)` returns bytes (none: the end), `write(bytes)` sends all."""

    def __init__(self, name, read, write, close):
        self.name = name
        self._read, self._write, self._close = read, write, close
        self.lock = threading.Lock()
        self.processes = {}
        self.next_channel = 1
        self.ready = threading.Event()
        self.lost = False
        threading.Thread(target=self._receive, name=f"agent-{name}", daemon=True).start()

    @classmethod
    def of_socket(cls, name, sock):
        def close():
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            sock.close()

        return cls(name, sock.recv, sock.sendall, close)

    @classmethod
    def of_process(cls, name, process):
        """Over the standard input and output of a command that is connected to an agent."""
        position = 0

        def read(size):
            nonlocal position
            with process.changed:
                while len(process.stdout) == position and process.returncode is None and not process.lost:
                    process.changed.wait(1)
                data = bytes(process.stdout[position : position + size])
                position += len(data)
                if position > 1 << 20:
                    del process.stdout[:position]
                    position = 0
                return data

        return cls(name, read, process.write, process.close)

    def _receive(self):
        pending = bytearray()
        try:
            while True:
                data = self._read(1 << 18)
                if not data:
                    break
                pending += data
                at = 0
                while len(pending) - at >= HEADER.size:
                    channel, kind, length = HEADER.unpack_from(pending, at)
                    if len(pending) - at < HEADER.size + length:
                        break
                    payload = bytes(pending[at + HEADER.size : at + HEADER.size + length])
                    at += HEADER.size + length
                    self._dispatch(channel, kind, payload)
                del pending[:at]
        except OSError:
            pass
        self.lost = True
        self.ready.set()
        for process in list(self.processes.values()):
            process._lose()

    def _dispatch(self, channel, kind, payload):
        if kind == HELLO:
            self.ready.set()
            return
        process = self.processes.get(channel)
        if process:
            if kind == EXIT:
                self.processes.pop(channel, None)
            process._take(kind, payload)

    def wait_ready(self, timeout):
        if not self.ready.wait(timeout):
            raise TimedOut(f"{self.name}: the agent did not answer within {timeout} s")
        if self.lost:
            raise LabError(f"{self.name}: the connection to the agent ended before it answered")

    def send(self, channel, kind, payload):
        try:
            with self.lock:
                self._write(HEADER.pack(channel, kind, len(payload)) + payload)
        except OSError:
            self.lost = True

    def spawn(self, command, pty=False, rows=24, columns=80, env=None, on_output=None):
        """Starts a command: a text for the shell, or a list of arguments."""
        argv = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
        with self.lock:
            channel = self.next_channel
            self.next_channel += 1
            shown = command if isinstance(command, str) else shlex.join(command)
            process = Process(self, channel, shown)
            process.on_output = on_output
            self.processes[channel] = process
        if self.lost:
            raise LabError(f"{self.name} is not running")
        strings = argv + [f"{k}={v}" for k, v in (env or {}).items()]
        payload = struct.pack("<HHHH", PTY if pty else 0, rows, columns, len(argv))
        payload += b"".join(s.encode() + b"\0" for s in strings)
        self.send(channel, SPAWN, payload)
        return process

    def run(self, command, check=True, timeout=PATIENCE, stdin=None, env=None):
        """Runs a command to its end. With check, an exit status other than 0 raises CommandFailed."""
        process = self.spawn(command, env=env)
        if stdin is not None:
            process.write(stdin, timeout)
        process.close_stdin()
        result = process.wait(timeout)
        if check and result.status != 0:
            raise CommandFailed(self.name, process.command, result)
        return result

    def put(self, content, path, mode=0o644, timeout=PATIENCE):
        """Writes bytes or text to a file in the machine, in whole or not at all."""
        quoted = shlex.quote(path)
        self.run(f"cat > {quoted}.part && chmod {mode:o} {quoted}.part && mv {quoted}.part {quoted}",
                 stdin=content, timeout=timeout)

    def get(self, path, timeout=PATIENCE):
        """A file's content, as bytes."""
        return self.run(["cat", path], timeout=timeout).stdout_bytes

    def close(self):
        self._close()


class Relay:
    """Serves a Line on a unix socket, so that other programs than the lab's own can run commands too."""

    def __init__(self, line, path):
        self.line = line
        self.server = socket.socket(socket.AF_UNIX)
        self.server.bind(path)
        self.server.listen(16)
        threading.Thread(target=self._accept, name=f"relay-{line.name}", daemon=True).start()

    def _accept(self):
        while True:
            try:
                client, _ = self.server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client):
        outgoing = queue.Queue()
        channels = {}

        def writer():
            while True:
                data = outgoing.get()
                if data is None:
                    break
                try:
                    client.sendall(data)
                except OSError:
                    break

        threading.Thread(target=writer, daemon=True).start()
        outgoing.put(HEADER.pack(0, HELLO, 0))
        pending = bytearray()
        try:
            while data := client.recv(1 << 16):
                pending += data
                while len(pending) >= HEADER.size:
                    channel, kind, length = HEADER.unpack_from(pending)
                    if len(pending) < HEADER.size + length:
                        break
                    payload = bytes(pending[HEADER.size : HEADER.size + length])
                    del pending[: HEADER.size + length]
                    self._forward(channels, outgoing, channel, kind, payload)
        except OSError:
            pass
        for far in channels.values():
            self.line.send(far, CLOSE, b"")
        outgoing.put(None)
        client.close()

    def _forward(self, channels, outgoing, near, kind, payload):
        line = self.line
        if kind == SPAWN:
            with line.lock:
                far = line.next_channel
                line.next_channel += 1
            channels[near] = far
            line.processes[far] = _Forwarder(near, outgoing, channels)
        if near in channels:
            line.send(channels[near], kind, payload)

    def close(self):
        self.server.close()


class _Forwarder:
    """Stands in a Line for a process of a Relay's client."""

    def __init__(self, near, outgoing, channels):
        self.near, self.outgoing, self.channels = near, outgoing, channels

    def _take(self, kind, payload):
        if kind == EXIT:
            self.channels.pop(self.near, None)
        self.outgoing.put(HEADER.pack(self.near, kind, len(payload)) + payload)

    def _lose(self):
        self.outgoing.put(None)
