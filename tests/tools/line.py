"""A line between two hosts that can be cut, or held up, before or within any record that goes over it."""

import concurrent.futures
import os
import select
import socket
import struct
import threading

HELLO_SIZE, RECORD_HEAD, TLS_HEAD = 64, 24, 5
TCP_CLOSE, TCP_CLOSE_WAIT = 7, 8  # Linux, include/net/tcp_states.h
PURPOSE_PAGES = 4  # of a data connection's HELLO
NAMES = ["", "CLOCK", "TIME", "OFFER", "ACCEPT", "REFUSED", "PAGES", "ROUND", "STATE", "END", "RECEIVED", "COMMIT", "RUNNING",
         "ABORT", "ALIVE", "ASK", "ANSWER", "QUERY", "REPLY", "PROBE", "JOIN", "SPREAD"]  # docs/relocation-protocol.md


def step_of(record):
    return f"{record[0]} {record[1]} {record[2]}"


class Parser:
    """One direction of one connection: where its records begin and end. TLS records have no other names."""

    def __init__(self):
        self.data, self.tls, self.counts = b"", None, {}

    def next(self):
        """(name, number of it, bytes) of the next whole record, or None."""
        if not self.counts and self.data[:8] == b"FERRYREL":
            return self.take("HELLO", HELLO_SIZE) if len(self.data) >= HELLO_SIZE else None
        if self.tls is None and len(self.data) >= 8:
            self.tls = self.data[0] == 22 and self.data[1] == 3  # RFC 8446, section 5.1; a record's type is smaller
        if self.tls is None:
            return None
        head = TLS_HEAD if self.tls else RECORD_HEAD
        if len(self.data) < head:
            return None
        if self.tls:
            name, length = "TLS", struct.unpack(">H", self.data[3:5])[0]
        else:
            number, _, _, length = struct.unpack("<IIQQ", self.data[:RECORD_HEAD])
            name = NAMES[number]
        return self.take(name, head + length) if len(self.data) >= head + length else None

    def take(self, name, size):
        record, self.data = self.data[:size], self.data[size:]
        self.counts[name] = self.counts.get(name, 0) + 1
        return name, self.counts[name], record


class Line:
    """Listens at `address`, on a port of its own where none is given, and passes on to where arm() says. `enter`, where given, takes
    a thread to where the sockets are to be, such as another network namespace. `at` is (direction, name, number), where the
    direction of data connection 2 is "→2" or "←2"; `how` what happens there:
    "before", "within", "held" (until release()), "swallowed" (nothing more comes through, and nobody is told)."""

    def __init__(self, address="127.0.0.1", port=0, enter=None):
        self.target = None
        self.place = concurrent.futures.ThreadPoolExecutor(1, initializer=enter)
        self.listener = self.place.submit(socket.create_server, (address, port)).result()
        self.port = self.listener.getsockname()[1]
        self.seen, self.at, self.how, self.connections = [], None, None, 0
        self.first = None  # who came first, which is who sends the guest
        self.reached, self.released = threading.Event(), threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def arm(self, at, how, port, address="127.0.0.1"):
        self.target, self.at, self.how, self.connections, self.seen = (address, port), at, how, 0, []
        self.reached.clear()
        self.released.clear()

    def release(self):
        self.released.set()

    def left(self):
        """Whether who sends the guest has said its last word, although that is not passed on yet."""
        try:
            state = self.first.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        except OSError:
            return True
        return state in (TCP_CLOSE, TCP_CLOSE_WAIT)

    def close(self):
        self.release()
        self.listener.shutdown(socket.SHUT_RDWR)  # which ends the accept()
        self.listener.close()
        self.place.shutdown(wait=False)

    def _accept(self):
        while True:
            try:
                source, _ = self.listener.accept()
            except OSError:
                return
            try:
                destination = self.place.submit(socket.create_connection, self.target).result()
            except OSError:
                source.close()
                continue
            self.connections += 1
            if self.connections == 1:
                self.first = source
            threading.Thread(target=self._pass, args=(source, destination, self.connections == 1), daemon=True).start()

    def _stream(self, source, first):
        """"" for the first connection, the number of a data connection, and None for a question, which nobody disturbs."""
        if first:
            return ""
        try:
            hello = source.recv(HELLO_SIZE, socket.MSG_PEEK | socket.MSG_WAITALL)
        except OSError:  # gone already, as whoever reads on sees
            return None
        if len(hello) < HELLO_SIZE or hello[:8] != b"FERRYREL":
            return None
        purpose, stream = struct.unpack("<HH", hello[16:20])
        return stream if purpose == PURPOSE_PAGES else None

    def _pass(self, source, destination, first):
        stream = self._stream(source, first)
        parsers = {source: (f"→{stream}", Parser(), destination), destination: (f"←{stream}", Parser(), source)}
        try:
            while parsers:
                for end in select.select(list(parsers), [], [])[0]:
                    direction, parser, other = parsers[end]
                    data = end.recv(1 << 20)
                    if not data:
                        other.shutdown(socket.SHUT_WR)
                        del parsers[end]
                    elif stream is None:
                        other.sendall(data)
                    else:
                        parser.data += data
                        self._records(direction, parser, other)
        except OSError:  # also where it was to be cut
            pass
        for end in (source, destination):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            end.close()

    def _records(self, direction, parser, other):
        while found := parser.next():
            name, number, record = found
            self.seen.append((direction, name, number))
            if self.at != (direction, name, number):
                other.sendall(record)
                continue
            self.reached.set()
            if self.how in ("held", "swallowed"):
                self.released.wait()
            if self.how == "within":
                other.sendall(record[: len(record) // 2])
            if self.how != "held":
                raise ConnectionAbortedError(os.strerror(0))
            other.sendall(record)
